#include "engine/model/backend_model_runner.h"

#include <vector>

#include "engine/model/recording_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

class StubModel : public Model {
 public:
  absl::Status Forward(Backend& backend, Step& step) override {
    if (!status.ok()) return status;
    return backend.Sample(step, TensorView());
  }
  int64_t weights_bytes() const override { return 0; }
  DType dtype() const override { return DType::kF32; }

  absl::Status status;
};

class BackendModelRunnerTest : public testing::Test {
 protected:
  RecordingBackend backend_;
  StubModel model_;
  BackendModelRunner runner_{&backend_, &model_, /*max_num_seqs=*/4,
                             /*steps_in_flight=*/1};
  SamplingParams params_;
};

TEST_F(BackendModelRunnerTest, PlanOfAStep) {
  params_.temperature = 0.5f;
  params_.top_k = 7;
  params_.min_tokens = 2;
  params_.num_logprobs = 3;
  params_.logit_bias = {{5, 1.5f}, {9, -100.0f}};
  params_.allowed_token_ids = {5, 9, 11};
  params_.bad_words = std::make_shared<const std::vector<std::vector<int32_t>>>(
      std::vector<std::vector<int32_t>>{{5, 6}, {9}});
  params_.dry_multiplier = 0.8f;
  params_.dry_base = 1.5f;
  params_.dry_allowed_length = 3;
  params_.dry_penalty_last_n = 64;
  params_.dry_breakers = std::make_shared<TokenSequenceSet>(
      std::vector<std::vector<int32_t>>{{1}});
  params_.dynatemp_range = 0.25f;
  params_.dynatemp_exponent = 2.0f;
  params_.top_n_sigma = 1.25f;
  params_.typical_p = 0.75f;
  params_.xtc_probability = 0.5f;
  params_.xtc_threshold = 0.2f;
  SchedulerOutput output;
  output.step_id = 42;
  SlotStart start;
  start.slot = 2;
  start.params = &params_;
  start.draw_key = 77;
  start.banned_before_min = {1, 2};
  start.history = {10, 11, 12, 13};
  start.num_prompt_tokens = 3;
  start.num_computed_tokens = 1;
  output.slot_starts.push_back(start);
  output.block_appends.push_back({2, {4, 5}});
  output.block_appends.push_back({0, {6}});
  output.block_copies = {{3, 6}};
  output.token_ids = {20, 11, 12, 13};
  output.rows.push_back({0, 30, 1, true, /*input_on_device=*/true, 0});
  output.rows.push_back({1, 8, 1, false, false, 0});
  output.rows.push_back({2, 1, 3, true, false, 1});
  ASSERT_TRUE(runner_.Submit(output).ok());

  const RecordingBackend::Plan& plan = backend_.plans.at(0);
  ASSERT_EQ(plan.updates.size(), 3u);
  const auto& started = plan.updates[0];
  EXPECT_EQ(started.update.slot, 2);
  EXPECT_EQ(started.update.num_prompt_tokens, 3);
  EXPECT_EQ(started.update.num_computed_tokens, 1);
  EXPECT_THAT(started.history, ElementsAre(10, 11, 12, 13));
  EXPECT_FLOAT_EQ(started.params.temperature, 0.5f);
  EXPECT_EQ(started.params.top_k, 7);
  EXPECT_EQ(started.params.min_tokens, 2);
  EXPECT_EQ(started.params.num_logprobs, 3);
  EXPECT_EQ(started.params.draw_key, 77u);
  EXPECT_THAT(started.params.bias_ids, ElementsAre(5, 9));
  EXPECT_THAT(started.params.bias, ElementsAre(1.5f, -100.0f));
  EXPECT_THAT(started.params.allowed_ids, ElementsAre(5, 9, 11));
  EXPECT_THAT(started.params.banned_before_min, ElementsAre(1, 2));
  EXPECT_THAT(started.params.bad_word_ids, ElementsAre(5, 6, 9));
  EXPECT_THAT(started.params.bad_word_lengths, ElementsAre(2, 1));
  EXPECT_FLOAT_EQ(started.params.dry_multiplier, 0.8f);
  EXPECT_FLOAT_EQ(started.params.dry_base, 1.5f);
  EXPECT_EQ(started.params.dry_allowed_length, 3);
  EXPECT_EQ(started.params.dry_penalty_last_n, 64);
  EXPECT_EQ(started.params.dry_breakers, params_.dry_breakers);
  EXPECT_FLOAT_EQ(started.params.dynatemp_range, 0.25f);
  EXPECT_FLOAT_EQ(started.params.dynatemp_exponent, 2.0f);
  EXPECT_FLOAT_EQ(started.params.top_n_sigma, 1.25f);
  EXPECT_FLOAT_EQ(started.params.typical_p, 0.75f);
  EXPECT_FLOAT_EQ(started.params.xtc_probability, 0.5f);
  EXPECT_FLOAT_EQ(started.params.xtc_threshold, 0.2f);
  EXPECT_EQ(plan.updates[1].update.params, nullptr);
  EXPECT_THAT(plan.updates[1].append_blocks, ElementsAre(4, 5));
  EXPECT_EQ(plan.updates[2].update.slot, 0);
  EXPECT_THAT(plan.block_copies, ElementsAre(Pair(3, 6)));
  ASSERT_EQ(plan.rows.size(), 3u);
  EXPECT_EQ(plan.rows[0].source, TokenSource::kDeviceLast);
  EXPECT_EQ(plan.rows[0].num_logits, 1);
  EXPECT_EQ(plan.rows[1].num_logits, 0);
  EXPECT_EQ(plan.rows[2].num_tokens, 3);
  // Only tokens of rows whose input the host knows.
  EXPECT_THAT(plan.token_ids, ElementsAre(20, 11, 12, 13));
  EXPECT_EQ(backend_.key.num_rows, 3);
  EXPECT_EQ(backend_.key.num_tokens, 5);
  EXPECT_EQ(backend_.key.num_logit_rows, 2);

  const auto result = runner_.Collect();
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->step_id, 42);
}

// A slot's parameters do not leak into the next sequence of any slot.
TEST_F(BackendModelRunnerTest, ParametersAreNotCarriedOver) {
  params_.logit_bias = {{5, 1.5f}};
  params_.allowed_token_ids = {5};
  params_.bad_words = std::make_shared<const std::vector<std::vector<int32_t>>>(
      std::vector<std::vector<int32_t>>{{5, 6}});
  SchedulerOutput output;
  SlotStart start;
  start.params = &params_;
  start.banned_before_min = {1};
  output.slot_starts.push_back(start);
  ASSERT_TRUE(runner_.Submit(output).ok());
  ASSERT_TRUE(runner_.Collect().ok());
  const SamplingParams plain;
  output.slot_starts[0].params = &plain;
  output.slot_starts[0].banned_before_min.clear();
  ASSERT_TRUE(runner_.Submit(output).ok());
  const SlotParams& params = backend_.plans.at(1).updates.at(0).params;
  EXPECT_THAT(params.bias_ids, IsEmpty());
  EXPECT_THAT(params.bias, IsEmpty());
  EXPECT_THAT(params.allowed_ids, IsEmpty());
  EXPECT_THAT(params.bad_word_ids, IsEmpty());
  EXPECT_THAT(params.bad_word_lengths, IsEmpty());
  EXPECT_THAT(params.banned_before_min, IsEmpty());
}

TEST_F(BackendModelRunnerTest, Results) {
  const std::vector<int32_t> tokens = {7, 8};
  const std::vector<float> logprobs = {-0.5f, -0.75f};
  const std::vector<int32_t> top_ids = {7, 3, 8, 4};
  const std::vector<float> top_logprobs = {-0.5f, -1, -0.75f, -2};
  backend_.results.resize(3);
  backend_.results[0].slot = 3;
  backend_.results[0].tokens = tokens;
  backend_.results[0].logprobs = logprobs;
  backend_.results[0].top_ids = top_ids;
  backend_.results[0].top_logprobs = top_logprobs;
  backend_.results[1].slot = 1;
  backend_.results[1].tokens = tokens;
  backend_.results[1].non_finite = true;
  backend_.results[2].tokens = absl::MakeConstSpan(tokens).subspan(0, 1);
  backend_.results[2].all_masked = true;
  ASSERT_TRUE(runner_.Submit(SchedulerOutput()).ok());
  EXPECT_TRUE(runner_.Done());
  const auto result = runner_.Collect();
  ASSERT_TRUE(result.ok());
  ASSERT_EQ(result->rows.size(), 3u);
  const SampledRow& row = result->rows[0];
  EXPECT_EQ(row.slot, 3);
  ASSERT_EQ(row.tokens.size(), 2u);
  EXPECT_EQ(row.tokens[1].token_id, 8);
  EXPECT_FLOAT_EQ(row.tokens[1].logprob, -0.75f);
  ASSERT_EQ(row.tokens[1].top_logprobs.size(), 2u);
  EXPECT_EQ(row.tokens[1].top_logprobs[1].token_id, 4);
  EXPECT_FLOAT_EQ(row.tokens[1].top_logprobs[1].logprob, -2.0f);
  EXPECT_TRUE(result->rows[1].non_finite);
  // What was accepted before.
  ASSERT_EQ(result->rows[1].tokens.size(), 1u);
  EXPECT_EQ(result->rows[1].tokens[0].token_id, 7);
  EXPECT_TRUE(result->rows[2].all_masked);
  EXPECT_THAT(result->rows[2].tokens, IsEmpty());
}

TEST_F(BackendModelRunnerTest, OneStepInFlight) {
  ASSERT_TRUE(runner_.Submit(SchedulerOutput()).ok());
  EXPECT_EQ(runner_.Submit(SchedulerOutput()).code(),
            absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(runner_.Collect().ok());
  EXPECT_TRUE(runner_.Submit(SchedulerOutput()).ok());
}

// A step that fails is over on the backend too, and the next one runs.
TEST_F(BackendModelRunnerTest, AFailedStepIsClosed) {
  model_.status = absl::InternalError("no");
  EXPECT_EQ(runner_.Submit(SchedulerOutput()).message(), "no");
  EXPECT_THAT(backend_.calls, ElementsAre("begin", "end", "collect"));
  model_.status = absl::OkStatus();
  backend_.run_status = absl::UnavailableError("device");
  EXPECT_EQ(runner_.Submit(SchedulerOutput()).code(),
            absl::StatusCode::kUnavailable);
  backend_.run_status = absl::OkStatus();
  ASSERT_TRUE(runner_.Submit(SchedulerOutput()).ok());
  EXPECT_TRUE(runner_.Collect().ok());
}

}  // namespace
}  // namespace quire
