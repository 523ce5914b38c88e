// What each planted bug is called, and what has to notice it.
#ifndef QUIRE_TESTS_ENGINE_SIMULATION_PLANTED_BUGS_H_
#define QUIRE_TESTS_ENGINE_SIMULATION_PLANTED_BUGS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/base/planted_bug.h"

namespace quire {

struct PlantedBugInfo {
  PlantedBug bug = PlantedBug::kNone;
  const char* name = "";
  // How the first failure of a simulation with this bug begins: its kind, and
  // more where the kind alone would fit another bug as well. Several where it
  // depends on the history which consequence shows first.
  std::vector<absl::string_view> symptoms;
};

// Every one, in the order of the enumeration.
const std::vector<PlantedBugInfo>& AllPlantedBugs();

}  // namespace quire

#endif  // QUIRE_TESTS_ENGINE_SIMULATION_PLANTED_BUGS_H_
