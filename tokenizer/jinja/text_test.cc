#include "tokenizer/jinja/text.h"

#include "gtest/gtest.h"

namespace quire::jinja {
namespace {

// Runs as "c:..." (control) and "u:..." with '|' between them.
std::string Runs(const Text& text) {
  std::string runs;
  text.ForEachRun([&](absl::string_view bytes, bool is_control) {
    if (!runs.empty()) runs += '|';
    runs += is_control ? "c:" : "u:";
    runs.append(bytes.data(), bytes.size());
  });
  return runs;
}

Text Mixed() {
  Text text("ab", true);
  text.Append("cd", false);
  text.Append("", true);
  text.Append("ef", false);
  text.Append("gh", true);
  return text;
}

TEST(TextTest, NeighboursOfOneKindMerge) {
  EXPECT_EQ(Runs(Mixed()), "c:ab|u:cdef|c:gh");
  EXPECT_EQ(Runs(Text()), "");
  Text first;
  first.Append("x", false);
  EXPECT_EQ(Runs(first), "u:x");
}

TEST(TextTest, EverySliceKeepsTheKinds) {
  const Text text = Mixed();
  for (size_t begin = 0; begin <= text.size(); ++begin) {
    for (size_t end = begin; end <= text.size(); ++end) {
      const Text slice = text.Slice(begin, end);
      EXPECT_EQ(slice.bytes(), text.bytes().substr(begin, end - begin));
      for (size_t i = begin; i < end; ++i) {
        EXPECT_EQ(slice.IsControlAt(i - begin), i < 2 || i >= 6);
      }
    }
  }
}

TEST(TextTest, AllControlMeansNoUserByte) {
  EXPECT_FALSE(Mixed().IsAllControl());
  EXPECT_TRUE(Mixed().Slice(0, 2).IsAllControl());
  EXPECT_FALSE(Mixed().Slice(1, 3).IsAllControl());
  EXPECT_TRUE(Text("", false).IsAllControl());
}

TEST(TextTest, CaseMappingKeepsTheKinds) {
  Text text("a", true);
  text.Append("ßé", false);
  text.Append("я", true);
  EXPECT_EQ(Runs(ToUpper(text)), "c:A|u:SSÉ|c:Я");
}

TEST(TextTest, BrokenUtf8IsOneCodePointForEachByte) {
  EXPECT_EQ(CountCodePoints("a\xFF\xC3"), 3);
  EXPECT_EQ(CountCodePoints("\xE6\x97\xA5\xE6\x97"), 3);
  EXPECT_EQ(StripBounds("\x80 ", nullptr, true, true),
            (std::pair<size_t, size_t>{0, 1}));
}

TEST(TextTest, StripTakesCodePoints) {
  const absl::string_view chars = "日x";
  EXPECT_EQ(StripBounds("日x本日", &chars, true, true),
            (std::pair<size_t, size_t>{4, 7}));
  EXPECT_EQ(StripBounds(" \xC2\xA0 ", nullptr, true, true).first, 4u);
}

}  // namespace
}  // namespace quire::jinja
