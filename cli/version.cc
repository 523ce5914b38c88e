#include "cli/version.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model/model_config.h"
#include "kernels/backend_factory.h"
#include "kernels/cpu/isa.h"

namespace quire {

std::string DescribeVersion() {
  std::vector<std::string> isas;
  for (const Isa isa : SupportedIsas()) isas.push_back(IsaName(isa));
  const absl::StatusOr<Isa> selected = SelectIsa();
  return absl::StrCat(
      "quire ", kVersion, "\n", "backends: ", SupportedBackends(), "\n",
      "instruction sets: ", absl::StrJoin(isas, ", "), " (in use: ",
      selected.ok() ? IsaName(*selected) : selected.status().ToString(), ")\n",
      "model types: ", absl::StrJoin(SupportedModelTypes(), ", "), "\n");
}

}  // namespace quire
