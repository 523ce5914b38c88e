// A measured figure beside its target.
#ifndef QUIRE_TESTS_FRONT_END_FIGURE_H_
#define QUIRE_TESTS_FRONT_END_FIGURE_H_

#include <string>
#include <vector>

namespace quire {

enum class Bound : char { kAtMost, kAtLeast, kExactly };

struct Figure {
  std::string name;
  double value = 0;
  std::string unit;
  Bound bound = Bound::kExactly;
  double target = 0;
  // Depends on the machine's speed: printed and held by tools/soak.sh only.
  bool is_timing = false;
};

// A value that is no number is a broken promise.
bool IsKept(const Figure& figure);
// Not a count: of time, or of memory under a sanitizer, which takes its own.
bool DependsOnTheMachine(const Figure& figure);
std::string Describe(const Figure& figure);

// Of sorted or unsorted values; 0 of none.
double Percentile(std::vector<double> values, double fraction);

}  // namespace quire

#endif  // QUIRE_TESTS_FRONT_END_FIGURE_H_
