#include "server/json_text.h"

#include <cmath>
#include <limits>
#include <string>

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(ParseJsonTest, KeepsOrderAndTakesTheLastDuplicate) {
  const auto value = ParseJson(R"({"b":1,"a":2,"b":3})");
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(DumpJson(*value), R"({"b":3,"a":2})");
}

TEST(ParseJsonTest, RejectsWhatIsNotJson) {
  for (const char* text :
       {"", "{", "[1,]", "{\"a\":1}x", "nul", "1e400", "\"\xff\"", "'a'",
        "\"\\ud800\"", "[1", "{\"a\"}", "NaN", "\x00"}) {
    EXPECT_FALSE(ParseJson(text).ok()) << text;
  }
}

TEST(ParseJsonTest, LimitsDepthAndSize) {
  EXPECT_TRUE(ParseJson(std::string(64, '[') + std::string(64, ']')).ok());
  EXPECT_FALSE(ParseJson(std::string(65, '[') + std::string(65, ']')).ok());
  EXPECT_FALSE(ParseJson(std::string(1000000, '[')).ok());
  std::string many = "[0";
  for (int i = 0; i < 100000; ++i) many += ",0";
  EXPECT_FALSE(ParseJson(many + "]").ok());
}

// Each new key is compared to those before it.
TEST(ParseJsonTest, LimitsTheKeysOfAnObject) {
  const auto object = [](int num_keys) {
    std::string text = "{\"k\":[{}]";
    for (int i = 1; i < num_keys; ++i) {
      text += ",\"k" + std::to_string(i) + "\":{\"k\":{}}";
    }
    return text + "}";
  };
  EXPECT_TRUE(ParseJson(object(1024)).ok());
  const auto many = ParseJson(object(1025));
  ASSERT_FALSE(many.ok());
  EXPECT_NE(many.status().message().find("1024 keys"), std::string::npos);
}

TEST(AppendJsonStringTest, EscapesAndRepairs) {
  std::string out;
  AppendJsonString("a\"\\\n\x01\x7f\xc3\xa9\xff\xf0\x9f\x98\x80\xe2\x82", &out);
  EXPECT_EQ(out,
            "\"a\\\"\\\\\\n\\u0001\\u007f\xc3\xa9\xef\xbf\xbd\xf0\x9f\x98\x80"
            "\xef\xbf\xbd\xef\xbf\xbd\"");
  EXPECT_TRUE(ParseJson(out).ok());
}

TEST(AppendJsonNumberTest, IsAlwaysJson) {
  std::string out;
  AppendJsonNumber(-0.5, &out);
  out += ",";
  AppendJsonNumber(0, &out);
  out += ",";
  AppendJsonNumber(-std::numeric_limits<double>::infinity(), &out);
  EXPECT_EQ(out, "-0.5,0.0,-9999.0");
}

TEST(IsValidUtf8Test, FollowsTheStandard) {
  EXPECT_TRUE(IsValidUtf8("a\xc3\xa9\xf0\x9f\x98\x80"));
  for (const char* text : {"\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                           "\xe2\x82", "\x80", "\xc1\xbf"}) {
    EXPECT_FALSE(IsValidUtf8(text));
  }
}

}  // namespace
}  // namespace quire
