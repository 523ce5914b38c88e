// CLI::Range for numbers with a fraction, without its hole.
#ifndef QUIRE_CLI_FINITE_RANGE_H_
#define QUIRE_CLI_FINITE_RANGE_H_

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"

namespace quire {

// Takes `min` to `max`, and is described as CLI::Range is. That takes "nan",
// too, which no comparison puts outside.
inline CLI::Validator FiniteRange(double min, double max) {
  const CLI::Range range(min, max);
  return CLI::Validator(
      [range](std::string& text) {
        return std::isnan(std::strtod(text.c_str(), nullptr))
                   ? absl::StrCat("Value ", text, " is not a number")
                   : range(text);
      },
      range.get_description());
}

}  // namespace quire

#endif  // QUIRE_CLI_FINITE_RANGE_H_
