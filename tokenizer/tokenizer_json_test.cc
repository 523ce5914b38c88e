#include "tokenizer/tokenizer_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tokenizer/golden_strings.h"

namespace quire {
namespace {

using nlohmann::json;

json Valid() {
  return json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 4, "content": "<s>", "single_word": false,
                      "lstrip": false, "rstrip": false, "normalized": false,
                      "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [4],
                                 "tokens": ["<s>"]}}},
    "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "dropout": null, "unk_token": null,
              "vocab": {"a": 0, "b": 1, "ab": 2, "<0x41>": 3},
              "merges": ["a b"]}})");
}

absl::StatusOr<std::unique_ptr<PipelineTokenizer>> Parse(
    const std::string& text) {
  return ParseTokenizerJson(text, TokenizerConfig());
}

TEST(TokenizerJson, ReadsAMinimalFile) {
  for (const json& merges :
       {json({"a b"}), json::array({json::array({"a", "b"})}),
        json({"#version: 0.2", "a b"})}) {
    json file = Valid();
    file["model"]["merges"] = merges;
    const auto tokenizer = Parse(file.dump());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const auto ids = (*tokenizer)->Encode("ab a<s>", {true, true});
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(*ids, std::vector<int32_t>({4, 2, 0, 4}));
    EXPECT_EQ((*tokenizer)->Decode(*ids, true), "aba");
    EXPECT_EQ((*tokenizer)->vocab_size(), 5);
  }
}

TEST(TokenizerJson, EscapesInStringsAreRead) {
  std::string text = Valid().dump();
  const std::string from = "\"ab\":2";
  text.replace(text.find(from), from.size(), "\"\\u0061\\u0062\":2");
  const auto tokenizer = Parse(text);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->TokenToId("ab"), 2);
}

// Each breaks one thing; the message must name the field.
TEST(TokenizerJson, ErrorsNameTheField) {
  struct Case {
    const char* pointer;
    json value;
    const char* named;
  };
  const Case cases[] = {
      {"/version", "2.0", "version"},
      {"/surprise", 1, "surprise"},
      {"/model/type", "Unigram", "model.vocab"},
      {"/model/type", "WordPiece", "model.merges"},
      {"/model/type", "Odd", "\"Odd\""},
      {"/model/vocab", json::array({json::array({"a", 1.0})}), "model.vocab"},
      {"/model/dropout", 0.1, "model.dropout"},
      {"/model/byte_fallback", "yes", "model.byte_fallback"},
      {"/model/surprise", 1, "model.surprise"},
      {"/model/vocab", json({{"a", 0}, {"b", 0}}), "model.vocab"},
      {"/model/vocab", json({{"a", -1}}), "model.vocab"},
      {"/model/vocab", json({{"a", 10'000'001}}), "model.vocab"},
      {"/model/vocab", json({{"a", 1.5}}), "model.vocab"},
      {"/model/merges", json({"a  b"}), "model.merges"},
      {"/model/merges", json({"ab"}), "model.merges"},
      {"/model/merges", json({{"a", "b", "a"}}), "model.merges"},
      {"/model/merges", json({"a c"}), "model.merges[0]"},
      {"/added_tokens/0/id", -1, "added_tokens[0].id"},
      {"/added_tokens/0/id", 1e9, "added_tokens[0].id"},
      {"/added_tokens/0/content", nullptr, "added_tokens[0].content"},
      {"/added_tokens/0/content", std::string(1025, 's'),
       "added_tokens[0].content"},
      {"/added_tokens/0/surprise", 1, "added_tokens[0].surprise"},
      {"/added_tokens", 7, "added_tokens"},
      {"/normalizer", json({{"type", "BertNormalizer"}}),
       "normalizer.clean_text"},
      {"/normalizer",
       json({{"type", "Precompiled"}, {"precompiled_charsmap", "*"}}),
       "normalizer.precompiled_charsmap"},
      {"/normalizer",
       json({{"type", "Precompiled"}, {"precompiled_charsmap", "AAAA"}}),
       "normalizer.precompiled_charsmap"},
      {"/normalizer", json({{"type", "Odd"}}), "normalizer.type"},
      {"/normalizer", json::parse(R"({"type": "Sequence", "normalizers":
          [{"type": "NFC"}, {"type": "NFC", "form": 1}]})"),
       "normalizer.normalizers[1].form"},
      {"/normalizer", json::parse(R"({"type": "Replace", "content": "",
          "pattern": {"Regex": "("}})"),
       "normalizer.pattern.Regex"},
      {"/pre_tokenizer", json({{"type", "Odd"}}), "pre_tokenizer.type"},
      {"/pre_tokenizer", json({{"type", "FixedLength"}, {"length", 0}}),
       "pre_tokenizer.length"},
      {"/pre_tokenizer",
       json({{"type", "CharDelimiterSplit"}, {"delimiter", "ab"}}),
       "pre_tokenizer.delimiter"},
      {"/pre_tokenizer", json::parse(R"({"type": "Split", "invert": false,
          "behavior": "Odd", "pattern": {"String": "a"}})"),
       "pre_tokenizer.behavior"},
      {"/pre_tokenizer", json::parse(R"({"type": "Metaspace",
          "replacement": "__"})"),
       "pre_tokenizer.replacement"},
      {"/post_processor/special_tokens", json::object(),
       "post_processor.special_tokens"},
      {"/post_processor/single/1/Sequence/id", "B", "post_processor.single[1]"},
      {"/post_processor/type", "Odd", "post_processor.type"},
      {"/decoder/type", "Odd", "decoder.type"},
      {"/decoder/type", "CTC", "decoder.pad_token"},
      {"/decoder",
       json({{"type", "Strip"}, {"content", " "}, {"start", -1}, {"stop", 0}}),
       "decoder.start"},
  };
  for (const Case& broken : cases) {
    json file = Valid();
    file[json::json_pointer(broken.pointer)] = broken.value;
    const auto tokenizer = Parse(file.dump());
    ASSERT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument)
        << broken.pointer << " = " << broken.value;
    EXPECT_NE(tokenizer.status().message().find(broken.named),
              absl::string_view::npos)
        << tokenizer.status();
  }
}

// The same for the other types of models, each a file of its own.
TEST(TokenizerJson, ErrorsInOtherModelsNameTheField) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"type": "Unigram", "vocab": [["a", -1.0], ["a", -2.0]]})",
       "model.vocab"},
      {R"({"type": "Unigram", "vocab": [["a", -1.0, 3]]})", "model.vocab"},
      {R"({"type": "Unigram", "vocab": [["a", "b"]]})", "model.vocab"},
      {R"({"type": "Unigram", "vocab": [["a", 1e999]]})", "model.vocab"},
      {R"({"type": "Unigram", "vocab": [["a", -1]], "unk_id": 1})",
       "model.unk_id"},
      {R"({"type": "Unigram", "vocab": [["a", -1]], "odd": 1})", "model.odd"},
      {R"({"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a",
           "continuing_subword_prefix": "##"})",
       "model.max_input_chars_per_word"},
      {R"({"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a",
           "max_input_chars_per_word": 9})",
       "model.continuing_subword_prefix"},
      {R"({"type": "WordLevel", "vocab": {"a": 0}})", "model.unk_token"},
      {R"({"vocab": {"a": 0}, "unk_token": "a", "odd": 1})", "model.odd"},
  };
  for (const auto& [model, named] : cases) {
    const auto tokenizer =
        Parse(absl::StrCat(R"({"version": "1.0", "model": )", model, "}"));
    ASSERT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument)
        << model;
    EXPECT_NE(tokenizer.status().message().find(named), absl::string_view::npos)
        << tokenizer.status();
  }
}

TEST(TokenizerJson, TokensLongerThanTheTrieTakesAreRefused) {
  const auto tokenizer =
      Parse(absl::StrCat(R"({"model": {"type": "Unigram", "vocab": [[")",
                         std::string(1025, 'a'), R"(", 0]]}})"));
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(tokenizer.status().message().find("model.vocab"),
            absl::string_view::npos);
}

// What the library does with models that cannot spell a word, and with files
// of old versions that do not name the model's type.
TEST(TokenizerJson, ModelsWithoutAnUnknownTokenFailOnlyWhenTheyNeedIt) {
  for (const char* model :
       {R"({"vocab": [["a", -1.0], ["ab", -1.5]]})",
        R"({"vocab": {"a": 0, "ab": 1}, "unk_token": "?",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100})",
        R"({"vocab": {"a": 0, "ab": 1}, "unk_token": "?"})"}) {
    const auto tokenizer =
        Parse(absl::StrCat(R"({"version": "1.0", "model": )", model, "}"));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const auto known = (*tokenizer)->Encode("ab", {true, true});
    ASSERT_TRUE(known.ok()) << known.status();
    EXPECT_EQ(*known, std::vector<int32_t>({1})) << model;
    EXPECT_EQ((*tokenizer)->Encode("xy", {true, true}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << model;
  }
}

TEST(TokenizerJson, MissingFieldsAreNamed) {
  for (const char* pointer :
       {"/model", "/model/vocab", "/model/merges", "/pre_tokenizer/type",
        "/post_processor/single", "/added_tokens/0/special"}) {
    const json::json_pointer where(pointer);
    json file = Valid();
    file[where.parent_pointer()].erase(where.back());
    const auto tokenizer = Parse(file.dump());
    ASSERT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument)
        << pointer;
    EXPECT_NE(tokenizer.status().message().find(where.back()),
              absl::string_view::npos)
        << tokenizer.status();
  }
}

TEST(TokenizerJson, RefusesWhatIsNoJson) {
  const std::string valid = Valid().dump();
  ASSERT_TRUE(Parse(valid).ok());
  for (size_t size = 0; size < valid.size(); ++size) {
    EXPECT_FALSE(Parse(valid.substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(Parse(valid + "x").ok());
  EXPECT_FALSE(Parse(valid + std::string(1, '\0')).ok());
  std::string not_utf8 = valid;
  not_utf8.insert(valid.find("\"ab\"") + 1, "\xFF");
  EXPECT_NE(Parse(not_utf8).status().message().find("UTF-8"),
            absl::string_view::npos);
}

TEST(TokenizerJson, NestingHasALimit) {
  json deep = {{"type", "NFC"}};
  for (int i = 0; i < 20; ++i) {
    deep = {{"type", "Sequence"}, {"normalizers", json::array({deep})}};
  }
  json file = Valid();
  file["normalizer"] = deep;
  EXPECT_EQ(Parse(file.dump()).status().code(),
            absl::StatusCode::kInvalidArgument);
  for (const char* open : {"[", "{\"a\":"}) {
    std::string text = "{\"padding\":";
    for (int i = 0; i < 100000; ++i) text += open;
    EXPECT_EQ(Parse(text).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(TokenizerJson, RepeatedFieldsAreErrors) {
  std::string text = Valid().dump();
  text.insert(1, "\"model\":{},");
  EXPECT_FALSE(Parse(text).ok());
  text = Valid().dump();
  const std::string from = "\"a\":0";
  text.replace(text.find(from), from.size(), "\"a\":0,\"a\":9");
  EXPECT_NE(Parse(text).status().message().find("model.vocab"),
            absl::string_view::npos);
}

TEST(TokenizerJson, BosAndEosOfTheConfigurationReplaceThePostProcessor) {
  TokenizerConfig config;
  config.special_tokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
  config.add_bos_token = false;
  config.add_eos_token = true;
  const auto tokenizer = ParseTokenizerJson(Valid().dump(), config);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->bos_token_id(), 4);
  EXPECT_EQ((*tokenizer)->eos_token_id(), 5);
  EXPECT_TRUE((*tokenizer)->IsSpecial(5));
  EXPECT_EQ(*(*tokenizer)->Encode("ab", {}), std::vector<int32_t>({2, 5}));
}

// A normalized token is sought in the normalized text, in segments that may
// hold it only.
TEST(TokenizerJson, NormalizedTokensAreFoundInTheirSegmentsOnly) {
  json file = Valid();
  file["normalizer"] = {{"type", "Lowercase"}};
  file["added_tokens"][0]["normalized"] = true;
  file["added_tokens"][0]["content"] = "<S>";
  const auto tokenizer = Parse(file.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const EncodeSegment segments[] = {
      {"<s>a", false}, {"<S>A", true}, {"<", true}, {"s>", true}};
  const auto ids = (*tokenizer)->EncodeSegments(segments, false);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(*ids, std::vector<int32_t>({0, 4, 0}));
}

// 10^12 bytes for each letter.
TEST(TokenizerJson, ANormalizerThatPutsMuchForEachLetterIsStopped) {
  const json much = {{"type", "Replace"},
                     {"pattern", {{"String", "a"}}},
                     {"content", std::string(10'000, 'a')}};
  json file = Valid();
  file["normalizer"] = {{"type", "Sequence"},
                        {"normalizers", json::array({much, much, much})}};
  const auto tokenizer = Parse(file.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("a", {}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

// Each takes all the white space beside it, which is looked at once.
TEST(TokenizerJson, ATokenOfWhiteSpaceThatTakesWhiteSpace) {
  const int num_spaces = 300'000;
  for (const char* side : {"lstrip", "rstrip"}) {
    json file = Valid();
    file["added_tokens"][0]["content"] = " ";
    file["added_tokens"][0][side] = true;
    const auto tokenizer = Parse(file.dump());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const auto ids =
        (*tokenizer)
            ->Encode("a" + std::string(num_spaces, ' ') + "b", {false, true});
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(ids->size(), num_spaces + 2) << side;
    EXPECT_EQ(ids->back(), 1);
  }
}

}  // namespace
}  // namespace quire
