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

}  // namespace
}  // namespace quire
