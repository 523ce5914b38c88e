// Draws against the reference over random rows and parameters.
#include <functional>
#include <tuple>

#include "kernels/cuda/sampling_test_step.h"
#include "kernels/random_slot_params.h"
#include "kernels/reference.h"

namespace quire::cuda {
namespace {

std::vector<float> RandomLogits(SimulationRandom& random, int trial,
                                int vocab_size) {
  // Rarely so large that noise is lost in rounding, or that logit /
  // temperature overflows.
  const double deviation = trial % 32 == 5   ? 1e37
                           : trial % 32 == 6 ? 1e5
                           : trial % 3 == 0  ? 0.3
                                             : 4.0;
  std::vector<float> logits(vocab_size);
  for (float& logit : logits) {
    logit = static_cast<float>(deviation * Normal(random));
    // Coarse values make ties at the thresholds, of 0 and -0 as well.
    if (trial % 4 == 1) logit = std::round(logit * 2) / 2;
    if (trial % 5 == 2) logit -= 40.0f;  // None above 0.
  }
  return logits;
}

void ExpectEquals(const SamplingTestStep& step, int logit,
                  const ReferenceSample& expected, const SlotParams& params) {
  ASSERT_EQ(step.tokens[logit], expected.token);
  if (params.num_logprobs < 0) return;
  EXPECT_LE(std::fabs(step.logprobs[logit] - expected.logprob),
            LogprobTolerance(expected.logprob));
  for (int i = 0; i < params.num_logprobs; ++i) {
    const int top = logit * kMaxTopLogprobs + i;
    ASSERT_EQ(step.top_ids[top], expected.top_ids[i]) << i;
    EXPECT_LE(std::fabs(step.top_logprobs[top] - expected.top_logprobs[i]),
              LogprobTolerance(expected.top_logprobs[i]));
  }
}

// Steps 2 to 4 alone, with lists that meet in the same few ids.
SlotParams RandomProcessors(SimulationRandom& random, int vocab_size) {
  SlotParams params;
  const auto some_ids = [&](int most) {
    std::vector<int32_t> ids(random.Between(1, most));
    for (int32_t& id : ids) id = random.Below(vocab_size);
    return ids;
  };
  params.temperature = random.Below(3) == 0 ? 0.0f : 0.5f;
  params.draw_key = random.Next();
  params.bias_ids = some_ids(6);
  for (size_t i = 0; i < params.bias_ids.size(); ++i) {
    params.bias.push_back(static_cast<float>(6 * random.Uniform() - 2));
  }
  params.banned_before_min = some_ids(3);
  params.min_tokens = random.Below(8);
  for (int i = random.Below(6); i > 0; --i) {
    params.bad_word_lengths.push_back(random.Between(1, 3));
    for (int j = 0; j < params.bad_word_lengths.back(); ++j) {
      params.bad_word_ids.push_back(random.Below(vocab_size));
    }
  }
  params.repetition_penalty = static_cast<float>(0.7 + random.Uniform());
  params.frequency_penalty = static_cast<float>(random.Uniform());
  params.presence_penalty = static_cast<float>(random.Uniform());
  params.dry_multiplier = static_cast<float>(4 * random.Uniform());
  params.dry_base = static_cast<float>(1 + random.Uniform());
  params.dry_allowed_length = random.Below(3);
  params.dry_penalty_last_n = random.Below(3) == 0 ? random.Below(12) : -1;
  if (random.Below(3) > 0) {
    std::vector<std::vector<int32_t>> breakers;
    for (int i = random.Between(1, 4); i > 0; --i) {
      breakers.push_back(some_ids(3));
    }
    params.dry_breakers = std::make_shared<TokenSequenceSet>(breakers);
  }
  return params;
}

// (schedule, vocabulary size)
class SamplingRandomTest : public ::testing::TestWithParam<
                               std::tuple<simt::emulator::Schedule, int>> {
 protected:
  void SetUp() override {
    simt::emulator::CurrentOptions() = {.schedule = std::get<0>(GetParam()),
                                        .seed = 11};
  }
  void TearDown() override { simt::emulator::CurrentOptions() = {}; }
};

INSTANTIATE_TEST_SUITE_P(
    Rows, SamplingRandomTest,
    ::testing::Combine(::testing::ValuesIn(simt::emulator::kAllSchedules),
                       ::testing::Values(1, 31, 1000, 4099, 50'001)));

TEST_P(SamplingRandomTest, DrawsWhatTheReferenceDraws) {
  const int vocab_size = std::get<1>(GetParam());
  const int num_trials = vocab_size <= 1000 ? 40 : vocab_size <= 4099 ? 20 : 2;
  // Every schedule has rows of its own.
  SimulationRandom random(vocab_size * 8 +
                          static_cast<int>(std::get<0>(GetParam())));
  constexpr int kRows = 4;  // A step.
  for (int trial = 0; trial < num_trials; ++trial) {
    SCOPED_TRACE(trial);
    SamplingTestStep step(vocab_size, kRows, 64);
    std::vector<SlotParams> params;
    std::vector<ReferenceSample> expected;
    for (int r = 0; r < kRows; ++r) {
      params.push_back(RandomSlotParams(random, vocab_size));
      const std::vector<float> logits =
          RandomLogits(random, trial + r * 7, vocab_size);
      std::vector<int32_t> history(random.Between(1, 12));
      // Few different ids: repetitions.
      const int num_ids = r % 2 == 0 ? std::min(vocab_size, 4) : vocab_size;
      for (int32_t& id : history) id = random.Below(num_ids);
      const int num_prompt_tokens = random.Below(history.size() + 1);
      const int position = static_cast<int>(history.size());
      step.StartSlot(r, params[r], history, num_prompt_tokens);
      step.AddRow(r, {logits}, {}, {history.back()}, position - 1);
      expected.push_back(ReferenceSampleRow(logits, params[r], history,
                                            num_prompt_tokens, position));
    }
    ASSERT_NO_FATAL_FAILURE(step.Run());
    for (int r = 0; r < kRows; ++r) {
      SCOPED_TRACE(r);
      ASSERT_NO_FATAL_FAILURE(ExpectEquals(step, r, expected[r], params[r]));
      EXPECT_EQ(step.num_drawn[r], 1);
      EXPECT_EQ(step.faults[r], expected[r].all_masked ? kAllMaskedRow : 0);
      EXPECT_EQ(step.last_token(r), expected[r].token);
    }
  }
}

TEST(SamplingProcessorsTest, DrawsWhatTheReferenceDraws) {
  SimulationRandom random(5);
  constexpr int kRows = 64, kVocabSize = 7;
  for (const simt::emulator::Schedule schedule :
       simt::emulator::kAllSchedules) {
    simt::emulator::CurrentOptions() = {.schedule = schedule, .seed = 11};
    for (int trial = 0; trial < 4; ++trial) {
      SamplingTestStep step(kVocabSize, kRows, 40);
      std::vector<int32_t> expected;
      for (int r = 0; r < kRows; ++r) {
        const SlotParams params = RandomProcessors(random, kVocabSize);
        const std::vector<float> logits =
            RandomLogits(random, /*trial=*/3, kVocabSize);
        std::vector<int32_t> history(random.Between(1, 30));
        for (int32_t& id : history) id = random.Below(r % 2 == 0 ? 2 : 4);
        const int num_prompt_tokens =
            std::max<int>(0, history.size() - random.Below(8));
        const int position = static_cast<int>(history.size());
        step.StartSlot(r, params, history, num_prompt_tokens);
        step.AddRow(r, {logits}, {}, {history.back()}, position - 1);
        expected.push_back(ReferenceSampleRow(logits, params, history,
                                              num_prompt_tokens, position)
                               .token);
      }
      ASSERT_NO_FATAL_FAILURE(step.Run());
      EXPECT_EQ(step.tokens, expected);
    }
  }
  simt::emulator::CurrentOptions() = {};
}

// Repeats and what breaks them, where nothing else hides the penalty.
TEST(SamplingDryTest, DrawsWhatTheReferenceDraws) {
  SimulationRandom random(8);
  constexpr int kRows = 500, kVocabSize = 4;
  SamplingTestStep step(kVocabSize, kRows, 40);
  std::vector<int32_t> expected;
  for (int r = 0; r < kRows; ++r) {
    SlotParams params;
    params.temperature = 0.0f;
    params.dry_multiplier = static_cast<float>(0.5 + random.Uniform());
    params.dry_base = static_cast<float>(1 + random.Uniform());
    if (r % 4 == 0) {
      // Only the largest exponent of DryPenalty counts, which is 9.
      params.dry_multiplier = 1e-35f;
      params.dry_base = 1e4f;
    }
    params.dry_allowed_length = random.Below(3);
    std::vector<std::vector<int32_t>> breakers;
    for (int i = random.Below(3); i > 0; --i) {
      breakers.emplace_back(random.Between(2, 3));
      for (int32_t& id : breakers.back()) id = random.Below(3);
    }
    params.dry_breakers = std::make_shared<TokenSequenceSet>(breakers);
    const std::vector<float> logits =
        RandomLogits(random, /*trial=*/3, kVocabSize);
    std::vector<int32_t> history(random.Between(1, 30));
    const int num_ids = 1 + r % 3;
    for (int32_t& id : history) id = random.Below(num_ids);
    const int position = static_cast<int>(history.size());
    step.StartSlot(r, params, history, position);
    step.AddRow(r, {logits}, {}, {history.back()}, position - 1);
    expected.push_back(
        ReferenceSampleRow(logits, params, history, position, position).token);
  }
  ASSERT_NO_FATAL_FAILURE(step.Run());
  EXPECT_EQ(step.tokens, expected);
}

// A share of the mass just below and just above that of whole groups of equal
// entries.
TEST(SamplingMassTest, FindsThresholdsToFiveDigits) {
  SimulationRandom random(4);
  constexpr int kVocabSize = 9000, kGroups = 30;
  // The second is so flat that no part of the row is left out.
  for (const double range : {12.0, 0.5}) {
    std::vector<float> values(kGroups);
    for (float& value : values) {
      value = static_cast<float>(-range * random.Uniform());
    }
    std::sort(values.begin(), values.end(), std::greater<float>());
    std::vector<float> logits(kVocabSize);
    std::vector<double> masses(kGroups);
    double total = 0;
    for (float& logit : logits) {
      const int group = random.Below(kGroups);
      logit = values[group];
      const double mass = std::exp(double{values[group]} - values[0]);
      masses[group] += mass;
      total += mass;
    }
    double mass = 0;
    for (int group = 0; group + 1 < kGroups; group += 2) {
      mass += masses[group];
      if (group > 0) mass += masses[group - 1];
      if (std::min(masses[group], masses[group + 1]) < 1e-4 * total) break;
      for (const bool is_above : {false, true}) {
        SlotParams params;
        params.top_p =
            static_cast<float>(mass / total * (is_above ? 1.00001 : 0.99999));
        if (params.top_p >= 1.0f) continue;
        SlotParams with_top_k = params;
        with_top_k.top_k = kVocabSize - 1;  // In effect: all but some equals.
        SamplingTestStep step(kVocabSize, 2, 8);
        step.StartSlot(0, params, {1}, 1);
        step.StartSlot(1, with_top_k, {1}, 1);
        step.AddRow(0, {logits}, {}, {1}, 0);
        step.AddRow(1, {logits}, {}, {1}, 0);
        ASSERT_NO_FATAL_FAILURE(step.Run());
        EXPECT_EQ(step.Kept(0).floor, values[group + is_above]) << group;
        EXPECT_EQ(step.Kept(1).floor, values[group + is_above]) << group;
      }
    }
  }
}

TEST(SamplingMassTest, FindsAThresholdFarBelowTheMaximum) {
  // One entry has 82 % of the mass, and the groups have 7, 6 and 5 %.
  std::vector<float> logits(9001);
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = i % 3 == 0 ? -10.5f : i % 3 == 1 ? -10.6f : -10.7f;
  }
  logits[4444] = 0.0f;
  SlotParams params;
  params.top_p = 0.9f;
  SamplingTestStep step(static_cast<int32_t>(logits.size()), 1, 8);
  step.StartSlot(0, params, {1}, 1);
  step.AddRow(0, {logits}, {}, {1}, 0);
  ASSERT_NO_FATAL_FAILURE(step.Run());
  EXPECT_EQ(step.Kept(0).floor, -10.6f);
}

// top_p counts the mass of what one other filter has left.
TEST(SamplingTopPTest, FollowsAnotherFilter) {
  SimulationRandom random(12);
  constexpr int kRows = 40, kVocabSize = 200;
  std::vector<SlotParams> all(6);
  all[1].top_n_sigma = 1.0f;
  all[2].min_p = 0.2f;
  all[3].top_k = 8;
  all[4].typical_p = 0.6f;
  all[5].dynatemp_range = 0.8f;
  for (SlotParams& params : all) {
    params.top_p = 0.7f;
    SamplingTestStep step(kVocabSize, kRows, 8);
    std::vector<int32_t> expected;
    for (int r = 0; r < kRows; ++r) {
      const std::vector<float> logits =
          RandomLogits(random, /*trial=*/3, kVocabSize);
      params.draw_key = random.Next();
      step.StartSlot(r, params, {1}, 1);
      step.AddRow(r, {logits}, {}, {1}, 0);
      expected.push_back(ReferenceSampleRow(logits, params, {1}, 1, 1).token);
    }
    ASSERT_NO_FATAL_FAILURE(step.Run());
    EXPECT_EQ(step.tokens, expected) << &params - all.data();
  }
}

TEST(SamplingExtremesTest, DrawWhatTheReferenceDraws) {
  SimulationRandom random(6);
  std::vector<SlotParams> all(12);
  all[0].top_p = 0.0f;
  all[1].typical_p = 0.0f;
  all[2].min_p = 1.0f;
  all[3].top_k = 1;
  all[4].xtc_probability = 1.0f;
  all[4].xtc_threshold = 0.0f;
  all[5].xtc_probability = 1.0f;
  all[5].xtc_threshold = 1.0f;
  all[6].top_n_sigma = 1e6f;
  all[7].top_p = 0.9999999f;
  all[8].dynatemp_range = 5.0f;
  all[8].dynatemp_exponent = 0.0f;
  all[9].temperature = 1e-4f;
  all[9].top_p = 0.7f;
  all[10].temperature = 1e6f;
  all[10].top_p = 0.7f;
  all[11].dynatemp_range = 1.0f;
  all[11].dynatemp_exponent = 40.0f;
  for (size_t i = 0; i < all.size(); ++i) {
    for (const float factor : {1.0f, 1e37f}) {
      SCOPED_TRACE(i);
      std::vector<float> logits = RandomLogits(random, 1, 4097);
      for (float& logit : logits) logit *= factor;
      // Alone in its chunk.
      if (i % 2 == 0) logits[4096] = 20.0f * factor;
      SlotParams params = all[i];
      // Overflows.
      if (factor > 1.0f) params.temperature *= 0.1f;
      params.num_logprobs = 5;
      params.draw_key = i;
      SamplingTestStep step(4097, 1, 8);
      step.StartSlot(0, params, {1}, 1);
      step.AddRow(0, {logits}, {}, {1}, 0);
      ASSERT_NO_FATAL_FAILURE(step.Run());
      ExpectEquals(step, 0, ReferenceSampleRow(logits, params, {1}, 1, 1),
                   params);
    }
  }
}

}  // namespace
}  // namespace quire::cuda
