#include "kernels/quant_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

constexpr QuantFormat kBlockFormats[] = {
    QuantFormat::kQ4_0,  QuantFormat::kQ4_1, QuantFormat::kQ5_0,
    QuantFormat::kQ5_1,  QuantFormat::kQ8_0, QuantFormat::kIQ4_NL,
    QuantFormat::kMXFP4, QuantFormat::kQ2_K, QuantFormat::kQ3_K,
    QuantFormat::kQ4_K,  QuantFormat::kQ5_K, QuantFormat::kQ6_K,
    QuantFormat::kIQ4_XS};

// What tools/goldens/make_quant_goldens.py writes.
struct Golden {
  std::vector<uint8_t> blocks;
  std::vector<float> values;
  std::vector<float> input;
  std::vector<uint8_t> encoded;
};

Golden ReadGolden(QuantFormat format) {
  std::ifstream file(
      absl::StrCat("kernels/testdata/quant/", QuantFormatName(format), ".bin"),
      std::ios::binary);
  uint32_t counts[2] = {0, 0};
  file.read(reinterpret_cast<char*>(counts), sizeof(counts));
  Golden golden;
  golden.blocks.resize(QuantRowBytes(format, counts[0]));
  golden.values.resize(counts[0]);
  golden.input.resize(counts[1]);
  golden.encoded.resize(QuantRowBytes(format, counts[1]));
  const auto read = [&](auto& vector) {
    file.read(reinterpret_cast<char*>(vector.data()),
              vector.size() * sizeof(vector[0]));
  };
  read(golden.blocks);
  read(golden.values);
  read(golden.input);
  read(golden.encoded);
  EXPECT_TRUE(file.good() && file.peek() == EOF) << QuantFormatName(format);
  return golden;
}

class BlockFormat : public testing::TestWithParam<QuantFormat> {};

TEST_P(BlockFormat, DecodesToTheBitsOfTheOracle) {
  const Golden golden = ReadGolden(GetParam());
  ASSERT_GE(golden.values.size(), 1000u);
  std::vector<float> out(golden.values.size());
  DequantizeBlocks(GetParam(), golden.blocks.data(), out.size(), out.data());
  for (size_t i = 0; i < out.size(); ++i) {
    if (std::isnan(golden.values[i])) {
      ASSERT_TRUE(std::isnan(out[i])) << i;
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(out[i]),
                std::bit_cast<uint32_t>(golden.values[i]))
          << i << ": " << out[i] << ", expected " << golden.values[i];
    }
  }
}

TEST_P(BlockFormat, EncodesToTheBytesOfTheOracle) {
  const Golden golden = ReadGolden(GetParam());
  std::vector<uint8_t> out(golden.encoded.size());
  QuantizeBlocks(GetParam(), golden.input.data(), golden.input.size(),
                 out.data());
  const int block_bytes = QuantBlockOf(GetParam()).bytes;
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT_EQ(out[i], golden.encoded[i])
        << "block " << i / block_bytes << ", byte " << i % block_bytes;
  }
}

// Columns of blocks at an odd address.
TEST_P(BlockFormat, NeedsNoAlignment) {
  const Golden golden = ReadGolden(GetParam());
  std::vector<uint8_t> shifted(golden.blocks.size() + 1);
  std::copy(golden.blocks.begin(), golden.blocks.end(), shifted.begin() + 1);
  std::vector<float> out(golden.values.size());
  DequantizeBlocks(GetParam(), shifted.data() + 1, out.size(), out.data());
  EXPECT_TRUE(std::equal(out.begin(), out.end(), golden.values.begin(),
                         [](float a, float b) {
                           return a == b || (std::isnan(a) && std::isnan(b));
                         }));
}

float Normal(SimulationRandom& random) {
  const double u = 1.0 - random.Uniform();
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) *
                            std::cos(2.0 * M_PI * random.Uniform()));
}

constexpr int kNumSets = 3;
constexpr int64_t kSetSize = 16384;

// Weights to encode: normal; Laplace with larger outliers; groups of 64 whose
// size and mean differ.
std::vector<float> MakeSet(int set) {
  SimulationRandom random(set + 1);
  std::vector<float> values(kSetSize);
  for (int64_t i = 0; i < kSetSize; ++i) {
    if (set == 0) {
      values[i] = 0.02f * Normal(random);
    } else if (set == 1) {
      const double u = random.Uniform() - 0.5;
      values[i] = static_cast<float>(-0.02 * std::log(1.0 - 2.0 * std::abs(u)) *
                                     (u < 0 ? -1 : 1));
    } else {
      const int64_t group = i / 64;
      values[i] = 0.005f * static_cast<float>(1 + group * 7 % 13) *
                  (Normal(random) + 0.25f * static_cast<float>(group % 5 - 2));
    }
  }
  return values;
}

double Rmse(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  }
  return std::sqrt(sum / static_cast<double>(a.size()));
}

// Root mean square errors of llama.cpp's ggml_quantize_chunk without an
// importance matrix (the tree in llama_cpp_python 0.3.36) over MakeSet.
struct PeerError {
  QuantFormat format;
  double rmse[kNumSets];
};
constexpr PeerError kPeerErrors[] = {
    {QuantFormat::kQ4_0, {0.00170339, 0.00308543, 0.00358112}},
    {QuantFormat::kQ4_1, {0.0015542, 0.00263859, 0.0030864}},
    {QuantFormat::kQ5_0, {0.000842324, 0.00153149, 0.0017658}},
    {QuantFormat::kQ5_1, {0.000756566, 0.00127065, 0.00150307}},
    {QuantFormat::kQ8_0, {0.000106505, 0.000192977, 0.000222387}},
    {QuantFormat::kIQ4_NL, {0.00151308, 0.00253298, 0.00315678}},
    {QuantFormat::kMXFP4, {0.00224655, 0.00361086, 0.00480941}},
    {QuantFormat::kQ2_K, {0.00586687, 0.00985174, 0.0119196}},
    {QuantFormat::kQ3_K, {0.00299022, 0.00508914, 0.00636066}},
    {QuantFormat::kQ4_K, {0.00141545, 0.00241283, 0.00283457}},
    {QuantFormat::kQ5_K, {0.000716468, 0.00122555, 0.00144454}},
    {QuantFormat::kQ6_K, {0.000353887, 0.000615916, 0.000744223}},
    {QuantFormat::kIQ4_XS, {0.00152452, 0.00255112, 0.00318932}},
};

TEST_P(BlockFormat, ErrorIsNotAboveThePeers) {
  const auto* peer =
      std::find_if(std::begin(kPeerErrors), std::end(kPeerErrors),
                   [](const PeerError& e) { return e.format == GetParam(); });
  ASSERT_NE(peer, std::end(kPeerErrors));
  for (int set = 0; set < kNumSets; ++set) {
    const std::vector<float> values = MakeSet(set);
    std::vector<uint8_t> blocks(QuantRowBytes(GetParam(), kSetSize));
    std::vector<float> decoded(kSetSize);
    QuantizeBlocks(GetParam(), values.data(), kSetSize, blocks.data());
    DequantizeBlocks(GetParam(), blocks.data(), kSetSize, decoded.data());
    // Six digits of the peer's figure are written down.
    EXPECT_LE(Rmse(values, decoded), peer->rmse[set] * (1 + 1e-5))
        << "set " << set;
  }
}

// Zeros, constants, one outlier, tiny and huge values: finite, and near.
TEST_P(BlockFormat, EncodesDegenerateBlocks) {
  const int64_t n = QuantBlockOf(GetParam()).cols;
  std::vector<std::vector<float>> cases;
  cases.emplace_back(n, 0.0f);
  for (const float scale : {1e-30f, 1e-6f, 1.0f, 1e4f}) {
    cases.emplace_back(n, scale);
    cases.emplace_back(n, -scale);
    cases.emplace_back(n, 0.0f).back() = scale;
    cases.emplace_back(n, 0.0f).front() = -scale;
  }
  for (const std::vector<float>& values : cases) {
    std::vector<uint8_t> blocks(QuantRowBytes(GetParam(), n));
    std::vector<float> decoded(n);
    QuantizeBlocks(GetParam(), values.data(), n, blocks.data());
    DequantizeBlocks(GetParam(), blocks.data(), n, decoded.data());
    float largest = 0.0f;
    for (const float v : values) largest = std::max(largest, std::abs(v));
    for (int64_t i = 0; i < n; ++i) {
      // Two-bit codes and f16's smallest scales are the coarsest here.
      ASSERT_TRUE(std::abs(decoded[i] - values[i]) <= 0.34f * largest + 1e-5f)
          << i << ": " << decoded[i] << " for " << values[i];
    }
  }
}

// No undefined behaviour (the sanitizers watch): what comes out is unspecified.
TEST_P(BlockFormat, SurvivesNonFiniteValues) {
  const int64_t n = QuantBlockOf(GetParam()).cols;
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const float bad : {kInf, -kInf, std::nanf(""), 3e38f, -3e38f, 1e-45f}) {
    for (const bool everywhere : {false, true}) {
      std::vector<float> values(n, everywhere ? bad : 0.5f);
      values[n / 2] = bad;
      std::vector<uint8_t> blocks(QuantRowBytes(GetParam(), n));
      QuantizeBlocks(GetParam(), values.data(), n, blocks.data());
      std::vector<float> decoded(n);
      DequantizeBlocks(GetParam(), blocks.data(), n, decoded.data());
    }
  }
}

std::string FormatName(const testing::TestParamInfo<QuantFormat>& info) {
  return QuantFormatName(info.param);
}

INSTANTIATE_TEST_SUITE_P(All, BlockFormat, testing::ValuesIn(kBlockFormats),
                         FormatName);

// ------------------------------------------------------------ whole matrices

std::vector<float> RandomValues(int64_t count, uint64_t seed) {
  SimulationRandom random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = 0.1f * Normal(random);
  return values;
}

std::vector<float> DecodeAll(const WeightPart& part) {
  std::vector<float> out(part.rows() * part.cols());
  for (int64_t row = 0; row < part.rows(); ++row) {
    DequantizeRow(part, row, out.data() + row * part.cols());
  }
  return out;
}

TEST(QuantizeMatrix, BlocksOfEachDTypeAndRowStride) {
  constexpr int64_t kRows = 5, kCols = 512, kStride = 600;
  const std::vector<float> values = RandomValues(kRows * kStride, 1);
  std::vector<uint16_t> halves(values.size()), bf16s(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    halves[i] = FloatToHalf(values[i]);
    bf16s[i] = FloatToBf16(values[i]);
  }
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const void* data = dtype == DType::kF32
                           ? static_cast<const void*>(values.data())
                       : dtype == DType::kF16 ? halves.data()
                                              : bf16s.data();
    TensorView view = TensorView::Matrix(data, dtype, kRows, kCols);
    view.row_stride = kStride;
    for (const QuantFormat format : kBlockFormats) {
      const auto matrix = QuantizeMatrix(view, {.format = format});
      ASSERT_TRUE(matrix.ok()) << matrix.status();
      EXPECT_EQ(matrix->part.format, format);
      EXPECT_EQ(matrix->part.rows(), kRows);
      EXPECT_EQ(matrix->part.cols(), kCols);
      EXPECT_EQ(matrix->num_bytes, kRows * QuantRowBytes(format, kCols));
      WeightPart dense;
      dense.data = view;
      std::vector<float> row(kCols), expected(kCols);
      std::vector<uint8_t> blocks(QuantRowBytes(format, kCols));
      for (int64_t r = 0; r < kRows; ++r) {
        DequantizeRow(dense, r, row.data());
        QuantizeBlocks(format, row.data(), kCols, blocks.data());
        DequantizeBlocks(format, blocks.data(), kCols, expected.data());
        DequantizeRow(matrix->part, r, row.data());
        EXPECT_EQ(row, expected);
      }
    }
  }
}

TEST(QuantizeMatrix, Fp8IsWithinARoundingOfEveryScale) {
  constexpr int64_t kRows = 200, kCols = 300;  // Squares at the edges.
  std::vector<float> values = RandomValues(kRows * kCols, 2);
  for (int64_t c = 0; c < kCols; ++c) values[7 * kCols + c] *= 100.0f;
  std::fill_n(values.begin() + 9 * kCols, kCols, 0.0f);
  const TensorView view =
      TensorView::Matrix(values.data(), DType::kF32, kRows, kCols);
  using Scales = QuantizationScheme::Fp8Scales;
  for (const Scales kind : {Scales::kTensor, Scales::kRow, Scales::kBlock}) {
    const auto matrix = QuantizeMatrix(
        view,
        {.format = QuantFormat::kFp8, .fp8_scales = kind, .group_size = 128});
    ASSERT_TRUE(matrix.ok()) << matrix.status();
    const WeightPart& part = matrix->part;
    EXPECT_EQ(part.scales.rows, kind == Scales::kTensor ? 1
                                : kind == Scales::kRow  ? kRows
                                                        : 2);
    EXPECT_EQ(part.scales.cols, kind == Scales::kBlock ? 3 : 1);
    const std::vector<float> decoded = DecodeAll(part);
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t c = 0; c < kCols; ++c) {
        const float scale =
            kind == Scales::kBlock
                ? part.scales.row<const float>(r / 128)[c / 128]
                : part.scales.row<const float>(kind == Scales::kRow ? r : 0)[0];
        const float value = values[r * kCols + c];
        // Half a unit in the last of three bits; 2^-10 below 2^-6.
        const float bound =
            std::max(std::abs(value) / 16.0f, scale * 0x1p-10f) * 1.0001f;
        ASSERT_TRUE(std::abs(decoded[r * kCols + c] - value) <= bound)
            << r << ", " << c;
      }
    }
  }
}

TEST(QuantizeMatrix, Int4) {
  constexpr int64_t kRows = 6, kCols = 322;  // The last group has 66 columns.
  std::vector<float> values = RandomValues(kRows * kCols, 3);
  for (int64_t c = 0; c < kCols; ++c) values[2 * kCols + c] += 0.15f;
  std::fill_n(values.begin() + 4 * kCols, kCols, 0.0f);
  const TensorView view =
      TensorView::Matrix(values.data(), DType::kF32, kRows, kCols);
  for (const bool is_symmetric : {false, true}) {
    const auto matrix = QuantizeMatrix(view, {.format = QuantFormat::kInt4,
                                              .group_size = 128,
                                              .is_symmetric = is_symmetric});
    ASSERT_TRUE(matrix.ok()) << matrix.status();
    EXPECT_EQ(matrix->part.zeros.empty(), is_symmetric);
    EXPECT_EQ(matrix->part.scales.cols, 3);
    const std::vector<float> decoded = DecodeAll(matrix->part);
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t first = 0; first < kCols; first += 128) {
        const int64_t last = std::min<int64_t>(first + 128, kCols);
        float low = 0.0f, high = 0.0f;
        double sum = 0.0, squares = 0.0;
        for (int64_t c = first; c < last; ++c) {
          const float value = values[r * kCols + c];
          low = std::min(low, value);
          high = std::max(high, value);
          squares += double{value} * value;
          sum += std::pow(double{decoded[r * kCols + c]} - value, 2.0);
        }
        // The error of even spacing over the span, without any search.
        const double step = is_symmetric ? std::max(-low / 8.0, high / 7.0)
                                         : (high - low) / 15.0;
        EXPECT_LE(sum / (last - first), step * step / 12 * 1.25 + 1e-12);
        if (squares == 0.0) {
          EXPECT_EQ(sum, 0.0);
        }
      }
    }
  }
}

// The search one value after the other, which vectors must not change.
struct PlainInt4 {
  uint16_t scale = 0;
  uint8_t zero = 8;
};
float RoundToEven(float v) { return (v + 12582912.0f) - 12582912.0f; }
PlainInt4 SearchPlainly(const float* x, int64_t n, bool is_symmetric) {
  const float low = std::min(0.0f, *std::min_element(x, x + n));
  const float high = std::max(0.0f, *std::max_element(x, x + n));
  PlainInt4 best;
  if (high == low) return best;
  const float span =
      is_symmetric ? std::max(-low / 8.0f, high / 7.0f) : (high - low) / 15.0f;
  best.scale = FloatToHalf(span);
  float best_error = INFINITY;
  for (int i = 0; i < 12; ++i) {
    const float shrink = 1.0f - 0.03f * static_cast<float>(i);
    const uint16_t bits = FloatToHalf(span * shrink);
    const float scale = HalfToFloat(bits);
    if (scale == 0.0f) continue;
    const float zero =
        is_symmetric
            ? 8.0f
            : std::clamp(RoundToEven(-low * shrink / scale), 0.0f, 15.0f);
    float error = 0.0f;
    for (int64_t j = 0; j < n; ++j) {
      const float code =
          std::clamp(RoundToEven(x[j] * (1.0f / scale)) + zero, 0.0f, 15.0f);
      const float difference = x[j] - scale * (code - zero);
      error += difference * difference;
    }
    if (error < best_error) {
      best_error = error;
      best = {bits, static_cast<uint8_t>(zero)};
    }
  }
  return best;
}

TEST(QuantizeMatrix, Int4IsThatOfThePlainSearch) {
  SimulationRandom random(11);
  for (const int group_size : {2, 6, 32, 96, 128}) {
    for (const bool is_symmetric : {false, true}) {
      // The last group is shorter; magnitudes down to where scales are 0.
      constexpr int64_t kRows = 40;
      const int64_t cols = 3 * group_size + group_size / 2 / 2 * 2;
      std::vector<float> values(kRows * cols);
      for (int64_t i = 0; i < kRows * cols; ++i) {
        const auto uniform = static_cast<float>(random.Uniform() * 2 - 1);
        values[i] = std::ldexp(uniform * uniform * uniform,
                               static_cast<int>(i / cols) - 32);
      }
      const auto view =
          TensorView::Matrix(values.data(), DType::kF32, kRows, cols);
      const auto matrix = QuantizeMatrix(view, {.format = QuantFormat::kInt4,
                                                .group_size = group_size,
                                                .is_symmetric = is_symmetric});
      ASSERT_TRUE(matrix.ok()) << matrix.status();
      const WeightPart& part = matrix->part;
      for (int64_t row = 0; row < kRows; ++row) {
        for (int64_t c = 0; c < cols; ++c) {
          const int64_t g = c / group_size;
          const int64_t first = g * group_size;
          const PlainInt4 plain = SearchPlainly(
              view.row<const float>(row) + first,
              std::min<int64_t>(group_size, cols - first), is_symmetric);
          ASSERT_EQ(part.scales.row<const uint16_t>(row)[g], plain.scale);
          if (!is_symmetric) {
            ASSERT_EQ(part.zeros.row<const uint8_t>(row)[g], plain.zero);
          }
          const float scale = HalfToFloat(plain.scale);
          const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
          const float code = std::clamp(
              RoundToEven(view.row<const float>(row)[c] * inverse) + plain.zero,
              0.0f, 15.0f);
          ASSERT_EQ(
              part.data.row<const uint8_t>(row)[c / 2] >> (c % 2 * 4) & 15,
              static_cast<int>(code));
        }
      }
    }
  }
}

TEST(DequantizeRow, Int4FollowsItsDefinition) {
  // Two rows of four columns, groups of two; bf16 scales.
  const uint8_t codes[] = {0x91, 0xF0, 0x08, 0x7C};
  const uint16_t scales[] = {FloatToBf16(0.5f), FloatToBf16(2.0f),
                             FloatToBf16(-1.0f), FloatToBf16(4.0f)};
  const uint8_t zeros[] = {0, 16, 8, 3};
  const int32_t order[] = {2, 0, 3, 1};
  WeightPart part;
  part.format = QuantFormat::kInt4;
  part.data = TensorView::Matrix(codes, DType::kU8, 2, 2);
  part.scales = TensorView::Matrix(scales, DType::kBF16, 2, 2);
  part.group_size = 2;
  EXPECT_EQ(DecodeAll(part),
            (std::vector<float>{-3.5f, 0.5f, -16, 14, 0, 8, 16, -4}));
  part.zeros = TensorView::Matrix(zeros, DType::kU8, 2, 2);
  EXPECT_EQ(DecodeAll(part),
            (std::vector<float>{0.5f, 4.5f, -32, -2, 0, 8, 36, 16}));
  part.column_order = TensorView::Matrix(order, DType::kI32, 1, 4);
  EXPECT_EQ(DecodeAll(part),
            (std::vector<float>{4.5f, -2, 0.5f, -32, 8, 16, 0, 36}));
}

TEST(QuantizeMatrix, ThreadsChangeNothing) {
  const std::vector<float> values = RandomValues(64 * 512, 4);
  const TensorView view =
      TensorView::Matrix(values.data(), DType::kF32, 64, 512);
  const auto in_threads = [](int64_t n,
                             absl::FunctionRef<void(int64_t, int64_t)> body) {
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < 3; ++i) {
      threads.emplace_back([=] { body(n * i / 3, n * (i + 1) / 3); });
    }
    for (std::thread& thread : threads) thread.join();
  };
  for (const QuantFormat format :
       {QuantFormat::kQ4_K, QuantFormat::kFp8, QuantFormat::kInt4}) {
    QuantizationScheme scheme = {.format = format, .group_size = 64};
    scheme.fp8_scales = QuantizationScheme::Fp8Scales::kBlock;
    const auto one = QuantizeMatrix(view, scheme);
    const auto three = QuantizeMatrix(view, scheme, in_threads);
    ASSERT_TRUE(one.ok() && three.ok());
    EXPECT_EQ(DecodeAll(one->part), DecodeAll(three->part));
  }
}

void ExpectError(const TensorView& dense, const QuantizationScheme& scheme,
                 const std::string& part_of_message) {
  const auto matrix = QuantizeMatrix(dense, scheme);
  ASSERT_FALSE(matrix.ok());
  EXPECT_EQ(matrix.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(matrix.status().message(), part_of_message))
      << matrix.status();
}

TEST(QuantizeMatrix, RefusesWhatItCannotEncode) {
  std::vector<float> values(3 * 256, 0.5f);
  const auto view = [&](int64_t rows, int64_t cols) {
    return TensorView::Matrix(values.data(), DType::kF32, rows, cols);
  };
  ExpectError(view(2, 288), {.format = QuantFormat::kQ4_K},
              "288 columns are not a multiple of 256");
  ExpectError(view(2, 33), {.format = QuantFormat::kInt4},
              "33 columns are not a multiple of 2");
  ExpectError(view(2, 32), {.format = QuantFormat::kInt4, .group_size = 3},
              "group_size 3");
  ExpectError(view(2, 32), {.format = QuantFormat::kDense}, "dense");
  values[300] = std::nanf("");
  for (const QuantFormat format :
       {QuantFormat::kQ8_0, QuantFormat::kFp8, QuantFormat::kInt4}) {
    ExpectError(view(3, 256), {.format = format}, "row 1 has a value that is");
  }
  values[300] = 3e38f;
  for (const QuantFormat format :
       {QuantFormat::kQ8_0, QuantFormat::kQ6_K, QuantFormat::kInt4}) {
    ExpectError(view(3, 256), {.format = format}, "row 1 has values too large");
  }
}

}  // namespace
}  // namespace quire
