#include "kernels/cuda/sampling.h"

#include "kernels/cuda/sampling_test_step.h"
#include "kernels/reference.h"

namespace quire::cuda {
namespace {

class SamplingTest : public ::testing::TestWithParam<simt::emulator::Schedule> {
 protected:
  void SetUp() override {
    simt::emulator::CurrentOptions() = {.schedule = GetParam(), .seed = 3};
  }
  void TearDown() override { simt::emulator::CurrentOptions() = {}; }

  std::vector<float> Logits(int vocab_size, double deviation = 3.0) {
    std::vector<float> logits(vocab_size);
    for (float& logit : logits) {
      logit = static_cast<float>(deviation * Normal(random_));
    }
    return logits;
  }

  SimulationRandom random_{17};
};

INSTANTIATE_TEST_SUITE_P(Schedules, SamplingTest,
                         ::testing::ValuesIn(simt::emulator::kAllSchedules));

// Everything that depends on earlier draws: counts, bad words, DRY, and the
// minimum length.
SlotParams ParamsWithMemory() {
  SlotParams params;
  params.temperature = 0.7f;
  params.top_k = 30;
  params.repetition_penalty = 1.3f;
  params.frequency_penalty = 0.4f;
  params.presence_penalty = 0.3f;
  params.min_tokens = 6;
  params.banned_before_min = {0, 1, 2};
  params.bad_word_lengths = {2, 3};
  params.bad_word_ids = {3, 4, 5, 3, 5};
  params.dry_multiplier = 1.5f;
  params.dry_allowed_length = 1;
  params.dry_breakers = std::make_shared<TokenSequenceSet>(
      std::vector<std::vector<int32_t>>{{7}, {6, 4}});
  params.num_logprobs = 2;
  params.draw_key = 99;
  return params;
}

TEST_P(SamplingTest, StepsNeedNothingFromTheHost) {
  const int vocab_size = 12;
  const SlotParams params = ParamsWithMemory();
  std::vector<int32_t> history = {3, 4, 3, 5, 7, 3};
  SamplingTestStep step(vocab_size, 3, 64);
  step.StartSlot(1, params, history, 5);
  for (int i = 0; i < 25; ++i) {
    const std::vector<float> logits = Logits(vocab_size);
    const int position = static_cast<int>(history.size());
    const ReferenceSample expected =
        ReferenceSampleRow(logits, params, history, 5, position);
    step.AddRow(1, {logits}, {}, {history.back()}, position - 1);
    ASSERT_NO_FATAL_FAILURE(step.Run());
    ASSERT_EQ(step.tokens[0], expected.token) << i;
    history.push_back(expected.token);
    EXPECT_EQ(step.last_token(1), expected.token);
    EXPECT_EQ(step.num_computed_tokens(1), position);
  }
}

TEST_P(SamplingTest, AcceptsDraftsWhileTheyAreDrawn) {
  const int vocab_size = 12, num_drafts = 4;
  const SlotParams params = ParamsWithMemory();
  std::vector<int32_t> history = {3, 4, 3, 5, 7, 3};
  SamplingTestStep step(vocab_size, 1, 128);
  step.StartSlot(0, params, history, 5);
  for (int trial = 0; trial < 15; ++trial) {
    std::vector<std::vector<float>> logits;
    for (int i = 0; i <= num_drafts; ++i) logits.push_back(Logits(vocab_size));
    // What one token at a time would give.
    const int num_before = static_cast<int>(history.size());
    std::vector<ReferenceSample> expected;
    std::vector<int32_t> drawn(history);
    for (int i = 0; i <= num_drafts; ++i) {
      expected.push_back(
          ReferenceSampleRow(logits[i], params, drawn, 5, num_before + i));
      drawn.push_back(expected.back().token);
    }
    const int num_right = trial % (num_drafts + 1);
    std::vector<int32_t> inputs = {history.back()};
    for (int i = 0; i < num_drafts; ++i) {
      inputs.push_back(i == num_right ? (expected[i].token + 1) % vocab_size
                                      : expected[i].token);
    }
    step.AddRow(0, logits, {}, inputs, num_before - 1);
    ASSERT_NO_FATAL_FAILURE(step.Run());
    ASSERT_EQ(step.num_drawn[0], num_right + 1);
    for (int i = 0; i <= num_right; ++i) {
      EXPECT_EQ(step.tokens[i], expected[i].token) << i;
      EXPECT_LE(std::fabs(step.logprobs[i] - expected[i].logprob),
                LogprobTolerance(expected[i].logprob));
      history.push_back(expected[i].token);
    }
    EXPECT_EQ(step.last_token(0), history.back());
    EXPECT_EQ(step.num_computed_tokens(0),
              static_cast<int>(history.size()) - 1);
  }
}

TEST_P(SamplingTest, ScoresPromptTokens) {
  const int vocab_size = 5000;
  SlotParams params;
  params.temperature = 0.0f;
  params.num_logprobs = 3;
  params.num_prompt_logprobs = 7;
  // Processors do not change a score.
  params.bias_ids = {5};
  params.bias = {50.0f};
  std::vector<std::vector<float>> logits = {
      Logits(vocab_size), Logits(vocab_size), Logits(vocab_size)};
  for (float& logit : logits[1]) logit = std::round(logit);  // Ties.
  const std::vector<int32_t> scored = {4321, 77};
  SamplingTestStep step(vocab_size, 2, 8);
  step.StartSlot(0, params, {1, 2, 3, 4}, 4);
  step.StartSlot(1, SlotParams(), {1, 2, 3}, 3);
  step.AddRow(1, {}, {}, {1, 2}, 0);  // An inner chunk of a prefill.
  step.AddPadding(2);
  step.AddRow(0, logits, scored, {1, 2, 3, 4}, 0);
  ASSERT_NO_FATAL_FAILURE(step.Run());
  for (int i = 0; i < 3; ++i) {
    SlotParams raw;
    raw.temperature = 0.0f;
    raw.num_logprobs = i < 2 ? 7 : 3;
    const ReferenceSample expected =
        ReferenceSampleRow(logits[i], raw, {}, 0, 0);
    double sum = 0;
    for (float logit : logits[i]) sum += std::exp(double{logit});
    const int token = i < 2 ? scored[i] : 5;
    const double logprob = logits[i][token] - std::log(sum);
    EXPECT_LE(std::fabs(step.logprobs[2 + i] - logprob),
              LogprobTolerance(logprob));
    for (int j = 0; j < raw.num_logprobs; ++j) {
      const int top = (2 + i) * kMaxTopLogprobs + j;
      EXPECT_EQ(step.top_ids[top], expected.top_ids[j]);
      EXPECT_LE(std::fabs(step.top_logprobs[top] - expected.top_logprobs[j]),
                LogprobTolerance(expected.top_logprobs[j]));
    }
    if (i == 2) continue;
    EXPECT_EQ(
        step.ranks[2 + i],
        1 + std::count_if(logits[i].begin(), logits[i].end(),
                          [&](float x) { return x > logits[i][scored[i]]; }));
  }
  EXPECT_EQ(step.tokens[4], 5);
  EXPECT_EQ(step.num_drawn, (std::vector<int32_t>{0, -5, 1}));
  EXPECT_EQ(step.faults, (std::vector<int32_t>{0, -5, 0}));
  EXPECT_EQ(step.num_computed_tokens(0), 3 + 4);
  EXPECT_EQ(step.num_computed_tokens(1), 2 + 2);
}

TEST_P(SamplingTest, ReportsRowsThatAreNotFinite) {
  const int vocab_size = 4200;
  SlotParams params;
  params.top_p = 0.5f;
  params.num_logprobs = 1;
  for (const float bad : {NAN, INFINITY, -INFINITY, -NAN}) {
    for (const int where : {0, 130, vocab_size - 1}) {
      SamplingTestStep step(vocab_size, 3, 8);
      std::vector<float> logits = Logits(vocab_size);
      for (int slot = 0; slot < 3; ++slot) {
        step.StartSlot(slot, params, {1}, 1);
      }
      step.AddRow(0, {logits}, {}, {1}, 0);
      std::vector<float> broken(logits);
      broken[where] = bad;
      // Its other rows are in order.
      step.AddRow(1, {broken, logits}, {}, {1, 2}, 0);
      // Behind a draft that is rejected they do not count.
      const int32_t best = static_cast<int32_t>(
          std::max_element(logits.begin(), logits.end()) - logits.begin());
      step.AddRow(2, {logits, broken}, {}, {1, best == 0 ? 1 : 0}, 0);
      ASSERT_NO_FATAL_FAILURE(step.Run());
      EXPECT_EQ(step.faults, (std::vector<int32_t>{0, 1, 0}));
      EXPECT_EQ(step.num_drawn, (std::vector<int32_t>{1, 1, 1}));
      EXPECT_EQ(step.tokens[0], step.tokens[3]);
      EXPECT_EQ(step.tokens[1], 0);
    }
  }
}

TEST_P(SamplingTest, ARowDoesNotDependOnItsBatch) {
  const int vocab_size = 9000;
  SlotParams params;
  params.temperature = 0.8f;
  params.top_p = 0.9f;
  params.typical_p = 0.95f;
  params.top_n_sigma = 3.0f;
  params.num_logprobs = 20;
  params.draw_key = 4;
  const std::vector<float> logits = Logits(vocab_size);
  std::vector<float> alone;
  for (const int num_before : {0, 3}) {
    SamplingTestStep step(vocab_size, 4, 8);
    for (int slot = 0; slot < num_before; ++slot) {
      step.StartSlot(slot, params, {1}, 1);
      step.AddRow(slot, {Logits(vocab_size)}, {}, {1}, 0);
    }
    step.StartSlot(3, params, {1}, 1);
    step.AddRow(3, {logits}, {}, {1}, 0);
    ASSERT_NO_FATAL_FAILURE(step.Run());
    // The same bits.
    std::vector<float> found = {static_cast<float>(step.tokens.back()),
                                step.logprobs.back()};
    found.insert(found.end(), step.top_logprobs.end() - kMaxTopLogprobs,
                 step.top_logprobs.end());
    if (num_before == 0) alone = found;
    EXPECT_EQ(found, alone);
  }
}

TEST_P(SamplingTest, AllMaskedGivesTheFirstToken) {
  for (const float top_p : {1.0f, 0.5f}) {
    SlotParams params;
    params.top_p = top_p;
    params.allowed_ids = {3};
    params.banned_before_min = {3};
    params.min_tokens = 1;
    SamplingTestStep step(4100, 1, 8);
    step.StartSlot(0, params, {1}, 1);
    step.AddRow(0, {Logits(4100)}, {}, {1}, 0);
    ASSERT_NO_FATAL_FAILURE(step.Run());
    EXPECT_EQ(step.tokens[0], 0);
  }
}

TEST(SamplingLargeVocabularyTest, DrawsWhatTheReferenceDraws) {
  const int vocab_size = 262'208;  // Gemma 3.
  SimulationRandom random(2);
  std::vector<SlotParams> all(4);
  all[0].temperature = 0.0f;
  all[1].num_logprobs = kMaxTopLogprobs;
  all[2].top_p = 0.95f;
  all[3].temperature = 0.6f;
  all[3].top_k = 64;
  all[3].top_p = 0.95f;
  all[3].repetition_penalty = 1.1f;
  SamplingTestStep step(vocab_size, 4, 8);
  std::vector<ReferenceSample> expected;
  for (int slot = 0; slot < 4; ++slot) {
    std::vector<float> logits(vocab_size);
    for (float& logit : logits) {
      logit = static_cast<float>(2.5 * Normal(random));
    }
    all[slot].draw_key = random.Next();
    step.StartSlot(slot, all[slot], {262'207, 5}, 2);
    step.AddRow(slot, {logits}, {}, {5}, 1);
    expected.push_back(
        ReferenceSampleRow(logits, all[slot], {262'207, 5}, 2, 2));
  }
  ASSERT_NO_FATAL_FAILURE(step.Run());
  for (int slot = 0; slot < 4; ++slot) {
    EXPECT_EQ(step.tokens[slot], expected[slot].token) << slot;
  }
  EXPECT_LE(std::fabs(step.logprobs[1] - expected[1].logprob),
            LogprobTolerance(expected[1].logprob));
  for (int i = 0; i < kMaxTopLogprobs; ++i) {
    EXPECT_EQ(step.top_ids[kMaxTopLogprobs + i], expected[1].top_ids[i]);
  }
}

TEST(LaunchSampleTest, RefusesVocabulariesThatItCannotSum) {
  EXPECT_FALSE(LaunchSample({.vocab_size = (1 << 19) + 1}, nullptr));
  EXPECT_FALSE(LaunchSample({.vocab_size = 0}, nullptr));
  EXPECT_TRUE(LaunchSample({.vocab_size = 1 << 19}, nullptr));
}

}  // namespace
}  // namespace quire::cuda
