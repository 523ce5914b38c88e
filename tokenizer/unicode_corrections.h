// Where the Unicode of the `tokenizers` library is not that of utf8proc.
// The library is built from parts of different ages: punctuation and marks are
// those of Unicode 8, normal forms of 12, regular expressions of 16 and 17;
// utf8proc 2.8 has 15. Found by asking the library about every code point
// (tools/goldens/make_unicode_corrections.py).
#ifndef QUIRE_TOKENIZER_UNICODE_CORRECTIONS_H_
#define QUIRE_TOKENIZER_UNICODE_CORRECTIONS_H_

#include <cstdint>

#include "absl/types/span.h"

namespace quire {

// Ranges include both ends, and ascend.
struct CodePointRange {
  uint32_t first;
  uint32_t last;
};
struct ClassCorrection {
  uint32_t first;
  uint32_t last;
  uint16_t flipped;  // Bits of UnicodeClass.
};
struct LowercaseCorrection {
  uint32_t first;
  uint32_t last;
  int32_t offset;  // To the lower case.
};

absl::Span<const ClassCorrection> ClassCorrections();
absl::Span<const LowercaseCorrection> LowercaseCorrections();
// Characters that the library's normal forms leave alone, as unassigned ones.
// The second list is only for NFKC and NFKD, beside the first.
absl::Span<const CodePointRange> OpaqueToCanonicalForms();
absl::Span<const CodePointRange> OpaqueToCompatibilityForms();
// Characters that continue a grapheme cluster beyond those of utf8proc.
absl::Span<const CodePointRange> GraphemeExtenders();

// The element of `ranges` that holds `code_point`, or null.
template <typename Range>
const Range* FindRange(absl::Span<const Range> ranges, uint32_t code_point) {
  size_t low = 0;
  size_t high = ranges.size();
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (ranges[middle].last < code_point) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == ranges.size() || ranges[low].first > code_point) return nullptr;
  return &ranges[low];
}

}  // namespace quire

#endif  // QUIRE_TOKENIZER_UNICODE_CORRECTIONS_H_
