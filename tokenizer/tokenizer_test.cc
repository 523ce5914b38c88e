// Agreement with the reference libraries on the strings of testdata, and the
// properties that hold for every tokenizer.
#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "absl/strings/escaping.h"
#include "tokenizer/golden_strings.h"
#include "tokenizer/incremental_detokenizer.h"

namespace quire {
namespace {

const GoldenSpec& Spec() {
  static const GoldenSpec* const spec = new GoldenSpec(GoldenSpec::Load());
  return *spec;
}

uint64_t HashIds(const std::vector<int32_t>& ids) {
  return Fnv1a(absl::string_view(reinterpret_cast<const char*>(ids.data()),
                                 ids.size() * sizeof(int32_t)));
}

class GoldenTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    golden_ = nlohmann::json::parse(ReadTestFile(GetParam() + "/golden.json"));
    auto tokenizer = Tokenizer::Create("tokenizer/testdata/" + GetParam());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    std::string bytes;
    ASSERT_TRUE(absl::Base64Unescape(
        golden_.at("hashes").get_ref<const std::string&>(), &bytes));
    hashes_.resize(bytes.size() / sizeof(uint64_t));
    std::memcpy(hashes_.data(), bytes.data(), bytes.size());
  }

  bool is_sentencepiece() const { return GetParam().substr(0, 3) == "sp_"; }
  int num_strings() const { return golden_.at("num_strings").get<int>(); }
  std::string String(int seed) const {
    const bool is_old = golden_.at("old_ranges").get<bool>();
    return GoldenString(Spec(), is_old ? Spec().old_ranges : Spec().ranges,
                        seed);
  }
  // As the reference was called.
  std::vector<int32_t> EncodeLikeReference(const std::string& text) const {
    EncodeOptions options;
    options.parse_special_tokens = !is_sentencepiece();
    options.add_special_tokens = !is_sentencepiece();
    auto ids = tokenizer_->Encode(text, options);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.ok() ? *ids : std::vector<int32_t>();
  }
  uint64_t HashDecoded(const std::vector<int32_t>& ids) const {
    std::string texts = tokenizer_->Decode(ids, true);
    texts.push_back('\0');
    // The sentencepiece library has no text for control tokens.
    texts += tokenizer_->Decode(ids, is_sentencepiece());
    return Fnv1a(texts);
  }
  std::vector<int32_t> RandomIds(int seed) const {
    SimulationRandom random((uint64_t{1} << 40) +
                            (static_cast<uint64_t>(seed) << 20));
    std::vector<int32_t> ids;
    const int vocab_size = golden_.at("vocab_size").get<int>();
    const uint64_t count = 1 + random.Below(12);
    for (uint64_t i = 0; i < count; ++i) {
      const bool is_low = random.Below(2) != 0;
      ids.push_back(
          static_cast<int32_t>(random.Below(is_low ? 300 : vocab_size)));
    }
    return ids;
  }
  // Feeds ids one by one; checks that every piece is whole characters.
  std::string Stream(const std::vector<int32_t>& ids, bool skip) const {
    IncrementalDetokenizer stream(tokenizer_.get(), skip);
    std::string text;
    for (const int32_t id : ids) {
      const std::string piece = stream.Append(id);
      EXPECT_TRUE(IsValidUtf8(piece)) << absl::CHexEscape(piece);
      text += piece;
    }
    const std::string rest = stream.Finish();
    EXPECT_TRUE(IsValidUtf8(rest)) << absl::CHexEscape(rest);
    return text + rest;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  nlohmann::json golden_;
  std::vector<uint64_t> hashes_;
};

TEST_P(GoldenTest, FirstStringsHaveTheReferencesIdsAndTexts) {
  ASSERT_GE(golden_.at("full").size(), 10u);
  for (const nlohmann::json& full : golden_.at("full")) {
    const std::string text = full.at("text").get<std::string>();
    ASSERT_EQ(text, String(full.at("seed").get<int>()))
        << "strings are made differently";
    const auto expected = full.at("ids").get<std::vector<int32_t>>();
    EXPECT_EQ(EncodeLikeReference(text), expected) << text;
    const auto decoded = full.at("decoded").get<std::vector<std::string>>();
    ASSERT_EQ(decoded.size(), 2u);
    EXPECT_EQ(tokenizer_->Decode(expected, true), decoded[0]);
    EXPECT_EQ(tokenizer_->Decode(expected, is_sentencepiece()), decoded[1]);
  }
}

TEST_P(GoldenTest, EveryStringHasTheReferencesIdsAndTexts) {
  int num_failures = 0;
  int num_ties = 0;
  for (int seed = 0; seed < num_strings() && num_failures < 5; ++seed) {
    if (hashes_[2 * seed] == 0) {  // Versions of the reference differ on it.
      ++num_ties;
      continue;
    }
    const std::string text = String(seed);
    const std::vector<int32_t> ids = EncodeLikeReference(text);
    const bool same_ids = HashIds(ids) == hashes_[2 * seed];
    const bool same_text = HashDecoded(ids) == hashes_[2 * seed + 1];
    EXPECT_TRUE(same_ids) << "seed " << seed << ": " << absl::CHexEscape(text);
    EXPECT_TRUE(!same_ids || same_text)
        << "decoded, seed " << seed << ": " << absl::CHexEscape(text);
    num_failures += !same_ids || !same_text;
  }
  EXPECT_LE(num_ties, GetParam() == "sp_unigram" ? 10 : 0);
}

TEST_P(GoldenTest, RandomIdsHaveTheReferencesText) {
  const int num_random_ids = golden_.at("num_random_ids").get<int>();
  ASSERT_EQ(hashes_.size(), 2 * num_strings() + num_random_ids);
  int num_compared = 0;
  for (int seed = 0; seed < num_random_ids; ++seed) {
    const uint64_t expected = hashes_[2 * num_strings() + seed];
    if (expected == 0) continue;  // The reference fails on these.
    ++num_compared;
    const std::vector<int32_t> ids = RandomIds(seed);
    EXPECT_EQ(HashDecoded(ids), expected)
        << testing::PrintToString(ids) << " "
        << absl::CHexEscape(tokenizer_->Decode(ids, true));
  }
  EXPECT_GE(num_compared, num_random_ids / 2);
}

TEST_P(GoldenTest, StreamedPiecesAreTheWholeText) {
  for (int seed = 0; seed < 400; ++seed) {
    const std::vector<int32_t> ids = EncodeLikeReference(String(seed));
    EXPECT_EQ(Stream(ids, true), tokenizer_->Decode(ids, true));
    EXPECT_EQ(Stream(ids, false), tokenizer_->Decode(ids, false));
  }
  for (int seed = 0; seed < 2000; ++seed) {
    const std::vector<int32_t> ids = RandomIds(seed);
    EXPECT_EQ(Stream(ids, true), tokenizer_->Decode(ids, true));
    EXPECT_EQ(Stream(ids, false), tokenizer_->Decode(ids, false));
  }
}

TEST_P(GoldenTest, OrdinarySegmentsEncodeAsTheWholeText) {
  SimulationRandom random(99);
  for (int seed = 0; seed < 300; ++seed) {
    const std::string text = String(seed);
    EncodeOptions options;
    options.add_special_tokens = false;
    const auto whole = tokenizer_->Encode(text, options);
    ASSERT_TRUE(whole.ok()) << whole.status();
    // Cuts anywhere, also within characters.
    std::vector<EncodeSegment> segments;
    size_t begin = 0;
    while (begin < text.size()) {
      const size_t size = random.Below(9);
      segments.push_back({absl::string_view(text).substr(begin, size), false});
      begin += size;
    }
    const auto pieces = tokenizer_->EncodeSegments(segments);
    ASSERT_TRUE(pieces.ok()) << pieces.status();
    EXPECT_EQ(*pieces, *whole) << absl::CHexEscape(text);
  }
}

TEST_P(GoldenTest, OrdinaryTextYieldsNoSpecialToken) {
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    if (!tokenizer_->IsSpecial(id)) continue;
    const std::string text = tokenizer_->IdToToken(id);
    if (text == "<unk>" || text == "[UNK]") continue;  // What others become.
    EncodeOptions options;
    options.add_special_tokens = false;
    const auto ordinary = tokenizer_->Encode("a" + text + "b", options);
    ASSERT_TRUE(ordinary.ok());
    EXPECT_EQ(std::count(ordinary->begin(), ordinary->end(), id), 0) << text;

    options.parse_special_tokens = true;
    const auto parsed = tokenizer_->Encode("a" + text + "b", options);
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(std::count(parsed->begin(), parsed->end(), id), 1) << text;

    // A token's text half in one segment and half in the next is no token, and
    // the same text is one token in a segment that may hold it.
    const EncodeSegment halves[] = {
        {absl::string_view(text).substr(0, 2), true},
        {absl::string_view(text).substr(2), true},
        {text, false},
        {text, true}};
    const auto mixed = tokenizer_->EncodeSegments(halves);
    ASSERT_TRUE(mixed.ok());
    EXPECT_EQ(std::count(mixed->begin(), mixed->end(), id), 1) << text;
    EXPECT_EQ(mixed->back(), id) << text;
  }
}

TEST_P(GoldenTest, ParsedSegmentsBetweenOrdinaryOnesEncodeAsTheWholeText) {
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    if (!tokenizer_->IsSpecial(id)) continue;
    const std::string token = tokenizer_->IdToToken(id);
    const std::string middle = " and " + token;
    const std::vector<EncodeSegment> segments = {{token, true},
                                                 {"Hello you ", false},
                                                 {middle, true},
                                                 {"the rest\n", false},
                                                 {token, true}};
    std::string whole;
    for (const EncodeSegment& segment : segments) {
      whole += std::string(segment.text);
    }
    EncodeOptions options;
    options.add_special_tokens = false;
    options.parse_special_tokens = true;
    const auto expected = tokenizer_->Encode(whole, options);
    const auto got = tokenizer_->EncodeSegments(segments);
    ASSERT_TRUE(expected.ok() && got.ok());
    EXPECT_EQ(*got, *expected) << token;
  }
}

TEST_P(GoldenTest, InvalidBytesEncodeAsReplacementCharacters) {
  const std::pair<std::string, std::string> cases[] = {
      {"a\xFF"
       "b",
       "a\uFFFDb"},
      {"\xE4\xBD", "\uFFFD"},
      {"\xE4\xBD\xA0\xE5\xA5", "\u4F60\uFFFD"},
      {"\xC0\xAF", "\uFFFD\uFFFD"},
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xF0\x9F\x98 x\x80", "\uFFFD x\uFFFD"}};
  for (const auto& [broken, clean] : cases) {
    EXPECT_EQ(EncodeLikeReference(broken), EncodeLikeReference(clean));
    for (size_t cut = 0; cut <= broken.size(); ++cut) {
      const EncodeSegment segments[] = {
          {absl::string_view(broken).substr(0, cut), false},
          {absl::string_view(broken).substr(cut), true}};
      const auto pieces = tokenizer_->EncodeSegments(segments);
      const auto whole = tokenizer_->Encode(clean, {false, false});
      ASSERT_TRUE(pieces.ok() && whole.ok());
      EXPECT_EQ(*pieces, *whole);
    }
  }
}

TEST_P(GoldenTest, UnknownIdsAreSkipped) {
  const int32_t size = tokenizer_->vocab_size();
  const std::vector<int32_t> ids = EncodeLikeReference("the people");
  std::vector<int32_t> with_unknown = {-1, size, 1 << 30};
  with_unknown.insert(with_unknown.end(), ids.begin(), ids.end());
  with_unknown.push_back(size);
  EXPECT_EQ(tokenizer_->Decode(with_unknown, true),
            tokenizer_->Decode(ids, true));
  EXPECT_EQ(Stream(with_unknown, true), tokenizer_->Decode(ids, true));
  EXPECT_EQ(tokenizer_->TokenBytes(size), "");
  EXPECT_EQ(tokenizer_->IdToToken(-1), "");
  EXPECT_FALSE(tokenizer_->IsSpecial(size));
}

TEST_P(GoldenTest, TokensAndIdsAgree) {
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    const std::string token = tokenizer_->IdToToken(id);
    ASSERT_FALSE(token.empty()) << id;
    EXPECT_EQ(tokenizer_->TokenToId(token), id);
  }
}

TEST_P(GoldenTest, ThreadsAgree) {
  std::vector<std::vector<int32_t>> expected;
  for (int seed = 0; seed < 200; ++seed) {
    expected.push_back(EncodeLikeReference(String(seed)));
  }
  std::vector<int> num_different(2);
  std::vector<std::thread> threads;
  for (int& count : num_different) {
    threads.emplace_back([&] {
      for (int seed = 0; seed < 200; ++seed) {
        count += EncodeLikeReference(String(seed)) != expected[seed];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_different, std::vector<int>({0, 0}));
}

INSTANTIATE_TEST_SUITE_P(
    Testdata, GoldenTest,
    testing::Values("gpt2", "roberta", "llama3", "qwen2", "qwen_marks", "o200k",
                    "deepseek", "metaspace", "llama2", "metaspace_first",
                    "mixed_removed", "mixed_isolated",
                    "mixed_merged_with_previous", "mixed_merged_with_next",
                    "mixed_contiguous", "words", "unigram_bytes", "unigram_map",
                    "unigram_spelled", "word_piece_cased", "word_level", "ctc",
                    "sp_bpe", "sp_unigram"));

}  // namespace
}  // namespace quire
