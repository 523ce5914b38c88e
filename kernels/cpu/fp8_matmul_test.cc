#include "kernels/cpu/fp8_matmul.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/matmul_problem.h"
#include "kernels/quant_codec.h"

namespace quire {
namespace {

using Activation = Epilogue::Activation;

constexpr int kPerTensor = 0;
constexpr int kPerRow = -1;  // Else the size of the squares.

// Every code but NaN, subnormals and zeros of both signs included.
struct Fp8Weights {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  WeightPart part;

  Fp8Weights(SimulationRandom& random, int64_t rows, int64_t cols, int kind)
      : codes(rows * cols + 1) {
    for (uint8_t& code : codes) {
      code = static_cast<uint8_t>(random.Below(256));
      if ((code & 0x7f) == 0x7f) code = 0;
    }
    int64_t scale_rows = kind == kPerTensor ? 1 : rows;
    int64_t scale_cols = 1;
    if (kind > 0) {
      scale_rows = (rows + kind - 1) / kind;
      scale_cols = (cols + kind - 1) / kind;
      part.group_size = kind;
    }
    scales.resize(scale_rows * scale_cols + 1);
    for (float& scale : scales) scale = 0.01f * (1.5f + RandomInput(random));
    part.format = QuantFormat::kFp8;
    part.data = TensorView::Matrix(codes.data(), DType::kU8, rows, cols);
    part.scales =
        TensorView::Matrix(scales.data(), DType::kF32, scale_rows, scale_cols);
  }
};

struct Case : MatmulCase {
  Case() { cols = 64; }
};

class Problem : public MatmulProblem {
 public:
  Problem(const Case& c, int scale_kind, uint64_t seed) : MatmulProblem(c) {
    SimulationRandom random(seed);
    for (int64_t rows : c.part_rows) {
      // Its bytes stay where they are when the list grows.
      parts_.emplace_back(random, rows, c.cols, scale_kind);
      const WeightPart& part = parts_.back().part;
      std::vector<float> values(rows * c.cols + 1);
      for (int64_t row = 0; row < rows; ++row) {
        DequantizeRow(part, row, values.data() + row * c.cols);
      }
      values.pop_back();
      AddPart(part, values);
    }
    Draw(random);
  }

 private:
  std::vector<double> RoundedX(absl::Span<const float> x) const override {
    std::vector<double> rounded;
    for (float v : x) rounded.push_back(Bf16ToFloat(FloatToBf16(v)));
    return rounded;
  }
  // Sums in f32 of cols products (each exact), scaled and added group by group:
  // twice, because VDPBF16PS and BFDOT do not round to nearest everywhere; and
  // the epilogue.
  double DotTolerance(double sum_abs) const override {
    return 2 * (2.0 * case_.cols + 8) * kF32Roundoff * sum_abs + 1e-37;
  }
  std::string Name() const override { return "fp8"; }
  void CheckPacked(const PackedMatrix& packed) const override {
    // A byte for each element, beside scales, bias and padding to 32 channels.
    const int64_t padded = num_channels() + 63;
    EXPECT_LE(packed.num_bytes,
              padded * (case_.cols + 1 + 4 * (case_.cols / 6 + 2)) + 64);
    // Signs of zeros included.
    std::vector<float> unpacked(case_.cols + 1), expected(case_.cols + 1);
    int64_t first = 0;
    for (const WeightPart& part : spec_.parts) {
      for (int64_t row = 0; row < part.rows(); ++row) {
        UnpackRow(packed, first + row, unpacked.data());
        DequantizeRow(part, row, expected.data());
        ASSERT_EQ(std::memcmp(unpacked.data(), expected.data(),
                              case_.cols * sizeof(float)),
                  0)
            << "row " << first + row;
      }
      first += part.rows();
    }
  }

  std::vector<Fp8Weights> parts_;
};

using Param = std::tuple<Isa, int>;
class Fp8MatmulTest : public testing::TestWithParam<Param> {
 protected:
  Isa isa() const { return std::get<0>(GetParam()); }
  int scale_kind() const { return std::get<1>(GetParam()); }

  void Check(const Case& c, uint64_t seed) {
    Problem(c, scale_kind(), seed).Check(isa(), pool_);
  }

  ThreadPool pool_{3};
};

TEST_P(Fp8MatmulTest, ShapesAroundTheTiles) {
  uint64_t seed = 1;
  for (int64_t cols : {0, 1, 2, 3, 31, 64, 127, 128, 129, 263}) {
    for (int64_t rows : {0, 1, 15, 16, 17, 32, 33, 67}) {
      for (int64_t num_rows : {0, 1, 2, 3, 6, 7, 8, 9, 14, 15, 29}) {
        Case c;
        c.part_rows = {rows};
        c.cols = cols;
        c.num_rows = num_rows;
        Check(c, seed++);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Fp8MatmulTest, PartsBiasResidualAndScale) {
  Case c;
  c.kind = LinearKind::kQkv;
  c.part_rows = {48, 17, 19};
  c.cols = 261;
  c.num_rows = 17;
  c.has_bias = c.has_residual = true;
  c.out_scale = -0.37f;
  Check(c, 7);
}

TEST_P(Fp8MatmulTest, Gated) {
  for (int64_t half : {1, 15, 16, 17, 53}) {
    Case c;
    c.kind = LinearKind::kGateUp;
    c.part_rows = {half, half};
    c.cols = 61;
    c.num_rows = 9;
    c.activation = Activation::kSwiGlu;
    c.has_bias = c.has_residual = half % 2 == 1;
    c.out_scale = 0.5f;
    Check(c, 100 + half);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Fp8MatmulTest, LongRowsAndManyTiles) {
  Case c;
  c.part_rows = {40};
  c.cols = 1731;
  c.num_rows = 170;  // More tiles than are kept at once.
  Check(c, 9);
}

// The bits of a row depend on neither the batch around it, the threads nor the
// chunks.
TEST_P(Fp8MatmulTest, BitwiseInvariant) {
  SimulationRandom random(11);
  constexpr int64_t kCols = 515, kRows = 163, kMaxRows = 45;
  const Fp8Weights weights(random, kRows, kCols, scale_kind());
  LinearSpec spec;
  spec.parts = {weights.part};
  std::vector<float> x(kMaxRows * kCols);
  for (float& v : x) v = RandomInput(random);
  ThreadPool single(1);
  const auto packed = PackMatrix(spec, isa(), single);
  ASSERT_TRUE(packed.ok()) << packed.status();
  MatmulScratch scratch(1, 1);  // Grows.
  const auto run = [&](ThreadPool& pool, int64_t first, int64_t num_rows) {
    std::vector<float> out(num_rows * kRows);
    MatmulParams params;
    params.x = x.data() + first * kCols;
    params.x_stride = kCols;
    params.num_rows = num_rows;
    params.out = out.data();
    params.out_stride = kRows;
    Matmul(pool, isa(), **packed, params, scratch);
    return out;
  };
  std::vector<float> expected;
  for (int64_t r = 0; r < kMaxRows; ++r) {
    const std::vector<float> one = run(single, r, 1);
    expected.insert(expected.end(), one.begin(), one.end());
  }
  for (int num_threads : {1, 3}) {
    ThreadPool pool(num_threads);
    for (int64_t num_rows = 2; num_rows <= kMaxRows; ++num_rows) {
      const int64_t first = num_rows % 3 == 0 ? 0 : kMaxRows - num_rows;
      const std::vector<float> got = run(pool, first, num_rows);
      ASSERT_EQ(std::memcmp(got.data(), expected.data() + first * kRows,
                            got.size() * sizeof(float)),
                0)
          << num_threads << " threads, " << num_rows << " rows";
    }
  }
}

std::string ParamName(const testing::TestParamInfo<Param>& info) {
  const int kind = std::get<1>(info.param);
  return std::string(IsaName(std::get<0>(info.param))) +
         (kind == kPerTensor ? "_tensor"
          : kind == kPerRow  ? "_row"
                             : "_block" + std::to_string(kind));
}
// 300 columns are 150 steps: groups of two blocks.
INSTANTIATE_TEST_SUITE_P(AllIsas, Fp8MatmulTest,
                         testing::Combine(testing::ValuesIn(SupportedIsas()),
                                          testing::Values(kPerTensor, kPerRow,
                                                          128, 6, 300)),
                         ParamName);

// With one column, x = 1 and a scale of 1 an output is its code's value, in
// registers and in blocks.
TEST(Fp8CodesTest, EveryCode) {
  ThreadPool pool(1);
  std::vector<uint8_t> codes(256);
  for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
  const float scale = 1.0f;
  LinearSpec spec;
  spec.parts.resize(1);
  spec.parts[0].format = QuantFormat::kFp8;
  spec.parts[0].data = TensorView::Matrix(codes.data(), DType::kU8, 256, 1);
  spec.parts[0].scales = TensorView::Matrix(&scale, DType::kF32, 1, 1);
  for (Isa isa : SupportedIsas()) {
    const auto packed = PackMatrix(spec, isa, pool);
    ASSERT_TRUE(packed.ok()) << packed.status();
    for (int64_t num_rows : {1, 9}) {
      const std::vector<float> x(num_rows, 1.0f);
      std::vector<float> out(num_rows * 256);
      MatmulParams params;
      params.x = x.data();
      params.x_stride = 1;
      params.num_rows = num_rows;
      params.out = out.data();
      params.out_stride = 256;
      MatmulScratch scratch(num_rows, 1);
      Matmul(pool, isa, **packed, params, scratch);
      for (int i = 0; i < 256; ++i) {
        const float expected = E4M3ToFloat(codes[i]);
        const float got = out[(num_rows - 1) * 256 + i];
        EXPECT_TRUE(std::isnan(expected) ? std::isnan(got) : got == expected)
            << IsaName(isa) << ", code " << i << ": " << got;
      }
    }
  }
}

TEST(Fp8NanTest, StaysInItsGroupOfTheRow) {
  ThreadPool pool(1);
  SimulationRandom random(5);
  Fp8Weights weights(random, 3, 24, 8);
  weights.codes[1 * 24 + 9] = 0x7f;
  LinearSpec spec;
  spec.parts = {weights.part};
  std::vector<float> expected(24), got(24);
  for (Isa isa : SupportedIsas()) {
    const auto packed = PackMatrix(spec, isa, pool);
    ASSERT_TRUE(packed.ok()) << packed.status();
    for (int64_t row = 0; row < 3; ++row) {
      DequantizeRow(weights.part, row, expected.data());
      UnpackRow(**packed, row, got.data());
      for (int col = 0; col < 24; ++col) {
        if (row == 1 && col / 8 == 1) {
          EXPECT_TRUE(std::isnan(got[col]));
        } else {
          EXPECT_EQ(got[col], expected[col]);
        }
      }
    }
  }
}

TEST(PackFp8Test, RejectsScalesThatDoNotFit) {
  ThreadPool pool(1);
  SimulationRandom random(6);
  const Fp8Weights weights(random, 6, 32, 8);
  const auto code = [&](const WeightPart& part) {
    LinearSpec spec;
    spec.parts = {part};
    return PackMatrix(spec, Isa::kScalar, pool).status().code();
  };
  WeightPart part = weights.part;
  EXPECT_EQ(code(part), absl::StatusCode::kOk);
  part.group_size = 16;
  EXPECT_EQ(code(part), absl::StatusCode::kInvalidArgument);
  part.group_size = 0;
  EXPECT_EQ(code(part), absl::StatusCode::kInvalidArgument);
  part = weights.part;
  part.scales = TensorView();
  EXPECT_EQ(code(part), absl::StatusCode::kInvalidArgument);
  part = weights.part;
  part.scales.dtype = DType::kBF16;
  EXPECT_EQ(code(part), absl::StatusCode::kInvalidArgument);
}

// Parts that no panel can hold together still keep their bytes, one below the
// other; what has an odd group_size becomes bf16.
TEST(PackFp8Test, PartsThatDiffer) {
  ThreadPool pool(1);
  SimulationRandom random(7);
  const Fp8Weights blocks(random, 33, 64, 16);
  const Fp8Weights rows(random, 33, 64, kPerRow);
  const Fp8Weights odd(random, 33, 64, 5);
  LinearSpec spec;
  spec.parts = {blocks.part, rows.part, odd.part};
  for (Isa isa : SupportedIsas()) {
    const auto packed = PackMatrix(spec, isa, pool);
    ASSERT_TRUE(packed.ok()) << packed.status();
    std::vector<float> expected(64), got(64);
    for (int64_t row = 0; row < 99; ++row) {
      DequantizeRow(spec.parts[row / 33], row % 33, expected.data());
      UnpackRow(**packed, row, got.data());
      for (int i = 0; i < 64; ++i) {
        EXPECT_EQ(got[i], row < 66 ? expected[i]
                                   : Bf16ToFloat(FloatToBf16(expected[i])));
      }
    }
  }
}

}  // namespace
}  // namespace quire
