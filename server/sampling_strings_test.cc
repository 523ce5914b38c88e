#include "server/sampling_strings.h"

#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "server/fake_tokenizer.h"

namespace quire {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;

int32_t Id(absl::string_view piece) {
  return *FakeTokenizer().TokenToId(piece);
}

Sequences BadWords(const std::vector<std::string>& words) {
  const auto sequences =
      EncodeBadWords(words, PieceTokenizer(), FakeTokenizer::kVocabSize);
  EXPECT_TRUE(sequences.ok()) << sequences.status();
  return sequences.value_or(Sequences());
}

TEST(EncodeBadWordsTest, WithAndWithoutASpace) {
  // " abc" is "abc" after a space: covered.
  EXPECT_EQ(BadWords({"abc"}), (Sequences{{Id("abc")}}));
  // "the" has three tokens, " the" one.
  EXPECT_EQ(BadWords({"the"}), (Sequences{{'t', 'h', 'e'}, {Id(" the")}}));
  EXPECT_EQ(BadWords({"abcEND"}), (Sequences{{Id("abc"), Id("END")}}));
  // Spaces in front do not count.
  EXPECT_EQ(BadWords({"  abc"}), (Sequences{{Id("abc")}}));
  EXPECT_EQ(BadWords({"x", "y"}), (Sequences{{'x'}, {'y'}}));
  // A special token's text is that token.
  EXPECT_EQ(BadWords({"<|end|>"}), (Sequences{{FakeTokenizer::kEnd}}));
}

// A word of one token, of which another token is the form with a space.
class WordTokenizer : public PieceTokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions&) const override {
    if (text == "cat") return std::vector<int32_t>{10};
    if (text == " cat") return std::vector<int32_t>{11};
    if (text == "dogs") return std::vector<int32_t>{20, 21};
    if (text == " dogs") return std::vector<int32_t>{22, 21};
    if (text == "emu") return std::vector<int32_t>{30};
    return std::vector<int32_t>{30, 31};  // " emu"
  }
};

TEST(EncodeBadWordsTest, OtherTokensAfterASpaceAreBanned) {
  const auto sequences =
      EncodeBadWords({"cat", "dogs", "emu"}, WordTokenizer(), 40);
  ASSERT_TRUE(sequences.ok());
  EXPECT_EQ(*sequences,
            (Sequences{{10}, {11}, {20, 21}, {22, 21}, {30}, {30, 31}}));
}

TEST(EncodeBadWordsTest, RefusesWhatHasNoTokens) {
  for (const char* word : {" ", "\n\t"}) {
    const auto status =
        EncodeBadWords({"ok", word}, PieceTokenizer(), 1000).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(
      EncodeBadWords({"abc"}, PieceTokenizer(), Id("abc")).status()));
}

// Against the definition, for random breakers over the letters of the pieces:
// the text of every sequence that was found contains the breaker, which begins
// in its first token; and every token that could begin one was found.
TEST(EncodeDryBreakersTest, EqualsTheDefinition) {
  const PieceTokenizer tokenizer;
  SimulationRandom random(1);
  int num_long = 0;
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<std::string> breakers(random.Between(1, 3));
    for (std::string& breaker : breakers) {
      for (int64_t i = random.Between(1, 4); i > 0; --i) {
        breaker += "abcEND \n\""[random.Below(9)];
      }
    }
    const auto set =
        EncodeDryBreakers(breakers, tokenizer, FakeTokenizer::kVocabSize);
    ASSERT_TRUE(set.ok());
    std::set<std::vector<int32_t>> expected;
    for (int32_t id = 0; id < FakeTokenizer::kVocabSize; ++id) {
      const std::string token = tokenizer.TokenBytes(id);
      for (const std::string& breaker : breakers) {
        if (token.find(breaker) != std::string::npos) {
          expected.insert({id});
          continue;
        }
        for (size_t size = 1; size < breaker.size(); ++size) {
          if (token.size() < size ||
              token.substr(token.size() - size) != breaker.substr(0, size)) {
            continue;
          }
          EncodeOptions options;
          options.parse_special_tokens = true;
          std::vector<int32_t> sequence =
              *tokenizer.Encode(breaker.substr(size), options);
          sequence.insert(sequence.begin(), id);
          num_long += sequence.size() > 2 ? 1 : 0;
          expected.insert(sequence);
        }
      }
    }
    const auto got = set->sequences();
    ASSERT_EQ(std::set<std::vector<int32_t>>(got.begin(), got.end()), expected)
        << "trial " << trial;
  }
  EXPECT_GT(num_long, 100);
}

TEST(EncodeDryBreakersTest, CutsLongTails) {
  const auto set = EncodeDryBreakers({std::string(40, 'x')}, PieceTokenizer(),
                                     FakeTokenizer::kVocabSize);
  ASSERT_TRUE(set.ok());
  EXPECT_EQ(set->sequences().size(), 1u);
  EXPECT_EQ(set->sequences()[0], std::vector<int32_t>(21, 'x'));
}

TEST(SamplingStringsTest, ResolvesWhatIsAskedFor) {
  const PieceTokenizer tokenizer;
  SamplingStrings strings(&tokenizer, FakeTokenizer::kVocabSize);
  ApiRequest request;
  ASSERT_TRUE(strings.Resolve(&request).ok());
  EXPECT_TRUE(request.sampling.bad_words.empty());
  EXPECT_EQ(request.sampling.dry_breakers, nullptr);

  request.bad_words = {"abc"};
  request.sampling.dry_multiplier = 0.8f;
  ASSERT_TRUE(strings.Resolve(&request).ok());
  EXPECT_EQ(request.sampling.bad_words, (Sequences{{Id("abc")}}));
  ASSERT_NE(request.sampling.dry_breakers, nullptr);
  // llama.cpp's defaults, and only these.
  for (const char* breaker : {"\n", ":", "\"", "*", "\n\n"}) {
    EXPECT_TRUE(request.sampling.dry_breakers->HasSingle(Id(breaker)));
  }
  EXPECT_FALSE(request.sampling.dry_breakers->HasStart('.'));

  // Kept for the next request of the same breakers.
  const auto defaults = request.sampling.dry_breakers;
  ASSERT_TRUE(strings.Resolve(&request).ok());
  EXPECT_EQ(request.sampling.dry_breakers, defaults);
  request.dry_sequence_breakers = {"."};
  ASSERT_TRUE(strings.Resolve(&request).ok());
  EXPECT_TRUE(request.sampling.dry_breakers->HasSingle('.'));
  EXPECT_FALSE(request.sampling.dry_breakers->HasStart('\n'));
  // Many other lists push it out; the answer stays.
  for (int i = 0; i < 100; ++i) {
    request.dry_sequence_breakers = {absl::StrCat("b", i)};
    ASSERT_TRUE(strings.Resolve(&request).ok());
  }
  request.dry_sequence_breakers = std::vector<std::string>();
  ASSERT_TRUE(strings.Resolve(&request).ok());
  EXPECT_EQ(request.sampling.dry_breakers->max_id(), -1);
}

}  // namespace
}  // namespace quire
