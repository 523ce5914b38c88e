#include "tokenizer/bpe_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "engine/base/random.h"

namespace quire {
namespace {

// A vocabulary of `texts` with ids in order.
Vocabulary MakeVocabulary(const std::vector<std::string>& texts) {
  Vocabulary vocabulary;
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_TRUE(vocabulary.Add(texts[i], static_cast<int32_t>(i)));
  }
  return vocabulary;
}

std::vector<int32_t> Encode(const BpeModel& model, const std::string& word) {
  std::vector<int32_t> ids;
  const absl::Status status = model.EncodeWord(word, &ids);
  EXPECT_TRUE(status.ok()) << status;
  return ids;
}

// The definition: merge the best-ranked pair, the leftmost of equals, until
// none is left.
std::vector<int32_t> NaiveEncode(const Vocabulary& vocabulary,
                                 const std::vector<BpeMerge>& merges,
                                 const std::string& word) {
  std::vector<std::string> symbols;
  for (const char c : word) symbols.emplace_back(1, c);
  for (;;) {
    size_t best_rank = merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank].left == symbols[i] &&
            merges[rank].right == symbols[i + 1]) {
          best_rank = rank;
          best = i;
        }
      }
    }
    if (best_rank == merges.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + best + 1);
  }
  std::vector<int32_t> ids;
  for (const std::string& symbol : symbols) {
    ids.push_back(vocabulary.Find(symbol));
  }
  return ids;
}

TEST(BpeModel, FollowsTheDefinitionForShortAndLongWords) {
  SimulationRandom random(3);
  for (int round = 0; round < 25; ++round) {
    std::vector<std::string> texts = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> pairs;
    while (pairs.size() < 12) {
      const std::string left = texts[random.Below(texts.size())];
      const std::string right = texts[random.Below(texts.size())];
      const bool is_known =
          std::find(pairs.begin(), pairs.end(), std::make_pair(left, right)) !=
          pairs.end();
      if (is_known || left.size() + right.size() > 9) continue;
      pairs.emplace_back(left, right);
      if (std::find(texts.begin(), texts.end(), left + right) == texts.end()) {
        texts.push_back(left + right);
      }
    }
    std::vector<BpeMerge> merges;
    for (const auto& [left, right] : pairs) merges.push_back({left, right});
    auto model = BpeModel::Create(MakeVocabulary(texts), merges, BpeOptions());
    ASSERT_TRUE(model.ok()) << model.status();
    for (int k = 0; k < 30; ++k) {
      std::string word;
      for (uint64_t n = random.Below(80); n > 0; --n) {
        word += static_cast<char>('a' + random.Below(3));
      }
      const auto expected = NaiveEncode((*model)->vocabulary(), merges, word);
      EXPECT_EQ(Encode(**model, word), expected) << word;
      EXPECT_EQ(Encode(**model, word), expected) << "from the cache";
    }
  }
}

TEST(BpeModel, AMegabyteOfOneCharacterTakesNoQuadraticTime) {
  std::vector<std::string> texts = {"a"};
  std::vector<BpeMerge> merges;
  for (int i = 0; i < 10; ++i) texts.push_back(texts.back() + texts.back());
  for (int i = 0; i < 10; ++i) merges.push_back({texts[i], texts[i]});
  const auto model =
      BpeModel::Create(MakeVocabulary(texts), merges, BpeOptions());
  ASSERT_TRUE(model.ok());
  const auto begin = std::chrono::steady_clock::now();
  const auto ids = Encode(**model, std::string(1 << 20, 'a'));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
          .count();
  EXPECT_EQ(ids, std::vector<int32_t>(1 << 10, 10));
  // Some 0.3 s; quadratic time would be hours.
  EXPECT_LT(seconds, 30);
}

TEST(BpeModel, UnknownCharacters) {
  const std::vector<std::string> texts = {"<unk>", "a", "<0xC3>", "<0xA9>"};
  BpeOptions options;
  const auto encode = [&](const std::string& word) {
    const auto model = BpeModel::Create(MakeVocabulary(texts), {}, options);
    EXPECT_TRUE(model.ok());
    return Encode(**model, word);
  };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(encode("xaxx"), Ids({1}));
  options.unk_token = "<unk>";
  EXPECT_EQ(encode("xaxx"), Ids({0, 1, 0, 0}));
  options.fuse_unk = true;
  EXPECT_EQ(encode("xaxx"), Ids({0, 1, 0}));
  options.byte_fallback = true;
  EXPECT_EQ(encode("a\u00E9"), Ids({1, 2, 3}));
  options.unk_token = "absent";
  const auto model = BpeModel::Create(MakeVocabulary(texts), {}, options);
  ASSERT_TRUE(model.ok());
  Ids ids;
  EXPECT_EQ((*model)->EncodeWord("x", &ids).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(BpeModel, IgnoreMergesTakesWholeWords) {
  BpeOptions options;
  options.is_byte_level = true;
  // U+0120 spells a space.
  const std::vector<std::string> texts = {"a", "b", "\u0120", "\u0120ab"};
  for (const bool ignore : {false, true}) {
    options.ignore_merges = ignore;
    const auto model = BpeModel::Create(MakeVocabulary(texts), {}, options);
    ASSERT_TRUE(model.ok());
    EXPECT_EQ(Encode(**model, " ab"), ignore ? std::vector<int32_t>({3})
                                             : std::vector<int32_t>({2, 0, 1}));
  }
}

TEST(BpeModel, MergesMustBeInTheVocabulary) {
  const std::vector<std::string> texts = {"a", "b"};
  for (const BpeMerge merge :
       {BpeMerge{"a", "b"}, BpeMerge{"a", "x"}, BpeMerge{"x", "a"}}) {
    const auto model =
        BpeModel::Create(MakeVocabulary(texts), {merge}, BpeOptions());
    EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(model.status().message().find("model.merges[0]"),
              absl::string_view::npos);
  }
}

}  // namespace
}  // namespace quire
