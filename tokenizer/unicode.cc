#include "tokenizer/unicode.h"

#include <utf8proc.h>

#include <cstring>
#include <vector>

#include "tokenizer/unicode_corrections.h"

namespace quire {
namespace {

// Bytes of the valid character at `bytes`, or 0. The ranges are those of
// Unicode 15, table 3-7.
size_t ValidCharacterLength(const unsigned char* bytes, size_t size) {
  const unsigned char b0 = bytes[0];
  if (b0 < 0x80) return 1;
  const auto is_tail = [](unsigned char b) { return (b & 0xC0) == 0x80; };
  if (b0 < 0xC2) return 0;
  if (b0 < 0xE0) return size >= 2 && is_tail(bytes[1]) ? 2 : 0;
  if (b0 < 0xF0) {
    if (size < 3 || !is_tail(bytes[1]) || !is_tail(bytes[2])) return 0;
    if (b0 == 0xE0 && bytes[1] < 0xA0) return 0;
    if (b0 == 0xED && bytes[1] > 0x9F) return 0;
    return 3;
  }
  if (b0 > 0xF4 || size < 4) return 0;
  if (!is_tail(bytes[1]) || !is_tail(bytes[2]) || !is_tail(bytes[3])) return 0;
  if (b0 == 0xF0 && bytes[1] < 0x90) return 0;
  if (b0 == 0xF4 && bytes[1] > 0x8F) return 0;
  return 4;
}

uint16_t LetterBits(utf8proc_category_t category) {
  switch (category) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT:
      return kClassLetter | kClassUpperish | kClassWord;
    case UTF8PROC_CATEGORY_LL:
      return kClassLetter | kClassLowerish | kClassWord;
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return kClassLetter | kClassUpperish | kClassLowerish | kClassWord;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
      return kClassMark | kClassUpperish | kClassLowerish | kClassWord;
    default:
      return 0;
  }
}

uint16_t OtherBits(utf8proc_category_t category) {
  switch (category) {
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
      return kClassNumber | kClassWord;
    case UTF8PROC_CATEGORY_NO:
      return kClassNumber;
    case UTF8PROC_CATEGORY_PC:
      return kClassPunctuation | kClassWord;
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
      return kClassPunctuation;
    case UTF8PROC_CATEGORY_SM:
    case UTF8PROC_CATEGORY_SC:
    case UTF8PROC_CATEGORY_SK:
    case UTF8PROC_CATEGORY_SO:
      return kClassSymbol;
    default:
      return 0;
  }
}

uint16_t LibraryBits(utf8proc_category_t category, uint32_t c) {
  const uint16_t general = LetterBits(category) | OtherBits(category);
  uint16_t bits = 0;
  if (general & kClassNumber) bits |= kClassNumeric;
  if (general & kClassPunctuation) bits |= kClassSign;
  if (c < 0x80 && (general & kClassSymbol)) bits |= kClassSign;
  if (general & kClassMark) bits |= kClassAccent;
  switch (category) {
    case UTF8PROC_CATEGORY_MN:
      return bits | kClassNonspacingMark;
    case UTF8PROC_CATEGORY_CC:
      return c == '\t' || c == '\n' || c == '\r' ? bits : bits | kClassOther;
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CO:
      return bits | kClassOther;
    default:
      return bits;
  }
}

bool IsWhiteSpace(uint32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// Alphabetic symbols (Other_Alphabetic outside M: circled and squared letters)
// and Join_Control.
bool IsWordSymbol(uint32_t c) {
  return (c >= 0x24B6 && c <= 0x24E9) || c == 0x200C || c == 0x200D ||
         (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
         (c >= 0x1F170 && c <= 0x1F189);
}

}  // namespace

void AppendUtf8(uint32_t c, std::string* out) {
  const auto push = [out](uint32_t byte) {
    out->push_back(static_cast<char>(byte));
  };
  if (c < 0x80) {
    push(c);
  } else if (c < 0x800) {
    push(0xC0 | c >> 6);
    push(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    push(0xE0 | c >> 12);
    push(0x80 | (c >> 6 & 0x3F));
    push(0x80 | (c & 0x3F));
  } else {
    push(0xF0 | c >> 18);
    push(0x80 | (c >> 12 & 0x3F));
    push(0x80 | (c >> 6 & 0x3F));
    push(0x80 | (c & 0x3F));
  }
}

size_t ValidUtf8Prefix(absl::string_view text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  const size_t size = text.size();
  size_t i = 0;
  while (i < size) {
    // Eight ASCII bytes at a time.
    while (i + 8 <= size) {
      uint64_t word;
      std::memcpy(&word, bytes + i, 8);
      if (word & 0x8080808080808080) break;
      i += 8;
    }
    if (i >= size) break;
    const size_t length = ValidCharacterLength(bytes + i, size - i);
    if (length == 0) return i;
    i += length;
  }
  return size;
}

BrokenUtf8 ClassifyBrokenUtf8(absl::string_view bytes) {
  const auto byte = [&](size_t i) {
    return static_cast<unsigned char>(bytes[i]);
  };
  const unsigned char b0 = byte(0);
  if (b0 < 0xC2 || b0 > 0xF4) return {1, false};
  const size_t needed = b0 < 0xE0 ? 2 : b0 < 0xF0 ? 3 : 4;
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
  if (b0 == 0xE0) low = 0xA0;
  if (b0 == 0xED) high = 0x9F;
  if (b0 == 0xF0) low = 0x90;
  if (b0 == 0xF4) high = 0x8F;
  size_t i = 1;
  for (; i < needed && i < bytes.size(); ++i) {
    if (byte(i) < low || byte(i) > high) return {i, false};
    low = 0x80;
    high = 0xBF;
  }
  return {i, i < needed};
}

size_t AppendLossyUtf8(absl::string_view bytes, bool is_end, std::string* out) {
  size_t taken = 0;
  while (taken < bytes.size()) {
    const size_t valid = ValidUtf8Prefix(bytes.substr(taken));
    out->append(bytes.data() + taken, valid);
    taken += valid;
    if (taken == bytes.size()) break;
    const BrokenUtf8 broken = ClassifyBrokenUtf8(bytes.substr(taken));
    if (broken.could_continue && !is_end) break;
    out->append(kReplacementCharacter.data(), kReplacementCharacter.size());
    taken += broken.num_bytes;
  }
  return taken;
}

uint16_t ComputeUnicodeClass(uint32_t c) {
  const utf8proc_category_t category =
      utf8proc_category(static_cast<utf8proc_int32_t>(c));
  uint16_t bits = LetterBits(category) | OtherBits(category);
  if (IsWhiteSpace(c)) bits |= kClassSpace;
  if (c == '\r' || c == '\n') bits |= kClassNewline;
  if (IsWordSymbol(c)) bits |= kClassWord;
  bits |= LibraryBits(category, c);
  if (const ClassCorrection* correction = FindRange(ClassCorrections(), c)) {
    bits ^= correction->flipped;
  }
  return bits;
}

uint32_t LowercaseOf(uint32_t c) {
  if (const LowercaseCorrection* found = FindRange(LowercaseCorrections(), c)) {
    return c + found->offset;
  }
  return utf8proc_tolower(static_cast<utf8proc_int32_t>(c));
}

const uint16_t* BasicPlaneClasses() {
  static const std::vector<uint16_t>* const table = [] {
    auto* classes = new std::vector<uint16_t>(0x10000);
    for (uint32_t c = 0; c < 0x10000; ++c) {
      (*classes)[c] = ComputeUnicodeClass(c);
    }
    return classes;
  }();
  return table->data();
}

}  // namespace quire
