// Every family of models on a GPU, or on the emulation of one: what it says of
// the prompt's next token, and its greedy continuation, are what the CPU says,
// which tests/golden_logits_test compares with transformers.
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/model_harness.h"

namespace quire {
namespace {

// Of log-probabilities. Not a worst-case bound: 16-bit roundings compound
// through a model, and the operations have bounds of their own
// (tests/backend_*_test). The largest difference of a best token seen among
// these checkpoints is 0.043; what this test is for, a wrong buffer, stride or
// order, makes noise of it all.
constexpr double kMaxError = 0.1;
constexpr int kNumTop = 5;
constexpr int kNumGenerated = 6;

std::vector<TokenOutput> Generate(const std::string& directory, bool is_cuda) {
  ModelHarness::Options options;
  options.dtype = options.kv_cache_dtype = DType::kBF16;
  options.kv_cache_memory_bytes = 64 << 20;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 64;
  options.max_model_len = 96;
  if (is_cuda) {
    options.make_backend = []() -> std::unique_ptr<Backend> {
      return std::move(CudaBackend::Create({})).value();
    };
  }
  auto harness = ModelHarness::Create(directory, options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  if (!harness.ok()) return {};
  TestSequence sequence = (*harness)->MakeSequence(
      0, {5, 9, 33, 7, 12, 40, 2, 3, 4, 8, 17, 60}, kNumTop);
  // A prefill in two chunks, then a decode.
  const absl::Status status = (*harness)->Generate(sequence, 7, kNumGenerated);
  EXPECT_TRUE(status.ok()) << status;
  return sequence.outputs;
}

TEST(CudaModelTest, EveryFamilyAgreesWithTheCpu) {
  int num_models = 0, num_tokens = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator("tests/testdata/goldens")) {
    const std::string name = entry.path().filename();
    // Embeddings: tests/backend_pooling_test.
    if (name.rfind("embed", 0) == 0 ||
        !std::filesystem::exists(entry.path() / "model.safetensors")) {
      continue;
    }
    SCOPED_TRACE(name);
    const auto expected = Generate(entry.path(), false);
    const auto got = Generate(entry.path(), true);
    ASSERT_EQ(expected.size(), size_t{kNumGenerated});
    ASSERT_EQ(got.size(), size_t{kNumGenerated});
    for (const TopLogprob& top : expected[0].top_logprobs) {
      for (const TopLogprob& found : got[0].top_logprobs) {
        if (found.token_id != top.token_id) continue;
        EXPECT_TRUE(std::abs(found.logprob - top.logprob) <= kMaxError)
            << "token " << top.token_id << ": " << found.logprob
            << " instead of " << top.logprob;
      }
    }
    // The best may change places with the next, and no more.
    EXPECT_TRUE(std::abs(got[0].top_logprobs[0].logprob -
                         expected[0].top_logprobs[0].logprob) <= kMaxError);
    // The continuations are the same until two tokens are nearly as good.
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto& top = expected[i].top_logprobs;
      if (top[0].logprob - top[1].logprob <= 2 * kMaxError) break;
      ASSERT_EQ(got[i].token_id, expected[i].token_id) << "token " << i;
      ++num_tokens;
    }
    ++num_models;
  }
  EXPECT_GE(num_models, 15);
  EXPECT_GE(num_tokens, 2 * num_models);
}

}  // namespace
}  // namespace quire
