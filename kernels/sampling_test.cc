#include "kernels/sampling.h"

#include <cmath>

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(DeterministicLogTest, IsWithinTwoUlp) {
  SimulationRandom random(1);
  for (int i = 0; i < 1'000'000; ++i) {
    // Every exponent of (0, 1], and the values that GumbelNoise passes.
    const float x =
        i % 2 == 0
            ? static_cast<float>(std::exp2(-80.0 * random.Uniform()))
            : (static_cast<float>(random.Next() >> 41) + 0.5f) * 0x1p-23f;
    const double expected = std::log(static_cast<double>(x));
    const float magnitude = static_cast<float>(std::abs(expected));
    const double ulp = std::nextafter(magnitude, INFINITY) - magnitude;
    ASSERT_TRUE(std::abs(DeterministicLog(x) - expected) <= 2 * ulp)
        << x << ": " << DeterministicLog(x) << " vs " << expected;
  }
  EXPECT_EQ(DeterministicLog(1.0f), 0.0f);
}

// Computed from the definition by another program (Philox4x32-10 in Python,
// logarithms in double).
TEST(GumbelNoiseTest, KnownValues) {
  struct Known {
    uint64_t draw_key;
    int64_t position;
    int32_t id;
    double noise;
  };
  const Known values[] = {
      {0ull, 0, 0, 0.084820278},
      {0ull, 0, 3, 0.689691621},
      {1ull, 5, 17, 0.949146666},
      {1311768467463790320ull, 1000, 151935, 0.509660841},
      {18446744073709551615ull, 8589934593, 7, 1.142887822},
  };
  for (const Known& known : values) {
    EXPECT_NEAR(GumbelNoise(known.draw_key, known.position, known.id),
                known.noise, 4e-6)
        << known.draw_key << " " << known.position << " " << known.id;
  }
}

TEST(GumbelNoiseTest, HasTheMeanAndVarianceOfTheDistribution) {
  constexpr int kCount = 400'000;
  double sum = 0.0;
  double sum_squares = 0.0;
  for (int id = 0; id < kCount; ++id) {
    const double noise = GumbelNoise(7, 123, id);
    sum += noise;
    sum_squares += noise * noise;
  }
  const double mean = sum / kCount;
  const double variance = sum_squares / kCount - mean * mean;
  const double expected_variance = M_PI * M_PI / 6;
  // Five standard errors; the kurtosis of a Gumbel variable is 5.4.
  EXPECT_NEAR(mean, 0.5772156649, 5 * std::sqrt(expected_variance / kCount));
  EXPECT_NEAR(variance, expected_variance,
              5 * expected_variance * std::sqrt(4.4 / kCount));
}

TEST(MinPThresholdTest, KeepsTheLargestLogitAtOne) {
  EXPECT_EQ(MinPThreshold(3.5f, 1.0f), 3.5f);
  EXPECT_NEAR(MinPThreshold(3.5f, 0.1f), 3.5 + std::log(0.1), 1e-6);
}

// Computed from the definition by another program.
TEST(XtcAppliesTest, KnownCoins) {
  struct Known {
    uint64_t draw_key;
    int64_t position;
    float uniform;
  };
  const Known values[] = {
      {0ull, 0, 0.4172481f},
      {1ull, 5, 0.0812809f},
      {1311768467463790320ull, 1000, 0.2497798f},
      {18446744073709551615ull, 8589934593, 0.4339127f},
  };
  for (const Known& known : values) {
    const float step = 1e-6f;
    EXPECT_FALSE(
        XtcApplies(known.draw_key, known.position, known.uniform - step));
    EXPECT_TRUE(
        XtcApplies(known.draw_key, known.position, known.uniform + step));
  }
}

// Apart from the noise of any entry: the coin tells nothing of the draw.
TEST(XtcAppliesTest, HasItsProbabilityWhateverTheNoiseIs) {
  constexpr int kCount = 100'000;
  for (int32_t id : {0, 1, 2, 3, 4, 151935}) {
    // Where the noise is above its median, and where it is not.
    int num_above = 0;
    int num_coins[2] = {};
    for (int position = 0; position < kCount; ++position) {
      const bool is_above =
          GumbelNoise(7, position, id) > -std::log(std::log(2.0));
      num_above += is_above ? 1 : 0;
      if (XtcApplies(7, position, 0.3f)) ++num_coins[is_above ? 1 : 0];
    }
    for (int side : {0, 1}) {
      const double count = side == 1 ? num_above : kCount - num_above;
      // Five standard errors.
      EXPECT_NEAR(num_coins[side] / count, 0.3,
                  5 * std::sqrt(0.3 * 0.7 / count))
          << "id " << id;
    }
  }
  for (int position = 0; position < 1000; ++position) {
    EXPECT_TRUE(XtcApplies(1, position, 1.0f));
    EXPECT_FALSE(XtcApplies(1, position, 0.0f));
  }
}

TEST(DryPenaltyTest, KnownValues) {
  EXPECT_EQ(DryPenalty(0.8f, 1.75f, 2, 2), 0.8f);
  EXPECT_FLOAT_EQ(DryPenalty(0.8f, 1.75f, 2, 5), 0.8 * 5.359375);
  EXPECT_FLOAT_EQ(DryPenalty(0.5f, 2.0f, 0, 100), 0.5 * std::pow(2.0, 100));
  // Exponents end where f32 does.
  EXPECT_EQ(DryMaxExponent(1.75f), 158);
  EXPECT_EQ(DryPenalty(0.8f, 1.75f, 2, 160), DryPenalty(0.8f, 1.75f, 2, 9999));
  EXPECT_TRUE(std::isfinite(DryPenalty(0.8f, 1.75f, 2, 9999)));
  EXPECT_EQ(DryPenalty(0.8f, 1.0f, 2, 1'000'000), 0.8f);
}

TEST(DynamicTemperatureTest, KnownValues) {
  // A certain row gets the lowest, an even one the highest temperature.
  EXPECT_FLOAT_EQ(DynamicTemperature(1.0f, 0.25f, 1.0f, 0.0, 100), 0.75f);
  EXPECT_FLOAT_EQ(DynamicTemperature(1.0f, 0.25f, 1.0f, std::log(100.0), 100),
                  1.25f);
  EXPECT_FLOAT_EQ(
      DynamicTemperature(1.0f, 0.25f, 2.0f, std::log(100.0) / 2, 100), 0.875f);
  EXPECT_FLOAT_EQ(DynamicTemperature(0.5f, 2.0f, 1.0f, 0.0, 100), 0.0f);
  EXPECT_FLOAT_EQ(DynamicTemperature(0.5f, 2.0f, 1.0f, 0.0, 1), 0.5f);
  // Rounding of the entropy does not leave the range.
  EXPECT_FLOAT_EQ(
      DynamicTemperature(1.0f, 0.25f, 0.5f, std::log(100.0) + 1e-9, 100),
      1.25f);
  EXPECT_FLOAT_EQ(DynamicTemperature(1.0f, 0.25f, 0.5f, -1e-9, 100), 0.75f);
}

}  // namespace
}  // namespace quire
