// Draws against the reference over random rows and parameters.
#include <tuple>

#include "kernels/cuda/sampling_test_step.h"
#include "kernels/reference.h"

namespace quire::cuda {
namespace {

SlotParams RandomParams(SimulationRandom& random, int vocab_size) {
  SlotParams params;
  const auto one_in = [&random](int n) { return random.Below(n) == 0; };
  params.temperature =
      one_in(6) ? 0.0f : static_cast<float>(0.05 + 2.5 * random.Uniform());
  if (one_in(2)) params.top_k = random.Between(1, one_in(3) ? vocab_size : 20);
  if (one_in(2)) params.top_p = static_cast<float>(random.Uniform());
  if (one_in(3)) params.min_p = static_cast<float>(random.Uniform() * 0.3);
  if (one_in(3)) {
    params.repetition_penalty = static_cast<float>(0.5 + random.Uniform());
  }
  if (one_in(3)) {
    params.frequency_penalty = static_cast<float>(4 * random.Uniform() - 2);
  }
  if (one_in(3)) {
    params.presence_penalty = static_cast<float>(4 * random.Uniform() - 2);
  }
  if (one_in(2)) {
    params.num_logprobs = random.Below(std::min(vocab_size, 20) + 1);
  }
  params.draw_key = random.Next();
  const auto some_ids = [&] {
    std::vector<int32_t> ids(random.Between(1, 8));
    for (int32_t& id : ids) id = random.Below(vocab_size);
    return ids;
  };
  if (one_in(4)) {
    params.bias_ids = some_ids();
    // Twice the same: both count.
    params.bias_ids.push_back(params.bias_ids[0]);
    for (size_t i = 0; i < params.bias_ids.size(); ++i) {
      params.bias.push_back(
          one_in(9) ? -INFINITY
                    : static_cast<float>(10 * random.Uniform() - 5));
    }
  }
  if (one_in(5)) params.allowed_ids = some_ids();
  if (one_in(4)) {
    params.banned_before_min = some_ids();
    params.min_tokens = random.Below(6);
  }
  if (one_in(4)) params.top_n_sigma = static_cast<float>(4 * random.Uniform());
  if (one_in(4)) params.typical_p = static_cast<float>(random.Uniform());
  if (one_in(4)) {
    params.xtc_probability = static_cast<float>(0.5 + 0.5 * random.Uniform());
    params.xtc_threshold = static_cast<float>(random.Uniform() * 0.3);
  }
  if (one_in(6)) {
    params.dynatemp_range = static_cast<float>(random.Uniform());
    params.dynatemp_exponent = static_cast<float>(2 * random.Uniform());
  }
  for (int i = one_in(3) ? 3 : 0; i > 0; --i) {
    params.bad_word_lengths.push_back(random.Between(1, 3));
    for (int j = 0; j < params.bad_word_lengths.back(); ++j) {
      params.bad_word_ids.push_back(random.Below(std::min(vocab_size, 5)));
    }
  }
  if (one_in(3)) {
    params.dry_multiplier = static_cast<float>(2 * random.Uniform());
    params.dry_base = static_cast<float>(1 + random.Uniform());
    params.dry_allowed_length = random.Below(4);
    params.dry_penalty_last_n = one_in(2) ? -1 : random.Below(12);
    if (one_in(2)) {
      const int small = std::min(vocab_size, 5);
      params.dry_breakers =
          std::make_shared<TokenSequenceSet>(std::vector<std::vector<int32_t>>{
              {static_cast<int32_t>(random.Below(small))},
              {static_cast<int32_t>(random.Below(small)),
               static_cast<int32_t>(random.Below(small))}});
    }
  }
  return params;
}

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
  const int num_trials = vocab_size <= 1000 ? 60 : vocab_size <= 4099 ? 30 : 3;
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
      params.push_back(RandomParams(random, vocab_size));
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
      EXPECT_EQ(step.non_finite[r], 0);
      EXPECT_EQ(step.last_token(r), expected[r].token);
    }
  }
}

}  // namespace
}  // namespace quire::cuda
