// Every family of models on an emulated GPU against the reference with the same
// rounding points, which says how the model is computed, and against f32, which
// says how well.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/model_harness.h"
#include "tests/model_rounding.h"

namespace quire {
namespace {

enum class Device { kF32Reference, kReference, kCuda };

cuda::DeviceProperties Properties() {
  return std::move(CudaBackend::Create({})).value()->device().properties();
}

// Tensor cores add in an order of their own, and with a few bits less than f32
// at the end: what they straddle is not counted on.
bool IsEmulated() { return Properties().name == "emulated GPU"; }
bool MultipliesInFp8() {
  const cuda::DeviceProperties properties = Properties();
  return properties.major * 10 + properties.minor >= 89;
}

struct Prefill {
  Device device = Device::kCuda;
  DType kv_dtype = DType::kBF16;
  std::optional<QuantizationScheme> quantization;
  // Of the prompt: prefilled in chunks.
  int num_tokens = 12;
  int chunk = 7;
};

// The distribution after a prompt.
TokenOutput Distribution(const std::string& directory, const Prefill& prefill) {
  ModelHarness::Options options;
  options.quantization = prefill.quantization;
  options.dtype = DType::kBF16;
  options.kv_cache_dtype = prefill.kv_dtype;
  options.kv_cache_memory_bytes = 8 << 20;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 128;
  options.max_model_len = 96;
  options.make_backend = [&prefill]() -> std::unique_ptr<Backend> {
    if (prefill.device == Device::kCuda) {
      return std::move(CudaBackend::Create({})).value();
    }
    return prefill.device == Device::kReference
               ? MakeRoundingReference(MultipliesInFp8())
               : MakeExactReference();
  };
  auto harness = ModelHarness::Create(directory, options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  if (!harness.ok()) return {};
  std::vector<int32_t> prompt = {5, 9, 33, 7, 12, 40, 2, 3, 4, 8, 17, 60};
  for (int i = static_cast<int>(prompt.size()); i < prefill.num_tokens; ++i) {
    prompt.push_back(prompt[i % 12] + i % 5);
  }
  TestSequence sequence =
      (*harness)->MakeSequence(0, std::move(prompt), kNumRoundingTop);
  const absl::Status status = (*harness)->Generate(sequence, prefill.chunk, 1);
  EXPECT_TRUE(status.ok()) << status;
  return status.ok() ? sequence.outputs[0] : TokenOutput();
}

TokenOutput Exact(const std::string& model, int num_tokens = 12) {
  return Distribution(model, {.device = Device::kF32Reference,
                              .kv_dtype = DType::kF32,
                              .num_tokens = num_tokens,
                              .chunk = 128});
}

TEST(CudaRoundingTest, EveryFamilyAgreesWithTheReference) {
  int num_models = 0, num_without_steps = 0;
  double largest_rounding = 0.0, largest_steps = 0.0;
  for (const std::string& model : GoldenModels()) {
    SCOPED_TRACE(model);
    const TokenOutput exact = Exact(model);
    for (const DType kv_dtype : {DType::kBF16, DType::kF8E4M3}) {
      const TokenOutput reference = Distribution(
          model, {.device = Device::kReference, .kv_dtype = kv_dtype});
      const TokenOutput cuda = Distribution(model, {.kv_dtype = kv_dtype});
      const double rounding = LargestDifference(reference, exact);
      const double steps = LargestDifference(cuda, reference);
      EXPECT_LE(steps, std::max(rounding, kF32Error));
      ++num_models;
      num_without_steps += steps <= kF32Error;
      largest_steps = std::max(largest_steps, steps);
      if (kv_dtype == DType::kBF16) {
        largest_rounding = std::max(largest_rounding, rounding);
      }
    }
  }
  EXPECT_GE(num_models, 30);
  if (IsEmulated()) {
    EXPECT_GE(num_without_steps, num_models / 2);
  }
  std::printf(
      "log-probabilities of %d runs: %d without a step, largest difference "
      "%.3f; bf16 itself is up to %.3f from f32\n",
      num_models, num_without_steps, largest_steps, largest_rounding);
}

// With quantized linear layers: in chunks of few tokens, which round no weight,
// and in one of many, where fp8 rounds x' to e4m3 and int4 its weights to bf16.
TEST(CudaRoundingTest, QuantizedModelsAgreeWithTheReference) {
  using Fp8Scales = QuantizationScheme::Fp8Scales;
  int num_without_steps = 0, num_runs = 0;
  for (const char* name : {"llama", "qwen2", "gemma2", "phi3", "opt"}) {
    const std::string model = std::string("tests/testdata/goldens/") + name;
    SCOPED_TRACE(model);
    for (const int chunk : {7, 80}) {
      const int num_tokens = chunk == 7 ? 12 : 80;
      const TokenOutput exact = Exact(model, num_tokens);
      for (const QuantizationScheme& scheme :
           {QuantizationScheme{.format = QuantFormat::kFp8},
            QuantizationScheme{.format = QuantFormat::kFp8,
            .fp8_scales = Fp8Scales::kBlock},
            QuantizationScheme{.format = QuantFormat::kInt4, .group_size = 32},
            QuantizationScheme{.format = QuantFormat::kQ8_0}}) {
        Prefill prefill = {
            .quantization = scheme, .num_tokens = num_tokens, .chunk = chunk};
        const TokenOutput cuda = Distribution(model, prefill);
        prefill.device = Device::kReference;
        const TokenOutput reference = Distribution(model, prefill);
        const double steps = LargestDifference(cuda, reference);
        // Quantization changes the model by more than bf16 does.
        EXPECT_LE(steps, LargestDifference(reference, exact));
        num_without_steps += steps <= kF32Error;
        ++num_runs;
      }
    }
  }
  std::printf("%d of %d quantized runs without a step\n", num_without_steps,
              num_runs);
  // 80 tokens have more roundings than 12.
  if (IsEmulated()) {
    EXPECT_GE(num_without_steps, num_runs / 4);
  }
}

// e4m3 has four significant bits where bf16 has eight: every rounding of K and
// V is 16 times as large, and all others are as before. To first order the
// error of an fp8 cache is at most 16 times that of bf16, as if all of that
// came from the cache.
TEST(CudaRoundingTest, ErrorOfAnFp8CacheIsBounded) {
  double largest = 0.0, largest_ratio = 0.0;
  for (const std::string& model : GoldenModels()) {
    SCOPED_TRACE(model);
    const TokenOutput exact = Exact(model);
    const TokenOutput bf16 = Distribution(model, {});
    const TokenOutput fp8 = Distribution(model, {.kv_dtype = DType::kF8E4M3});
    const double rounding = LargestDifference(bf16, exact);
    const double difference = LargestDifference(fp8, bf16);
    EXPECT_GT(difference, 0.0);
    EXPECT_LE(difference, 16 * rounding);
    largest = std::max(largest, difference);
    largest_ratio = std::max(largest_ratio, difference / rounding);
  }
  std::printf(
      "fp8 against bf16 KV cache: log-probabilities up to %.3f apart, %.1f "
      "times what bf16 is from f32\n",
      largest, largest_ratio);
}

}  // namespace
}  // namespace quire
