#include "server/embeddings_api.h"

#include <string>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/api_error.h"
#include "server/fake_tokenizer.h"
#include "server/json_text.h"

namespace quire {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kHiddenSize = 64;
constexpr int32_t kBos = FakeTokenizer::kBos;

absl::StatusOr<ApiRequest> Parse(absl::string_view text) {
  const auto body = ParseJson(text);
  if (!body.ok()) return body.status();
  return ParseEmbeddingsRequest(*body, kHiddenSize);
}

PromptLimits Limits(int max_model_len = 16) {
  return MakePromptLimits(FakeTokenizer(), max_model_len,
                          FakeTokenizer::kVocabSize);
}

absl::StatusOr<std::vector<std::vector<int32_t>>> Encode(
    absl::string_view text, int max_model_len = 16) {
  const auto request = Parse(text);
  if (!request.ok()) return request.status();
  return EncodeInputs(*request, FakeTokenizer(), Limits(max_model_len));
}

void ExpectParameterError(const absl::Status& status, const char* parameter,
                          const char* message = "") {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(ErrorBody(status),
              HasSubstr(absl::StrCat(R"("param":")", parameter, "\"")));
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

TEST(ParseEmbeddingsRequestTest, Defaults) {
  const auto request = Parse(R"({"input": "a"})");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->model, "");
  ASSERT_EQ(request->prompts.size(), 1u);
  EXPECT_EQ(std::get<std::string>(request->prompts[0]), "a");
  EXPECT_FALSE(request->is_base64);
  EXPECT_EQ(request->dimensions, 0);
  EXPECT_FALSE(request->normalize.has_value());
  EXPECT_TRUE(request->add_special_tokens);
  EXPECT_FALSE(request->truncate_prompt_tokens.has_value());
  EXPECT_TRUE(request->truncates_right);
  EXPECT_THAT(request->ignored_fields, IsEmpty());
}

TEST(ParseEmbeddingsRequestTest, EveryField) {
  const auto request = Parse(
      R"({"model": "m", "input": ["a", [1, 2]], "encoding_format": "base64",
          "dimensions": 64, "normalize": false, "add_special_tokens": false,
          "truncate_prompt_tokens": -1, "truncation_side": "left",
          "cache_salt": "s", "user": "u", "request_id": "r", "priority": -3,
          "embed_dtype": "float32", "endianness": "little", "nonsense": 1,
          "encoding": null})");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->model, "m");
  EXPECT_EQ(request->prompts.size(), 2u);
  EXPECT_TRUE(request->is_base64);
  EXPECT_EQ(request->dimensions, 64);
  EXPECT_EQ(request->normalize, false);
  EXPECT_FALSE(request->add_special_tokens);
  EXPECT_EQ(request->truncate_prompt_tokens, -1);
  EXPECT_FALSE(request->truncates_right);
  EXPECT_EQ(request->cache_salt, "s");
  EXPECT_EQ(request->request_id, "r");
  EXPECT_EQ(request->priority, -3);
  EXPECT_THAT(request->ignored_fields, ElementsAre("nonsense", "encoding"));
}

TEST(ParseEmbeddingsRequestTest, ErrorsNameTheParameter) {
  const auto expect = [](absl::string_view text, const char* parameter) {
    ExpectParameterError(Parse(text).status(), parameter);
  };
  expect("{}", "input");
  expect(R"({"input": null})", "input");
  expect(R"({"input": []})", "input");
  expect(R"({"input": 7})", "input");
  expect(R"({"input": {}})", "input");
  expect(R"({"input": ["a", 1]})", "input");
  expect(R"({"input": [1, "a"]})", "input");
  expect(R"({"input": [1, -1]})", "input");
  expect(R"({"input": [1, 1.5]})", "input");
  expect(R"({"input": [1, 3000000000]})", "input");
  expect(R"({"input": [[1], [true]]})", "input");
  expect(R"({"input": "a", "model": 7})", "model");
  for (const char* value : {"7", "\"bytes\"", "[]"}) {
    expect(absl::StrCat(R"({"input": "a", "encoding_format": )", value, "}"),
           "encoding_format");
  }
  for (const char* value :
       {"0", "65", "-1", "1.5", "\"8\"", "18446744073709551615"}) {
    expect(absl::StrCat(R"({"input": "a", "dimensions": )", value, "}"),
           "dimensions");
  }
  for (const char* value : {"0", "-2", "2147483648", "\"8\""}) {
    expect(absl::StrCat(R"({"input": "a", "truncate_prompt_tokens": )", value,
                        "}"),
           "truncate_prompt_tokens");
  }
  expect(R"({"input": "a", "truncation_side": "middle"})", "truncation_side");
  expect(R"({"input": "a", "normalize": 1})", "normalize");
  expect(R"({"input": "a", "add_special_tokens": "no"})", "add_special_tokens");
  expect(R"({"input": "a", "priority": "high"})", "priority");
  expect(R"({"input": "a", "user": 1})", "user");
  expect(R"({"input": "a", "request_id": "a b"})", "request_id");
  expect(R"({"input": "a", "cache_salt": ""})", "cache_salt");
  expect(R"({"input": "a", "embed_dtype": "float16"})", "embed_dtype");
  expect(R"({"input": "a", "messages": [{}]})", "messages");
  EXPECT_FALSE(Parse("[]").ok());
}

TEST(ParseEmbeddingsRequestTest, NumberOfInputsIsLimited) {
  const auto list = [](int count) {
    std::string text = R"({"input": [)";
    for (int i = 0; i < count; ++i) text += i == 0 ? "\"a\"" : ",\"a\"";
    return text + "]}";
  };
  EXPECT_TRUE(Parse(list(kMaxEmbeddingInputs)).ok());
  ExpectParameterError(Parse(list(kMaxEmbeddingInputs + 1)).status(), "input",
                       "at most 2048");
}

TEST(EncodeInputsTest, TextsGetSpecialTokensAndIdsDoNot) {
  const auto inputs = Encode(R"({"input": ["ab", [97], "</s>"]})");
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  EXPECT_THAT(*inputs, ElementsAre(ElementsAre(kBos, 'a', 'b'), ElementsAre(97),
                                   ElementsAre(kBos, FakeTokenizer::kEos)));
  EXPECT_THAT(*Encode(R"({"input": "ab", "add_special_tokens": false})"),
              ElementsAre(ElementsAre('a', 'b')));
}

TEST(EncodeInputsTest, LengthIsThatOfTheContext) {
  // 15 characters and the begin token.
  const std::string longest =
      absl::StrCat(R"({"input": ")", std::string(15, 'a'), "\"}");
  EXPECT_TRUE(Encode(longest, 16).ok());
  const absl::Status status = Encode(longest, 15).status();
  ExpectParameterError(status, "input", "16 tokens");
  EXPECT_THAT(ErrorBody(status), HasSubstr("context_length_exceeded"));
  ExpectParameterError(Encode(absl::StrCat(R"({"input": ["a", ")",
                                           std::string(100000, 'a'), "\"]}"))
                           .status(),
                       "input", "input[1] has 100000 bytes");
}

TEST(EncodeInputsTest, EmptyAndForeignInputsAreNamed) {
  ExpectParameterError(Encode(R"({"input": ""})").status(), "input",
                       "the input is empty");
  ExpectParameterError(Encode(R"({"input": ["a", ""]})").status(), "input",
                       "input[1] is empty");
  ExpectParameterError(Encode(R"({"input": ["a", []]})").status(), "input",
                       "input[1] is empty");
  ExpectParameterError(Encode(R"({"input": [[1], [271]]})").status(), "input",
                       "input[1] has token id 271");
}

TEST(EncodeInputsTest, TruncationKeepsSpecialTokens) {
  const auto truncated = [](const char* fields) {
    return *Encode(
        absl::StrCat(R"({"input": ["abcdef", [1, 2, 3, 4]], )", fields, "}"),
        5);
  };
  EXPECT_THAT(truncated(R"("truncate_prompt_tokens": 3)"),
              ElementsAre(ElementsAre(kBos, 'a', 'b'), ElementsAre(1, 2, 3)));
  EXPECT_THAT(
      truncated(R"("truncate_prompt_tokens": 3, "truncation_side": "left")"),
      ElementsAre(ElementsAre(kBos, 'e', 'f'), ElementsAre(2, 3, 4)));
  // -1, and what exceeds the context: as much as that takes.
  for (const char* count : {"-1", "100"}) {
    EXPECT_THAT(
        truncated(absl::StrCat(R"("truncate_prompt_tokens": )", count).c_str()),
        ElementsAre(ElementsAre(kBos, 'a', 'b', 'c', 'd'),
                    ElementsAre(1, 2, 3, 4)));
  }
  ExpectParameterError(
      Encode(R"({"input": "ab", "truncate_prompt_tokens": 1})").status(),
      "truncate_prompt_tokens", "special tokens");
}

}  // namespace
}  // namespace quire
