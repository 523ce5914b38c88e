#include "engine/model/json_fields.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

std::string Message(const absl::Status& status) {
  return std::string(status.message());
}

TEST(JsonFieldsTest, Values) {
  const json object = json::parse(R"({"i": 3, "f": 2.0, "n": 0.5, "b": true,
      "s": "x", "l": [1, 2], "o": {}, "null": null})");
  JsonFields fields(object, "c.json");
  EXPECT_EQ(*fields.Int("i", 0, 5), 3);
  EXPECT_EQ(*fields.Int("f", 0, 5), 2);  // An integer written as a float.
  EXPECT_EQ(*fields.Number("n", 0, 1), 0.5);
  EXPECT_EQ(*fields.Number("i", 0, 5), 3.0);
  EXPECT_EQ(*fields.Bool("b"), true);
  EXPECT_EQ(*fields.String("s"), "x");
  EXPECT_THAT(*fields.Ints("l", 0, 5), ElementsAre(1, 2));
  EXPECT_THAT(*fields.Ints("i", 0, 5), ElementsAre(3));
  EXPECT_NE(*fields.Object("o"), nullptr);
  EXPECT_EQ(*fields.Object("absent"), nullptr);
  EXPECT_EQ(*fields.Int("null", 0, 5), std::nullopt);
  EXPECT_EQ(*fields.Int("absent", 0, 5), std::nullopt);
  EXPECT_TRUE(fields.IsNull("null"));
  EXPECT_FALSE(fields.IsNull("absent"));
  EXPECT_FALSE(fields.Has("null"));
}

TEST(JsonFieldsTest, ErrorsNameFileFieldAndValue) {
  const json object = json::parse(R"({"i": 9, "big": 18446744073709551615,
      "half": 0.5, "s": "text", "l": [1, "x"], "huge": 1e300})");
  JsonFields fields(object, "c.json", "rope.");
  EXPECT_THAT(Message(fields.Int("i", 0, 5).status()),
              testing::AllOf(HasSubstr("c.json"), HasSubstr("\"rope.i\""),
                             HasSubstr("[0, 5]"), HasSubstr("9")));
  EXPECT_FALSE(fields.Int("big", 0, INT64_MAX).ok());
  EXPECT_FALSE(fields.Int("half", 0, 5).ok());
  EXPECT_FALSE(fields.Int("huge", 0, 5).ok());
  EXPECT_FALSE(fields.Int("s", 0, 5).ok());
  EXPECT_FALSE(fields.Number("s", 0, 5).ok());
  EXPECT_FALSE(fields.Number("huge", 0, 5).ok());
  EXPECT_FALSE(fields.Bool("i").ok());
  EXPECT_FALSE(fields.String("i").ok());
  EXPECT_FALSE(fields.Object("l").ok());
  EXPECT_FALSE(fields.Ints("l", 0, 5).ok());
  EXPECT_FALSE(fields.Strings("l").ok());
  EXPECT_THAT(Message(fields.RequiredInt("gone", 0, 5).status()),
              HasSubstr("\"rope.gone\": missing"));
}

TEST(JsonFieldsTest, RequireOff) {
  const json object = json::parse(R"({"a": null, "b": false, "c": 0, "d": {},
      "e": [], "f": true, "g": 2, "h": {"x": 1}, "i": "on"})");
  JsonFields fields(object, "c.json");
  for (const char* name : {"a", "b", "c", "d", "e", "absent"}) {
    EXPECT_TRUE(fields.RequireOff(name).ok()) << name;
  }
  for (const char* name : {"f", "g", "h", "i"}) {
    EXPECT_THAT(Message(fields.RequireOff(name)), HasSubstr(name));
  }
}

TEST(JsonFieldsTest, Unread) {
  const json object = json::parse(R"({"a": 1, "b": 2, "c": null})");
  JsonFields fields(object, "c.json");
  ASSERT_TRUE(fields.Int("a", 0, 5).ok());
  EXPECT_THAT(fields.Unread(), ElementsAre("b", "c"));
}

// Values from a hostile file stay short and printable in messages.
TEST(JsonFieldsTest, LongValuesAreCut) {
  const json object = {{"s", std::string(100000, 'x')}};
  JsonFields fields(object, "c.json");
  EXPECT_LT(fields.Int("s", 0, 5).status().message().size(), 200u);
}

}  // namespace
}  // namespace quire
