// Tokenizers written as keys of a GGUF file: the same ids and texts as from the
// model's own files.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/model_tokenizer.h"
#include "engine/base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gguf_export.h"
#include "tokenizer/golden_strings.h"
#include "tokenizer/tokenizer.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class GgufTokenizerTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = absl::StrCat(testing::TempDir(), "/tokenizer_", getpid(), ".gguf");
  }
  void TearDown() override { fs::remove(path_); }

  absl::StatusOr<std::unique_ptr<Tokenizer>> Open(const GgufWriter& writer) {
    std::ofstream(path_, std::ios::binary) << writer.Build();
    warnings_.clear();
    return OpenModelTokenizer(path_, &warnings_);
  }
  void ExpectError(const GgufWriter& writer, const std::string& part) {
    const auto tokenizer = Open(writer);
    ASSERT_FALSE(tokenizer.ok()) << part;
    EXPECT_TRUE(absl::StartsWith(tokenizer.status().message(), path_))
        << tokenizer.status();
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(part));
  }

  std::string path_;
  std::vector<std::string> warnings_;
};

struct EqualCase {
  const char* directory;
  const char* pre;  // Null: tokenizer.model.
  // Whether added tokens need nothing that the format cannot say.
  bool compares_specials = true;
};

std::ostream& operator<<(std::ostream& out, const EqualCase& one) {
  return out << one.directory;
}

class EqualTest : public GgufTokenizerTest,
                  public testing::WithParamInterface<EqualCase> {};

TEST_P(EqualTest, GoldenStringsHaveTheSameIdsAndTexts) {
  const EqualCase& one = GetParam();
  GgufWriter writer;
  const bool is_bert = absl::EndsWith(one.directory, "word_piece");
  const absl::Status status =
      is_bert ? ExportGgufWordPiece(one.directory, &writer)
      : one.pre == nullptr
          ? ExportGgufSentencePiece(one.directory, &writer)
          : ExportGgufTokenizer(one.directory, one.pre, &writer);
  ASSERT_TRUE(status.ok()) << status;
  const auto expected = Tokenizer::Create(one.directory);
  ASSERT_TRUE(expected.ok()) << expected.status();
  const auto found = Open(writer);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_THAT(warnings_, testing::IsEmpty());

  const GoldenSpec spec = GoldenSpec::Load();
  SimulationRandom random(11);
  int num_tokens = 0;
  for (int seed = 0; seed < 1500; ++seed) {
    const std::string text = GoldenString(spec, spec.ranges, seed);
    // Of pieces of the mark the format cannot say whether they begin a word.
    if (is_bert && absl::StrContains(text, "\xE2\x96\x81")) continue;
    for (const bool parses : {false, true}) {
      if (parses && !one.compares_specials) continue;
      const EncodeOptions options = {.add_special_tokens = false,
                                     .parse_special_tokens = parses};
      const auto ids = (*expected)->Encode(text, options);
      ASSERT_TRUE(ids.ok()) << ids.status();
      const auto own = (*found)->Encode(text, options);
      ASSERT_TRUE(own.ok()) << own.status();
      ASSERT_EQ(*own, *ids) << text;
      num_tokens += static_cast<int>(ids->size());
      for (const bool skips : {false, true}) {
        EXPECT_EQ((*found)->Decode(*ids, skips),
                  (*expected)->Decode(*ids, skips));
      }
    }
    std::vector<int32_t> any;
    for (int i = 0; i < 8; ++i) {
      any.push_back(
          static_cast<int32_t>(random.Below((*expected)->vocab_size())));
    }
    const std::string decoded = (*expected)->Decode(any, true);
    if (is_bert && absl::StrContains(decoded, "\xE2\x96\x81")) continue;
    EXPECT_EQ((*found)->Decode(any, true), decoded);
  }
  EXPECT_GT(num_tokens, 10000);
  EXPECT_EQ((*found)->vocab_size(), (*expected)->vocab_size());
  EXPECT_EQ((*found)->chat_template(), (*expected)->chat_template());
  for (const char* name : {"bos_token", "eos_token", "pad_token"}) {
    EXPECT_EQ((*found)->SpecialTokenText(name),
              (*expected)->SpecialTokenText(name));
  }
  EXPECT_EQ((*found)->eos_token_id(), (*expected)->eos_token_id());
  if (one.pre == nullptr || absl::StrContains(one.directory, "demo")) {
    EXPECT_EQ(*(*found)->Encode("a b"), *(*expected)->Encode("a b"));
  }
}

constexpr EqualCase kEqualCases[] = {
    {"models/demo", "deepseek-r1-qwen"},
    {"tokenizer/testdata/gpt2", "gpt-2"},
    {"tokenizer/testdata/llama3", "llama-bpe", false},  // Strips white space.
    {"tokenizer/testdata/qwen2", "qwen2"},
    {"tokenizer/testdata/qwen_marks", "qwen35"},
    {"tokenizer/testdata/o200k", "gpt-4o"},
    {"tokenizer/testdata/deepseek", "deepseek-v3"},
    {"tokenizer/testdata/sp_bpe", nullptr},
    {"tokenizer/testdata/sp_unigram", nullptr},
    {"tokenizer/testdata/proof/word_piece", nullptr},
};

INSTANTIATE_TEST_SUITE_P(Tokenizers, EqualTest, testing::ValuesIn(kEqualCases),
                         [](const auto& info) {
                           const std::string directory = info.param.directory;
                           return directory.substr(directory.rfind('/') + 1);
                         });

// Ids that BertTokenizer of transformers 5.23.0 gives with this vocabulary and
// do_lower_case.
TEST_F(GgufTokenizerTest, WordPiecesAreThoseOfBertTokenizer) {
  GgufWriter writer;
  ASSERT_TRUE(
      ExportGgufWordPiece("tokenizer/testdata/proof/word_piece", &writer).ok());
  auto tokenizer = Open(writer);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  using Ids = std::vector<int32_t>;
  for (const auto& [text, ids] : std::vector<std::pair<std::string, Ids>>{
           {"Hello, World!", {2, 2580, 16, 2569, 5, 3}},
           {"The caf\u00e9's na\u00efve r\u00e9sum\u00e9: 42% off",
            {2, 2354, 2628, 11, 61, 2632, 2942, 2526, 1207, 30, 24, 1281, 9,
             2441, 1276, 3}},
           {"\u4e00\u4e8c\u4e09 and", {2, 1, 1, 1, 2522, 3}},
           {"can't unaffable ##ed",
            {2, 2535, 11, 62, 63, 2771, 2759, 1214, 1298, 2398, 7, 7, 47, 1210,
             3}},
           {std::string(101, 'x'), {2, 1, 3}}}) {
    EXPECT_EQ(*(*tokenizer)->Encode(text), ids) << text;
  }
  writer.Bool("tokenizer.ggml.add_bos_token", false);
  EXPECT_EQ(*(*Open(writer))->Encode("Hello"), (Ids{2580}));
  // One piece in upper case: the vocabulary of a cased model.
  GgufWriter cased;
  cased.String("tokenizer.ggml.model", "bert");
  cased.Strings("tokenizer.ggml.tokens",
                {"[UNK]", "\u2581Aa", "\u2581aa", "b"});
  tokenizer = Open(cased);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->Encode("Aab aab AAB"), (Ids{1, 3, 2, 3, 0}));
}

// Bytes alone.
GgufWriter ByteTokenizer() {
  GgufWriter writer;
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  for (int c = '!'; c <= '~'; ++c) tokens.push_back(std::string(1, char(c)));
  tokens.push_back("\xC4\xA0");  // A space, as byte-level BPE spells it.
  tokens.push_back("\xC4\x8A");  // A line feed.
  types.resize(tokens.size(), 1);
  tokens.push_back("<s>");
  types.push_back(3);
  writer.String("tokenizer.ggml.model", "gpt2");
  writer.Strings("tokenizer.ggml.tokens", tokens);
  writer.I32s("tokenizer.ggml.token_type", types);
  writer.Strings("tokenizer.ggml.merges", {});
  writer.U32("tokenizer.ggml.bos_token_id", tokens.size() - 1);
  return writer;
}

TEST_F(GgufTokenizerTest, AnUnknownPreTokenizerIsAWarning) {
  GgufWriter writer = ByteTokenizer();
  ASSERT_TRUE(Open(writer).ok());
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_THAT(warnings_[0], HasSubstr("key \"tokenizer.ggml.pre\": missing"));
  writer.String("tokenizer.ggml.pre", "of-tomorrow");
  ASSERT_TRUE(Open(writer).ok());
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_TRUE(absl::StartsWith(warnings_[0], path_)) << warnings_[0];
  EXPECT_THAT(warnings_[0], HasSubstr("\"of-tomorrow\" is not known"));
}

TEST_F(GgufTokenizerTest, WhetherABeginTokenIsAddedIsTheFilesOrThePatterns) {
  GgufWriter llama = ByteTokenizer();
  llama.String("tokenizer.ggml.pre", "llama-bpe");
  auto tokenizer = Open(llama);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("a")->size(), 2u);
  llama.Bool("tokenizer.ggml.add_bos_token", false);
  EXPECT_EQ((*Open(llama))->Encode("a")->size(), 1u);
  GgufWriter qwen = ByteTokenizer();
  qwen.String("tokenizer.ggml.pre", "qwen2");
  EXPECT_EQ((*Open(qwen))->Encode("a")->size(), 1u);
}

TEST_F(GgufTokenizerTest, ErrorsNameTheKey) {
  GgufWriter none;
  ExpectError(none, "key \"tokenizer.ggml.model\": missing");
  GgufWriter rwkv;
  rwkv.String("tokenizer.ggml.model", "rwkv");
  ExpectError(rwkv,
              "\"rwkv\" is not supported (supported: gpt2, llama, t5, bert)");
  GgufWriter no_vocab;
  no_vocab.String("tokenizer.ggml.model", "no_vocab");
  ExpectError(no_vocab, "no tokenizer; name one with --tokenizer");
  GgufWriter bert;
  bert.String("tokenizer.ggml.model", "bert");
  bert.Strings("tokenizer.ggml.tokens", {"\xE2\x96\x81"
                                         "a"});
  ExpectError(bert, "key \"tokenizer.ggml.unknown_token_id\": missing");
  GgufWriter gpt2;
  gpt2.String("tokenizer.ggml.model", "gpt2");
  ExpectError(gpt2, "key \"tokenizer.ggml.tokens\": missing");
  gpt2.Strings("tokenizer.ggml.tokens", {"a", "b", "\xFF"});
  ExpectError(gpt2, "token 2 is not UTF-8");
  GgufWriter types = ByteTokenizer();
  types.String("tokenizer.ggml.pre", "default");
  types.U32("tokenizer.ggml.eos_token_id", 5000);
  ExpectError(types, "key \"tokenizer.ggml.eos_token_id\": 5000 is not the id");
  GgufWriter scores = ByteTokenizer();
  scores.F32s("tokenizer.ggml.scores", {1.0f});
  ExpectError(scores, "key \"tokenizer.ggml.scores\": has 1 entries");
  GgufWriter merges;
  merges.String("tokenizer.ggml.model", "gpt2");
  merges.Strings("tokenizer.ggml.tokens", {"a", "b"});
  merges.Strings("tokenizer.ggml.merges", {"ab"});
  ExpectError(merges, "key \"tokenizer.ggml.merges\": merge 0 is not two");
  GgufWriter unknown;
  unknown.String("tokenizer.ggml.model", "gpt2");
  unknown.Strings("tokenizer.ggml.tokens", {"a", "b"});
  unknown.Strings("tokenizer.ggml.merges", {"a b"});
  ExpectError(unknown, "as a tokenizer.json: model.merges");
  GgufWriter llama;
  llama.String("tokenizer.ggml.model", "llama");
  llama.Strings("tokenizer.ggml.tokens", {"<unk>", "a"});
  ExpectError(llama, "key \"tokenizer.ggml.scores\": missing");
}

TEST_F(GgufTokenizerTest, RepeatedTokensAndPaddingDoNoHarm) {
  GgufWriter gpt2;
  gpt2.String("tokenizer.ggml.model", "gpt2");
  gpt2.String("tokenizer.ggml.pre", "gpt-2");
  gpt2.Strings("tokenizer.ggml.tokens", {"a", "b", "a", "", "ab"});
  gpt2.Strings("tokenizer.ggml.merges", {"a b"});
  auto tokenizer = Open(gpt2);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_THAT(warnings_[0], HasSubstr("2 tokens are empty or"));
  EXPECT_EQ(*(*tokenizer)->Encode("aba"), (std::vector<int32_t>{4, 0}));
  EXPECT_EQ((*tokenizer)->Decode({2, 3, 1}), "b");

  GgufWriter llama;
  llama.String("tokenizer.ggml.model", "llama");
  llama.Strings("tokenizer.ggml.tokens", {"<unk>", "<s>", "\xE2\x96\x81", "a",
                                          "b", "[PAD5]", "b", "", "ab"});
  llama.I32s("tokenizer.ggml.token_type", {2, 3, 1, 1, 1, 5, 1, 1, 1});
  llama.F32s("tokenizer.ggml.scores", {0, 0, -1, -2, -3, -4, -5, -6, -7});
  llama.U32("tokenizer.ggml.bos_token_id", 1);
  tokenizer = Open(llama);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->Encode("ab"), (std::vector<int32_t>{1, 2, 8}));
  EXPECT_EQ((*tokenizer)->Decode({2, 3, 4}), "ab");
}

}  // namespace
}  // namespace quire
