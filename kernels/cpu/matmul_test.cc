#include "kernels/cpu/matmul.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cpu/matmul_kernels.h"
#include "kernels/cpu/matmul_problem.h"

namespace quire {
namespace {

using Activation = Epilogue::Activation;

// A matrix in any dtype and its exact values as double.
struct Matrix {
  std::vector<char> bytes;
  std::vector<double> values;
  TensorView view;

  // Rows lie `padding` elements apart, starting `offset` bytes into the buffer,
  // as in a memory-mapped file.
  Matrix(DType dtype, int64_t rows, int64_t cols, SimulationRandom& random,
         int64_t padding = 0, int64_t offset = 0) {
    const int64_t size = DTypeSize(dtype);
    const int64_t stride = cols + padding;
    bytes.assign(offset + rows * stride * size + 1, 0);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const float value = RandomInput(random);
        char* const to = bytes.data() + offset + (r * stride + c) * size;
        if (dtype == DType::kF32) {
          std::memcpy(to, &value, 4);
          values.push_back(value);
        } else {
          const bool is_half = dtype == DType::kF16;
          const uint16_t bits =
              is_half ? FloatToHalf(value) : FloatToBf16(value);
          std::memcpy(to, &bits, 2);
          values.push_back(is_half ? HalfToFloat(bits) : Bf16ToFloat(bits));
        }
      }
    }
    view = TensorView::Matrix(bytes.data() + offset, dtype, rows, cols);
    view.row_stride = stride;
  }
};

struct Case : MatmulCase {
  DType dtype = DType::kBF16;
  int64_t padding = 0;
  int64_t offset = 0;
  int num_segments = 1;
};

class Problem : public MatmulProblem {
 public:
  Problem(const Case& c, uint64_t seed) : MatmulProblem(c), dtype_(c.dtype) {
    SimulationRandom random(seed);
    spec_.num_column_segments = c.num_segments;
    for (int64_t rows : c.part_rows) {
      // Their bytes stay where they are when the list grows.
      parts_.emplace_back(c.dtype, rows, c.cols, random, c.padding, c.offset);
      const std::vector<float> values(parts_.back().values.begin(),
                                      parts_.back().values.end());
      AddPart({parts_.back().view, QuantFormat::kDense}, values);
    }
    Draw(random);
  }

 private:
  std::vector<double> RoundedX(absl::Span<const float> x) const override {
    std::vector<double> rounded(x.begin(), x.end());
    if (dtype_ != DType::kBF16) return rounded;
    for (double& v : rounded) {
      v = Bf16ToFloat(FloatToBf16(static_cast<float>(v)));
    }
    return rounded;
  }
  // A chain of `cols` multiply-adds in f32 (two roundings each where there is
  // no FMA or VDPBF16PS rounds between the halves of a pair), bias and scale
  // included.
  double DotTolerance(double sum_abs) const override {
    return (2 * case_.cols + 4) * kF32Roundoff * sum_abs + 1e-37;
  }
  std::string Name() const override { return DTypeName(dtype_); }
  void CheckPacked(const PackedMatrix& packed) const override {
    EXPECT_GE(packed.num_bytes,
              num_channels() * case_.cols * DTypeSize(dtype_));
  }

  const DType dtype_;
  std::vector<Matrix> parts_;
};

void CheckCase(Isa isa, ThreadPool& pool, const Case& c, uint64_t seed) {
  Problem(c, seed).Check(isa, pool);
}

class MatmulTest : public testing::TestWithParam<std::tuple<Isa, DType>> {
 protected:
  Isa isa() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  ThreadPool pool_{3};
};

TEST_P(MatmulTest, ShapesAroundTheTiles) {
  uint64_t seed = 1;
  for (int64_t cols : {0, 1, 2, 3, 31, 64, 97}) {
    for (int64_t rows : {0, 1, 7, 8, 9, 31, 32, 33, 67}) {
      for (int64_t num_rows : {0, 1, 2, 5, 6, 7, 13, 14, 15, 29}) {
        Case c;
        c.dtype = dtype();
        c.part_rows = {rows};
        c.cols = cols;
        c.num_rows = num_rows;
        CheckCase(isa(), pool_, c, seed++);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(MatmulTest, PartsBiasResidualScaleAndAnyStride) {
  Case c;
  c.kind = LinearKind::kQkv;
  c.dtype = dtype();
  c.part_rows = {48, 17, 17};
  c.cols = 101;
  c.num_rows = 17;
  c.has_bias = c.has_residual = true;
  c.out_scale = -0.37f;
  c.padding = 5;
  c.offset = 1;  // Not even aligned to the element.
  CheckCase(isa(), pool_, c, 7);
}

TEST_P(MatmulTest, Activations) {
  uint64_t seed = 100;
  for (Activation activation :
       {Activation::kNone, Activation::kSwiGlu, Activation::kGeGlu,
        Activation::kGelu, Activation::kRelu, Activation::kGeGluErf,
        Activation::kGeluErf}) {
    for (int64_t half : {1, 15, 16, 17, 53}) {
      Case c;
      c.kind = LinearKind::kGateUp;
      c.dtype = dtype();
      c.part_rows = {half, half};
      c.cols = 61;
      c.num_rows = 9;
      c.activation = activation;
      c.has_bias = c.has_residual = half % 2 == 1;
      CheckCase(isa(), pool_, c, seed++);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(MatmulTest, LongRows) {
  Case c;
  c.dtype = dtype();
  c.part_rows = {70};
  c.cols = 4864;
  c.num_rows = 30;
  CheckCase(isa(), pool_, c, 9);
}

// The bits of a row depend on neither the batch around it, the threads nor the
// chunks.
TEST_P(MatmulTest, BitwiseInvariant) {
  SimulationRandom random(11);
  const int64_t cols = 515;
  const int64_t rows = 163;
  const int64_t max_rows = 45;
  Matrix weights(dtype(), rows, cols, random);
  LinearSpec spec;
  spec.parts.push_back({weights.view, QuantFormat::kDense});
  std::vector<float> x(max_rows * cols);
  for (float& v : x) v = RandomInput(random);
  ThreadPool single(1);
  const auto packed = PackMatrix(spec, isa(), single);
  ASSERT_TRUE(packed.ok());
  MatmulScratch scratch(1, 1);  // Grows.
  const auto run = [&](ThreadPool& pool, int64_t first, int64_t num_rows) {
    std::vector<float> out(num_rows * rows);
    MatmulParams params;
    params.x = x.data() + first * cols;
    params.x_stride = cols;
    params.num_rows = num_rows;
    params.out = out.data();
    params.out_stride = rows;
    Matmul(pool, isa(), **packed, params, scratch);
    return out;
  };
  std::vector<float> expected;
  for (int64_t r = 0; r < max_rows; ++r) {
    const std::vector<float> one = run(single, r, 1);
    expected.insert(expected.end(), one.begin(), one.end());
  }
  for (int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    for (int64_t num_rows = 1; num_rows <= max_rows; ++num_rows) {
      const int64_t first = num_rows % 3 == 0 ? 0 : max_rows - num_rows;
      const std::vector<float> got = run(pool, first, num_rows);
      ASSERT_EQ(std::memcmp(got.data(), expected.data() + first * rows,
                            got.size() * sizeof(float)),
                0)
          << num_threads << " threads, " << num_rows << " rows";
    }
  }
}

// Of other weights than f32 they change nothing.
TEST_P(MatmulTest, Segments) {
  uint64_t seed = 200;
  for (int num_segments : {2, 4, 8}) {
    for (int64_t cols : {0, 8, 88, 2080}) {
      for (int64_t num_rows : {1, 15, 29}) {
        Case c;
        c.dtype = dtype();
        c.part_rows = {48, 17};
        c.cols = cols;
        c.num_rows = num_rows;
        c.has_bias = c.has_residual = num_rows != 15;
        c.out_scale = 0.5f;
        c.num_segments = num_segments;
        CheckCase(isa(), pool_, c, seed++);
        if (HasFatalFailure()) return;
      }
    }
  }
  SimulationRandom random(1);
  Matrix weights(dtype(), 3, 12, random);
  for (const int num_segments : {-1, 0, 3, 8, 16}) {
    LinearSpec spec;
    spec.parts.push_back({weights.view, QuantFormat::kDense});
    spec.num_column_segments = num_segments;
    EXPECT_EQ(PackMatrix(spec, isa(), pool_).status().code(),
              absl::StatusCode::kInvalidArgument)
        << num_segments;
  }
}

// Ranks that have a part of the columns each, and add their sums as the
// segments are added, have the bits of one that has all; in any batch.
TEST_P(MatmulTest, RanksOfSegmentsAddUpToTheBitsOfOne) {
  if (dtype() != DType::kF32) GTEST_SKIP() << "f32 only";
  SimulationRandom random(13);
  constexpr int64_t kCols = 2080, kRows = 70, kMaxRows = 301;
  Matrix weights(DType::kF32, kRows, kCols, random);
  std::vector<float> bias(kRows), x(kMaxRows * kCols);
  for (float& b : bias) b = RandomInput(random);
  for (float& v : x) v = RandomInput(random);
  MatmulScratch scratch(1, 1);  // Grows.
  // The products of columns [first_col, first_col + cols) with rows of x.
  const auto run = [&](int64_t first_col, int64_t cols, int num_segments,
                       int64_t first_row, int64_t num_rows) {
    LinearSpec spec;
    TensorView part = weights.view;
    part.data = weights.view.row<float>(0) + first_col;
    part.cols = cols;
    spec.parts.push_back({part, QuantFormat::kDense});
    spec.num_column_segments = num_segments;
    if (first_col == 0) {
      spec.bias = TensorView::Vector(bias.data(), DType::kF32, kRows);
    }
    const auto packed = PackMatrix(spec, isa(), pool_);
    EXPECT_TRUE(packed.ok()) << packed.status();
    std::vector<float> out(num_rows * kRows);
    MatmulParams params;
    params.x = x.data() + first_row * kCols + first_col;
    params.x_stride = kCols;
    params.num_rows = num_rows;
    params.out = out.data();
    params.out_stride = kRows;
    Matmul(pool_, isa(), **packed, params, scratch);
    return out;
  };
  const std::vector<float> expected = run(0, kCols, 8, 0, kMaxRows);
  for (const int64_t num_rows : {1, 2, 14, 85, 300}) {
    const std::vector<float> got = run(0, kCols, 8, 1, num_rows);
    EXPECT_EQ(std::memcmp(got.data(), expected.data() + kRows,
                          got.size() * sizeof(float)),
              0)
        << num_rows << " rows";
  }
  for (const int num_ranks : {2, 4, 8}) {
    std::vector<std::vector<float>> sums;
    for (int rank = 0; rank < num_ranks; ++rank) {
      sums.push_back(run(rank * kCols / num_ranks, kCols / num_ranks,
                         8 / num_ranks, 0, kMaxRows));
    }
    while (sums.size() > 1) {
      for (size_t pair = 0; 2 * pair < sums.size(); ++pair) {
        for (size_t i = 0; i < sums[0].size(); ++i) {
          sums[pair][i] = sums[2 * pair][i] + sums[2 * pair + 1][i];
        }
      }
      sums.resize(sums.size() / 2);
    }
    EXPECT_EQ(std::memcmp(sums[0].data(), expected.data(),
                          expected.size() * sizeof(float)),
              0)
        << num_ranks << " ranks";
  }
}

TEST_P(MatmulTest, NanAndInfinityStayInTheirRowAndChannel) {
  SimulationRandom random(12);
  const int64_t cols = 40;
  const int64_t rows = 35;
  Matrix weights(dtype(), rows, cols, random);
  LinearSpec spec;
  spec.parts.push_back({weights.view, QuantFormat::kDense});
  const auto packed = PackMatrix(spec, isa(), pool_);
  ASSERT_TRUE(packed.ok());
  std::vector<float> x(4 * cols, 0.5f);
  x[1 * cols + 7] = std::numeric_limits<float>::quiet_NaN();
  x[2 * cols + 8] = std::numeric_limits<float>::infinity();
  std::vector<float> out(4 * rows);
  MatmulParams params;
  params.x = x.data();
  params.x_stride = cols;
  params.num_rows = 4;
  params.out = out.data();
  params.out_stride = rows;
  MatmulScratch scratch(4, cols);
  Matmul(pool_, isa(), **packed, params, scratch);
  for (int64_t j = 0; j < rows; ++j) {
    EXPECT_TRUE(std::isfinite(out[j]));
    EXPECT_TRUE(std::isnan(out[rows + j]));
    EXPECT_TRUE(std::isinf(out[2 * rows + j]));
    EXPECT_TRUE(std::isfinite(out[3 * rows + j]));
  }
}

TEST_P(MatmulTest, ResidualMayBeTheOutput) {
  SimulationRandom random(13);
  Matrix weights(dtype(), 37, 20, random);
  LinearSpec spec;
  spec.parts.push_back({weights.view, QuantFormat::kDense});
  const auto packed = PackMatrix(spec, isa(), pool_);
  ASSERT_TRUE(packed.ok());
  std::vector<float> x(3 * 20, 0.25f);
  std::vector<float> plain(3 * 37);
  MatmulParams params;
  params.x = x.data();
  params.x_stride = 20;
  params.num_rows = 3;
  params.out = plain.data();
  params.out_stride = 37;
  MatmulScratch scratch(3, 20);
  Matmul(pool_, isa(), **packed, params, scratch);
  std::vector<float> out(3 * 37, 2.0f);
  params.out = out.data();
  params.residual = out.data();
  params.residual_stride = 37;
  Matmul(pool_, isa(), **packed, params, scratch);
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], plain[i] + 2.0f);
}

std::string ParamName(
    const testing::TestParamInfo<std::tuple<Isa, DType>>& info) {
  return std::string(IsaName(std::get<0>(info.param))) + "_" +
         DTypeName(std::get<1>(info.param));
}
INSTANTIATE_TEST_SUITE_P(
    AllIsas, MatmulTest,
    testing::Combine(testing::ValuesIn(SupportedIsas()),
                     testing::Values(DType::kF32, DType::kF16, DType::kBF16)),
    ParamName);

// A bf16 weight times a bf16 activation is exact in f32: with one column the
// result must be that product, which also checks the rounding of x.
TEST(MatmulRoundingTest, XIsRoundedToNearestEven) {
  ThreadPool pool(1);
  const uint16_t one = FloatToBf16(1.0f);
  LinearSpec spec;
  spec.parts.push_back({TensorView::Matrix(&one, DType::kBF16, 1, 1)});
  for (Isa isa : SupportedIsas()) {
    const auto packed = PackMatrix(spec, isa, pool);
    ASSERT_TRUE(packed.ok());
    MatmulScratch scratch(1, 1);
    for (float x : {1.0f, 1.00390625f /* tie, to even: 1 */, 1.01171875f,
                    1.0039063f, -3.1415926f, 3.3895314e38f, 1e-30f}) {
      float out = 0;
      MatmulParams params;
      params.x = &x;
      params.x_stride = params.out_stride = params.num_rows = 1;
      params.out = &out;
      Matmul(pool, isa, **packed, params, scratch);
      EXPECT_EQ(out, Bf16ToFloat(FloatToBf16(x))) << IsaName(isa) << " " << x;
    }
  }
}

TEST(PackMatrixTest, RejectsWhatDoesNotFit) {
  ThreadPool pool(1);
  std::vector<float> data(64);
  const auto part = [&](DType dtype, int64_t rows, int64_t cols) {
    return WeightPart{TensorView::Matrix(data.data(), dtype, rows, cols)};
  };
  const auto code = [&](const LinearSpec& spec) {
    return PackMatrix(spec, Isa::kScalar, pool).status().code();
  };
  LinearSpec spec;
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
  spec.parts = {part(DType::kF32, 2, 3), part(DType::kF32, 2, 4)};
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
  spec.parts = {part(DType::kF32, 2, 4), part(DType::kBF16, 2, 4)};
  EXPECT_EQ(code(spec), absl::StatusCode::kOk);
  spec.kind = LinearKind::kGateUp;
  spec.parts = {part(DType::kF32, 2, 4), part(DType::kF32, 3, 4)};
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
  spec.kind = LinearKind::kPlain;
  spec.parts = {part(DType::kI32, 2, 4)};
  EXPECT_EQ(code(spec), absl::StatusCode::kUnimplemented);
  spec.parts = {part(DType::kF32, 2, 4)};
  spec.bias = TensorView::Vector(data.data(), DType::kF32, 3);
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
}

const MatmulKernels& Kernels(Isa isa) {
  return QUIRE_ISA_TABLE(isa, kMatmulKernels);
}

double Ulps(float got, double expected) {
  if (std::isnan(got)) return std::numeric_limits<double>::infinity();
  const double unit =
      std::ldexp(1.0, std::max(-126, std::ilogb(expected)) - 23);
  return std::abs(got - expected) / unit;
}

TEST(VectorMathTest, ExpAndTanhWithinAFewUlp) {
  for (Isa isa : SupportedIsas()) {
    std::vector<float> x;
    for (double v = -86.8; v < 88.7; v += 0.00137) x.push_back(v);
    for (double v = -0.7; v < 0.7; v += 0.0000173) x.push_back(v);
    std::vector<float> y(x.size());
    Kernels(isa).exp(x.data(), y.data(), x.size());
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      worst = std::max(worst, Ulps(y[i], std::exp(static_cast<double>(x[i]))));
    }
    // Without FMA the range reduction rounds once more.
    EXPECT_LE(worst, 2.0) << IsaName(isa);
    Kernels(isa).tanh(x.data(), y.data(), x.size());
    worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      if (x[i] == 0) continue;
      worst = std::max(worst, Ulps(y[i], std::tanh(static_cast<double>(x[i]))));
    }
    EXPECT_LE(worst, 4.0) << IsaName(isa);
  }
}

// Of Phi: 7.5e-8 of the formula; two roundings (a coefficient's and a product's
// or sum's) of the terms, whose magnitudes, times 1 / sqrt(2 pi), sum up
// to 2.3; a few ulp of a half for the exponential and the rest.
TEST(VectorMathTest, GeluErfWithinTheRoundingsOfItsTerms) {
  constexpr double kBound =
      7.5e-8 + 2 * 2.3 * kF32Roundoff + 0.5 * 2 * kF32Roundoff;
  const float infinity = std::numeric_limits<float>::infinity();
  for (Isa isa : SupportedIsas()) {
    std::vector<float> x = {0.0f, infinity, -infinity, NAN};
    for (double v = -15; v < 15; v += 0.000137) x.push_back(v);
    std::vector<float> y(x.size());
    Kernels(isa).gelu_erf(x.data(), y.data(), x.size());
    EXPECT_EQ(y[0], 0.0f);
    EXPECT_EQ(y[1], infinity);
    // -infinity * 0, as PyTorch has it.
    EXPECT_TRUE(std::isnan(y[2]) && std::isnan(y[3]));
    for (size_t i = 4; i < x.size(); ++i) {
      const double v = x[i];
      const double expected = 0.5 * v * std::erfc(-v / std::sqrt(2));
      ASSERT_TRUE(std::abs(y[i] - expected) <= kBound * std::abs(v))
          << IsaName(isa) << " " << v;
    }
  }
}

TEST(VectorMathTest, ExpAtTheEdges) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (Isa isa : SupportedIsas()) {
    const std::vector<float> x = {0.0f, -0.0f,    -infinity, infinity,
                                  NAN,  -1000.0f, 1000.0f,   88.8f};
    std::vector<float> y(x.size());
    Kernels(isa).exp(x.data(), y.data(), x.size());
    EXPECT_EQ(y[0], 1.0f);
    EXPECT_EQ(y[1], 1.0f);
    EXPECT_EQ(y[2], 0.0f);
    EXPECT_EQ(y[3], infinity);
    EXPECT_TRUE(std::isnan(y[4]));
    EXPECT_EQ(y[5], 0.0f);
    EXPECT_EQ(y[6], infinity);
    EXPECT_EQ(y[7], infinity);
  }
}

}  // namespace
}  // namespace quire
