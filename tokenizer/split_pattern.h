// Where a pre-tokenizer's pattern matches in a text.
#ifndef QUIRE_TOKENIZER_SPLIT_PATTERN_H_
#define QUIRE_TOKENIZER_SPLIT_PATTERN_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quire {

// A piece of a text; pieces cover it in order.
struct MatchSpan {
  uint32_t begin;
  uint32_t end;
  bool is_match;
};

// Immutable and thread-safe.
class SplitPattern {
 public:
  virtual ~SplitPattern() = default;
  // Appends pieces that cover `text`. Requires: `text` is valid UTF-8, not
  // empty and below 4 GiB. RESOURCE_EXHAUSTED if a general expression exceeds
  // its match limit.
  virtual absl::Status Match(absl::string_view text,
                             std::vector<MatchSpan>* spans) const = 0;
};

// The patterns of published tokenizers (GPT-2, cl100k and Llama 3, Qwen2,
// o200k, DeepSeek-V3) are recognized by their exact text and matched by
// hand-written linear-time code. Any other expression is compiled by PCRE2 with
// the meaning that Oniguruma's Ruby syntax gives it; INVALID_ARGUMENT if it
// does not compile or uses something on which the two differ: \b, nested or
// intersected character classes, \W in a class, (?m).
absl::StatusOr<std::unique_ptr<SplitPattern>> CompileRegexPattern(
    absl::string_view pattern);

// True if `pattern` is matched by hand-written code; for tests and benchmarks.
bool IsPublishedPattern(absl::string_view pattern);

// The same expression by PCRE2 even if it is a published one; for tests.
absl::StatusOr<std::unique_ptr<SplitPattern>> CompileWithPcre2(
    absl::string_view pattern);

// Matches the literal text; an empty one matches nowhere.
std::unique_ptr<SplitPattern> LiteralPattern(absl::string_view literal);

// Each single character for which (class & mask) != 0 matches.
std::unique_ptr<SplitPattern> ClassPattern(uint16_t mask);

// Every `length` characters are a match, the last one maybe fewer.
// Requires: length > 0.
std::unique_ptr<SplitPattern> FixedLengthPattern(int length);

// Runs of one script are no matches; what comes before the first run (spaces)
// is one.
std::unique_ptr<SplitPattern> ScriptPattern();

// \w+|[^\w\s]+
std::unique_ptr<SplitPattern> WordPattern();

// The split of GPT-2's byte-level pre-tokenizer.
std::unique_ptr<SplitPattern> Gpt2Pattern();

}  // namespace quire

#endif  // QUIRE_TOKENIZER_SPLIT_PATTERN_H_
