// The segments of a prompt as one valid text.
#ifndef QUIRE_TOKENIZER_SEGMENTED_TEXT_H_
#define QUIRE_TOKENIZER_SEGMENTED_TEXT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/tokenizer.h"

namespace quire {

struct SegmentRange {
  TextRange range;  // Segments cover the text in order.
  bool parse_special_tokens;
};

struct SegmentedText {
  std::string text;  // Valid UTF-8; U+FFFD for what was not.
  std::vector<SegmentRange> segments;

  // The ranges that may hold special tokens.
  std::vector<TextRange> ParsedRanges() const;
  // The segment of each byte of text[begin, end).
  TextOrigin Origin(TextRange range) const;
};

// The concatenation of `segments`. Bytes are decoded across borders; a border
// within a character goes after it. INVALID_ARGUMENT above kMaxTextBytes.
absl::StatusOr<SegmentedText> JoinSegments(
    absl::Span<const EncodeSegment> segments);

// The ranges of `text` whose bytes all come from one and the same segment with
// parse_special_tokens.
std::vector<TextRange> ParsedRangesOf(
    const TextOrigin& origin, const std::vector<SegmentRange>& segments);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_SEGMENTED_TEXT_H_
