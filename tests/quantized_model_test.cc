// The demo model with weights quantized at load: how far its distributions are
// from those of the f32 model, and that the CPU, or a GPU (test_device.h),
// computes what the reference does with the same rounding.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/weights/weight_loader.h"
#include "gtest/gtest.h"
#include "kernels/reference.h"
#include "tests/model_harness.h"
#include "tests/model_rounding.h"
#include "tests/test_device.h"

namespace quire {
namespace {

constexpr char kModel[] = "models/demo";
constexpr int kNumPositions = 48;
constexpr int kNumGpuPositions = 8;  // Emulated: some 50 ms each.

std::unique_ptr<ModelHarness> MakeHarness(std::optional<QuantFormat> format,
                                          ModelHarness::Options options = {}) {
  options.num_threads = 2;
  if (format) options.quantization = QuantizationScheme{.format = *format};
  auto harness = ModelHarness::Create(kModel, options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  return harness.ok() ? *std::move(harness) : nullptr;
}

ModelHarness::Options OnCpuReference() {
  ModelHarness::Options options;
  options.make_backend = [] {
    return std::make_unique<ReferenceBackend>(QuantizedProducts::kInt8);
  };
  return options;
}

// Text of the model's own: its f32 form, sampled.
std::vector<int32_t> SampleText() {
  const auto harness = MakeHarness(std::nullopt);
  TestSequence sequence = harness->MakeSequence(0, {1}, 0);
  sequence.params.temperature = 1.0f;
  sequence.draw_key = 5;
  EXPECT_TRUE(harness->Generate(sequence, 64, kNumPositions).ok());
  return sequence.tokens;
}

// What is reported at the first positions of `text`.
std::vector<TokenOutput> Outputs(ModelHarness& harness,
                                 std::vector<int32_t> text, int num_positions,
                                 int num_reported) {
  TestSequence sequence =
      harness.MakeSequence(0, std::move(text), num_reported);
  for (int i = 0; i < num_positions; ++i) {
    EXPECT_TRUE(harness.Step({{&sequence, 1, true}}).ok());
  }
  return sequence.outputs;
}

// Log-probabilities by id, at every position of `text`.
std::vector<std::vector<float>> Distributions(ModelHarness& harness,
                                              std::vector<int32_t> text) {
  std::vector<std::vector<float>> result;
  for (const TokenOutput& output :
       Outputs(harness, std::move(text), kNumPositions, harness.vocab_size())) {
    result.push_back(LogprobsById(output));
  }
  return result;
}

// Mean over positions of sum p (log p - log q).
double MeanKl(const std::vector<std::vector<float>>& p,
              const std::vector<std::vector<float>>& q) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    for (size_t id = 0; id < p[i].size(); ++id) {
      sum += std::exp(static_cast<double>(p[i][id])) *
             (static_cast<double>(p[i][id]) - q[i][id]);
    }
  }
  return sum / p.size();
}

struct Quantization {
  QuantFormat format;
  double max_kl = 0.0;  // Of the CPU from f32, in nats.
};

class QuantizedModelTest : public testing::TestWithParam<Quantization> {};

// The reference with a GPU's rounding points is so far from the one without, on
// the same codes; the GPU is no further from it (tests/model_rounding.h).
void ExpectAsTheReferenceOnAGpu(QuantFormat format) {
  const std::vector<int32_t> text = SampleText();
  const auto outputs = [&](const ModelHarness::Options& options) {
    return Outputs(*MakeHarness(format, options), text, kNumGpuPositions,
                   kNumRoundingTop);
  };
  const auto exact = outputs(OnExactReference());
  const auto expected = outputs(OnRoundingReference());
  const auto found = outputs(OnTestDevice());
  double rounding = 0.0, difference = 0.0;
  for (int i = 0; i < kNumGpuPositions; ++i) {
    rounding = std::max(rounding, LargestDifference(expected[i], exact[i]));
    difference = std::max(difference, LargestDifference(found[i], expected[i]));
  }
  // Otherwise it would bound nothing: trained, the model is no more sensitive.
  EXPECT_LE(rounding, 1.0);
  EXPECT_LE(difference, rounding);
  std::printf("%.3g from the reference, which is %.3g from the exact one\n",
              difference, rounding);
}

TEST_P(QuantizedModelTest, NearF32AndAsTheReference) {
  if (TestsRunOnCuda()) return ExpectAsTheReferenceOnAGpu(GetParam().format);
  const std::vector<int32_t> text = SampleText();
  const auto exact = Distributions(*MakeHarness(std::nullopt), text);
  const auto found = Distributions(*MakeHarness(GetParam().format), text);
  const auto expected =
      Distributions(*MakeHarness(GetParam().format, OnCpuReference()), text);
  const double kl = MeanKl(exact, found);
  EXPECT_TRUE(kl <= GetParam().max_kl) << kl;
  EXPECT_GE(kl, 1e-7);  // Something was quantized.
  // Sums in f32 instead of double; where that moves an x' across a tie, a code
  // differs by one, which shows at a position or two.
  std::vector<double> from_reference;
  for (size_t i = 0; i < found.size(); ++i) {
    from_reference.push_back(std::abs(MeanKl({expected[i]}, {found[i]})));
  }
  std::sort(from_reference.begin(), from_reference.end());
  EXPECT_TRUE(from_reference[kNumPositions / 2] <= 1e-6)
      << from_reference[kNumPositions / 2];
  EXPECT_TRUE(from_reference.back() <= 2e-3) << from_reference.back();
}

std::vector<Quantization> Quantizations() {
  // What a GPU computes with in its own bits.
  if (TestsRunOnCuda()) {
    return {{QuantFormat::kQ8_0},
            {QuantFormat::kQ4_0},
            {QuantFormat::kFp8},
            {QuantFormat::kInt4}};
  }
  // Twice what was measured.
  return {{QuantFormat::kQ8_0, 1.2e-5},
          {QuantFormat::kQ6_K, 2.5e-4},
          {QuantFormat::kQ4_K, 4.2e-4},
          {QuantFormat::kQ4_0, 7.2e-4}};
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedModelTest,
                         testing::ValuesIn(Quantizations()),
                         [](const auto& info) {
                           return std::string(
                               QuantFormatName(info.param.format));
                         });

}  // namespace
}  // namespace quire
