#include "benchmarks/quality.h"

#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "kernels/backend_factory.h"

namespace quire {
namespace {

LoadedModel LoadDemo(std::optional<DType> dtype, int max_num_batched_tokens) {
  LoadOptions options;
  options.max_num_seqs = 1;
  options.max_num_batched_tokens = max_num_batched_tokens;
  options.max_model_len = 64;
  options.dtype = dtype;
  BackendOptions backend_options;
  backend_options.device = "cpu";
  backend_options.num_threads = 1;
  std::string fallback_reason;
  auto backend = CreateBackend(backend_options, &fallback_reason);
  return *LoadModel("models/demo-draft", options, *std::move(backend));
}

std::vector<int32_t> Chunk(int size, int seed) {
  std::vector<int32_t> chunk;
  for (int i = 0; i < size; ++i) chunk.push_back((seed + i * 37) % 500 + 1);
  return chunk;
}

TEST(DivergenceMeterTest, Formulas) {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4).
  const float half = std::log(0.5f), quarter = std::log(0.25f);
  const std::vector<float> p = {half, quarter, quarter};
  const std::vector<float> q = {quarter, half, quarter};
  DivergenceMeter meter;
  meter.Add(p, q, /*next=*/0);
  meter.Add(p, p, /*next=*/2);
  ASSERT_EQ(meter.num_positions(), 2);
  // 1/2 log 2 + 1/4 log 1/2 = 1/4 log 2.
  EXPECT_NEAR(meter.divergences()[0], 0.25 * std::log(2.0), 1e-7);
  EXPECT_EQ(meter.divergences()[1], 0);
  // exp of the mean of log 2 and log 4, and of log 4 twice.
  EXPECT_NEAR(meter.ExactPerplexity(), std::sqrt(8.0), 1e-6);
  EXPECT_NEAR(meter.Perplexity(), 4, 1e-6);
  EXPECT_EQ(meter.SameTopShare(), 0.5);
}

TEST(DivergenceMeterTest, WhatIsImpossibleAddsNothing) {
  DivergenceMeter meter;
  meter.Add(std::vector<float>{0, -INFINITY}, std::vector<float>{0, -INFINITY},
            0);
  EXPECT_EQ(meter.divergences()[0], 0);
}

TEST(ChunkScorerTest, DistributionsOfTheSecondHalf) {
  LoadedModel model = LoadDemo(DType::kF32, 64);
  auto scorer = ChunkScorer::Create(&model, 16);
  ASSERT_TRUE(scorer.ok()) << scorer.status();
  const std::vector<int32_t> chunk = Chunk(16, 3);
  const auto found = scorer->Score(chunk, 8);
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->size(), 7u);  // Behind the tokens 8 to 14.
  for (const std::vector<float>& logprobs : *found) {
    ASSERT_EQ(logprobs.size(), model.config.vocab_size);
    double sum = 0;
    for (float logprob : logprobs) sum += std::exp(double{logprob});
    EXPECT_NEAR(sum, 1, 1e-4);
  }
  // The same slot again, and in pieces of five tokens.
  ASSERT_TRUE(scorer->Score(Chunk(16, 90), 8).ok());
  EXPECT_EQ(*scorer->Score(chunk, 8), *found);
  LoadedModel small = LoadDemo(DType::kF32, 5);
  auto pieces = ChunkScorer::Create(&small, 16);
  ASSERT_TRUE(pieces.ok()) << pieces.status();
  EXPECT_EQ(*pieces->Score(chunk, 8), *found);
  // The last token is only predicted, never computed.
  std::vector<int32_t> other = chunk;
  other.back() ^= 1;
  EXPECT_EQ(*scorer->Score(other, 8), *found);
  other[14] ^= 1;
  EXPECT_NE(*scorer->Score(other, 8), *found);
}

TEST(ChunkScorerTest, TooLongForTheCache) {
  LoadedModel model = LoadDemo(DType::kF32, 64);
  EXPECT_EQ(ChunkScorer::Create(&model, 65).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace quire
