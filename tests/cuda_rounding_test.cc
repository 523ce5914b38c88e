// Every family of models on an emulated GPU against the reference with the same
// rounding points, which says how the model is computed, and against f32, which
// says how well.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/reference.h"
#include "tests/model_harness.h"

namespace quire {
namespace {

constexpr int kNumTop = 20;  // The most a GPU reports.

enum class Device { kF32Reference, kReference, kCuda };

// The distribution after a prompt: prefilled in two chunks.
std::vector<float> Logprobs(
    const std::string& directory, Device device, DType kv_dtype,
    const std::optional<QuantizationScheme>& quantization = std::nullopt) {
  ModelHarness::Options options;
  options.quantization = quantization;
  options.dtype = DType::kBF16;
  options.kv_cache_dtype = kv_dtype;
  options.kv_cache_memory_bytes = 8 << 20;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 64;
  options.max_model_len = 96;
  options.make_backend = [device]() -> std::unique_ptr<Backend> {
    if (device == Device::kCuda) {
      return std::move(CudaBackend::Create({})).value();
    }
    ReferenceOptions reference;
    if (device == Device::kReference) reference.activations = DType::kBF16;
    return std::make_unique<ReferenceBackend>(reference);
  };
  auto harness = ModelHarness::Create(directory, options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  if (!harness.ok()) return {};
  TestSequence sequence = (*harness)->MakeSequence(
      0, {5, 9, 33, 7, 12, 40, 2, 3, 4, 8, 17, 60}, kNumTop);
  const absl::Status status = (*harness)->Generate(sequence, 7, 1);
  EXPECT_TRUE(status.ok()) << status;
  if (!status.ok()) return {};
  std::vector<float> logprobs((*harness)->vocab_size(), NAN);
  for (const TopLogprob& top : sequence.outputs[0].top_logprobs) {
    logprobs[top.token_id] = top.logprob;
  }
  return logprobs;
}

// Over the tokens that both report.
double LargestDifference(const std::vector<float>& a,
                         const std::vector<float>& b) {
  double largest = 0.0;
  int num_common = 0;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    if (std::isnan(a[i]) || std::isnan(b[i])) continue;
    largest = std::max(largest, std::abs(double{a[i]} - b[i]));
    ++num_common;
  }
  // A wrong distribution has other tokens at its top.
  EXPECT_GE(num_common, kNumTop / 2);
  return largest;
}

std::vector<std::string> Models() {
  std::vector<std::string> models;
  for (const auto& entry :
       std::filesystem::directory_iterator("tests/testdata/goldens")) {
    const std::string name = entry.path().filename();
    // Embeddings: tests/backend_pooling_test.
    if (name.rfind("embed", 0) == 0 ||
        !std::filesystem::exists(entry.path() / "model.safetensors")) {
      continue;
    }
    models.push_back(entry.path());
  }
  return models;
}

// With the same rounding points two computations differ by f32 arithmetic, and
// where that straddles the boundary of a rounding to bf16, by one step of it.
// Without such a step the difference is that of sums of at most 256 terms in
// f32, relative to logits below 8.
constexpr double kF32Error = 256 * 0x1p-24 * 8;

// A model's error of bf16 is the sum of all its roundings, thousands of them,
// of half a step each at most. The few steps that differ are among those, so
// they make no larger difference; in most models there is none.
TEST(CudaRoundingTest, EveryFamilyAgreesWithTheReference) {
  int num_models = 0, num_without_steps = 0;
  double largest_rounding = 0.0, largest_steps = 0.0;
  for (const std::string& model : Models()) {
    SCOPED_TRACE(model);
    const auto exact = Logprobs(model, Device::kF32Reference, DType::kF32);
    for (const DType kv_dtype : {DType::kBF16, DType::kF8E4M3}) {
      const auto reference = Logprobs(model, Device::kReference, kv_dtype);
      const auto cuda = Logprobs(model, Device::kCuda, kv_dtype);
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
  EXPECT_GE(num_without_steps, num_models / 2);
  std::printf(
      "log-probabilities of %d runs: %d without a step, largest difference "
      "%.3f; bf16 itself is up to %.3f from f32\n",
      num_models, num_without_steps, largest_steps, largest_rounding);
}

// With quantized linear layers, of which such a short prompt rounds no weight.
TEST(CudaRoundingTest, QuantizedModelsAgreeWithTheReference) {
  int num_without_steps = 0, num_runs = 0;
  for (const char* name : {"llama", "qwen2", "gemma2", "phi3", "opt"}) {
    const std::string model = std::string("tests/testdata/goldens/") + name;
    SCOPED_TRACE(model);
    const auto exact = Logprobs(model, Device::kF32Reference, DType::kF32);
    for (const QuantizationScheme& scheme :
         {QuantizationScheme{.format = QuantFormat::kFp8},
          QuantizationScheme{.format = QuantFormat::kInt4, .group_size = 32}}) {
      const auto reference =
          Logprobs(model, Device::kReference, DType::kBF16, scheme);
      const auto cuda = Logprobs(model, Device::kCuda, DType::kBF16, scheme);
      const double steps = LargestDifference(cuda, reference);
      // Quantization changes the model by more than bf16 does.
      EXPECT_LE(steps, LargestDifference(reference, exact));
      num_without_steps += steps <= kF32Error;
      ++num_runs;
    }
  }
  EXPECT_GE(num_without_steps, num_runs / 2);
}

// e4m3 has four significant bits where bf16 has eight: every rounding of K and
// V is 16 times as large, and all others are as before. To first order the
// error of an fp8 cache is at most 16 times that of bf16, as if all of that
// came from the cache.
TEST(CudaRoundingTest, ErrorOfAnFp8CacheIsBounded) {
  double largest = 0.0, largest_ratio = 0.0;
  for (const std::string& model : Models()) {
    SCOPED_TRACE(model);
    const auto exact = Logprobs(model, Device::kF32Reference, DType::kF32);
    const auto bf16 = Logprobs(model, Device::kCuda, DType::kBF16);
    const auto fp8 = Logprobs(model, Device::kCuda, DType::kF8E4M3);
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
