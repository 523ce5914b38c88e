#include "engine/parallel/step_result_codec.h"

#include "gtest/gtest.h"

namespace quire {
namespace {

TokenOutput Token(int32_t id, int num_top) {
  TokenOutput token;
  token.token_id = id;
  token.logprob = -0.25f * id;
  token.rank = id + 1;
  for (int i = 0; i < num_top; ++i) {
    token.top_logprobs.push_back({i, -1.0f * i});
  }
  return token;
}

StepResult MakeResult() {
  StepResult result;
  result.step_id = int64_t{1} << 40;
  SampledRow drawn;
  drawn.slot = 3;
  drawn.tokens.push_back(Token(5, 2));
  drawn.tokens.push_back(Token(99, 0));
  drawn.all_masked = true;
  result.rows.push_back(drawn);
  SampledRow scored;
  scored.slot = 1;
  scored.scored = {Token(0, 1), Token(7, 3)};
  result.rows.push_back(scored);
  SampledRow embedded;
  embedded.embedding = {1.5f, -2.0f};
  embedded.non_finite = true;
  result.rows.push_back(embedded);
  return result;
}

std::string Encode(const StepResult& result) {
  std::string bytes;
  EncodeStepResult(result, &bytes);
  return bytes;
}

void ExpectSame(const TokenOutput& a, const TokenOutput& b) {
  EXPECT_EQ(a.token_id, b.token_id);
  EXPECT_EQ(a.logprob, b.logprob);
  EXPECT_EQ(a.rank, b.rank);
  ASSERT_EQ(a.top_logprobs.size(), b.top_logprobs.size());
  for (size_t i = 0; i < a.top_logprobs.size(); ++i) {
    EXPECT_EQ(a.top_logprobs[i].token_id, b.top_logprobs[i].token_id);
    EXPECT_EQ(a.top_logprobs[i].logprob, b.top_logprobs[i].logprob);
  }
}

TEST(StepResultCodecTest, EverythingTravels) {
  const StepResult sent = MakeResult();
  const auto found = DecodeStepResult(Encode(sent));
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->step_id, sent.step_id);
  ASSERT_EQ(found->rows.size(), sent.rows.size());
  for (size_t i = 0; i < sent.rows.size(); ++i) {
    const SampledRow& a = sent.rows[i];
    const SampledRow& b = found->rows[i];
    EXPECT_EQ(a.slot, b.slot);
    EXPECT_EQ(a.embedding, b.embedding);
    EXPECT_EQ(a.non_finite, b.non_finite);
    EXPECT_EQ(a.all_masked, b.all_masked);
    ASSERT_EQ(a.tokens.size(), b.tokens.size());
    for (size_t k = 0; k < a.tokens.size(); ++k) {
      ExpectSame(a.tokens[k], b.tokens[k]);
    }
    ASSERT_EQ(a.scored.size(), b.scored.size());
    for (size_t k = 0; k < a.scored.size(); ++k) {
      ExpectSame(a.scored[k], b.scored[k]);
    }
  }
}

// Every beginning, and every byte changed: an error or a result, no crash.
TEST(StepResultCodecTest, DamagedBytes) {
  const std::string bytes = Encode(MakeResult());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        DecodeStepResult(bytes.substr(0, size)).status()))
        << size;
  }
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (const char flipped : {'\x01', '\x80', '\xff'}) {
      std::string damaged = bytes;
      damaged[at] ^= flipped;
      DecodeStepResult(damaged).status().IgnoreError();
    }
  }
  EXPECT_FALSE(DecodeStepResult(bytes + "x").ok());
}

// The scheduler ends the request that drew them.
TEST(StepResultCodecTest, AnyTokenTravels) {
  StepResult result = MakeResult();
  result.rows[0].tokens[1].token_id = -7;
  result.rows[1].scored[0].top_logprobs[0].token_id = 1 << 30;
  const auto found = DecodeStepResult(Encode(result));
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->rows[0].tokens[1].token_id, -7);
  EXPECT_EQ(found->rows[1].scored[0].top_logprobs[0].token_id, 1 << 30);
}

}  // namespace
}  // namespace quire
