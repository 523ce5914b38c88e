#include "benchmarks/serving/arrivals.h"

#include <cmath>

#include "benchmarks/statistics.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<double> Gaps(const std::vector<double>& times) {
  std::vector<double> gaps;
  for (size_t i = 1; i < times.size(); ++i) {
    gaps.push_back(times[i] - times[i - 1]);
  }
  return gaps;
}

class GammaTest : public testing::TestWithParam<double> {};

// Mean and variance of gamma(a, 1) are both a; fourth central moment 3 a^2 +
// 6 a. With n draws the errors of mean and variance have deviations sqrt(a / n)
// and about sqrt((2 a^2 + 6 a) / n); five of them are allowed (seed fixed).
TEST_P(GammaTest, Moments) {
  const double shape = GetParam();
  constexpr int kDraws = 200000;
  SimulationRandom random(7);
  std::vector<double> values;
  for (int i = 0; i < kDraws; ++i) values.push_back(DrawGamma(shape, &random));
  const double deviation = PopulationDeviation(values);
  EXPECT_NEAR(Mean(values), shape, 5 * std::sqrt(shape / kDraws));
  EXPECT_NEAR(deviation * deviation, shape,
              5 * std::sqrt((2 * shape * shape + 6 * shape) / kDraws));
}

INSTANTIATE_TEST_SUITE_P(Shapes, GammaTest, testing::Values(0.25, 1.0, 4.0));

// Kolmogorov's distance of the gaps from the exponential distribution; the
// bound is that of the 0.1 % level.
TEST(ArrivalsTest, PoissonGapsAreExponential) {
  SimulationRandom random(3);
  ArrivalOptions options;
  options.request_rate = 50;
  std::vector<double> gaps = Gaps(ArrivalTimes(options, 20001, &random));
  std::sort(gaps.begin(), gaps.end());
  double distance = 0;
  for (size_t i = 0; i < gaps.size(); ++i) {
    const double expected = 1 - std::exp(-gaps[i] * 50);
    distance = std::max(distance, std::abs(expected - (i + 0.5) / gaps.size()));
  }
  EXPECT_LT(distance, 1.95 / std::sqrt(gaps.size()));
}

TEST(ArrivalsTest, TheWholeLoadTakesWhatTheRateSays) {
  for (double burstiness : {0.2, 1.0, 5.0}) {
    SimulationRandom random(1);
    ArrivalOptions options;
    options.request_rate = 10;
    options.burstiness = burstiness;
    const std::vector<double> times = ArrivalTimes(options, 500, &random);
    EXPECT_NEAR(times.back(), 50, 1e-9);
    EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
    // Coefficient of variation of gamma(a): 1 / sqrt(a).
    const std::vector<double> gaps = Gaps(times);
    EXPECT_NEAR(PopulationDeviation(gaps) / Mean(gaps),
                1 / std::sqrt(burstiness), 0.25 / std::sqrt(burstiness));
  }
}

TEST(ArrivalsTest, EvenGaps) {
  SimulationRandom random(1);
  ArrivalOptions options;
  options.request_rate = 4;
  options.burstiness = kInfinity;
  for (double gap : Gaps(ArrivalTimes(options, 9, &random))) {
    EXPECT_NEAR(gap, 0.25, 1e-12);
  }
}

TEST(ArrivalsTest, AllAtOnce) {
  SimulationRandom random(1);
  EXPECT_EQ(ArrivalTimes(ArrivalOptions(), 3, &random),
            std::vector<double>({0, 0, 0}));
  EXPECT_TRUE(ArrivalTimes(ArrivalOptions(), 0, &random).empty());
}

TEST(ArrivalsTest, RampsReachTheirEnd) {
  for (const auto ramp : {ArrivalOptions::RampUp::kLinear,
                          ArrivalOptions::RampUp::kExponential}) {
    SimulationRandom random(1);
    ArrivalOptions options;
    options.ramp_up = ramp;
    options.burstiness = kInfinity;
    options.ramp_up_start_rps = 1;
    options.ramp_up_end_rps = 16;
    const std::vector<double> times = ArrivalTimes(options, 5, &random);
    const std::vector<double> gaps = Gaps(times);
    EXPECT_NEAR(times[0], 1, 1e-12);
    EXPECT_NEAR(gaps.back(), 1.0 / 16, 1e-12);
    // The middle: 8.5 or 4 requests a second.
    EXPECT_NEAR(gaps[1],
                ramp == ArrivalOptions::RampUp::kLinear ? 1 / 8.5 : 0.25,
                1e-12);
  }
}

}  // namespace
}  // namespace quire
