// Hand-written matchers of the split patterns of published tokenizers.
#ifndef QUIRE_TOKENIZER_PUBLISHED_PATTERNS_H_
#define QUIRE_TOKENIZER_PUBLISHED_PATTERNS_H_

#include <memory>

#include "absl/strings/string_view.h"
#include "tokenizer/split_pattern.h"

namespace quire {

// Null if `pattern` is none of them, compared by exact text.
std::unique_ptr<SplitPattern> FindPublishedPattern(absl::string_view pattern);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_PUBLISHED_PATTERNS_H_
