#include "benchmarks/statistics.h"

#include <cmath>

#include "gtest/gtest.h"

namespace quire {
namespace {

// Expected values are numpy's for the same lists.
TEST(StatisticsTest, AgreesWithNumpy) {
  const std::vector<double> values = {4, 1, 3, 2};
  EXPECT_DOUBLE_EQ(Mean(values), 2.5);
  EXPECT_DOUBLE_EQ(Median(values), 2.5);
  EXPECT_DOUBLE_EQ(PopulationDeviation(values), std::sqrt(1.25));
  EXPECT_DOUBLE_EQ(SampleDeviation(values), std::sqrt(5.0 / 3));
  EXPECT_DOUBLE_EQ(Percentile(values, 0), 1);
  EXPECT_DOUBLE_EQ(Percentile(values, 25), 1.75);
  EXPECT_DOUBLE_EQ(Percentile(values, 99), 3.97);
  EXPECT_DOUBLE_EQ(Percentile(values, 100), 4);
}

TEST(StatisticsTest, FewValues) {
  EXPECT_EQ(Mean({}), 0);
  EXPECT_EQ(Median({}), 0);
  EXPECT_EQ(Percentile({}, 99), 0);
  EXPECT_EQ(PopulationDeviation({}), 0);
  EXPECT_EQ(SampleDeviation({7}), 0);
  EXPECT_EQ(Percentile({7}, 99), 7);
  EXPECT_EQ(Spread({}, 1, "%.1f"), "-");
}

TEST(StatisticsTest, Text) {
  EXPECT_EQ(Spread({3000, 1000, 2000}, 1000, "%.1f"), "2.0 [1.0, 3.0]");
  EXPECT_EQ(PercentileName(99), "99");
  EXPECT_EQ(PercentileName(99.9), "99.9");
}

}  // namespace
}  // namespace quire
