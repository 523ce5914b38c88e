// The demo model with weights quantized at load: how far its distributions are
// from those of the f32 model, and that the CPU computes what the reference
// does with the same rounding.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reference.h"
#include "tests/model_harness.h"

namespace quire {
namespace {

constexpr char kModel[] = "models/demo";
constexpr int kNumPositions = 48;

std::unique_ptr<ModelHarness> MakeHarness(std::optional<QuantFormat> format,
                                          bool is_reference = false) {
  ModelHarness::Options options;
  options.num_threads = 2;
  if (format) options.quantization = QuantizationScheme{.format = *format};
  if (is_reference) {
    options.make_backend = [] {
      return std::make_unique<ReferenceBackend>(QuantizedProducts::kInt8);
    };
  }
  auto harness = ModelHarness::Create(kModel, options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  return harness.ok() ? *std::move(harness) : nullptr;
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

// Log-probabilities by id, at every position of `text`.
std::vector<std::vector<float>> Distributions(ModelHarness& harness,
                                              std::vector<int32_t> text) {
  TestSequence sequence =
      harness.MakeSequence(0, std::move(text), harness.vocab_size());
  for (int i = 0; i < kNumPositions; ++i) {
    EXPECT_TRUE(harness.Step({{&sequence, 1, true}}).ok());
  }
  std::vector<std::vector<float>> result;
  for (const TokenOutput& output : sequence.outputs) {
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
  double max_kl;  // From f32, in nats.
};

class QuantizedModelTest : public testing::TestWithParam<Quantization> {};

TEST_P(QuantizedModelTest, NearF32AndAsTheReference) {
  const std::vector<int32_t> text = SampleText();
  const auto exact = Distributions(*MakeHarness(std::nullopt), text);
  const auto found = Distributions(*MakeHarness(GetParam().format), text);
  const auto expected =
      Distributions(*MakeHarness(GetParam().format, true), text);
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

// Twice what was measured.
INSTANTIATE_TEST_SUITE_P(
    Formats, QuantizedModelTest,
    testing::Values(Quantization{QuantFormat::kQ8_0, 1.2e-5},
                    Quantization{QuantFormat::kQ6_K, 2.5e-4},
                    Quantization{QuantFormat::kQ4_K, 4.2e-4},
                    Quantization{QuantFormat::kQ4_0, 7.2e-4}),
    [](const auto& info) {
      return std::string(QuantFormatName(info.param.format));
    });

}  // namespace
}  // namespace quire
