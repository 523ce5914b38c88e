#include "server/prompt_text.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "server/fake_tokenizer.h"

namespace quire {
namespace {

using Offsets = std::vector<int64_t>;
constexpr int32_t kBos = FakeTokenizer::kBos;
constexpr int32_t kEnd = FakeTokenizer::kEnd;

TEST(PromptTextTest, AddedTokensAreNotPartOfTheGivenText) {
  const FakeTokenizer tokenizer;
  const PromptText prompt = MakePromptText(tokenizer, {kBos, 'a', 'b'}, "ab",
                                           /*skip_special_tokens=*/true);
  EXPECT_EQ(prompt.text, "ab");
  EXPECT_EQ(prompt.offsets, (Offsets{0, 0, 1}));
}

TEST(PromptTextTest, SpecialTokensOfTheGivenTextArePartOfIt) {
  const FakeTokenizer tokenizer;
  const PromptText prompt =
      MakePromptText(tokenizer, {kBos, 'a', kEnd, 'b'}, "a<|end|>b",
                     /*skip_special_tokens=*/true);
  EXPECT_EQ(prompt.text, "a<|end|>b");
  EXPECT_EQ(prompt.offsets, (Offsets{0, 0, 1, 8}));
}

TEST(PromptTextTest, OffsetsCountCharacters) {
  const FakeTokenizer tokenizer;
  const std::vector<int32_t> ids = {FakeTokenizer::kAcute,
                                    FakeTokenizer::kEmojiHead,
                                    FakeTokenizer::kEmojiTail, 'z'};
  for (const bool is_given : {false, true}) {
    const PromptText prompt = MakePromptText(
        tokenizer, ids,
        is_given ? std::optional<std::string>("\xc3\xa9\xf0\x9f\x98\x80z")
                 : std::nullopt,
        /*skip_special_tokens=*/true);
    EXPECT_EQ(prompt.text, "\xc3\xa9\xf0\x9f\x98\x80z");
    EXPECT_EQ(prompt.offsets, (Offsets{0, 1, 1, 2}));
  }
}

TEST(PromptTextTest, IdsAreDecoded) {
  const FakeTokenizer tokenizer;
  const std::vector<int32_t> ids = {kBos, 'a', FakeTokenizer::kEmojiHead};
  PromptText prompt = MakePromptText(tokenizer, ids, std::nullopt, true);
  EXPECT_EQ(prompt.text, "a\xef\xbf\xbd");
  EXPECT_EQ(prompt.offsets, (Offsets{0, 0, 1}));
  prompt = MakePromptText(tokenizer, ids, std::nullopt, false);
  EXPECT_EQ(prompt.text, "<s>a\xef\xbf\xbd");
  EXPECT_EQ(prompt.offsets, (Offsets{0, 3, 4}));
}

TEST(PromptTextTest, OffsetsStayWithinTheGivenText) {
  const FakeTokenizer tokenizer;
  const PromptText prompt =
      MakePromptText(tokenizer, {'a', 'b', 'c', 'd'}, "ab", true);
  EXPECT_EQ(prompt.text, "ab");
  EXPECT_EQ(prompt.offsets, (Offsets{0, 1, 2, 2}));
}

}  // namespace
}  // namespace quire
