// Encode and decode equal the reference libraries' on 100,000 strings for each
// type of tokenizer (tools/goldens/make_tokenizer_proof.py).
#include <gtest/gtest.h>

#include <cstring>
#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "tokenizer/incremental_detokenizer.h"
#include "tokenizer/proof_strings.h"
#include "tokenizer/tokenizer.h"

namespace quire {
namespace {

constexpr int kNumCompared = 100'000;
// In the golden of a string that is not compared: versions of the reference
// differ on it.
constexpr uint32_t kTie = 0x5EED;

const ProofSpec& Spec() {
  static const ProofSpec* const spec = new ProofSpec(ProofSpec::Load());
  return *spec;
}

class ProofTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto tokenizer =
        Tokenizer::Create("tokenizer/testdata/proof/" + GetParam());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    const std::string bytes =
        ReadTestFile("proof/" + GetParam() + "/golden.bin");
    golden_.resize(bytes.size() / sizeof(uint32_t));
    std::memcpy(golden_.data(), bytes.data(),
                golden_.size() * sizeof(uint32_t));
    ASSERT_GE(golden_.size(), kNumCompared + 2u);
    num_strings_ = static_cast<int>(golden_.size()) - 2;
  }

  bool is_sentencepiece() const { return absl::StartsWith(GetParam(), "sp_"); }
  // As the reference was called.
  std::vector<int32_t> Encode(const std::string& text) const {
    EncodeOptions options;
    options.parse_special_tokens = !is_sentencepiece();
    options.add_special_tokens = !is_sentencepiece();
    auto ids = tokenizer_->Encode(text, options);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.ok() ? *ids : std::vector<int32_t>();
  }
  std::string Texts(const std::vector<int32_t>& ids) const {
    std::string texts = tokenizer_->Decode(ids, true);
    // The sentencepiece library has one way to decode.
    if (is_sentencepiece()) return texts;
    texts.push_back('\0');
    return texts + tokenizer_->Decode(ids, false);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<uint32_t> golden_;  // [num_strings_ + 2]
  int num_strings_ = 0;           // Compared or not.
};

TEST_P(ProofTest, EveryStringHasTheReferencesIdsAndTexts) {
  uint32_t all_ids = 0;
  uint32_t all_texts = 0;
  int num_failures = 0;
  int num_compared = 0;
  for (int number = 0; number < num_strings_; ++number) {
    if (golden_[number] == kTie) continue;
    ++num_compared;
    const std::string text = ProofString(Spec(), number);
    const std::vector<int32_t> ids = Encode(text);
    const absl::string_view bytes(reinterpret_cast<const char*>(ids.data()),
                                  ids.size() * sizeof(int32_t));
    const std::string texts = Texts(ids);
    all_ids = Crc32(bytes, all_ids);
    all_texts = Crc32(texts, all_texts);
    const bool same_ids =
        (Crc32(bytes, 0) & 0xFFFF) == (golden_[number] & 0xFFFF);
    const bool same_texts = (Crc32(texts, 0) & 0xFFFF) == golden_[number] >> 16;
    if (same_ids && same_texts) continue;
    if (++num_failures > 10) continue;
    ADD_FAILURE() << "string " << number << (same_ids ? ", decoded" : "")
                  << ": " << absl::CHexEscape(text)
                  << testing::PrintToString(ids);
  }
  EXPECT_EQ(num_failures, 0);
  EXPECT_GE(num_compared, kNumCompared);
  EXPECT_LE(num_strings_ - num_compared, GetParam() == "sp_unigram" ? 350 : 0);
  EXPECT_EQ(all_ids, golden_[num_strings_]);
  EXPECT_EQ(all_texts, golden_[num_strings_ + 1]);
}

TEST_P(ProofTest, StreamedPiecesAreTheWholeText) {
  for (int number = 0; number < num_strings_; number += 20) {
    const std::vector<int32_t> ids = Encode(ProofString(Spec(), number));
    for (const bool skip : {false, true}) {
      IncrementalDetokenizer stream(tokenizer_.get(), skip);
      std::string text;
      for (const int32_t id : ids) {
        const std::string piece = stream.Append(id);
        ASSERT_TRUE(IsValidUtf8(piece)) << number;
        text += piece;
      }
      text += stream.Finish();
      ASSERT_EQ(text, tokenizer_->Decode(ids, skip)) << number;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, ProofTest,
                         testing::Values("byte_level", "byte_fallback",
                                         "unigram", "word_piece", "sp_bpe",
                                         "sp_unigram"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace quire
