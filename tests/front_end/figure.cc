#include "tests/front_end/figure.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "tests/front_end/sanitized.h"

namespace quire {

bool IsKept(const Figure& figure) {
  switch (figure.bound) {
    case Bound::kAtMost:
      return figure.value <= figure.target;
    case Bound::kAtLeast:
      return figure.value >= figure.target;
    case Bound::kExactly:
      return figure.value == figure.target;
  }
  return false;
}

bool DependsOnTheMachine(const Figure& figure) {
  return figure.is_timing || (kIsSanitized && figure.unit == "MiB");
}

std::string Describe(const Figure& figure) {
  const char* const relation = figure.bound == Bound::kAtMost    ? "<="
                               : figure.bound == Bound::kAtLeast ? ">="
                                                                 : "=";
  return absl::StrFormat(
      "| %-58s | %10.6g %-5s | %-2s %8.6g | %s |", figure.name, figure.value,
      figure.unit, relation, figure.target,
      IsKept(figure)                                ? "kept"
      : kIsSanitized && DependsOnTheMachine(figure) ? "-"
                                                    : "BROKEN");
}

double Percentile(std::vector<double> values, double fraction) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t i = static_cast<size_t>(fraction * values.size());
  return values[std::min(i, values.size() - 1)];
}

}  // namespace quire
