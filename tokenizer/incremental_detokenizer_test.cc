// With a tokenizer that has only TokenBytes; the streams of real tokenizers
// are compared with Decode in tokenizer_test.
#include "tokenizer/incremental_detokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace quire {
namespace {

// Ids are bytes; 256 is special.
class ByteTokenizer final : public Tokenizer {
 public:
  explicit ByteTokenizer(bool strips) : strips_(strips) {}
  absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions& options) const override {
    return absl::UnimplementedError("not needed");
  }
  absl::StatusOr<std::vector<int32_t>> EncodeSegments(
      absl::Span<const EncodeSegment> segments,
      bool add_special_tokens) const override {
    return absl::UnimplementedError("not needed");
  }
  std::string Decode(absl::Span<const int32_t> ids, bool skip) const override {
    return {};
  }
  std::string TokenBytes(int32_t id) const override {
    return id == 256 ? "<s>" : std::string(1, static_cast<char>(id));
  }
  std::string IdToToken(int32_t id) const override { return TokenBytes(id); }
  std::optional<int32_t> TokenToId(absl::string_view token) const override {
    return std::nullopt;
  }
  bool IsSpecial(int32_t id) const override { return id == 256; }
  int32_t vocab_size() const override { return 257; }
  std::optional<int32_t> bos_token_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_token_id() const override { return std::nullopt; }
  std::string SpecialTokenText(absl::string_view name) const override {
    return {};
  }
  std::string chat_template() const override { return {}; }
  bool strips_leading_space() const override { return strips_; }

 private:
  bool strips_;
};

std::vector<std::string> Pieces(const Tokenizer& tokenizer, bool skip,
                                const std::vector<int32_t>& ids) {
  IncrementalDetokenizer stream(&tokenizer, skip);
  std::vector<std::string> pieces;
  for (const int32_t id : ids) pieces.push_back(stream.Append(id));
  pieces.push_back(stream.Finish());
  return pieces;
}

using Strings = std::vector<std::string>;

TEST(IncrementalDetokenizer, HoldsBackIncompleteCharacters) {
  const ByteTokenizer tokenizer(false);
  EXPECT_EQ(Pieces(tokenizer, true, {'a', 0xE4, 0xBD, 0xA0, 'b'}),
            Strings({"a", "", "", "\u4F60", "b", ""}));
}

TEST(IncrementalDetokenizer, BrokenCharactersAreKnownAsSoonAsTheyCanBe) {
  const ByteTokenizer tokenizer(false);
  EXPECT_EQ(Pieces(tokenizer, true, {0xE4, 'b', 0xFF, 0xF0, 0x9F}),
            Strings({"", "\uFFFDb", "\uFFFD", "", "", "\uFFFD"}));
}

TEST(IncrementalDetokenizer, SpecialTokensAreSkippedOnRequest) {
  const ByteTokenizer tokenizer(false);
  EXPECT_EQ(Pieces(tokenizer, true, {'a', 256, 'b'}),
            Strings({"a", "", "b", ""}));
  EXPECT_EQ(Pieces(tokenizer, false, {'a', 256, 'b'}),
            Strings({"a", "<s>", "b", ""}));
}

TEST(IncrementalDetokenizer, OneLeadingSpaceIsStripped) {
  EXPECT_EQ(Pieces(ByteTokenizer(true), true, {256, ' ', ' ', 'a', ' '}),
            Strings({"", "", " ", "a", " ", ""}));
  EXPECT_EQ(Pieces(ByteTokenizer(false), true, {' ', 'a'}),
            Strings({" ", "a", ""}));
}

}  // namespace
}  // namespace quire
