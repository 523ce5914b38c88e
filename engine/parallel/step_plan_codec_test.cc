#include "engine/parallel/step_plan_codec.h"

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

constexpr StepPlanLimits kLimits = {
    .max_num_seqs = 4,
    .max_num_batched_tokens = 64,
    .max_model_len = 100,
    .num_blocks = 20,
    .vocab_size = 1000,
};

SamplingParams FullParams() {
  SamplingParams params;
  params.temperature = 0.5f;
  params.top_p = 0.25f;
  params.min_p = 0.125f;
  params.top_k = 7;
  params.presence_penalty = 1;
  params.frequency_penalty = 2;
  params.repetition_penalty = 3;
  params.seed = 99;
  params.max_tokens = 5;
  params.min_tokens = 4;
  params.ignore_eos = true;
  params.stop_token_ids = {8, 9};
  params.num_logprobs = 3;
  params.num_prompt_logprobs = 2;
  params.logit_bias = {{3, 1.5f}, {999, -2.0f}};
  params.allowed_token_ids = {1, 2, 3};
  params.bad_words = std::make_shared<std::vector<std::vector<int32_t>>>(
      std::vector<std::vector<int32_t>>{{1}, {2, 3}});
  params.dry_multiplier = 0.5f;
  params.dry_base = 2;
  params.dry_allowed_length = 3;
  params.dry_penalty_last_n = 64;
  params.dry_breakers = std::make_shared<TokenSequenceSet>(
      std::vector<std::vector<int32_t>>{{5}, {6, 7}});
  params.dynatemp_range = 0.1f;
  params.dynatemp_exponent = 2;
  params.top_n_sigma = 1;
  params.typical_p = 0.5f;
  params.xtc_probability = 0.5f;
  params.xtc_threshold = 0.2f;
  return params;
}

SchedulerOutput FullPlan(const SamplingParams* params) {
  SchedulerOutput plan;
  plan.step_id = 1234567890123;
  SlotStart start;
  start.slot = 3;
  start.params = params;
  start.draw_key = 0xfedcba9876543210;
  start.banned_before_min = {8, 9};
  start.history = {10, 11, 12};
  start.num_prompt_tokens = 2;
  start.num_computed_tokens = 1;
  plan.slot_starts.push_back(start);
  plan.block_appends.push_back({3, {17, 18}});
  plan.block_copies = {{1, 17}};
  ScheduledRow row;
  row.slot = 3;
  row.first_position = 1;
  row.num_tokens = 2;
  row.needs_token = true;
  row.first_token_idx = 0;
  row.num_scored = 1;
  plan.rows.push_back(row);
  row = {};
  row.slot = 1;
  row.first_position = 50;
  row.num_tokens = 1;
  row.needs_token = true;
  row.input_on_device = true;
  plan.rows.push_back(row);
  row = {};
  row.slot = 2;
  row.first_position = 7;
  row.num_tokens = 3;
  row.needs_token = true;
  row.first_token_idx = 2;
  row.num_drafts = 2;
  plan.rows.push_back(row);
  plan.token_ids = {11, 12, 20, 21, 22};
  plan.scored_token_ids = {12};
  return plan;
}

absl::Status DecodeOf(const SchedulerOutput& plan, SchedulerOutput* decoded) {
  std::string bytes;
  EncodeStepPlan(plan, &bytes);
  // The parameters' owner may go: only the status is looked at.
  return StepPlanDecoder(kLimits).Decode(bytes, decoded);
}

TEST(StepPlanCodecTest, EverythingArrives) {
  const SamplingParams params = FullParams();
  const SchedulerOutput plan = FullPlan(&params);
  std::string bytes;
  EncodeStepPlan(plan, &bytes);
  StepPlanDecoder decoder(kLimits);
  SchedulerOutput decoded;
  ASSERT_TRUE(decoder.Decode(bytes, &decoded).ok());
  ASSERT_EQ(decoded.slot_starts.size(), 1u);
  const SamplingParams& got = *decoded.slot_starts[0].params;
  // By value; the comparison of parameters is by pointer.
  EXPECT_EQ(*got.bad_words, *params.bad_words);
  ASSERT_EQ(got.dry_breakers->sequences().size(), 2u);
  EXPECT_EQ(got.dry_breakers->sequences()[1], (std::vector<int32_t>{6, 7}));
  SamplingParams same = got;
  same.bad_words = params.bad_words;
  same.dry_breakers = params.dry_breakers;
  EXPECT_EQ(same, params);
  // All else: the plan that arrived has the same bytes.
  std::string again;
  EncodeStepPlan(decoded, &again);
  EXPECT_EQ(again, bytes);
  EXPECT_EQ(decoded.step_id, plan.step_id);
  EXPECT_EQ(decoded.slot_starts[0].draw_key, 0xfedcba9876543210);
  EXPECT_EQ(decoded.rows[1].input_on_device, true);
  EXPECT_EQ(decoded.block_copies, plan.block_copies);
}

TEST(StepPlanCodecTest, ParametersLiveAsLongAsTheSequenceInTheSlot) {
  StepPlanDecoder decoder(kLimits);
  SamplingParams params;
  params.top_k = 1;
  SchedulerOutput plan = FullPlan(&params), decoded;
  std::string bytes;
  EncodeStepPlan(plan, &bytes);
  ASSERT_TRUE(decoder.Decode(bytes, &decoded).ok());
  const SamplingParams* const first = decoded.slot_starts[0].params;
  params.top_k = 2;
  plan.slot_starts[0].slot = 0;  // Another slot's.
  bytes.clear();
  EncodeStepPlan(plan, &bytes);
  ASSERT_TRUE(decoder.Decode(bytes, &decoded).ok());
  EXPECT_EQ(first->top_k, 1);
  EXPECT_EQ(decoded.slot_starts[0].params->top_k, 2);
}

TEST(StepPlanCodecTest, EveryTruncationIsRefused) {
  const SamplingParams params = FullParams();
  std::string bytes;
  EncodeStepPlan(FullPlan(&params), &bytes);
  SchedulerOutput decoded;
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_TRUE(absl::IsInvalidArgument(StepPlanDecoder(kLimits).Decode(
        absl::string_view(bytes.data(), size), &decoded)))
        << size;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(
      StepPlanDecoder(kLimits).Decode(bytes + "x", &decoded)));
}

TEST(StepPlanCodecTest, IndicesOutOfRangeAreRefusedByName) {
  using Change = void (*)(SchedulerOutput&, SamplingParams&);
  const std::pair<const char*, Change> changes[] = {
      {"slot 4", [](auto& plan, auto&) { plan.slot_starts[0].slot = 4; }},
      {"slot -1", [](auto& plan, auto&) { plan.rows[0].slot = -1; }},
      {"slot 9", [](auto& plan, auto&) { plan.block_appends[0].slot = 9; }},
      {"starts twice",
       [](auto& plan, auto&) {
         plan.slot_starts.push_back(plan.slot_starts[0]);
       }},
      {"two rows", [](auto& plan, auto&) { plan.rows[1].slot = 3; }},
      {"block 20",
       [](auto& plan, auto&) { plan.block_appends[0].block_ids[0] = 20; }},
      {"block -7", [](auto& plan, auto&) { plan.block_copies[0].second = -7; }},
      {"token 1000", [](auto& plan, auto&) { plan.token_ids[1] = 1000; }},
      {"scored token -1",
       [](auto& plan, auto&) { plan.scored_token_ids[0] = -1; }},
      {"scored tokens instead",
       [](auto& plan, auto&) { plan.scored_token_ids.clear(); }},
      {"history 1000",
       [](auto& plan, auto&) { plan.slot_starts[0].history[0] = 1000; }},
      {"history's length",
       [](auto& plan, auto&) { plan.slot_starts[0].history.resize(101); }},
      {"num_prompt_tokens",
       [](auto& plan, auto&) { plan.slot_starts[0].num_prompt_tokens = 4; }},
      {"num_computed_tokens",
       [](auto& plan, auto&) { plan.slot_starts[0].num_computed_tokens = -1; }},
      {"first_position",
       [](auto& plan, auto&) { plan.rows[0].first_position = 100; }},
      {"num_tokens - 1",
       [](auto& plan, auto&) { plan.rows[0].num_tokens = 0; }},
      {"num_tokens - 1",
       [](auto& plan, auto&) { plan.rows[1].num_tokens = 51; }},
      {"on the device", [](auto& plan, auto&) { plan.rows[1].num_tokens = 2; }},
      {"num_tokens 4", [](auto& plan, auto&) { plan.rows[2].num_tokens = 4; }},
      {"first_token_idx",
       [](auto& plan, auto&) { plan.rows[0].first_token_idx = -1; }},
      {"num_scored", [](auto& plan, auto&) { plan.rows[0].num_scored = 3; }},
      {"num_drafts", [](auto& plan, auto&) { plan.rows[0].num_drafts = 2; }},
      {"logit_bias",
       [](auto&, auto& params) { params.logit_bias[0].first = 1000; }},
      {"allowed_token_ids",
       [](auto&, auto& params) { params.allowed_token_ids = {-1}; }},
      {"num_logprobs", [](auto&, auto& params) { params.num_logprobs = 2000; }},
      {"dry_breakers",
       [](auto&, auto& params) {
         params.dry_breakers = std::make_shared<TokenSequenceSet>(
             std::vector<std::vector<int32_t>>{{1000}});
       }},
  };
  for (const auto& [name, change] : changes) {
    SamplingParams params = FullParams();
    SchedulerOutput plan = FullPlan(&params);
    change(plan, params);
    SchedulerOutput decoded;
    const absl::Status status = DecodeOf(plan, &decoded);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << name;
    EXPECT_TRUE(absl::StrContains(status.message(), name))
        << name << ": " << status;
  }
}

TEST(StepPlanCodecTest, BudgetIsALimit) {
  SamplingParams params;
  SchedulerOutput plan, decoded;
  for (int slot = 0; slot < 2; ++slot) {
    ScheduledRow row;
    row.slot = slot;
    row.num_tokens = 33;
    row.first_token_idx = 33 * slot;
    plan.rows.push_back(row);
  }
  plan.token_ids.resize(66);
  const absl::Status status = DecodeOf(plan, &decoded);
  EXPECT_TRUE(absl::StrContains(status.message(), "tokens 66")) << status;
}

}  // namespace
}  // namespace quire
