#include "engine/base/percent_encoding.h"

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(PercentEncodingTest, DecodesWhatIsEncoded) {
  EXPECT_EQ(PercentDecoded(""), "");
  EXPECT_EQ(PercentDecoded("a/b"), "a/b");
  EXPECT_EQ(PercentDecoded("org%2Fname%2fb"), "org/name/b");
  EXPECT_EQ(PercentDecoded("%41%c3%A9%"), "A\xc3\xa9%");
  EXPECT_EQ(PercentDecoded("%00"), std::string(1, '\0'));
  // Once only.
  EXPECT_EQ(PercentDecoded("%2541"), "%41");
}

TEST(PercentEncodingTest, LeavesTheRest) {
  for (const char* text : {"%", "%4", "%g1", "%1g", "a%%b", "+", "%-1"}) {
    EXPECT_EQ(PercentDecoded(text), text);
  }
}

}  // namespace
}  // namespace quire
