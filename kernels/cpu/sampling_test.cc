#include "kernels/cpu/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cpu/isa.h"
#include "kernels/random_slot_params.h"
#include "kernels/reference.h"

namespace quire {
namespace {

// Owns what SampleInput borrows.
class Sampler {
 public:
  Sampler(Isa isa, int32_t vocab_size)
      : isa_(isa), vocab_size_(vocab_size), scratch_(vocab_size, kMaxHistory) {}

  static constexpr int kMaxHistory = 4096;

  struct Result {
    int32_t token = 0;
    float logprob = 0.0f;
    std::vector<int32_t> top_ids;
    std::vector<float> top_logprobs;
    bool non_finite = false;
    bool all_masked = false;
  };

  Result Sample(const std::vector<float>& logits, const SlotParams& params,
                absl::Span<const int32_t> history, int32_t num_prompt_tokens,
                int64_t position) {
    std::vector<TokenCounts::Entry> entries(history.size() + 1);
    std::vector<int32_t> table(1024);
    TokenCounts counts(entries.data(), entries.size(), table.data(),
                       table.size());
    for (size_t i = 0; i < history.size(); ++i) {
      if (static_cast<int>(i) < num_prompt_tokens) {
        counts.AddPromptToken(history[i]);
      } else {
        counts.AddGeneratedToken(history[i]);
      }
    }
    SampleInput input;
    input.logits = logits.data();
    input.vocab_size = vocab_size_;
    input.params = &params;
    input.counts = history.empty() ? nullptr : &counts;
    input.history = history;
    input.num_prompt_tokens = num_prompt_tokens;
    input.position = position;
    input.num_generated = static_cast<int32_t>(position) - num_prompt_tokens;
    Result result;
    result.top_ids.resize(std::max(params.num_logprobs, 0));
    result.top_logprobs.resize(std::max(params.num_logprobs, 0));
    SampleOutput output;
    output.top_ids = result.top_ids.data();
    output.top_logprobs = result.top_logprobs.data();
    SampleRow(isa_, input, scratch_, &output);
    result.token = output.token;
    result.logprob = output.logprob;
    result.non_finite = output.non_finite;
    result.all_masked = output.all_masked;
    return result;
  }

  int32_t Draw(const std::vector<float>& logits, const SlotParams& params,
               int64_t position) {
    return Sample(logits, params, {}, 0, position).token;
  }

 private:
  Isa isa_;
  int32_t vocab_size_;
  SamplingScratch scratch_;
};

double Normal(SimulationRandom& random) {
  return std::sqrt(-2 * std::log(1.0 - random.Uniform())) *
         std::cos(2 * M_PI * random.Uniform());
}

class SamplingTest : public testing::TestWithParam<Isa> {};

INSTANTIATE_TEST_SUITE_P(Isas, SamplingTest, testing::ValuesIn(SupportedIsas()),
                         [](const testing::TestParamInfo<Isa>& info) {
                           return std::string(IsaName(info.param));
                         });

// Expected values from another implementation (see GumbelNoiseTest).
TEST_P(SamplingTest, KnownDraws) {
  constexpr int kVocabSize = 1000;
  std::vector<float> logits(kVocabSize);
  for (int i = 0; i < kVocabSize; ++i) logits[i] = (i * 37 % 101) / 10.0f;
  Sampler sampler(GetParam(), kVocabSize);
  SlotParams params;
  params.draw_key = 42;
  params.temperature = 0.8f;
  const auto draws = [&] {
    std::vector<int32_t> tokens;
    for (int position = 1; position <= 16; ++position) {
      tokens.push_back(sampler.Draw(logits, params, position));
    }
    return tokens;
  };
  EXPECT_EQ(draws(),
            (std::vector<int32_t>{191, 679, 633, 483, 60, 150, 158, 318, 682,
                                  614, 857, 947, 638, 60, 292, 584}));
  // The ten ids that tie for the largest logit stay.
  params.top_k = 1;
  EXPECT_EQ(draws(),
            (std::vector<int32_t>{838, 333, 333, 131, 939, 636, 333, 333, 737,
                                  636, 131, 838, 838, 30, 333, 636}));
  params.top_k = 0;
  params.temperature = 2.0f;
  EXPECT_EQ(draws(),
            (std::vector<int32_t>{559, 679, 633, 483, 60, 882, 158, 318, 682,
                                  614, 857, 889, 638, 242, 290, 941}));
}

TEST_P(SamplingTest, GreedyTakesTheLowestIdOfTheLargest) {
  for (int vocab_size : {1, 2, 63, 64, 65, 127, 1009}) {
    Sampler sampler(GetParam(), vocab_size);
    SlotParams params;
    params.temperature = 0.0f;
    SimulationRandom random(vocab_size);
    for (int trial = 0; trial < 50; ++trial) {
      std::vector<float> logits(vocab_size);
      // Few values: many ties.
      for (float& logit : logits) logit = static_cast<int>(random.Below(4)) - 5;
      const int32_t expected = static_cast<int32_t>(
          std::max_element(logits.begin(), logits.end()) - logits.begin());
      ASSERT_EQ(sampler.Draw(logits, params, 1), expected);
    }
  }
}

TEST_P(SamplingTest, ReportsNonFiniteRows) {
  for (int vocab_size : {1, 64, 67, 200}) {
    Sampler sampler(GetParam(), vocab_size);
    SlotParams params;
    for (float bad : {NAN, INFINITY, -INFINITY, -NAN}) {
      for (int where = 0; where < vocab_size; ++where) {
        std::vector<float> logits(vocab_size, 1.0f);
        EXPECT_FALSE(sampler.Sample(logits, params, {}, 0, 1).non_finite);
        logits[where] = bad;
        EXPECT_TRUE(sampler.Sample(logits, params, {}, 0, 1).non_finite);
      }
    }
  }
}

// f32 sums of at most 64 terms within a chunk, exp within 2 ulp of terms of at
// most 1, one rounding of the result: 70 * 2^-24 relative in the sum, and the
// rounding of a log-probability of magnitude up to |value|.
double LogprobTolerance(double value) {
  return 70 * 0x1p-24 + 2 * 0x1p-24 * std::abs(value);
}

TEST_P(SamplingTest, EqualsTheReferenceForRandomParameters) {
  SimulationRandom random(20);
  int num_all_masked = 0;
  for (int trial = 0; trial < 2500; ++trial) {
    const int vocab_sizes[] = {1, 3, 64, 65, 257, 1000, 4099};
    const int vocab_size = vocab_sizes[random.Below(trial % 8 == 0 ? 7 : 6)];
    // Rarely so large that noise is lost in rounding, or that logit /
    // temperature overflows.
    const double deviation = trial % 32 == 5   ? 1e37
                             : trial % 32 == 6 ? 1e5
                             : trial % 3 == 0  ? 0.3
                                               : 4.0;
    std::vector<float> logits(vocab_size);
    for (float& logit : logits) {
      logit = static_cast<float>(deviation * Normal(random));
      // Coarse values make ties at the thresholds.
      if (trial % 4 == 1) logit = std::round(logit * 2) / 2;
    }
    const SlotParams params = RandomSlotParams(random, vocab_size);
    std::vector<int32_t> history(random.Below(12));
    // Few different ids: repetitions.
    const int num_ids = trial % 2 == 0 ? std::min(vocab_size, 4) : vocab_size;
    for (int32_t& id : history) id = random.Below(num_ids);
    const int num_prompt_tokens = random.Below(history.size() + 1);
    const int64_t position = history.size();
    Sampler sampler(GetParam(), vocab_size);
    const Sampler::Result got =
        sampler.Sample(logits, params, history, num_prompt_tokens, position);
    const ReferenceSample expected = ReferenceSampleRow(
        logits, params, history, num_prompt_tokens, position);
    ASSERT_EQ(got.token, expected.token) << "trial " << trial;
    ASSERT_EQ(got.all_masked, expected.all_masked) << "trial " << trial;
    num_all_masked += got.all_masked ? 1 : 0;
    if (params.num_logprobs < 0) continue;
    EXPECT_TRUE(std::abs(got.logprob - expected.logprob) <=
                LogprobTolerance(expected.logprob))
        << got.logprob << " vs " << expected.logprob;
    ASSERT_EQ(got.top_ids, expected.top_ids) << "trial " << trial;
    for (size_t i = 0; i < expected.top_logprobs.size(); ++i) {
      EXPECT_TRUE(std::abs(got.top_logprobs[i] - expected.top_logprobs[i]) <=
                  LogprobTolerance(expected.top_logprobs[i]))
          << got.top_logprobs[i] << " vs " << expected.top_logprobs[i];
    }
  }
  EXPECT_GT(num_all_masked, 20);
}

TEST_P(SamplingTest, ReportsThatNoTokenIsAllowed) {
  const std::vector<float> logits = {1, 2, 3, 4, 5};
  Sampler sampler(GetParam(), 5);
  for (float temperature : {0.0f, 1.0f}) {
    SlotParams params;
    params.temperature = temperature;
    params.allowed_ids = {3};
    params.banned_before_min = {3};
    params.min_tokens = 2;
    const Sampler::Result none = sampler.Sample(logits, params, {}, 0, 1);
    EXPECT_TRUE(none.all_masked);
    EXPECT_FALSE(none.non_finite);
    const Sampler::Result some = sampler.Sample(logits, params, {}, 0, 2);
    EXPECT_FALSE(some.all_masked);
    EXPECT_EQ(some.token, 3);
    // A parameter that reads the row before it is drawn from.
    params.dynatemp_range = 0.5f;
    params.xtc_probability = 1.0f;
    EXPECT_TRUE(sampler.Sample(logits, params, {}, 0, 1).all_masked);
  }
}

TEST(SamplingIsaTest, LogprobsAreTheSameBitsOnEveryInstructionSet) {
  constexpr int kVocabSize = 10'007;
  SimulationRandom random(3);
  std::vector<float> logits(kVocabSize);
  for (float& logit : logits) logit = static_cast<float>(3 * Normal(random));
  SlotParams params;
  params.num_logprobs = 20;
  params.draw_key = 9;
  const Sampler::Result expected =
      Sampler(Isa::kScalar, kVocabSize).Sample(logits, params, {}, 0, 11);
  for (Isa isa : SupportedIsas()) {
    const Sampler::Result got =
        Sampler(isa, kVocabSize).Sample(logits, params, {}, 0, 11);
    EXPECT_EQ(got.token, expected.token) << IsaName(isa);
    EXPECT_EQ(got.logprob, expected.logprob) << IsaName(isa);
    EXPECT_EQ(got.top_ids, expected.top_ids) << IsaName(isa);
    EXPECT_EQ(got.top_logprobs, expected.top_logprobs) << IsaName(isa);
  }
}

// Pearson's statistic of draws at successive positions against the filtered
// distribution; entries that expect fewer than 10 draws are pooled.
void ExpectDrawsFollow(Isa isa, const std::vector<float>& logits,
                       const SlotParams& params, int num_draws) {
  Sampler sampler(isa, logits.size());
  std::vector<int> counts(logits.size());
  for (int i = 0; i < num_draws; ++i) {
    ++counts[sampler.Draw(logits, params, i)];
  }
  const std::vector<double> distribution =
      ReferenceDistribution(logits, params, {}, 0, 0);
  double statistic = 0.0;
  double pooled_expected = 0.0;
  double pooled_count = 0.0;
  int num_cells = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    const double expected = distribution[id] * num_draws;
    if (expected == 0.0) {
      EXPECT_EQ(counts[id], 0) << "the filters drop id " << id;
    } else if (expected < 10.0) {
      pooled_expected += expected;
      pooled_count += counts[id];
    } else {
      statistic += (counts[id] - expected) * (counts[id] - expected) / expected;
      ++num_cells;
    }
  }
  if (pooled_expected > 0.0) {
    statistic += (pooled_count - pooled_expected) *
                 (pooled_count - pooled_expected) / pooled_expected;
    ++num_cells;
  }
  // Mean and deviation of chi-square with n degrees of freedom: n, sqrt(2 n).
  const double degrees = num_cells - 1;
  EXPECT_LE(statistic, degrees + 5 * std::sqrt(2 * degrees) + 1e-9)
      << num_cells << " cells";
}

TEST_P(SamplingTest, DrawsFollowTheFilteredDistribution) {
  constexpr int kVocabSize = 300;
  const int num_draws = GetParam() == Isa::kScalar ? 20'000 : 40'000;
  SimulationRandom random(5);
  std::vector<float> logits(kVocabSize);
  for (float& logit : logits) logit = static_cast<float>(2 * Normal(random));
  SlotParams params;
  params.draw_key = 77;
  ExpectDrawsFollow(GetParam(), logits, params, num_draws);
  params.temperature = 0.6f;
  ExpectDrawsFollow(GetParam(), logits, params, num_draws);
  params.top_k = 40;
  ExpectDrawsFollow(GetParam(), logits, params, num_draws);
  params.top_p = 0.9f;
  ExpectDrawsFollow(GetParam(), logits, params, num_draws);
  params.top_k = 0;
  params.temperature = 1.5f;
  ExpectDrawsFollow(GetParam(), logits, params, num_draws);
  params.top_p = 1.0f;
  params.min_p = 0.05f;
  ExpectDrawsFollow(GetParam(), logits, params, num_draws);
}

// Nearly equal probabilities: every kept entry is drawn soon, so that a
// threshold that is one entry off shows.
TEST_P(SamplingTest, ThresholdsAreExactForFlatRows) {
  SimulationRandom random(11);
  for (int trial = 0; trial < 120; ++trial) {
    // Sometimes so many that a selection within the bracket takes place.
    const bool is_large = trial % 20 < 2;
    const int vocab_size = is_large ? 1500 : random.Between(20, 130);
    std::vector<float> logits(vocab_size);
    for (float& logit : logits) {
      logit = static_cast<float>((is_large ? 0.01 : 0.1) * Normal(random));
      // Ties.
      if (trial % 2 == 0) logit = std::round(logit * 2000) / 2000;
    }
    SlotParams params;
    params.draw_key = trial;
    if (trial % 3 != 0) params.top_p = static_cast<float>(random.Uniform());
    if (trial % 3 != 1) params.top_k = random.Between(1, vocab_size);
    if (trial % 5 == 0) params.min_p = 0.9f;
    Sampler sampler(GetParam(), vocab_size);
    for (int position = 0; position < std::min(3 * vocab_size, 300);
         ++position) {
      ASSERT_EQ(sampler.Draw(logits, params, position),
                ReferenceSampleRow(logits, params, {}, 0, position).token)
          << "trial " << trial << ", position " << position;
    }
  }
}

TEST_P(SamplingTest, LargeFlatVocabularyMatchesTheReference) {
  constexpr int kVocabSize = 50'021;
  SimulationRandom random(6);
  std::vector<float> logits(kVocabSize);
  for (float& logit : logits) logit = static_cast<float>(0.5 * Normal(random));
  Sampler sampler(GetParam(), kVocabSize);
  for (float top_p : {0.0f, 0.1f, 0.5f, 0.95f, 0.999f, 1.0f}) {
    SlotParams params;
    params.draw_key = 8;
    params.top_p = top_p;
    for (int position : {1, 2, 3}) {
      EXPECT_EQ(sampler.Draw(logits, params, position),
                ReferenceSampleRow(logits, params, {}, 0, position).token)
          << top_p;
    }
  }
}

TEST(TokenCountsTest, CountsAndClears) {
  std::vector<TokenCounts::Entry> entries(8);
  std::vector<int32_t> table(16);
  TokenCounts counts(entries.data(), 8, table.data(), 16);
  for (int round = 0; round < 3; ++round) {
    // More ids than half of the table: probe chains overlap.
    for (int id = 0; id < 8; ++id) counts.AddPromptToken(id * 1000 + round);
    counts.AddGeneratedToken(3000 + round);
    counts.AddGeneratedToken(3000 + round);
    ASSERT_EQ(counts.entries().size(), 8u);
    std::map<int32_t, int32_t> by_id;
    for (const TokenCounts::Entry& entry : counts.entries()) {
      by_id[entry.id] = entry.num_generated;
    }
    EXPECT_EQ(by_id.size(), 8u);
    EXPECT_EQ(by_id.at(3000 + round), 2);
    EXPECT_EQ(by_id.at(1000 + round), 0);
    counts.Clear();
    EXPECT_EQ(std::count(table.begin(), table.end(), 0), 16);
  }
}

}  // namespace
}  // namespace quire
