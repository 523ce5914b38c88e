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

TEST(ParseJsonTest, TellsANumberOutOfRangeFromBadSyntax) {
  EXPECT_EQ(ParseJson(R"({"temperature":1e999})").status().message(),
            "the body is not valid JSON: a number is out of range near byte "
            "20");
}

TEST(ParseJsonTest, LimitsDepthAndSize) {
  EXPECT_TRUE(ParseJson(std::string(64, '[') + std::string(64, ']')).ok());
  EXPECT_FALSE(ParseJson(std::string(65, '[') + std::string(65, ']')).ok());
  EXPECT_FALSE(ParseJson(std::string(1000000, '[')).ok());
  std::string strings = "[\"\"";
  for (int i = 2; i < 100000; ++i) strings += ",\"\"";
  EXPECT_TRUE(ParseJson(strings + "]").ok());
  const auto many = ParseJson(strings + ",\"\"]");
  ASSERT_FALSE(many.ok());
  EXPECT_EQ(many.status().message(),
            "the body exceeds a limit: more than 100000 strings, lists and "
            "objects");
  EXPECT_FALSE(many.status().GetPayload(kParameterPayload).has_value());
}

// 2,048 inputs of 500 ids are a body like another.
TEST(ParseJsonTest, NumbersAreBoundedByTheTextAlone) {
  std::string ids = "[7";
  for (int i = 1; i < 500; ++i) ids += ",7";
  std::string text = "{\"input\":[" + ids + "]";
  for (int i = 1; i < 2048; ++i) text += "," + ids + "]";
  const auto value = ParseJson(text + "]}");
  ASSERT_TRUE(value.ok()) << value.status();
  ASSERT_EQ((*value)["input"].size(), 2048u);
  EXPECT_EQ((*value)["input"][2047].size(), 500u);
  EXPECT_EQ((*value)["input"][2047][499], 7);
}

TEST(ParseJsonTest, NamesTheMemberThatExceedsALimit) {
  const auto deep = ParseJson("{\"a\":1,\"b\":[{\"c\":" + std::string(64, '[') +
                              std::string(64, ']') + "}]}");
  ASSERT_FALSE(deep.ok());
  EXPECT_EQ(deep.status().message(),
            "the body exceeds a limit: values nested deeper than 64 levels");
  EXPECT_EQ(deep.status().GetPayload(kParameterPayload), absl::Cord("b"));
  // Only limits have one: an error of syntax has a byte.
  const auto broken = ParseJson("{\"a\":x");
  EXPECT_EQ(broken.status().message(),
            "the body is not valid JSON: syntax error near byte 6");
  EXPECT_FALSE(broken.status().GetPayload(kParameterPayload).has_value());
}

// Copies of what nlohmann's own parser makes of it.
TEST(ParseJsonTest, BuildsWhatTheLibraryBuilds) {
  for (const char* text :
       {"null", "true", "-3", "18446744073709551615", "1.5e3", "\"\\u00e9\"",
        "[]", "{}", "[[],[{}],{\"a\":[1,{\"b\":null}]}]",
        R"({"a":{"x":[1,2],"y":{"z":"w"}},"b":[{"c":1},{"c":[2]}],"d":false})",
        R"({"a":{"x":1},"a":{"y":[{"y":1,"y":2}]},"":{"":0}})"}) {
    const auto value = ParseJson(text);
    ASSERT_TRUE(value.ok()) << text;
    EXPECT_EQ(value->dump(), nlohmann::ordered_json::parse(text).dump());
  }
}

TEST(ParseJsonTest, OneMemberMayHaveManyKeys) {
  const auto object = [](const std::string& name, int num_keys) {
    std::string text = "{\"" + name + "\":{\"0\":0";
    for (int i = 1; i < num_keys; ++i)
      text += ",\"" + std::to_string(i) + "\":1";
    return text + "}}";
  };
  const JsonLimits limits = {.wide_member = "wide"};
  const auto wide = ParseJson(object("wide", 65536), limits);
  ASSERT_TRUE(wide.ok()) << wide.status();
  EXPECT_EQ((*wide)["wide"].size(), 65536u);
  for (const auto& text : {object("wide", 65537), object("other", 1025),
                           "{\"a\":" + object("wide", 1025) + "}"}) {
    EXPECT_FALSE(ParseJson(text, limits).ok());
  }
  const auto many = ParseJson(object("wide", 65537), limits);
  EXPECT_EQ(many.status().message(),
            "the body exceeds a limit: an object with more than 65536 keys");
  EXPECT_EQ(many.status().GetPayload(kParameterPayload), absl::Cord("wide"));
}

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
  // Of the outermost object no member is to blame.
  EXPECT_FALSE(many.status().GetPayload(kParameterPayload).has_value());
}

TEST(ParseJsonTest, LimitsPlainValues) {
  const JsonLimits limits = {.max_plain_values = 3};
  EXPECT_TRUE(ParseJson("{\"a\":[1,true,null]}", limits).ok());
  for (const char* fourth : {"2", "-1.5", "false", "null"}) {
    const auto many =
        ParseJson(std::string("{\"a\":[1,true,null,") + fourth + "]}", limits);
    EXPECT_EQ(many.status().message(),
              "the body exceeds a limit: more than 3 numbers, booleans and "
              "nulls");
    EXPECT_EQ(many.status().GetPayload(kParameterPayload), absl::Cord("a"));
  }
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
