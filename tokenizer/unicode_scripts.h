// Scripts as the UnicodeScripts pre-tokenizer of `tokenizers` tells them apart.
// It puts Hiragana and Katakana with Han, and the space with everything.
#ifndef QUIRE_TOKENIZER_UNICODE_SCRIPTS_H_
#define QUIRE_TOKENIZER_UNICODE_SCRIPTS_H_

#include <algorithm>
#include <cstdint>

#include "absl/types/span.h"

namespace quire {

// Where each class begins, ascending: code point << 8 | class. Classes have no
// names; 0 goes with any other.
absl::Span<const uint32_t> ScriptBegins();

inline uint32_t ScriptClassOf(uint32_t code_point) {
  const absl::Span<const uint32_t> begins = ScriptBegins();
  const auto next =
      std::upper_bound(begins.begin(), begins.end(), code_point << 8 | 0xFF);
  return next == begins.begin() ? 0 : *(next - 1) & 0xFF;
}

}  // namespace quire

#endif  // QUIRE_TOKENIZER_UNICODE_SCRIPTS_H_
