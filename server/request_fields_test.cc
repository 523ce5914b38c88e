// Every row of the table, whatever it says.
#include "server/request_fields.h"

#include <cmath>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/api_error.h"
#include "server/json_text.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;
using enum FieldType;

constexpr FieldScope kScopes[] = {kOfChat, kOfCompletion, kOfEmbeddings,
                                  kOfTokenize, kOfDetokenize};

// The least that a request of one kind has.
Json Base(FieldScope scope) {
  switch (scope) {
    case kOfChat:
      return {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
    case kOfEmbeddings:
      return {{"input", "hi"}};
    case kOfDetokenize:
      return {{"tokens", {1}}};
    default:
      return {{"prompt", "hi"}};
  }
}

absl::StatusOr<ApiRequest> Parse(FieldScope scope, const Json& body) {
  switch (scope) {
    case kOfChat:
      return ParseApiRequest(ApiKind::kChat, body, {});
    case kOfEmbeddings:
      return ParseEmbeddingsRequest(body, /*hidden_size=*/64);
    case kOfDetokenize:
      return ParseDetokenizeRequest(body);
    default:
      return ParseApiRequest(ApiKind::kCompletion, body, {},
                             /*is_tokenize=*/scope == kOfTokenize);
  }
}

// Without what fields need of each other.
absl::StatusOr<ApiRequest> Read(FieldScope scope, const Json& body) {
  ApiRequest request;
  const FieldScope also = scope == kOfTokenize ? kOfCompletion : FieldScope{0};
  const absl::Status status = ReadRequestFields(scope | also, body, &request);
  if (!status.ok()) return status;
  return request;
}

Json With(Json body, const RequestField& field, const Json& value) {
  body[field.name] = value;
  return body;
}

std::vector<Json> WrongTypes(FieldType type) {
  switch (type) {
    case kBool:
      return {1, 0.5, "true", Json::array(), Json::object()};
    case kInt:
      return {1.5, 1.0, "1", true, Json::array(), Json::object()};
    case kNumber:
      return {"1", true, Json::array(), Json::object()};
    case kString:
      return {1, true, Json::array(), Json::object()};
    case kWord:
      return {1, true, "", "nothing", Json::array(), Json::object()};
    case kStringOrList:
      return {1, true, Json::object(), Json::array({1}), Json::array({"a", 1})};
    case kStringList:
      return {1, "a", Json::object(), Json::array({1}), Json::array({"a", 1})};
    case kIdList:
      return {1,
              "1",
              Json::object(),
              Json::array({-1}),
              Json::array({1.5}),
              Json::array({"1"}),
              Json::array({true}),
              Json::array({int64_t{1} << 31}),
              Json::array({~uint64_t{0}})};
    case kPrompt:
      return {1,
              true,
              Json::object(),
              Json::array({Json::object()}),
              Json::array({1, "a"}),
              Json::array({"a", 1}),
              Json::array({-1}),
              Json::array({int64_t{1} << 31}),
              Json::array({Json::array({"a"})})};
    case kList:
      return {1, "a", Json::object()};
    case kObject:
      return {1, "a", Json::array()};
    case kAny:
      break;
  }
  return {};
}

// `size` elements, or bytes.
Json OfSize(FieldType type, size_t size) {
  if (type == kString) return std::string(size, 'a');
  if (type == kIdList) return std::vector<int32_t>(size, 1);
  if (type == kObject) {
    // By the parser: the tree itself searches all its keys for each new one.
    std::string text = "{";
    for (size_t i = 0; i < size; ++i) {
      absl::StrAppend(&text, i == 0 ? "" : ",", "\"", i, "\":1");
    }
    const int max_keys = static_cast<int>(size);
    return *ParseJson(text + "}",
                      {.max_nodes = max_keys + 1, .max_keys = max_keys});
  }
  Json value = Json::array();
  for (size_t i = 0; i < size; ++i) value.push_back("a");
  return value;
}

bool IsSized(FieldType type) {
  return type == kString || type == kStringOrList || type == kStringList ||
         type == kIdList || type == kPrompt || type == kList || type == kObject;
}

// Of the type, and outside the range by as little as possible.
std::vector<Json> OutOfRange(const RequestField& field) {
  const FieldRange& range = field.range;
  std::vector<Json> values;
  if (field.type == kInt) {
    if (std::isfinite(range.min)) values.push_back(int64_t(range.min) - 1);
    if (std::isfinite(range.max)) values.push_back(int64_t(range.max) + 1);
    values.push_back(uint64_t{1} << 63);  // No field has so many bits.
    if (std::isfinite(range.max)) values.push_back((int64_t{1} << 32) + 1);
    if (!std::isnan(range.excluded)) values.push_back(int64_t(range.excluded));
  } else if (field.type == kNumber) {
    const auto beyond = [](double bound, double sign) {
      return std::nextafter(bound, sign * HUGE_VAL);
    };
    if (std::isfinite(range.min)) {
      values.push_back(beyond(range.min, -1));
      values.push_back(-1e300);
    }
    if (std::isfinite(range.max)) {
      values.push_back(beyond(range.max, 1));
      values.push_back(1e300);
    }
    if (!std::isnan(range.excluded)) values.push_back(range.excluded);
  } else if (IsSized(field.type)) {
    if (range.min > 0) values.push_back(OfSize(field.type, range.min - 1));
    if (std::isfinite(range.max)) {
      values.push_back(OfSize(field.type, range.max + 1));
    }
    constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
    if (range.max_item_size < kNoLimit && field.type == kPrompt) {
      const Json ids = std::vector<int32_t>(range.max_item_size + 1, 1);
      values.push_back(ids);
      values.push_back(Json::array({"a", ids}));
    } else if (range.max_item_size < kNoLimit) {
      values.push_back(Json::array({""}));
      values.push_back(
          Json::array({"a", std::string(range.max_item_size + 1, 'a')}));
    }
    if (field.type == kStringOrList) {
      values.push_back("");
      values.push_back(std::string(range.max_item_size + 1, 'a'));
    }
  }
  return values;
}

// At both ends of the range.
std::vector<Json> Bounds(const RequestField& field) {
  const FieldRange& range = field.range;
  std::vector<Json> values;
  for (const double bound : {range.min, range.max}) {
    if (!std::isfinite(bound) || bound == range.excluded) continue;
    if (field.type == kInt) values.push_back(int64_t(bound));
    if (field.type == kNumber) values.push_back(bound);
    if (IsSized(field.type)) values.push_back(OfSize(field.type, bound));
  }
  if (field.type == kWord) {
    for (const absl::string_view word : absl::StrSplit(range.words, '|')) {
      values.push_back(std::string(word));
    }
  }
  return values;
}

std::string ParameterOf(const absl::Status& status) {
  const Json body = *ParseJson(ErrorBody(status));
  const Json& parameter = body["error"]["param"];
  return parameter.is_string() ? parameter.get<std::string>() : "";
}

std::string Short(const Json& value) { return DumpJson(value).substr(0, 100); }

void ExpectRefused(FieldScope scope, const RequestField& field,
                   const Json& value) {
  const auto parsed = Parse(scope, With(Base(scope), field, value));
  ASSERT_FALSE(parsed.ok()) << field.name << " = " << Short(value);
  EXPECT_EQ(HttpStatus(parsed.status()), 400) << field.name;
  EXPECT_EQ(ParameterOf(parsed.status()), field.name) << Short(value);
  EXPECT_TRUE(absl::StrContains(parsed.status().message(),
                                absl::StrCat("'", field.name, "'")))
      << parsed.status();
}

template <typename Visit>
void ForEachRow(Visit visit) {
  for (const RequestField& field : RequestFields()) {
    for (const FieldScope scope : kScopes) {
      if ((field.scope & scope) == 0) continue;
      SCOPED_TRACE(absl::StrCat(field.name, " of ", scope));
      visit(scope, field);
    }
  }
}

TEST(RequestFieldsTest, RowsAreWhole) {
  std::set<std::pair<std::string, FieldScope>> names;
  ForEachRow([&](FieldScope scope, const RequestField& field) {
    EXPECT_TRUE(names.emplace(field.name, scope).second) << "twice";
    EXPECT_EQ(field.set != nullptr, field.treatment == FieldTreatment::kUsed);
    EXPECT_EQ(field.range.words != nullptr, field.type == kWord);
    EXPECT_TRUE(std::isnan(field.range.excluded) ||
                field.range.error != nullptr);
    EXPECT_TRUE(field.by_default == nullptr ||
                ParseJson(field.by_default).ok());
    // Unions of kinds that share their fields do not have a name twice either.
    if (scope == kOfTokenize) {
      EXPECT_FALSE(names.contains({field.name, kOfChat}));
      EXPECT_FALSE(names.contains({field.name, kOfCompletion}));
    }
  });
}

TEST(RequestFieldsTest, WrongTypesAreRefused) {
  ForEachRow([](FieldScope scope, const RequestField& field) {
    for (const Json& value : WrongTypes(field.type)) {
      ExpectRefused(scope, field, value);
    }
  });
}

TEST(RequestFieldsTest, ValuesBelowAndAboveTheRangeAreRefused) {
  ForEachRow([](FieldScope scope, const RequestField& field) {
    for (const Json& value : OutOfRange(field)) {
      ExpectRefused(scope, field, value);
    }
  });
}

TEST(RequestFieldsTest, BothEndsOfTheRangeAreAccepted) {
  ForEachRow([](FieldScope, const RequestField& field) {
    for (const Json& value : Bounds(field)) {
      EXPECT_TRUE(CheckFieldValue(field, value).ok()) << Short(value);
    }
  });
}

TEST(RequestFieldsTest, NullIsAbsent) {
  ForEachRow([](FieldScope scope, const RequestField& field) {
    const auto parsed = Parse(scope, With(Base(scope), field, nullptr));
    if (field.by_default == nullptr) {
      ASSERT_FALSE(parsed.ok());
      EXPECT_EQ(parsed.status().message(),
                absl::StrCat("'", field.name, "' is missing"));
      EXPECT_EQ(ParameterOf(parsed.status()), field.name);
      return;
    }
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, *Parse(scope, Base(scope)));
  });
}

TEST(RequestFieldsTest, TheDefaultIsWhatHoldsWithoutTheField) {
  ForEachRow([](FieldScope scope, const RequestField& field) {
    if (field.by_default == nullptr) return;
    const auto parsed =
        Parse(scope, With(Base(scope), field, *ParseJson(field.by_default)));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, *Parse(scope, Base(scope)));
  });
}

// No row is there for nothing.
TEST(RequestFieldsTest, WhatIsUsedChangesTheRequest) {
  const std::string exempt = "response_format";  // Has one value.
  ForEachRow([&](FieldScope scope, const RequestField& field) {
    if (field.treatment != FieldTreatment::kUsed || field.name == exempt) {
      return;
    }
    std::vector<Json> values = {
        true,
        false,
        1,
        3,
        0.5,
        "x",
        Json::array({5}),
        Json::array({"x"}),
        Json::object({{"include_usage", true}}),
        Json::object({{"7", 1}}),
        Json::array({{{"role", "system"}, {"content", "x"}}})};
    for (const Json& bound : Bounds(field)) values.push_back(bound);
    const ApiRequest without = *Read(scope, Base(scope));
    int num_changes = 0;
    for (const Json& value : values) {
      const auto with = Read(scope, With(Base(scope), field, value));
      if (with.ok()) num_changes += !(*with == without);
    }
    EXPECT_GT(num_changes, 0);
  });
}

TEST(RequestFieldsTest, WhatIsNotBuiltIsRefusedByName) {
  ForEachRow([](FieldScope scope, const RequestField& field) {
    if (field.treatment != FieldTreatment::kNotBuilt) return;
    int num_refused = 0;
    for (const Json& value :
         {Json(true), Json(3), Json("x"), Json::array({"x"})}) {
      const auto parsed = Read(scope, With(Base(scope), field, value));
      EXPECT_FALSE(parsed.ok()) << Short(value);
      num_refused += absl::StrContains(ErrorBody(parsed.status()),
                                       "unsupported_parameter");
    }
    EXPECT_GT(num_refused, 0);
    if (field.neutral != nullptr) {
      EXPECT_TRUE(
          Read(scope, With(Base(scope), field, *ParseJson(field.neutral)))
              .ok());
    }
  });
}

TEST(RequestFieldsTest, TheSameNameOfAnotherKindIsUnknown) {
  ForEachRow([](FieldScope, const RequestField& field) {
    for (const FieldScope scope : kScopes) {
      FieldScope scopes = scope;
      if (scope == kOfTokenize) scopes |= kOfCompletion;
      bool is_known = false;
      for (const RequestField& other : RequestFields()) {
        is_known |= (other.scope & scopes) != 0 &&
                    std::string(other.name) == field.name;
      }
      if (is_known) continue;
      const auto parsed = Parse(scope, With(Base(scope), field, "x"));
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      EXPECT_EQ(parsed->ignored_fields,
                std::vector<std::string>{std::string(field.name)});
    }
  });
}

TEST(RequestFieldsTest, DimensionsAreThoseOfTheModel) {
  EXPECT_TRUE(
      ParseEmbeddingsRequest({{"input", "a"}, {"dimensions", 64}}, 64).ok());
  const auto parsed =
      ParseEmbeddingsRequest({{"input", "a"}, {"dimensions", 65}}, 64);
  EXPECT_EQ(ParameterOf(parsed.status()), "dimensions");
}

}  // namespace
}  // namespace quire
