// Linear layers with fp8 and int4 weights on an emulated GPU, from packing to
// result, against sums in double of what kernels/quant_codec decodes. The
// roundings are those that kernels/backend.h lists.
#include <algorithm>
#include <cmath>
#include <deque>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/simt/emulator.h"
#include "kernels/quant_codec.h"
#include "tests/backend_harness.h"

namespace quire {
namespace {

using Fp8Scales = QuantizationScheme::Fp8Scales;
using simt::emulator::CurrentCounts;
using simt::emulator::CurrentOptions;

const cuda::DeviceProperties& Properties() {
  static const cuda::DeviceProperties properties =
      std::move(CudaBackend::Create({})).value()->device().properties();
  return properties;
}
// Of activations, where the GPU has bf16.
DType UsualDType() {
  static const DType dtype =
      std::move(CudaBackend::Create({})).value()->ActivationDType(DType::kBF16);
  return dtype;
}

// As kernels/backend.h says.
bool MultipliesInFp8() {
  return Properties().major * 10 + Properties().minor >= 89;
}

// What tensor cores may lose of a sum of `cols` products in e4m3, of which
// `largest` is the largest magnitude of a product or of the sum so far: Hopper
// keeps about 14 bits (DeepSeek-V3, arXiv:2412.19437, section 3.5.2), so that
// each addition cuts at 2^-13 of that. Emulated ones are exact.
double Fp8SumError(int64_t cols, double largest) {
  const bool is_emulated = Properties().name == "emulated GPU";
  return is_emulated ? 0.0 : static_cast<double>(cols) * 0x1p-13 * largest;
}

struct Case {
  QuantizationScheme scheme;
  DType activations = UsualDType();
  DType scales = DType::kF16;  // Of kInt4.
  int num_tokens = 1;
  int64_t cols = 128;
  LinearKind kind = LinearKind::kPlain;
  std::vector<int64_t> part_rows = {24};
  bool has_order = false;
  float input_scale = 0.0f;
  bool has_norm = false;  // Up to eight tokens: part of the linear layer.

  bool is_gated() const { return kind == LinearKind::kGateUp; }
  bool rounds_x() const {
    return scheme.format == QuantFormat::kFp8 && num_tokens > 64 &&
           MultipliesInFp8();
  }
  bool rounds_weights() const { return num_tokens > 64 && !rounds_x(); }
  std::string ToString() const {
    return absl::StrCat(
        QuantFormatName(scheme.format), " scales ",
        static_cast<int>(scheme.fp8_scales), " group ", scheme.group_size,
        scheme.is_symmetric ? " symmetric" : "", " tokens ", num_tokens,
        " cols ", cols, " parts ", part_rows.size(), " ", part_rows[0],
        " kind ", static_cast<int>(kind), has_order ? " ordered " : " ",
        DTypeName(activations), " scales ", DTypeName(scales), " input_scale ",
        input_scale, has_norm ? " norm" : "");
  }
};

// x' as the tensor cores get it.
std::vector<double> RoundX(const Case& c, absl::Span<const float> x) {
  std::vector<double> rounded(x.begin(), x.end());
  if (!c.rounds_x()) return rounded;
  const size_t size = c.scheme.fp8_scales == Fp8Scales::kBlock ? 128 : x.size();
  for (size_t first = 0; first < x.size(); first += size) {
    const absl::Span<const float> group = x.subspan(first, size);
    float scale = c.input_scale;
    if (scale == 0.0f) {
      float largest = 0.0f;
      for (float value : group) largest = std::max(largest, std::abs(value));
      scale = largest > 0.0f ? largest / 448.0f : 1.0f;
    }
    for (size_t i = 0; i < group.size(); ++i) {
      rounded[first + i] =
          double{E4M3ToFloat(FloatToE4M3(group[i] / scale))} * scale;
    }
  }
  return rounded;
}

double UnitRoundoff(DType dtype) {
  return dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11;
}

void CheckCase(const Case& c, uint64_t seed) {
  SimulationRandom random(seed);
  LinearSpec spec;
  spec.kind = c.kind;
  std::vector<QuantizedMatrix> matrices;
  std::deque<HostMatrix> scales;
  std::vector<std::vector<float>> weights;  // Decoded rows of all parts.
  std::vector<int32_t> order(c.cols);
  for (int64_t i = 0; i < c.cols; ++i) order[i] = static_cast<int32_t>(i);
  for (int64_t i = c.cols - 1; c.has_order && i > 0; --i) {
    std::swap(order[i], order[random.Below(i + 1)]);
  }
  for (const int64_t rows : c.part_rows) {
    const HostMatrix dense =
        HostMatrix::Random(random, rows, c.cols, DType::kF32);
    matrices.push_back(CheckOk(QuantizeMatrix(dense.view(), c.scheme)));
    WeightPart part = matrices.back().part;
    if (part.format == QuantFormat::kInt4) {
      ASSERT_EQ(part.scales.dtype, DType::kF16);
      std::vector<float> values;
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t group = 0; group < part.scales.cols; ++group) {
          // With all bits of f32.
          values.push_back(
              HalfToFloat(part.scales.row<const uint16_t>(row)[group]) * 1.1f);
        }
      }
      scales.emplace_back(rows, part.scales.cols, c.scales, values);
      part.scales = scales.back().view();
    }
    part.input_scale = c.input_scale;
    if (c.has_order) {
      part.column_order = TensorView::Vector(order.data(), DType::kI32, c.cols);
    }
    spec.parts.push_back(part);
    for (int64_t row = 0; row < rows; ++row) {
      weights.emplace_back(c.cols);
      DequantizeRow(part, row, weights.back().data());
    }
  }
  const int64_t num_rows = static_cast<int64_t>(weights.size());
  const HostMatrix bias = HostMatrix::Random(random, 1, num_rows, DType::kF32);
  spec.bias = bias.view();
  const HostMatrix x =
      HostMatrix::Random(random, c.num_tokens, c.cols, c.activations);
  const int64_t out_cols = c.is_gated() ? num_rows / 2 : num_rows;

  const auto backend = CudaTestBackends()[0].Make();
  ASSERT_TRUE(backend->SupportsLinear(DType::kU8, c.scheme.format));
  const auto weight = CheckOk(backend->PackLinear(spec));
  if (c.cols >= 128) {  // Columns of int4 are padded to as many.
    EXPECT_LT(weight->num_bytes, num_rows * c.cols * 2) << "was decoded";
  }
  const int x_id =
      backend->AddActivation(c.cols, c.activations, ActivationRows::kTokens);
  const int out_id =
      backend->AddActivation(out_cols, c.activations, ActivationRows::kTokens);
  Epilogue epilogue;
  if (c.is_gated()) epilogue.activation = Epilogue::Activation::kSwiGlu;
  // x as the sum of its halves: exact.
  const int residual_id =
      backend->AddActivation(c.cols, c.activations, ActivationRows::kTokens);
  std::vector<float> halves = x.values();
  for (float& value : halves) value /= 2;
  std::vector<float> got;
  TokenStepOptions options;
  options.num_tokens = c.num_tokens;
  CurrentCounts() = {};
  RunTokenStep(
      *backend, options,
      [&] {
        CopyIn(*backend, c.has_norm ? halves : x.values(),
               backend->Activation(x_id));
        CopyIn(*backend, halves, backend->Activation(residual_id));
      },
      [&](Step& step) {
        Prologue prologue;
        const auto run = [&] {
          CheckOk(backend->Linear(step, backend->Activation(x_id), prologue,
                                  *weight, epilogue,
                                  backend->Activation(out_id)));
          return CopyOut(*backend, backend->Activation(out_id), c.num_tokens);
        };
        if (c.has_norm) prologue.residual = backend->Activation(residual_id);
        got = run();
        if (!c.has_norm) return;
        // A sum that lies where x was takes a kernel of its own.
        prologue.residual_out = backend->Activation(x_id);
        EXPECT_EQ(run(), got) << c.ToString();
      });
  EXPECT_EQ(CurrentCounts().num_matrix_passes, CurrentCounts().num_matrices)
      << c.ToString() << ": bank conflicts";
  EXPECT_EQ(CurrentCounts().num_shared_passes, CurrentCounts().num_shared)
      << c.ToString() << ": bank conflicts";
  for (int t = 0; t < c.num_tokens; ++t) {
    const std::vector<double> rounded = RoundX(c, x.row(t));
    // Sum and a bound on its error: cols f32 additions in any order and as many
    // products with scales, where weights are rounded to 16 bits one such
    // rounding of each, and what tensor cores lose of sums in e4m3.
    const auto product = [&](int64_t row, double* error) {
      double sum = bias.at(0, row), magnitude = std::abs(sum);
      double products = 0.0, largest = 0.0;
      for (int64_t col = 0; col < c.cols; ++col) {
        const double next = rounded[col] * weights[row][col];
        sum += next;
        products += next;
        magnitude += std::abs(next);
        largest = std::max({largest, std::abs(next), std::abs(products)});
      }
      *error = magnitude * (2 * c.cols + 8) * 0x1p-24;
      if (c.rounds_x()) *error += Fp8SumError(c.cols, largest);
      if (c.rounds_weights()) *error += magnitude * UnitRoundoff(c.activations);
      return sum;
    };
    for (int64_t col = 0; col < out_cols; ++col) {
      double error = 0.0;
      double value = product(col, &error);
      if (c.is_gated()) {
        double up_error = 0.0;
        const double gate = value, up = product(out_cols + col, &up_error);
        value = gate / (1 + std::exp(-gate)) * up;
        // |silu'| < 1.13.
        error = 1.13 * error * (std::abs(up) + up_error) +
                std::abs(gate) * up_error +
                0x1p-20 * (1 + std::abs(gate)) * std::abs(up);
      }
      const double found = got[t * out_cols + col];
      const double tolerance =
          error + UnitRoundoff(c.activations) * (std::abs(value) + error) +
          0x1p-24;
      ASSERT_TRUE(std::abs(found - value) <= tolerance)
          << c.ToString() << ", token " << t << ", column " << col << ": "
          << found << " instead of " << value << ", tolerance " << tolerance;
    }
  }
}

std::vector<QuantizationScheme> Schemes() {
  std::vector<QuantizationScheme> schemes;
  for (const Fp8Scales scales :
       {Fp8Scales::kTensor, Fp8Scales::kRow, Fp8Scales::kBlock}) {
    schemes.push_back({.format = QuantFormat::kFp8, .fp8_scales = scales});
  }
  for (const int group_size : {32, 64, 96, 128, 256}) {
    for (const bool is_symmetric : {false, true}) {
      schemes.push_back({.format = QuantFormat::kInt4,
                         .group_size = group_size,
                         .is_symmetric = is_symmetric});
    }
  }
  for (const QuantFormat format : {QuantFormat::kQ8_0, QuantFormat::kQ4_0}) {
    schemes.push_back({.format = format});
  }
  return schemes;
}

constexpr DType kScaleDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// As the scheme can have them.
int64_t Cols(const QuantizationScheme& scheme, int64_t cols) {
  return IsBlockFormat(scheme.format) ? (cols + 31) / 32 * 32 : cols;
}

class CudaQuantizedTest : public testing::Test {
 protected:
  void TearDown() override { CurrentOptions() = {}; }
};

TEST_F(CudaQuantizedTest, EverySchemeAndNumberOfTokens) {
  uint64_t seed = 1;
  for (const QuantizationScheme& scheme : Schemes()) {
    for (const int num_tokens : {1, 9, 17, 64, 65, 130}) {
      for (const int64_t cols : {16, 208, 1104}) {
        if (num_tokens > 17 && cols > 208) continue;
        Case c;
        c.scheme = scheme;
        c.num_tokens = num_tokens;
        c.cols = Cols(scheme, cols);
        c.activations = ++seed % 2 == 0 ? UsualDType() : DType::kF16;
        c.part_rows = {seed % 3 == 0 ? 37 : 24};
        if (scheme.fp8_scales == Fp8Scales::kBlock) c.part_rows = {24};
        c.has_order = scheme.format == QuantFormat::kInt4 && seed % 3 == 1;
        if (seed % 4 == 0) c.input_scale = 0.01f;
        c.has_norm = seed % 5 < 2;
        c.scales = kScaleDTypes[seed / 2 % 3];
        CheckCase(c, seed);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(CudaQuantizedTest, PartsKeepTheirScales) {
  uint64_t seed = 100;
  for (const QuantizationScheme& scheme : Schemes()) {
    for (const int num_tokens : {3, 70}) {
      Case c;
      c.scheme = scheme;
      c.num_tokens = num_tokens;
      c.cols = 160;
      c.kind = LinearKind::kQkv;
      c.part_rows = {136, 8, 16};
      CheckCase(c, ++seed);
      c.kind = LinearKind::kGateUp;
      c.part_rows = {136, 136};
      CheckCase(c, ++seed);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(CudaQuantizedTest, IsRightUnderEverySchedule) {
  for (const simt::emulator::Schedule schedule :
       simt::emulator::kAllSchedules) {
    for (const bool is_lazy : {false, true}) {
      CurrentOptions() = {
          .schedule = schedule,
          .seed = 5,
          .is_copy_lazy = is_lazy,
          .counts_shared = schedule == simt::emulator::Schedule::kAscending};
      for (const QuantizationScheme& scheme : Schemes()) {
        if (scheme.is_symmetric || scheme.group_size == 96) continue;
        for (const int num_tokens : {2, 66}) {
          Case c;
          c.scheme = scheme;
          c.num_tokens = num_tokens;
          c.cols = Cols(scheme, 272);
          c.part_rows = {40};
          CheckCase(c, 7);
          c.has_norm = num_tokens == 2;
          if (c.has_norm) CheckCase(c, 8);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// What the kernels do not take is decoded, with the same result.
TEST_F(CudaQuantizedTest, DecodesWhatTheKernelsDoNotTake) {
  SimulationRandom random(3);
  const auto backend = CudaTestBackends()[0].Make();
  const HostMatrix dense = HostMatrix::Random(random, 16, 64, DType::kF32);
  const auto pack = [&](const QuantizationScheme& scheme, LinearKind kind) {
    const QuantizedMatrix matrix =
        CheckOk(QuantizeMatrix(dense.view(), scheme));
    LinearSpec spec;
    spec.kind = kind;
    spec.parts = {matrix.part};
    return CheckOk(backend->PackLinear(spec))->num_bytes;
  };
  const QuantizationScheme int4 = {.format = QuantFormat::kInt4};
  EXPECT_LT(pack(int4, LinearKind::kPlain), 16 * 128 / 2 + 16 * 8);
  EXPECT_EQ(pack(int4, LinearKind::kVocab), 16 * 64 * 2);
  const QuantizationScheme odd = {.format = QuantFormat::kInt4,
                                  .group_size = 40};
  EXPECT_EQ(pack(odd, LinearKind::kPlain), 16 * 64 * 2);
  // A byte for each element, and for 128 columns begun four scales of 16 bits.
  EXPECT_EQ(pack({.format = QuantFormat::kQ8_0}, LinearKind::kPlain),
            16 * (64 + 4 * 2));
  EXPECT_EQ(pack({.format = QuantFormat::kQ5_0}, LinearKind::kPlain),
            16 * 64 * 2);
}

}  // namespace
}  // namespace quire
