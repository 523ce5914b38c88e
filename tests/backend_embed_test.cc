// Embedding and learned positions of every backend against kernels/reference,
// as backend_conformance_test.cc says.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/reference.h"
#include "tests/backend_harness.h"

namespace quire {
namespace {

constexpr double kRoundoff = 0x1p-24;  // Of f32, relative.

class BackendEmbedTest : public testing::TestWithParam<TestBackend> {};

INSTANTIATE_TEST_SUITE_P(Backends, BackendEmbedTest,
                         testing::ValuesIn(AllTestBackends()), TestBackendName);

TEST_P(BackendEmbedTest, Embed) {
  SimulationRandom random(400);
  for (DType case_dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const DType dtype = GetParam().Weights(case_dtype);
    const DType activations = GetParam().activations;
    for (int64_t case_cols : {1, 48, 67, 256}) {
      const int64_t cols = GetParam().Cols(case_cols);
      for (int num_tokens : {0, 1, 19}) {
        const int vocab_size = 53;
        const bool has_positions = random.Below(2) == 0;
        const float scale = random.Below(2) == 0 ? 1.0f : 7.3f;
        const HostMatrix table =
            HostMatrix::Random(random, vocab_size, cols, dtype);
        const HostMatrix positions =
            HostMatrix::Random(random, std::max(num_tokens, 1), cols, dtype);
        TokenStepOptions options;
        options.num_tokens = num_tokens;
        options.vocab_size = vocab_size;
        for (int i = 0; i < num_tokens; ++i) {
          options.token_ids.push_back(random.Below(vocab_size));
        }
        const auto run = [&](Backend& backend) {
          const auto pack = [&](const HostMatrix& matrix) {
            LinearSpec spec;
            spec.kind = LinearKind::kVocab;
            spec.parts = {{matrix.view(), QuantFormat::kDense}};
            return CheckOk(backend.PackLinear(spec));
          };
          const auto vocab_weight = pack(table);
          const auto position_weight = pack(positions);
          const int out =
              backend.AddActivation(cols, activations, ActivationRows::kTokens);
          std::vector<float> result;
          RunTokenStep(
              backend, options, [] {},
              [&](Step& step) {
                CheckOk(backend.Embed(
                    step, *vocab_weight,
                    has_positions ? position_weight.get() : nullptr, scale,
                    backend.Activation(out)));
                result = CopyOut(backend, backend.Activation(out), num_tokens);
              });
          return result;
        };
        ReferenceBackend reference;
        const auto backend = GetParam().Make();
        const std::vector<float> expected = run(reference);
        // A product and a sum, each rounded; exact without them. In 16 bits the
        // product is stored before the sum.
        std::vector<double> tolerance(expected.size());
        for (int t = 0; t < num_tokens; ++t) {
          for (int64_t col = 0; col < cols; ++col) {
            if (scale == 1.0f && !has_positions) continue;
            const double product =
                std::abs(scale * table.at(options.token_ids[t], col));
            tolerance[t * cols + col] = GetParam().Stored(
                expected[t * cols + col],
                2 * kRoundoff * (product + std::abs(positions.at(t, col))) +
                    (has_positions ? GetParam().RoundingError(product) : 0.0));
          }
        }
        ExpectNear(run(*backend), expected, tolerance,
                   absl::StrCat("[", num_tokens, ", ", cols, "]"));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(BackendEmbedTest, AddPositions) {
  SimulationRandom random(450);
  for (DType case_dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const DType dtype = GetParam().Weights(case_dtype);
    const DType activations = GetParam().activations;
    for (int64_t case_cols : {1, 48, 67, 256}) {
      const int64_t cols = GetParam().Cols(case_cols);
      for (int num_tokens : {0, 1, 19}) {
        const HostMatrix x =
            HostMatrix::Random(random, num_tokens, cols, activations);
        const HostMatrix positions =
            HostMatrix::Random(random, std::max(num_tokens, 1), cols, dtype);
        TokenStepOptions options;
        options.num_tokens = num_tokens;
        const auto run = [&](Backend& backend) {
          LinearSpec spec;
          spec.kind = LinearKind::kVocab;
          spec.parts = {{positions.view(), QuantFormat::kDense}};
          const auto weight = CheckOk(backend.PackLinear(spec));
          const int id =
              backend.AddActivation(cols, activations, ActivationRows::kTokens);
          std::vector<float> result;
          RunTokenStep(
              backend, options,
              [&] { CopyIn(backend, x.values(), backend.Activation(id)); },
              [&](Step& step) {
                CheckOk(backend.AddPositions(step, *weight,
                                             backend.Activation(id)));
                result = CopyOut(backend, backend.Activation(id), num_tokens);
              });
          return result;
        };
        ReferenceBackend reference;
        const auto backend = GetParam().Make();
        // One sum, correctly rounded to f32 and to the activations' dtype on
        // both sides.
        EXPECT_EQ(run(*backend), run(reference))
            << DTypeName(dtype) << " [" << num_tokens << ", " << cols << "]";
      }
    }
  }
}

}  // namespace
}  // namespace quire
