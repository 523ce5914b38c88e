// The "pattern" field of several components of tokenizer.json.
#ifndef QUIRE_TOKENIZER_PATTERN_CONFIG_H_
#define QUIRE_TOKENIZER_PATTERN_CONFIG_H_

#include <memory>

#include "absl/status/statusor.h"
#include "tokenizer/json_component.h"
#include "tokenizer/split_pattern.h"

namespace quire {

// {"String": literal} or {"Regex": expression} in the field "pattern".
absl::StatusOr<std::unique_ptr<SplitPattern>> ReadPattern(
    const JsonComponent& component);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_PATTERN_CONFIG_H_
