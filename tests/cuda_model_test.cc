// Every family of models on a GPU, or on the emulation of one: what it says of
// the next token, and its greedy continuation, are what the CPU says, which
// tests/golden_logits_test compares with transformers.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/model_harness.h"
#include "tests/model_rounding.h"

namespace quire {
namespace {

constexpr int kNumGenerated = 6;

using MakeBackend = std::function<std::unique_ptr<Backend>()>;

// The distributions after a prompt, prefilled in two chunks, and of decodes.
//   make_backend: null: the CPU's.
std::vector<TokenOutput> Generate(const std::string& directory, DType dtype,
                                  const MakeBackend& make_backend) {
  ModelHarness::Options options;
  options.dtype = DType::kBF16;
  options.kv_cache_dtype = dtype;
  options.kv_cache_memory_bytes = 64 << 20;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 64;
  options.max_model_len = 96;
  options.make_backend = make_backend;
  auto harness = ModelHarness::Create(directory, options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  if (!harness.ok()) return {};
  TestSequence sequence = (*harness)->MakeSequence(
      0, {5, 9, 33, 7, 12, 40, 2, 3, 4, 8, 17, 60}, kNumRoundingTop);
  const absl::Status status = (*harness)->Generate(sequence, 7, kNumGenerated);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(sequence.outputs.size(), size_t{kNumGenerated});
  return sequence.outputs;
}

// A GPU is as near to the reference with its rounding points as
// tests/model_rounding.h says, and what the CPU, which rounds less, differs
// from that is measured beside it: both without a GPU.
TEST(CudaModelTest, EveryFamilyAgreesWithTheCpu) {
  int num_models = 0, num_tokens = 0;
  double largest_bound = 0.0, largest_share = 0.0;
  for (const std::string& model : GoldenModels()) {
    SCOPED_TRACE(model);
    const auto exact = Generate(model, DType::kF32, MakeExactReference);
    const auto reference =
        Generate(model, DType::kBF16, [] { return MakeRoundingReference(); });
    const auto cpu = Generate(model, DType::kBF16, nullptr);
    const auto got = Generate(model, DType::kBF16, [] {
      return std::move(CudaBackend::Create({})).value();
    });
    ASSERT_FALSE(HasFailure());
    // Sequences that draw another token say nothing of each other any more.
    const auto same = [&](const std::vector<TokenOutput>& other, int i) {
      for (int k = 0; k < i; ++k) {
        if (other[k].token_id != cpu[k].token_id) return false;
      }
      return true;
    };
    // Of the family: at one position roundings may cancel.
    double rounding = kF32Error;
    for (int i = 0; i < kNumGenerated && same(exact, i) && same(reference, i);
         ++i) {
      rounding = std::max(rounding, LargestDifference(reference[i], exact[i]));
    }
    for (int i = 0; i < kNumGenerated && same(reference, i); ++i) {
      const double bound = rounding + LargestDifference(reference[i], cpu[i]);
      const double difference = LargestDifference(got[i], cpu[i]);
      EXPECT_LE(difference, bound) << "token " << i;
      largest_bound = std::max(largest_bound, bound);
      largest_share = std::max(largest_share, difference / bound);
      // The same token, unless two are nearly as good.
      const auto& top = cpu[i].top_logprobs;
      if (top[0].logprob - top[1].logprob <= 2 * bound) break;
      ASSERT_EQ(got[i].token_id, cpu[i].token_id) << "token " << i;
      ++num_tokens;
    }
    ++num_models;
  }
  EXPECT_GE(num_models, 15);
  EXPECT_GE(num_tokens, 2 * num_models);
  std::printf(
      "%d models, %d greedy tokens; log-probabilities may differ by up to %.3f "
      "and do by up to %.2f of that\n",
      num_models, num_tokens, largest_bound, largest_share);
}

}  // namespace
}  // namespace quire
