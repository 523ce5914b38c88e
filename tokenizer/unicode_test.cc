#include "tokenizer/unicode.h"

#include <gtest/gtest.h>

#include "engine/base/random.h"

namespace quire {
namespace {

TEST(Utf8, EveryScalarValueIsReadBack) {
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    AppendUtf8(c, &text);
    ASSERT_TRUE(IsValidUtf8(text)) << c;
    const CodePoint read = DecodeCodePoint(text, 0);
    ASSERT_EQ(read.value, c);
    ASSERT_EQ(read.num_bytes, text.size());
    ASSERT_EQ(PreviousCodePoint(text, text.size()), 0u);
  }
}

// The examples of Unicode 15, section 3.9, tables 3-8 to 3-11.
TEST(Utf8, MaximalSubpartsAreReplaced) {
  const std::string r(kReplacementCharacter);
  const auto lossy = [](absl::string_view bytes) {
    std::string out;
    EXPECT_EQ(AppendLossyUtf8(bytes, true, &out), bytes.size());
    return out;
  };
  EXPECT_EQ(lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(lossy("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
}

TEST(Utf8, BytesInPiecesAreReadAsTheWhole) {
  SimulationRandom random(5);
  const unsigned char bytes[] = {0x41, 0x80, 0xBF, 0xC3, 0xE0, 0xA0, 0xE4,
                                 0xED, 0xF0, 0x9F, 0x90, 0xF4, 0x8F, 0xFF};
  for (int round = 0; round < 20000; ++round) {
    std::string whole_bytes, held, pieces, whole;
    for (uint64_t n = random.Below(12); n > 0; --n) {
      whole_bytes += static_cast<char>(bytes[random.Below(sizeof(bytes))]);
    }
    AppendLossyUtf8(whole_bytes, true, &whole);
    for (const char c : whole_bytes) {
      held += c;
      held.erase(0, AppendLossyUtf8(held, false, &pieces));
      ASSERT_LT(held.size(), 4u) << "only an incomplete character is held";
      ASSERT_TRUE(IsValidUtf8(pieces));
    }
    AppendLossyUtf8(held, true, &pieces);
    ASSERT_EQ(pieces, whole);
  }
}

TEST(UnicodeClass, OfWellKnownCharacters) {
  const uint16_t expression_bits = kClassLetter | kClassNumber | kClassSpace |
                                   kClassNewline | kClassMark | kClassUpperish |
                                   kClassLowerish | kClassPunctuation |
                                   kClassSymbol | kClassWord;
  const auto bits = [&](uint32_t c) { return ClassOf(c) & expression_bits; };
  EXPECT_EQ(bits('a'), kClassLetter | kClassLowerish | kClassWord);
  EXPECT_EQ(bits('A'), kClassLetter | kClassUpperish | kClassWord);
  EXPECT_EQ(bits('7'), kClassNumber | kClassWord);
  EXPECT_EQ(bits('_'), kClassPunctuation | kClassWord);
  EXPECT_EQ(bits('$'), kClassSymbol);
  EXPECT_EQ(bits('\n'), kClassSpace | kClassNewline);
  EXPECT_EQ(bits(0xA0), kClassSpace);
  EXPECT_EQ(bits(0xBD), kClassNumber);
  EXPECT_EQ(bits(0x301),
            kClassMark | kClassUpperish | kClassLowerish | kClassWord);
  EXPECT_EQ(bits(0x1C5), kClassLetter | kClassUpperish | kClassWord);
  EXPECT_EQ(bits(0x200B), 0);
  EXPECT_EQ(bits(0x1F600), kClassSymbol);
  EXPECT_EQ(bits(0x20000),
            kClassLetter | kClassUpperish | kClassLowerish | kClassWord);
}

TEST(UnicodeClass, OfTheLibrarysOwnTables) {
  const auto bits = [](uint32_t c) {
    return ClassOf(c) & (kClassNumeric | kClassSign | kClassNonspacingMark |
                         kClassAccent | kClassOther);
  };
  EXPECT_EQ(bits('$'), kClassSign);
  EXPECT_EQ(bits('7'), kClassNumeric);
  EXPECT_EQ(bits(0x301), kClassNonspacingMark | kClassAccent);
  EXPECT_EQ(bits(0x903), kClassAccent);  // A spacing mark.
  EXPECT_EQ(bits(0x200B), kClassOther);
  EXPECT_EQ(bits('\n'), 0);
  // Newer than the tables of the library's parts.
  EXPECT_EQ(bits(0x61D), 0);  // Punctuation of Unicode 14.
  EXPECT_EQ(bits(0x8CA), 0);  // A mark of Unicode 14.
  // Newer than utf8proc's.
  EXPECT_EQ(bits(0x11DE0), kClassNumeric);
  EXPECT_EQ(LowercaseOf(0x1C89), 0x1C8Au);
  EXPECT_EQ(LowercaseOf('A'), uint32_t{'a'});
}

}  // namespace
}  // namespace quire
