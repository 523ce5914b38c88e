// Linear layers with fp8 weights on an emulated GPU, from packing to result:
// with a library for products (of which kernels/cuda/large_linear_test knows
// the details) against our own kernel.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/fake_matrix_library.h"
#include "kernels/cuda/large_linear.h"
#include "kernels/quant_codec.h"
#include "tests/backend_harness.h"

namespace quire {
namespace {

using cuda::FakeLibrary;
using cuda::MatrixScales;
using Fp8Scales = QuantizationScheme::Fp8Scales;

struct Case {
  Fp8Scales scales = Fp8Scales::kRow;
  int num_tokens = 70;
  LinearKind kind = LinearKind::kPlain;
  bool has_bias = false;
  bool has_residual = false;
  int64_t cols = 144;
};

// The output, by the library's product or without a library.
std::vector<float> Run(const Case& c, bool has_library) {
  SimulationRandom random(5);
  const bool is_gated = c.kind == LinearKind::kGateUp;
  const int64_t part_rows = 136;  // A block and a part.
  const int64_t num_rows = is_gated ? 2 * part_rows : part_rows;
  const int64_t out_cols = part_rows;
  const QuantizationScheme scheme = {.format = QuantFormat::kFp8,
                                     .fp8_scales = c.scales};
  std::vector<QuantizedMatrix> matrices;
  LinearSpec spec;
  spec.kind = c.kind;
  for (int64_t rows = 0; rows < num_rows; rows += part_rows) {
    // A scale that differs from part to part.
    const HostMatrix dense = HostMatrix::Random(
        random, part_rows, c.cols, DType::kF32, rows == 0 ? 1.0 : 0.3);
    matrices.push_back(CheckOk(QuantizeMatrix(dense.view(), scheme)));
  }
  for (const QuantizedMatrix& matrix : matrices) {
    spec.parts.push_back(matrix.part);
  }
  const HostMatrix bias = HostMatrix::Random(random, 1, num_rows, DType::kF32);
  if (c.has_bias) spec.bias = bias.view();
  const HostMatrix x =
      HostMatrix::Random(random, c.num_tokens, c.cols, DType::kBF16);
  const HostMatrix residual =
      HostMatrix::Random(random, c.num_tokens, out_cols, DType::kBF16);

  CudaBackendOptions options;
  options.measures_products = false;
  options.open_matrix_library = nullptr;
  if (has_library) {
    options.open_matrix_library = [] {
      return std::make_unique<FakeLibrary>();
    };
  }
  const auto backend = CheckOk(CudaBackend::Create(options));
  const auto weight = CheckOk(backend->PackLinear(spec));
  const auto add = [&](int64_t cols) {
    return backend->AddActivation(cols, DType::kBF16, ActivationRows::kTokens);
  };
  const int x_id = add(c.cols), residual_id = add(out_cols);
  const int out_id = add(out_cols);
  std::vector<float> out;
  RunTokenStep(
      *backend, {.num_tokens = c.num_tokens, .max_num_tokens = 516},
      [&] {
        CopyIn(*backend, x.values(), backend->Activation(x_id));
        CopyIn(*backend, residual.values(), backend->Activation(residual_id));
      },
      [&](Step& step) {
        Epilogue epilogue;
        if (is_gated) epilogue.activation = Epilogue::Activation::kSwiGlu;
        if (c.has_residual)
          epilogue.residual = backend->Activation(residual_id);
        CheckOk(backend->Linear(step, backend->Activation(x_id), Prologue(),
                                *weight, epilogue,
                                backend->Activation(out_id)));
        out = CopyOut(*backend, backend->Activation(out_id), c.num_tokens);
      });
  EXPECT_EQ(backend->large_linear().num_library_launches(), has_library);
  EXPECT_EQ(backend->large_linear().num_tiled_launches(), !has_library);
  return out;
}

void ExpectSame(const Case& c, MatrixScales scales) {
  SCOPED_TRACE(absl::StrCat("scales ", static_cast<int>(c.scales), " tokens ",
                            c.num_tokens, " kind ", static_cast<int>(c.kind)));
  const std::vector<float> expected = Run(c, false);
  const std::vector<float> got = Run(c, true);
  ASSERT_FALSE(FakeLibrary::log().problems.empty());
  EXPECT_EQ(FakeLibrary::log().problems.back().scales, scales);
  // The sums differ by roundings to f32, the output by one to bf16 that may go
  // to the other side.
  std::vector<double> tolerance;
  for (const float value : expected) {
    tolerance.push_back(0x1p-7 * std::abs(value) + 1e-3);
  }
  ExpectNear(got, expected, tolerance, "with a library");
}

TEST(CudaFp8LibraryTest, ComputesWhatOurKernelDoes) {
  for (const int capability : {90, 89}) {
    FakeLibrary::log() = {};
    FakeLibrary::log().capability = capability;
    for (const Fp8Scales scales :
         {Fp8Scales::kTensor, Fp8Scales::kRow, Fp8Scales::kBlock}) {
      const bool is_block = scales == Fp8Scales::kBlock;
      if (is_block && capability != 90) continue;
      const MatrixScales given = is_block           ? MatrixScales::kBlocks
                                 : capability == 90 ? MatrixScales::kRows
                                                    : MatrixScales::kNone;
      ExpectSame({.scales = scales}, given);
      ExpectSame({.scales = scales, .has_residual = true}, given);
      ExpectSame({.scales = scales, .has_bias = true, .has_residual = true},
                 given);
      ExpectSame({.scales = scales, .kind = LinearKind::kGateUp}, given);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

// With scales of blocks the library takes tokens by fours: to these a step is
// padded that is too long for the sizes of graphs.
TEST(CudaFp8LibraryTest, LongStepsArePaddedForTheLibrary) {
  FakeLibrary::log() = {};
  ExpectSame({.scales = Fp8Scales::kBlock, .num_tokens = 513},
             MatrixScales::kBlocks);
  if (HasFatalFailure()) return;
  EXPECT_EQ(FakeLibrary::log().problems.back().num_tokens, 516);
}

}  // namespace
}  // namespace quire
