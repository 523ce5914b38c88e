// What tests/backend_conformance_test.cc cannot see: that all instruction sets
// give the same bits, and exact conversions.
#include "kernels/cpu/elementwise.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

std::vector<float> Values(int count, uint64_t seed) {
  SimulationRandom random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    value = static_cast<float>(8 * random.Uniform() - 4);
  }
  return values;
}

class ElementwiseTest : public testing::TestWithParam<Isa> {};

INSTANTIATE_TEST_SUITE_P(Isas, ElementwiseTest,
                         testing::ValuesIn(SupportedIsas()),
                         [](const testing::TestParamInfo<Isa>& info) {
                           return std::string(IsaName(info.param));
                         });

TEST_P(ElementwiseTest, SameBitsAsScalar) {
  for (int cols : {1, 15, 16, 17, 100, 1000}) {
    const std::vector<float> x = Values(cols, 1);
    const std::vector<float> residual = Values(cols, 2);
    const std::vector<float> weight = Values(cols, 3);
    for (NormSpec::Kind kind : {NormSpec::Kind::kRms, NormSpec::Kind::kLayer}) {
      NormSpec norm;
      norm.kind = kind;
      norm.weight = TensorView::Vector(weight.data(), DType::kF32, cols);
      const auto run = [&](Isa isa) {
        std::vector<float> out(2 * cols);
        NormRow(isa, norm, cols, x.data(), residual.data(), out.data(),
                out.data() + cols);
        return out;
      };
      EXPECT_EQ(run(GetParam()), run(Isa::kScalar)) << cols;
    }
    const auto softcap = [&](Isa isa) {
      std::vector<float> out = x;
      SoftcapRow(isa, 2.0f, cols, out.data());
      return out;
    };
    EXPECT_EQ(softcap(GetParam()), softcap(Isa::kScalar)) << cols;
    for (int interleaved = 0; interleaved < 2; ++interleaved) {
      const auto rope = [&](Isa isa) {
        std::vector<float> out = x;
        RopeHead(isa, weight.data(), cols / 2 * 2, interleaved == 1,
                 out.data());
        return out;
      };
      EXPECT_EQ(rope(GetParam()), rope(Isa::kScalar)) << cols;
    }
  }
}

TEST_P(ElementwiseTest, ConvertsEveryClassOfFloat) {
  std::vector<float> values = {0.0f,   -0.0f,    1.0f,      65504.0f, 65520.0f,
                               -1e30f, 1e-7f,    3e-8f,     2.9e-8f,  6e-5f,
                               1e-40f, INFINITY, -INFINITY, 3.4e38f};
  // Halfway cases of both formats: ties go to the even neighbour.
  for (int i = 0; i < 64; ++i) {
    values.push_back(1.0f + i * 0x1p-9f);
    values.push_back(1.0f + i * 0x1p-12f);
    values.push_back(i * 0x1p-25f);
  }
  const int count = static_cast<int>(values.size());
  std::vector<uint16_t> out(count);
  ConvertRow(GetParam(), values.data(), count, DType::kBF16, out.data());
  for (int i = 0; i < count; ++i) {
    EXPECT_EQ(out[i], FloatToBf16(values[i])) << values[i];
  }
  ConvertRow(GetParam(), values.data(), count, DType::kF16, out.data());
  for (int i = 0; i < count; ++i) {
    EXPECT_EQ(out[i], FloatToHalf(values[i])) << values[i];
  }
  const std::vector<float> nans(17, NAN);
  out.resize(17);
  ConvertRow(GetParam(), nans.data(), 17, DType::kBF16, out.data());
  for (uint16_t bits : out) EXPECT_TRUE(std::isnan(Bf16ToFloat(bits)));
  ConvertRow(GetParam(), nans.data(), 17, DType::kF16, out.data());
  for (uint16_t bits : out) EXPECT_TRUE(std::isnan(HalfToFloat(bits)));
}

TEST_P(ElementwiseTest, SoftcapIsBoundedAndKeepsNan) {
  std::vector<float> x(33, 1e30f);
  x[1] = -1e30f;
  x[2] = 0.0f;
  x[3] = NAN;
  x[32] = NAN;
  SoftcapRow(GetParam(), 5.0f, 33, x.data());
  EXPECT_EQ(x[0], 5.0f);
  EXPECT_EQ(x[1], -5.0f);
  EXPECT_EQ(x[2], 0.0f);
  EXPECT_TRUE(std::isnan(x[3]));
  EXPECT_TRUE(std::isnan(x[32]));
}

TEST_P(ElementwiseTest, NanReachesTheOutputOfANorm) {
  std::vector<float> x(40, 1.0f);
  x[37] = NAN;
  const std::vector<float> weight(40, 1.0f);
  NormSpec norm;
  norm.kind = NormSpec::Kind::kRms;
  norm.weight = TensorView::Vector(weight.data(), DType::kF32, 40);
  std::vector<float> out(40);
  NormRow(GetParam(), norm, 40, x.data(), nullptr, nullptr, out.data());
  for (float value : out) EXPECT_TRUE(std::isnan(value));
}

}  // namespace
}  // namespace quire
