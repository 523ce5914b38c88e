#include "engine/model/rope.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(RopeTest, DefaultFrequencies) {
  const std::vector<float> frequencies = RopeFrequencies(RopeConfig(), 4);
  EXPECT_THAT(frequencies, testing::ElementsAre(1.0f, 0.01f));
}

TEST(RopeTest, LinearDividesByFactor) {
  RopeConfig config;
  config.type = RopeType::kLinear;
  config.factor = 4.0;
  EXPECT_THAT(RopeFrequencies(config, 4), testing::ElementsAre(0.25f, 0.0025f));
}

// Low pairs keep their frequency, high ones are divided, none leaves that
// range, and the transition is monotonic.
TEST(RopeTest, Llama3AndYarnInterpolateLongWavelengths) {
  for (const RopeType type : {RopeType::kLlama3, RopeType::kYarn}) {
    RopeConfig config;
    config.theta = 500000.0;
    const std::vector<float> plain = RopeFrequencies(config, 128);
    config.type = type;
    config.factor = 8.0;
    config.original_max_position_embeddings = 8192;
    const std::vector<float> scaled = RopeFrequencies(config, 128);
    EXPECT_EQ(scaled.front(), plain.front());
    EXPECT_FLOAT_EQ(scaled.back(), plain.back() / 8);
    int num_between = 0;
    float last_ratio = 1.0f;
    for (size_t i = 0; i < plain.size(); ++i) {
      const float ratio = scaled[i] / plain[i];
      EXPECT_LE(ratio, last_ratio * 1.000001f);
      EXPECT_GE(ratio, 0.125f * 0.999999f);
      if (ratio < 0.99f && ratio > 0.126f) ++num_between;
      last_ratio = ratio;
    }
    EXPECT_GE(num_between, 3);
  }
}

// The published boundaries of Llama 3.1: wavelengths below 8192 / 4 are kept,
// above 8192 / 1 divided by the factor.
TEST(RopeTest, Llama3Boundaries) {
  RopeConfig config;
  config.theta = 500000.0;
  const std::vector<float> plain = RopeFrequencies(config, 128);
  config.type = RopeType::kLlama3;
  config.factor = 8.0;
  config.original_max_position_embeddings = 8192;
  const std::vector<float> scaled = RopeFrequencies(config, 128);
  for (size_t i = 0; i < plain.size(); ++i) {
    const double wavelength = 2 * M_PI / plain[i];
    if (wavelength < 2040) {
      EXPECT_EQ(scaled[i], plain[i]);
    } else if (wavelength > 8200) {
      EXPECT_FLOAT_EQ(scaled[i], plain[i] / 8);
    } else {
      EXPECT_LT(scaled[i], plain[i]);
      EXPECT_GT(scaled[i], plain[i] / 8);
    }
  }
}

TEST(RopeTest, LongRopeDividesByItsFactors) {
  RopeConfig config;
  config.type = RopeType::kLongRope;
  config.theta = 10000.0;
  config.partial_rotary_factor = 0.5;
  config.short_factors = {1.0, 2.0};
  config.long_factors = {4.0, 8.0};
  EXPECT_THAT(RopeFrequencies(config, 8), testing::ElementsAre(1.0f, 0.005f));
  EXPECT_THAT(RopeFrequencies(config, 8, /*is_long=*/true),
              testing::ElementsAre(0.25f, 0.00125f));
  // Half of the head: two cosines and two sines for each position.
  EXPECT_EQ(RopeTable(config, 8, 3, /*is_long=*/true).size(), 12u);
  config.type = RopeType::kNone;
  EXPECT_EQ(RotaryDim(config, 8), 0);
}

TEST(RopeTest, TableHoldsCosinesThenSines) {
  RopeConfig config;
  config.attention_factor = 2.0;
  const std::vector<float> table = RopeTable(config, 4, 3);
  ASSERT_EQ(table.size(), 12u);
  EXPECT_THAT(std::vector<float>(table.begin(), table.begin() + 4),
              testing::ElementsAre(2, 2, 0, 0));
  EXPECT_FLOAT_EQ(table[8], 2 * std::cos(2.0f));
  EXPECT_FLOAT_EQ(table[9], 2 * std::cos(0.02f));
  EXPECT_FLOAT_EQ(table[10], 2 * std::sin(2.0f));
  EXPECT_FLOAT_EQ(table[11], 2 * std::sin(0.02f));
}

}  // namespace
}  // namespace quire
