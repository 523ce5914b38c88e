// Linear, Embed and Logits of the CPU backend with weights of every format, on
// every instruction set, against kernels/reference with the same rounding of
// x'.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/quant_codec.h"
#include "kernels/reference.h"
#include "tests/backend_harness.h"

namespace quire {
namespace {

constexpr double kRoundoff = 0x1p-24;  // Of f32, relative.

std::vector<QuantizationScheme> Schemes() {
  std::vector<QuantizationScheme> schemes;
  for (QuantFormat format :
       {QuantFormat::kQ4_0, QuantFormat::kQ4_1, QuantFormat::kQ5_0,
        QuantFormat::kQ5_1, QuantFormat::kQ8_0, QuantFormat::kIQ4_NL,
        QuantFormat::kMXFP4, QuantFormat::kQ2_K, QuantFormat::kQ3_K,
        QuantFormat::kQ4_K, QuantFormat::kQ5_K, QuantFormat::kQ6_K,
        QuantFormat::kIQ4_XS, QuantFormat::kInt4}) {
    schemes.push_back({.format = format, .group_size = 64});
  }
  using Fp8Scales = QuantizationScheme::Fp8Scales;
  for (Fp8Scales scales :
       {Fp8Scales::kTensor, Fp8Scales::kRow, Fp8Scales::kBlock}) {
    schemes.push_back(
        {.format = QuantFormat::kFp8, .fp8_scales = scales, .group_size = 64});
  }
  return schemes;
}

struct Part {
  QuantizedMatrix matrix;
  float max_weight = 0.0f;

  Part(SimulationRandom& random, QuantFormat format, int64_t rows, int64_t cols)
      : Part(random, QuantizationScheme{.format = format}, rows, cols) {}

  Part(SimulationRandom& random, const QuantizationScheme& scheme, int64_t rows,
       int64_t cols) {
    const std::vector<float> dense = RandomValues(random, rows * cols, 0.1);
    for (float v : dense) max_weight = std::max(max_weight, std::abs(v));
    matrix = CheckOk(QuantizeMatrix(
        TensorView::Matrix(dense.data(), DType::kF32, rows, cols), scheme));
  }
};

class BackendQuantizedTest : public testing::TestWithParam<TestBackend> {};
INSTANTIATE_TEST_SUITE_P(Backends, BackendQuantizedTest,
                         testing::ValuesIn(CpuTestBackends()), TestBackendName);

// The largest difference that the order of f32 operations explains: 2 * cols
// additions and products (in bf16; the integer kernels have a sixteenth of
// that), of terms whose scale * code and minimum each stay below twice the
// largest weight.
double Tolerance(absl::Span<const float> x, int64_t cols, float max_weight) {
  double sum = 0;
  for (float v : x) sum += std::abs(v);
  return (2.0 * cols + 16) * kRoundoff * sum * 4 * max_weight;
}

TEST_P(BackendQuantizedTest, LinearAndParts) {
  SimulationRandom random(1);
  for (const QuantizationScheme& scheme : Schemes()) {
    const QuantFormat format = scheme.format;
    for (const auto& [is_gated, is_mixed] :
         {std::pair(false, true), std::pair(true, false),
          std::pair(true, true)}) {
      constexpr int64_t kCols = 256;
      constexpr int kTokens = 11;
      // Gate and up of one format stay in it, others become bf16; q, k and v
      // may differ.
      std::vector<Part> parts;
      LinearSpec spec;
      float max_weight = 0;
      if (is_gated) {
        spec.kind = LinearKind::kGateUp;
        parts.emplace_back(random, scheme, 37, kCols);
        if (is_mixed) {
          parts.emplace_back(random,
                             format == QuantFormat::kQ8_0 ? QuantFormat::kQ6_K
                                                          : QuantFormat::kQ8_0,
                             37, kCols);
        } else {
          parts.emplace_back(random, scheme, 37, kCols);
        }
      } else {
        spec.kind = LinearKind::kQkv;
        parts.emplace_back(random, scheme, 37, kCols);
        parts.emplace_back(random, QuantFormat::kQ6_K, 16, kCols);
        parts.emplace_back(random, QuantFormat::kQ8_0, 5, kCols);
      }
      int64_t rows = 0;
      for (const Part& part : parts) {
        spec.parts.push_back(part.matrix.part);
        rows += part.matrix.part.rows();
        max_weight = std::max(max_weight, part.max_weight);
      }
      const HostMatrix bias = HostMatrix::Random(random, 1, rows, DType::kF32);
      spec.bias = bias.view();
      const HostMatrix x =
          HostMatrix::Random(random, kTokens, kCols, DType::kF32);
      const auto run = [&](Backend& backend) {
        const auto weight = CheckOk(backend.PackLinear(spec));
        const int in =
            backend.AddActivation(kCols, DType::kF32, ActivationRows::kTokens);
        const int out =
            backend.AddActivation(rows, DType::kF32, ActivationRows::kTokens);
        std::vector<float> result;
        TokenStepOptions options;
        options.num_tokens = kTokens;
        RunTokenStep(
            backend, options,
            [&] { CopyIn(backend, x.values(), backend.Activation(in)); },
            [&](Step& step) {
              CheckOk(backend.Linear(step, backend.Activation(in), Prologue(),
                                     *weight, Epilogue(),
                                     backend.Activation(out)));
              result = CopyOut(backend, backend.Activation(out), kTokens);
            });
        return result;
      };
      ReferenceBackend reference(QuantizedProducts::kInt8);
      const std::vector<float> expected = run(reference);
      const auto backend = GetParam().Make();
      ASSERT_TRUE(backend->SupportsLinear(DType::kU8, format));
      const std::vector<float> got = run(*backend);
      for (size_t i = 0; i < expected.size(); ++i) {
        const double tolerance = Tolerance(x.row(i / rows), kCols, max_weight) +
                                 2 * kRoundoff * std::abs(expected[i]);
        ASSERT_TRUE(std::abs(static_cast<double>(got[i]) - expected[i]) <=
                    tolerance)
            << QuantFormatName(format) << " gated " << is_gated << " mixed "
            << is_mixed << ", element " << i << ": " << got[i] << " vs "
            << expected[i] << " +- " << tolerance;
      }
    }
  }
}

// A tied table: rows of it, bit by bit as the codec has them, and logits.
TEST_P(BackendQuantizedTest, EmbedAndLogits) {
  SimulationRandom random(2);
  for (const QuantizationScheme& scheme : Schemes()) {
    const QuantFormat format = scheme.format;
    constexpr int64_t kCols = 256;
    constexpr int kVocab = 51;
    const Part table(random, scheme, kVocab, kCols);
    TokenStepOptions options;
    options.num_tokens = 5;
    options.num_logits = 3;
    options.vocab_size = kVocab;
    options.token_ids = {0, 50, 17, 50, 33};
    const HostMatrix hidden =
        HostMatrix::Random(random, options.num_tokens, kCols, DType::kF32);
    LinearSpec spec;
    spec.kind = LinearKind::kVocab;
    spec.parts = {table.matrix.part};
    std::vector<float> embedded;
    const auto run = [&](Backend& backend) {
      const auto weight = CheckOk(backend.PackLinear(spec));
      const int in =
          backend.AddActivation(kCols, DType::kF32, ActivationRows::kTokens);
      const int rows =
          backend.AddActivation(kCols, DType::kF32, ActivationRows::kTokens);
      const int logits = backend.AddActivation(kVocab, DType::kF32,
                                               ActivationRows::kLogitRows);
      std::vector<float> result;
      RunTokenStep(
          backend, options,
          [&] { CopyIn(backend, hidden.values(), backend.Activation(in)); },
          [&](Step& step) {
            CheckOk(backend.Embed(step, *weight, nullptr, 1.0f,
                                  backend.Activation(rows)));
            embedded =
                CopyOut(backend, backend.Activation(rows), options.num_tokens);
            CheckOk(backend.Logits(step, backend.Activation(in), Prologue(),
                                   *weight, 1.0f, 0.0f,
                                   backend.Activation(logits)));
            result = CopyOut(backend, backend.Activation(logits),
                             options.num_logits);
          });
      return result;
    };
    ReferenceBackend reference(QuantizedProducts::kInt8);
    const std::vector<float> expected = run(reference);
    const std::vector<float> expected_rows = embedded;
    const auto backend = GetParam().Make();
    const std::vector<float> got = run(*backend);
    EXPECT_EQ(embedded, expected_rows) << QuantFormatName(format);
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      const int64_t token =
          options.num_tokens - options.num_logits + i / kVocab;
      ASSERT_TRUE(std::abs(static_cast<double>(got[i]) - expected[i]) <=
                  Tolerance(hidden.row(token), kCols, table.max_weight))
          << QuantFormatName(format) << ", logit " << i << ": " << got[i]
          << " vs " << expected[i];
    }
  }
}

}  // namespace
}  // namespace quire
