// UTF-8 and the Unicode classes that split patterns are written in.
#ifndef QUIRE_TOKENIZER_UNICODE_H_
#define QUIRE_TOKENIZER_UNICODE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace quire {

// A code point and the bytes it took.
struct CodePoint {
  uint32_t value;
  uint32_t num_bytes;
};

// Requires: text[pos] starts a character of valid UTF-8.
inline CodePoint DecodeCodePoint(absl::string_view text, size_t pos) {
  const auto byte = [&](size_t i) {
    return static_cast<uint32_t>(static_cast<unsigned char>(text[pos + i]));
  };
  const uint32_t b0 = byte(0);
  if (b0 < 0x80) return {b0, 1};
  if (b0 < 0xE0) return {(b0 & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (b0 < 0xF0) {
    return {(b0 & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  }
  return {(b0 & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 |
              (byte(3) & 0x3F),
          4};
}

// Start of the character that ends before `pos`. Requires: pos > 0, valid
// UTF-8.
inline size_t PreviousCodePoint(absl::string_view text, size_t pos) {
  do {
    --pos;
  } while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80);
  return pos;
}

// Requires: `code_point` is a Unicode scalar value.
void AppendUtf8(uint32_t code_point, std::string* out);

// Length of the longest valid prefix.
size_t ValidUtf8Prefix(absl::string_view text);
inline bool IsValidUtf8(absl::string_view text) {
  return ValidUtf8Prefix(text) == text.size();
}

// What stands at the front of `bytes`, which does not start a valid character.
struct BrokenUtf8 {
  size_t num_bytes;     // Length of the maximal subpart (Unicode 15, 3.9).
  bool could_continue;  // `bytes` ends inside what may become a character.
};
// Requires: !bytes.empty() and ValidUtf8Prefix(bytes) == 0.
BrokenUtf8 ClassifyBrokenUtf8(absl::string_view bytes);

// Appends `bytes` with one U+FFFD for each maximal subpart of an ill-formed
// sequence (Unicode 15, 3.9, "U+FFFD Substitution of Maximal Subparts").
// With `is_end` false, an incomplete character at the end is left out.
// Returns the number of bytes taken.
size_t AppendLossyUtf8(absl::string_view bytes, bool is_end, std::string* out);

inline constexpr absl::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Classes of a code point; a set of bits.
enum UnicodeClass : uint16_t {
  kClassLetter = 1 << 0,       // \p{L}
  kClassNumber = 1 << 1,       // \p{N}
  kClassSpace = 1 << 2,        // \s: White_Space
  kClassNewline = 1 << 3,      // \r or \n
  kClassMark = 1 << 4,         // \p{M}
  kClassUpperish = 1 << 5,     // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]
  kClassLowerish = 1 << 6,     // [\p{Ll}\p{Lm}\p{Lo}\p{M}]
  kClassPunctuation = 1 << 7,  // \p{P}
  kClassSymbol = 1 << 8,       // \p{S}
  kClassWord = 1 << 9,         // \w: Alphabetic, M, Nd, Pc, Join_Control
  // As normalizers and pre-tokenizers of the `tokenizers` library see them;
  // its parts are not of one Unicode version.
  kClassNumeric = 1 << 10,         // Digits
  kClassSign = 1 << 11,            // Punctuation: \p{P} and ASCII symbols
  kClassNonspacingMark = 1 << 12,  // BertNormalizer's accents
  kClassAccent = 1 << 13,          // StripAccents
  kClassOther = 1 << 14,           // BertNormalizer's control characters
};

// Class bits of all code points of the basic plane, made on first use.
const uint16_t* BasicPlaneClasses();
uint16_t ComputeUnicodeClass(uint32_t code_point);

// The lower case of one character, except U+0130, whose lower case is two.
uint32_t LowercaseOf(uint32_t code_point);

inline uint16_t ClassOf(const uint16_t* basic_plane, uint32_t code_point) {
  return code_point < 0x10000 ? basic_plane[code_point]
                              : ComputeUnicodeClass(code_point);
}
inline uint16_t ClassOf(uint32_t code_point) {
  return ClassOf(BasicPlaneClasses(), code_point);
}

}  // namespace quire

#endif  // QUIRE_TOKENIZER_UNICODE_H_
