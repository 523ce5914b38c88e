#include "kernels/cpu/quant_matmul.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/matmul_problem.h"
#include "kernels/cpu/quant_kernels.h"
#include "kernels/quant_codec.h"
#include "kernels/random_weights.h"

namespace quire {
namespace {

using Activation = Epilogue::Activation;

constexpr QuantFormat kFormats[] = {
    QuantFormat::kQ4_0,   QuantFormat::kQ4_1, QuantFormat::kQ5_0,
    QuantFormat::kQ5_1,   QuantFormat::kQ8_0, QuantFormat::kIQ4_NL,
    QuantFormat::kMXFP4,  QuantFormat::kQ2_K, QuantFormat::kQ3_K,
    QuantFormat::kQ4_K,   QuantFormat::kQ5_K, QuantFormat::kQ6_K,
    QuantFormat::kIQ4_XS, QuantFormat::kInt4,
};

// The rounding of x that quant_matmul.h documents.
void RoundX(const float* x, int64_t cols, std::vector<double>* rounded) {
  rounded->resize(cols);
  for (int64_t begin = 0; begin < cols; begin += 32) {
    float max = 0;
    for (int i = 0; i < 32; ++i) max = std::max(max, std::abs(x[begin + i]));
    const float scale = max / 127.0f;
    const float inverse = 127.0f / max;
    for (int i = 0; i < 32; ++i) {
      (*rounded)[begin + i] = max < 0x1p-100f
                                  ? 0.0
                                  : static_cast<double>(scale) *
                                        std::nearbyint(x[begin + i] * inverse);
    }
  }
}

// Exact weights, and what the kernels add up for each: |scale * code| and
// |minimum| (of formats without one |value|).
struct Dequantized {
  std::vector<float> values;     // [rows, cols]
  std::vector<float> magnitude;  // [rows, cols]
};

Dequantized Dequantize(const RandomWeights& weights) {
  const WeightPart& part = weights.part;
  const int64_t cols = part.cols();
  Dequantized expected;
  expected.values.resize(part.rows() * cols);
  expected.magnitude.resize(part.rows() * cols);
  const bool has_min =
      part.format == QuantFormat::kQ4_1 || part.format == QuantFormat::kQ5_1 ||
      part.format == QuantFormat::kQ2_K || part.format == QuantFormat::kQ4_K ||
      part.format == QuantFormat::kQ5_K;
  for (int64_t row = 0; row < part.rows(); ++row) {
    float* const values = expected.values.data() + row * cols;
    float* const magnitude = expected.magnitude.data() + row * cols;
    DequantizeRow(part, row, values);
    if (part.format == QuantFormat::kInt4) {
      for (int64_t col = 0; col < cols; ++col) {
        // Codes and zero points are at most 16, scales below 2^-6.
        magnitude[col] = 32 * 0x1p-6f;
      }
      continue;
    }
    std::vector<uint8_t> bytes(part.data.row<uint8_t>(row),
                               part.data.row<uint8_t>(row) + part.data.cols);
    const QuantBlock block = QuantBlockOf(part.format);
    for (size_t i = 0; i < bytes.size(); i += block.bytes) {
      if (has_min) ClearCodes(part.format, bytes.data() + i);
    }
    std::vector<float> mins(cols);
    DequantizeBlocks(part.format, bytes.data(), cols, mins.data());
    for (int64_t col = 0; col < cols; ++col) {
      if (!has_min) mins[col] = 0;
      magnitude[col] = std::abs(values[col] - mins[col]) + std::abs(mins[col]);
    }
  }
  return expected;
}

struct Case : MatmulCase {
  Case() { cols = 256; }
  std::vector<QuantFormat> formats;
  int group_size = 64;
  bool has_column_order = false;
};

class Problem : public MatmulProblem {
 public:
  Problem(const Case& c, uint64_t seed)
      : MatmulProblem(c),
        format_(c.formats[0]),
        has_column_order_(c.has_column_order) {
    SimulationRandom random(seed);
    for (size_t i = 0; i < c.part_rows.size(); ++i) {
      // All parts have the same column order: it depends on the seed only.
      parts_.push_back(MakeRandomWeights(c.formats[i % c.formats.size()],
                                         c.part_rows[i], c.cols, seed,
                                         c.group_size, c.has_column_order));
      const Dequantized part = Dequantize(parts_.back());
      AddPart(parts_.back().part, part.values, part.magnitude);
    }
    Draw(random);
  }

 private:
  std::vector<double> RoundedX(absl::Span<const float> x) const override {
    const auto cols = static_cast<int64_t>(x.size());
    std::vector<double> rounded;
    if (!has_column_order_) {
      RoundX(x.data(), cols, &rounded);
      return rounded;
    }
    // Rounded in the weights' order, and back in the model's.
    const std::vector<int32_t>& order = parts_[0].column_order;
    std::vector<float> ordered(cols);
    for (int64_t i = 0; i < cols; ++i) ordered[i] = x[order[i]];
    RoundX(ordered.data(), cols, &rounded);
    std::vector<double> back(cols);
    for (int64_t i = 0; i < cols; ++i) back[order[i]] = rounded[i];
    return back;
  }
  // Of a block at most four roundings of each of the two terms and one of the
  // scale of x, and a chain of as many additions as there are blocks; bias,
  // activation's input and scale.
  double DotTolerance(double sum_abs) const override {
    return (2.0 * case_.cols / 32 + 12) * kF32Roundoff * sum_abs + 1e-37;
  }
  std::string Name() const override { return QuantFormatName(format_); }

  const QuantFormat format_;
  const bool has_column_order_;
  std::vector<RandomWeights> parts_;
};

void CheckCase(Isa isa, ThreadPool& pool, const Case& c, uint64_t seed) {
  Problem(c, seed).Check(isa, pool);
}

class QuantMatmulTest
    : public testing::TestWithParam<std::tuple<Isa, QuantFormat>> {
 protected:
  Isa isa() const { return std::get<0>(GetParam()); }
  QuantFormat format() const { return std::get<1>(GetParam()); }
  // Columns near to these that the format takes.
  int64_t Cols(int64_t cols) const {
    const int64_t unit =
        format() == QuantFormat::kInt4 ? 64 : QuantBlockOf(format()).cols;
    return (cols + unit - 1) / unit * unit;
  }
  ThreadPool pool_{3};
};

TEST_P(QuantMatmulTest, ShapesAroundTheTiles) {
  uint64_t seed = 1;
  for (int64_t cols : {32, 512, 544}) {
    for (int64_t rows : {1, 7, 31, 32, 33, 67}) {
      for (int64_t num_rows : {0, 1, 2, 3, 4, 5, 8, 9, 14, 15, 29}) {
        Case c;
        c.formats = {format()};
        c.part_rows = {rows};
        c.cols = Cols(cols);
        c.num_rows = num_rows;
        CheckCase(isa(), pool_, c, seed++);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(QuantMatmulTest, EveryTileOfRows) {
  for (int64_t num_rows = 1; num_rows <= 16; ++num_rows) {
    Case c;
    c.formats = {format()};
    c.part_rows = {40};
    c.cols = Cols(768);
    c.num_rows = num_rows;
    CheckCase(isa(), pool_, c, num_rows);
    if (HasFatalFailure()) return;
  }
}

TEST_P(QuantMatmulTest, ManyTilesAndLongRows) {
  Case c;
  c.formats = {format()};
  c.part_rows = {150};
  c.cols = Cols(1600);
  c.num_rows = isa() == Isa::kScalar ? 50 : 320;
  CheckCase(isa(), pool_, c, 5);
}

TEST_P(QuantMatmulTest, PartsOfOtherFormatsBiasResidualAndScale) {
  Case c;
  c.kind = LinearKind::kQkv;
  c.formats = {format(), format(), QuantFormat::kQ6_K};
  if (format() == QuantFormat::kInt4) c.formats = {format()};
  c.part_rows = {48, 17, 17};
  c.cols = 256;
  c.num_rows = 17;
  c.has_bias = c.has_residual = true;
  c.out_scale = -0.37f;
  CheckCase(isa(), pool_, c, 7);
}

TEST_P(QuantMatmulTest, GatedLayers) {
  uint64_t seed = 100;
  for (int64_t half : {1, 15, 16, 17, 53}) {
    for (const bool same : {true, false}) {
      Case c;
      c.kind = LinearKind::kGateUp;
      c.formats = {format()};
      c.part_rows = {half, half};
      c.cols = 256;
      c.num_rows = 9;
      c.activation = same ? Activation::kSwiGlu : Activation::kNone;
      c.has_bias = c.has_residual = half % 2 == 1;
      CheckCase(isa(), pool_, c, seed++);
      if (HasFatalFailure()) return;
    }
  }
}

// The bits of a row depend on neither the batch around it, nor the threads, nor
// VNNI.
TEST_P(QuantMatmulTest, BitwiseInvariant) {
  const int64_t cols = Cols(800);
  const int64_t rows = 163;
  const int64_t max_rows = 45;
  const RandomWeights weights = MakeRandomWeights(format(), rows, cols, 3, 32);
  LinearSpec spec;
  spec.parts = {weights.part};
  SimulationRandom random(11);
  std::vector<float> x(max_rows * cols);
  for (float& v : x) v = RandomInput(random);
  ThreadPool single(1);
  const std::unique_ptr<QuantMatrix> packed =
      PackQuantMatrix(spec, isa(), single);
  MatmulScratch scratch(1, 1);  // Grows.
  const auto run = [&](ThreadPool& pool, bool with_vnni, int64_t first,
                       int64_t num_rows) {
    std::vector<float> out(num_rows * rows);
    MatmulParams params;
    params.x = x.data() + first * cols;
    params.x_stride = cols;
    params.num_rows = num_rows;
    params.out = out.data();
    params.out_stride = rows;
    QuantMatmul(pool, GetQuantKernels(isa(), with_vnni), *packed, params,
                scratch);
    return out;
  };
  std::vector<float> expected;
  for (int64_t r = 0; r < max_rows; ++r) {
    const std::vector<float> one = run(single, HasVnni(isa()), r, 1);
    expected.insert(expected.end(), one.begin(), one.end());
  }
  for (int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    for (int64_t num_rows = 1; num_rows <= max_rows; ++num_rows) {
      const int64_t first = num_rows % 3 == 0 ? 0 : max_rows - num_rows;
      for (const bool with_vnni : {false, true}) {
        if (with_vnni && !HasVnni(isa())) continue;
        const std::vector<float> got = run(pool, with_vnni, first, num_rows);
        ASSERT_EQ(std::memcmp(got.data(), expected.data() + first * rows,
                              got.size() * sizeof(float)),
                  0)
            << num_threads << " threads, " << num_rows << " rows, VNNI "
            << with_vnni;
      }
    }
  }
}

TEST_P(QuantMatmulTest, NanAndInfinityStayInTheirRow) {
  const int64_t cols = Cols(64);
  const int64_t rows = 35;
  const RandomWeights weights = MakeRandomWeights(format(), rows, cols, 4, 32);
  LinearSpec spec;
  spec.parts = {weights.part};
  const auto packed = PackMatrix(spec, isa(), pool_);
  ASSERT_TRUE(packed.ok());
  std::vector<float> x(4 * cols, 0.5f);
  x[1 * cols + 7] = std::numeric_limits<float>::quiet_NaN();
  x[2 * cols + 8] = -std::numeric_limits<float>::infinity();
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
    EXPECT_TRUE(std::isnan(out[2 * rows + j]));
    EXPECT_TRUE(std::isfinite(out[3 * rows + j]));
  }
}

TEST_P(QuantMatmulTest, MemoryIsThatOfTheFile) {
  const int64_t rows = 64;
  const int64_t cols = 1024;
  const RandomWeights weights = MakeRandomWeights(format(), rows, cols, 4);
  LinearSpec spec;
  spec.parts = {weights.part};
  const auto packed = PackMatrix(spec, isa(), pool_);
  ASSERT_TRUE(packed.ok());
  const int64_t num_bytes =
      weights.data.size() + weights.scales.size() * 2 + weights.zeros.size();
  EXPECT_LE((*packed)->num_bytes, 1.08 * num_bytes);
}

std::string ParamName(
    const testing::TestParamInfo<std::tuple<Isa, QuantFormat>>& info) {
  return std::string(IsaName(std::get<0>(info.param))) + "_" +
         QuantFormatName(std::get<1>(info.param));
}
INSTANTIATE_TEST_SUITE_P(AllIsas, QuantMatmulTest,
                         testing::Combine(testing::ValuesIn(SupportedIsas()),
                                          testing::ValuesIn(kFormats)),
                         ParamName);

TEST(QuantMatmulInt4Test, GroupsAndColumnOrder) {
  ThreadPool pool(2);
  for (Isa isa : SupportedIsas()) {
    for (const int group_size : {32, 96, 128, 384}) {
      for (const bool has_order : {false, true}) {
        Case c;
        c.formats = {QuantFormat::kInt4};
        c.part_rows = {33, 20};
        c.cols = 384;
        c.num_rows = 16;
        c.group_size = group_size;
        c.has_column_order = has_order;
        CheckCase(isa, pool, c, group_size);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// x = 127 * 2^-7 at one column fixes the scale to 2^-7: the other codes are
// x * 128, and a weight of 1 shows them.
TEST(QuantMatmulRoundingTest, XIsRoundedToNearestEven) {
  ThreadPool pool(1);
  for (Isa isa : SupportedIsas()) {
    for (const auto& [value, code] :
         std::vector<std::pair<double, int>>{{0.5, 0},
                                             {1.5, 2},
                                             {2.5, 2},
                                             {-0.5, 0},
                                             {-1.5, -2},
                                             {-126.5, -126},
                                             {126.49, 126},
                                             {3.49, 3},
                                             {-127, -127}}) {
      uint8_t block[34] = {0x00, 0x3c};  // 1.0 in f16.
      block[2 + 5] = 1;
      LinearSpec spec;
      spec.parts = {
          {TensorView::Matrix(block, DType::kU8, 1, 34), QuantFormat::kQ8_0}};
      const auto packed = PackMatrix(spec, isa, pool);
      ASSERT_TRUE(packed.ok());
      float x[32] = {127.0f / 128};
      x[5] = static_cast<float>(value / 128);
      float out = 0;
      MatmulParams params;
      params.x = x;
      params.x_stride = 32;
      params.out_stride = params.num_rows = 1;
      params.out = &out;
      MatmulScratch scratch(1, 32);
      Matmul(pool, isa, **packed, params, scratch);
      EXPECT_EQ(out, code / 128.0f) << IsaName(isa) << " " << value;
    }
  }
}

TEST(PackQuantizedTest, OddGroupsBecomeBf16) {
  ThreadPool pool(1);
  const RandomWeights fp8 = MakeRandomWeights(QuantFormat::kFp8, 5, 48, 1);
  const RandomWeights odd = MakeRandomWeights(QuantFormat::kInt4, 7, 48, 1, 48);
  for (Isa isa : SupportedIsas()) {
    LinearSpec spec;
    spec.parts = {fp8.part, odd.part};
    const auto packed = PackMatrix(spec, isa, pool);
    ASSERT_TRUE(packed.ok()) << packed.status();
    EXPECT_EQ((*packed)->rows, 12);
    std::vector<float> expected(48), got(48);
    for (int64_t row = 0; row < 12; ++row) {
      DequantizeRow(row < 5 ? fp8.part : odd.part, row < 5 ? row : row - 5,
                    expected.data());
      UnpackRow(**packed, row, got.data());
      for (int i = 0; i < 48; ++i) {
        EXPECT_EQ(got[i], row < 5 ? expected[i]
                                  : Bf16ToFloat(FloatToBf16(expected[i])));
      }
    }
  }
}

TEST(PackQuantizedTest, RejectsWhatDoesNotFit) {
  ThreadPool pool(1);
  const auto code = [&](const WeightPart& part) {
    LinearSpec spec;
    spec.parts = {part};
    return PackMatrix(spec, Isa::kScalar, pool).status().code();
  };
  const RandomWeights q8 = MakeRandomWeights(QuantFormat::kQ8_0, 2, 64, 1);
  WeightPart part = q8.part;
  EXPECT_EQ(code(part), absl::StatusCode::kOk);
  part.data.cols = 67;
  EXPECT_EQ(code(part), absl::StatusCode::kInvalidArgument);
  const RandomWeights int4 =
      MakeRandomWeights(QuantFormat::kInt4, 2, 64, 1, 32, true);
  part = int4.part;
  EXPECT_EQ(code(part), absl::StatusCode::kOk);
  part.group_size = 64;
  EXPECT_EQ(code(part), absl::StatusCode::kInvalidArgument);
  part = int4.part;
  std::vector<int32_t> order = int4.column_order;
  order[3] = order[4];
  part.column_order = TensorView::Vector(order.data(), DType::kI32, 64);
  EXPECT_EQ(code(part), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quire
