// CLI::Range without its holes.
#ifndef QUIRE_CLI_FINITE_RANGE_H_
#define QUIRE_CLI_FINITE_RANGE_H_

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdlib>
#include <string>

#include "absl/strings/numbers.h"
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

// The error of a parser with CLI::Range, which calls what is no number a number
// out of range: "--port: Value abc not in range 1 to 65535" becomes "--port:
// 'abc' is not a number"; of whole numbers, which "1.5" is none of, "is not a
// whole number". Any other error as it is.
inline std::string RangeErrorText(const std::string& error) {
  const std::string before = "Value ", after = " not in range ";
  const size_t begin = error.find(before);
  const size_t end = error.rfind(after);
  if (begin == std::string::npos || end == std::string::npos || end < begin) {
    return error;
  }
  const std::string value =
      error.substr(begin + before.size(), end - begin - before.size());
  // std::to_string writes the fraction of every limit that may have one.
  const bool is_whole = error.find('.', end) == std::string::npos;
  const size_t sign = !value.empty() && value[0] == '-' ? 1 : 0;
  double number = 0;
  const bool is_right =
      is_whole
          ? value.size() > sign &&
                value.find_first_not_of("0123456789", sign) == std::string::npos
          : absl::SimpleAtod(value, &number);
  if (is_right) return error;
  return absl::StrCat(error.substr(0, begin), "'", value, "' is not a ",
                      is_whole ? "whole " : "", "number");
}

}  // namespace quire

#endif  // QUIRE_CLI_FINITE_RANGE_H_
