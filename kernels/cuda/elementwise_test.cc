#include "kernels/cuda/elementwise.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {
namespace {

class ElementwiseTest : public ::testing::TestWithParam<DType> {
 protected:
  void TearDown() override { simt::emulator::CurrentOptions() = {}; }

  float ToFloat(uint16_t bits) const {
    return GetParam() == DType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
  }
  uint16_t ToBits(double value) const {
    const float f = static_cast<float>(value);
    return GetParam() == DType::kBF16 ? FloatToBf16(f) : FloatToHalf(f);
  }
  std::vector<uint16_t> Values(int64_t count) {
    std::vector<uint16_t> bits(count);
    for (uint16_t& x : bits) x = ToBits(random_.Uniform() * 4 - 2);
    return bits;
  }
  std::vector<float> Floats(int64_t count) {
    std::vector<float> values(count);
    for (float& x : values) x = static_cast<float>(random_.Uniform() * 2 - 1);
    return values;
  }
  // One rounding of the output and some of f32 on the way, of numbers as large
  // as `magnitude`.
  void ExpectNear(uint16_t found, double wanted, double magnitude,
                  const std::string& what) const {
    const double unit_roundoff = GetParam() == DType::kBF16 ? 0x1p-8 : 0x1p-11;
    EXPECT_LE(std::fabs(ToFloat(found) - wanted),
              unit_roundoff * std::fabs(wanted) + 0x1p-19 * magnitude + 0x1p-24)
        << what << ": " << ToFloat(found) << " instead of " << wanted;
  }
  // Runs `body` under every schedule.
  template <typename Body>
  static void UnderEverySchedule(Body body) {
    for (const simt::emulator::Schedule schedule :
         simt::emulator::kAllSchedules) {
      simt::emulator::CurrentOptions() = {.schedule = schedule, .seed = 5};
      body();
    }
  }

  SimulationRandom random_{3};
};

INSTANTIATE_TEST_SUITE_P(Types, ElementwiseTest,
                         ::testing::Values(DType::kBF16, DType::kF16),
                         [](const auto& info) {
                           return std::string(DTypeName(info.param));
                         });

TEST_P(ElementwiseTest, GathersAndAddsRows) {
  const int cols = 2056;
  const std::vector<uint16_t> table = Values(5 * cols);
  const std::vector<int32_t> entries = {4, 0, 4};
  UnderEverySchedule([&] {
    std::vector<uint16_t> x(3 * cols, 0xffff);
    GatherArguments arguments{.dtype = GetParam(),
                              .table = table.data(),
                              .entries = entries.data(),
                              .x = x.data(),
                              .num_tokens = 3,
                              .cols = cols,
                              .scale = 0.5f};
    ASSERT_TRUE(LaunchGather(arguments, nullptr));
    arguments.adds = true;
    ASSERT_TRUE(LaunchGather(arguments, nullptr));
    for (int t = 0; t < 3; ++t) {
      for (int c = 0; c < cols; ++c) {
        const double value = ToFloat(table[entries[t] * cols + c]);
        const double scaled = ToFloat(ToBits(value * 0.5));
        ExpectNear(x[t * cols + c], value + scaled, 2, "sum");
      }
    }
  });
}

TEST_P(ElementwiseTest, NormsRows) {
  using Kind = NormArguments::Kind;
  for (const int cols : {8, 200, 2048, 2056, 4104}) {
    const std::vector<uint16_t> x = Values(2 * cols);
    const std::vector<uint16_t> residual = Values(2 * cols);
    const std::vector<float> weight = Floats(cols), bias = Floats(cols);
    for (const Kind kind : {Kind::kNone, Kind::kRms, Kind::kLayer}) {
      for (const bool has_residual : {false, true}) {
        UnderEverySchedule([&] {
          std::vector<uint16_t> out(x), sum(residual);
          NormArguments arguments{.dtype = GetParam(),
                                  .kind = kind,
                                  .weight = weight.data(),
                                  .eps = 1e-5f,
                                  .weight_offset = 1.0f,
                                  .x = out.data(),
                                  .out = out.data(),
                                  .num_tokens = 2,
                                  .cols = cols};
          if (kind == Kind::kLayer) arguments.bias = bias.data();
          if (has_residual) {
            arguments.residual = arguments.residual_out = sum.data();
          }
          ASSERT_TRUE(LaunchNorm(arguments, nullptr));
          for (int t = 0; t < 2; ++t) {
            std::vector<double> values(cols);
            double mean = 0, square = 0;
            for (int c = 0; c < cols; ++c) {
              values[c] = ToFloat(x[t * cols + c]);
              if (has_residual) values[c] += ToFloat(residual[t * cols + c]);
              mean += values[c] / cols;
            }
            if (kind != Kind::kLayer) mean = 0;
            for (const double v : values) {
              square += (v - mean) * (v - mean) / cols;
            }
            for (int c = 0; c < cols; ++c) {
              double wanted = values[c];
              if (kind != Kind::kNone) {
                wanted = (values[c] - mean) / std::sqrt(square + 1e-5) *
                         (1.0 + weight[c]);
              }
              if (kind == Kind::kLayer) wanted += bias[c];
              ExpectNear(out[t * cols + c], wanted, 16, "norm");
              if (has_residual) {
                ExpectNear(sum[t * cols + c], values[c], 4, "sum");
              }
            }
          }
        });
      }
    }
  }
}

TEST_P(ElementwiseTest, GatesInterleavedColumns) {
  for (const int cols : {8, 2048, 2064}) {
    const std::vector<uint16_t> x = Values(2 * 2 * cols);
    for (const LinearActivation activation :
         {LinearActivation::kSwiGlu, LinearActivation::kGeGlu,
          LinearActivation::kGeGluErf}) {
      std::vector<uint16_t> out(2 * cols, 0xffff);
      ASSERT_TRUE(LaunchGated({.dtype = GetParam(),
                               .activation = activation,
                               .x = x.data(),
                               .out = out.data(),
                               .num_tokens = 2,
                               .cols = cols},
                              nullptr));
      for (int t = 0; t < 2; ++t) {
        for (int c = 0; c < cols; ++c) {
          const uint16_t* group = &x[(t * cols + c / 8 * 8) * 2];
          const double gate = ToFloat(group[c % 8]);
          const double up = ToFloat(group[8 + c % 8]);
          const double factor =
              activation == LinearActivation::kSwiGlu
                  ? gate / (1 + std::exp(-gate))
              : activation == LinearActivation::kGeGluErf
                  ? 0.5 * gate * std::erfc(-gate / std::sqrt(2))
                  : 0.5 * gate *
                        (1 + std::tanh(std::sqrt(2 / M_PI) *
                                       (gate + 0.044715 * gate * gate * gate)));
          ExpectNear(out[t * cols + c], factor * up, 4, "gated");
        }
      }
    }
  }
}

struct RopeCase {
  int head_dim;
  int rotary_dim;  // 0: no RoPE.
  bool is_interleaved;
  bool has_norm;
};

TEST_P(ElementwiseTest, RotatesNormsAndCaches) {
  for (const RopeCase& c :
       {RopeCase{64, 64, false, true}, RopeCase{80, 32, false, false},
        RopeCase{128, 128, true, false}, RopeCase{256, 64, false, true},
        RopeCase{96, 0, false, false}}) {
    const int num_heads = 3, num_kv_heads = 2, block_size = 8, num_tokens = 5;
    const int64_t stride = (num_heads + 2 * num_kv_heads) * c.head_dim;
    const std::vector<uint16_t> qkv = Values(num_tokens * stride);
    const std::vector<float> q_norm = Floats(c.head_dim);
    const std::vector<float> k_norm = Floats(c.head_dim);
    std::vector<float> table(40 * c.rotary_dim);
    for (int p = 0; p < 40; ++p) {
      for (int i = 0; i < c.rotary_dim / 2; ++i) {
        const double angle = p * std::pow(100.0, -2.0 * i / c.rotary_dim);
        table[p * c.rotary_dim + i] = static_cast<float>(std::cos(angle));
        table[p * c.rotary_dim + c.rotary_dim / 2 + i] =
            static_cast<float>(std::sin(angle));
      }
    }
    const std::vector<int32_t> positions = {0, 1, 38, 7, 8};
    const std::vector<int32_t> table_rows = {0, 0, 0, 1, 1};
    const std::vector<int32_t> block_tables = {3, 1, 5, 7, 0, 2, 4, 6, 8, 9};
    UnderEverySchedule([&] {
      std::vector<uint16_t> out(qkv);
      std::vector<uint16_t> cache(
          10 * 2 * num_kv_heads * block_size * c.head_dim, 0xffff);
      RopeArguments arguments;
      arguments.dtype = arguments.kv_dtype = GetParam();
      arguments.num_heads = num_heads;
      arguments.num_kv_heads = num_kv_heads;
      arguments.head_dim = c.head_dim;
      arguments.block_size = block_size;
      if (c.has_norm) {
        arguments.q_norm = {.kind = NormArguments::Kind::kRms,
                            .weight = q_norm.data(),
                            .weight_offset = 0.5f};
        arguments.k_norm = arguments.q_norm;
        arguments.k_norm.weight = k_norm.data();
      }
      if (c.rotary_dim > 0) arguments.rope_table = table.data();
      arguments.rotary_dim = c.rotary_dim;
      arguments.is_interleaved = c.is_interleaved;
      arguments.qkv = out.data();
      arguments.qkv_stride = stride;
      arguments.kv_cache = cache.data();
      arguments.positions = positions.data();
      arguments.table_rows = table_rows.data();
      arguments.block_tables = block_tables.data();
      arguments.block_table_stride = 5;
      arguments.num_tokens = num_tokens;
      ASSERT_TRUE(LaunchRopeAndCache(arguments, nullptr))
          << simt::emulator::LastError();
      for (int t = 0; t < num_tokens; ++t) {
        for (int row = 0; row < num_heads + 2 * num_kv_heads; ++row) {
          const bool is_q = row < num_heads;
          const bool is_v = row >= num_heads + num_kv_heads;
          std::vector<double> values(c.head_dim);
          double square = 0;
          for (int d = 0; d < c.head_dim; ++d) {
            values[d] = ToFloat(qkv[t * stride + row * c.head_dim + d]);
            square += values[d] * values[d] / c.head_dim;
          }
          if (c.has_norm && !is_v) {
            for (int d = 0; d < c.head_dim; ++d) {
              values[d] *= (0.5 + (is_q ? q_norm : k_norm)[d]) /
                           std::sqrt(square + 1e-6);
            }
          }
          std::vector<double> wanted(values);
          for (int i = 0; !is_v && i < c.rotary_dim / 2; ++i) {
            const int a = c.is_interleaved ? 2 * i : i;
            const int b = c.is_interleaved ? 2 * i + 1 : i + c.rotary_dim / 2;
            const float* angles = &table[positions[t] * c.rotary_dim];
            const double cosine = angles[i];
            const double sine = angles[c.rotary_dim / 2 + i];
            wanted[a] = values[a] * cosine - values[b] * sine;
            wanted[b] = values[b] * cosine + values[a] * sine;
          }
          const int64_t block =
              block_tables[table_rows[t] * 5 + positions[t] / block_size];
          const int head =
              is_v ? row - num_heads - num_kv_heads : row - num_heads;
          for (int d = 0; d < c.head_dim; ++d) {
            const uint16_t found =
                is_q ? out[t * stride + row * c.head_dim + d]
                     : cache[(((block * 2 + is_v) * num_kv_heads + head) *
                                  block_size +
                              positions[t] % block_size) *
                                 c.head_dim +
                             d];
            ExpectNear(found, wanted[d], 8, is_q ? "q" : is_v ? "v" : "k");
          }
        }
      }
      // Nothing but the tokens' rows was written.
      int64_t num_written = 0;
      for (const uint16_t bits : cache) num_written += bits != 0xffff;
      EXPECT_EQ(num_written, num_tokens * 2 * num_kv_heads * c.head_dim);
    });
  }
}

TEST_P(ElementwiseTest, Fp8CacheSaturatesAndKeepsNaN) {
  const std::vector<float> values = {1000, -1e9, NAN, 0.4375, 0.0029, -0.3};
  const int head_dim = 64;
  std::vector<uint16_t> qkv = Values(3 * head_dim);
  for (size_t i = 0; i < values.size(); ++i) {
    const bool is_bf16 = GetParam() == DType::kBF16;
    qkv[head_dim + i] = qkv[2 * head_dim + i] =
        is_bf16 ? FloatToBf16(values[i]) : FloatToHalf(values[i]);
  }
  const std::vector<int32_t> position = {1}, table_row = {0}, table = {1};
  std::vector<uint8_t> cache(2 * 2 * 2 * head_dim, 0xff);
  std::vector<uint16_t> out(qkv);
  ASSERT_TRUE(LaunchRopeAndCache({.dtype = GetParam(),
                                  .num_heads = 1,
                                  .num_kv_heads = 1,
                                  .head_dim = head_dim,
                                  .block_size = 2,
                                  .qkv = out.data(),
                                  .qkv_stride = 3 * head_dim,
                                  .kv_dtype = DType::kF8E4M3,
                                  .kv_cache = cache.data(),
                                  .positions = position.data(),
                                  .table_rows = table_row.data(),
                                  .block_tables = table.data(),
                                  .num_tokens = 1},
                                 nullptr));
  for (int i = 0; i < 2 * head_dim; ++i) {
    // Block 1, position 1 of 2.
    const uint8_t found =
        cache[(2 + i / head_dim) * 2 * head_dim + head_dim + i % head_dim];
    const uint16_t bits = qkv[head_dim + i];
    EXPECT_EQ(found, FloatToE4M3(ToFloat(bits))) << i;
  }
  EXPECT_EQ(std::count(cache.begin(), cache.end(), 0xff), 6 * head_dim);
}

TEST(BlockCopyTest, CopiesWholeBlocksOfEveryLayer) {
  const int num_layers = 3, num_blocks = 5, elements = 2056;
  std::vector<uint16_t> cache(num_layers * num_blocks * elements);
  for (size_t i = 0; i < cache.size(); ++i) {
    cache[i] = static_cast<uint16_t>(i / elements * 7 + i % 5);
  }
  std::vector<uint16_t> wanted(cache);
  const std::vector<int32_t> pairs = {0, 3, 2, 4};
  for (int layer = 0; layer < num_layers; ++layer) {
    for (int p = 0; p < 2; ++p) {
      for (int i = 0; i < elements; ++i) {
        wanted[(layer * num_blocks + pairs[2 * p + 1]) * elements + i] =
            cache[(layer * num_blocks + pairs[2 * p]) * elements + i];
      }
    }
  }
  ASSERT_TRUE(LaunchBlockCopy(
      {.kv_cache = reinterpret_cast<unsigned char*>(cache.data()),
       .num_layers = num_layers,
       .layer_bytes = num_blocks * elements * 2,
       .block_bytes = elements * 2,
       .pairs = pairs.data(),
       .num_pairs = 2},
      nullptr));
  EXPECT_EQ(cache, wanted);
}

}  // namespace
}  // namespace quire::cuda
