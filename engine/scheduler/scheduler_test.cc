#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "engine/scheduler/scheduler_fixture.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST_F(SchedulerTest, ChunksAPromptAndDrawsAfterItsLastToken) {
  MakeScheduler();
  Add(1, 37);
  for (int chunk : {16, 16, 5}) {
    Plan();
    ASSERT_EQ(output_.rows.size(), 1);
    EXPECT_EQ(output_.rows[0].num_tokens, chunk);
    EXPECT_EQ(output_.rows[0].needs_token, chunk == 5);
    EXPECT_EQ(output_.token_ids.size(), chunk);
    EXPECT_EQ(output_.slot_starts.size(), plans_[0].step_id == 0 ? 1 : 0);
    EXPECT_TRUE(events_.empty());
    Finish();
  }
  EXPECT_EQ(events_.size(), 1);
  Plan();
  EXPECT_EQ(output_.rows[0].first_position, 37);
  EXPECT_EQ(output_.token_ids, std::vector<int32_t>{5});
}

TEST_F(SchedulerTest, DecodesComeBeforePromptsAndRowsInOrderOfArrival) {
  MakeScheduler();
  Add(1, 3);
  Add(2, 3);
  PlanAndFinish();
  Add(3, 40);
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 1}, {2, 1}, {3, 14}}));
  EXPECT_EQ(id_of_slot_[output_.rows[0].slot], 1);
  EXPECT_EQ(id_of_slot_[output_.rows[1].slot], 2);
  EXPECT_EQ(id_of_slot_[output_.rows[2].slot], 3);
}

TEST_F(SchedulerTest, ShortPromptPassesALongOneThatKeepsHalf) {
  MakeScheduler();
  Add(1, 100);
  PlanAndFinish();
  Add(2, 6);
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 10}, {2, 6}}));
  Finish();
  Add(3, 30);
  Add(4, 60);
  Plan();
  // One decodes; the oldest prompt has 8 of 15, the shorter other one the rest.
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 8}, {2, 1}, {3, 7}}));
}

TEST_F(SchedulerTest, EqualPromptsRunInOrderOfArrival) {
  MakeScheduler();
  Add(1, 32);
  Add(2, 32);
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 16}}));
  Finish();
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 16}}));
}

TEST_F(SchedulerTest, ShortPromptPassesALongOneThatStillWaits) {
  MakeScheduler();
  Add(1, 90);
  Add(2, 95);
  Add(3, 5);
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 11}, {3, 5}}));
}

TEST_F(SchedulerTest, ThresholdLimitsAPromptUnlessItIsAlone) {
  options_.long_prefill_token_threshold = 6;
  MakeScheduler();
  Add(1, 100);
  PlanAndFinish();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 16}}));
  Add(2, 100);
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 6}, {2, 6}}));
}

TEST_F(SchedulerTest, EveryPromptAdvancesUnderAStreamOfShortOnes) {
  MakeScheduler();
  Add(1, 150, 1);
  RequestId id = 2;
  for (int step = 0; step < 25; ++step) {
    Add(id++, 9, 1);
    Add(id++, 9, 1);
    PlanAndFinish();
  }
  EXPECT_EQ(scheduler_->FindSequence(1, 0), nullptr);
}

TEST_F(SchedulerTest, ScoredPromptsShareTheirRowsAndLeaveTheRest) {
  options_.max_num_batched_tokens = 40;
  options_.max_num_scored_tokens = 6;
  MakeScheduler();
  Add(1, 20, 50, 1, 0, /*num_prompt_logprobs=*/0);
  Add(2, 9, 50, 1, 0, 0);
  Add(3, 12);
  Plan();
  // Three scores each: the oldest's half, and the other half for the shorter
  // one; who is not scored is not held up.
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 3}, {2, 3}, {3, 12}}));
  EXPECT_EQ(output_.rows[0].num_scored, 3);
  EXPECT_EQ(output_.rows[1].num_scored, 3);
  EXPECT_EQ(output_.rows[2].num_scored, 0);
  EXPECT_EQ(output_.scored_token_ids,
            (std::vector<int32_t>{11, 11, 11, 12, 12, 12}));
  Finish();
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 3}, {2, 3}, {3, 1}}));
  Finish();
  // Two of the second one's rows are left to score; its last token is drawn
  // from without a score.
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 4}, {2, 3}, {3, 1}}));
  EXPECT_EQ(output_.rows[1].num_scored, 2);
  EXPECT_TRUE(output_.rows[1].needs_token);
}

TEST_F(SchedulerTest, ScoredPromptsSkipTheCacheAndFillIt) {
  MakeScheduler();
  const auto add = [&](RequestId id, int num_prompt_logprobs) {
    Request request;
    request.id = id;
    request.prompt_token_ids.assign(13, 50);
    request.sampling.max_tokens = 1;
    request.sampling.num_prompt_logprobs = num_prompt_logprobs;
    scheduler_->AddRequest(std::move(request), 0);
  };
  for (const auto& [id, num_prompt_logprobs, num_cached] :
       {std::tuple{1, 2, 0}, {2, 0, 0}, {3, -1, 12}}) {
    add(id, num_prompt_logprobs);
    events_.clear();
    PlanAndFinish();
    ASSERT_EQ(events_.size(), 1u);
    EXPECT_EQ(events_[0].num_cached_tokens, num_cached);
    EXPECT_EQ(events_[0].prompt_tokens.size(), id < 3 ? 12u : 0u);
  }
  // What is not looked up is not counted as looked up.
  EXPECT_EQ(scheduler_->counters().prefix_cache_queries, 13);
  EXPECT_EQ(scheduler_->counters().prefix_cache_hits, 12);
}

TEST_F(SchedulerTest, AfterPreemptionOnlyWhatIsMissingIsScored) {
  options_.scheduling_policy = SchedulingPolicy::kPriority;
  options_.max_num_seqs = 1;
  options_.max_num_batched_tokens = 8;
  options_.enable_prefix_caching = false;
  MakeScheduler();
  Add(1, 12, 1, 1, /*priority=*/5, /*num_prompt_logprobs=*/0);
  PlanAndFinish();
  EXPECT_EQ(events_.back().prompt_tokens.size(), 8u);
  Add(2, 4, 1, 1, /*priority=*/1);
  PlanAndFinish();
  EXPECT_EQ(TokensByRequest(), (Shares{{2, 4}}));
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 8}}));
  EXPECT_EQ(output_.rows[0].num_scored, 0);
  Finish();
  PlanAndFinish();
  EXPECT_EQ(events_.back().prompt_tokens.size(), 3u);
  EXPECT_EQ(events_.back().tokens.size(), 1u);
}

TEST_F(SchedulerTest, PriorityOrdersAdmissionAndTakesSlots) {
  options_.scheduling_policy = SchedulingPolicy::kPriority;
  options_.max_num_seqs = 2;
  MakeScheduler();
  Add(1, 4, 50, 1, /*priority=*/3);
  Add(2, 4, 50, 1, /*priority=*/2);
  PlanAndFinish();
  Add(3, 4, 50, 1, /*priority=*/2);  // Not more urgent than the second one.
  Add(4, 4, 50, 1, /*priority=*/0);
  Plan();
  // The fourth takes the slot of the first one, the least urgent.
  EXPECT_EQ(TokensByRequest(), (Shares{{2, 1}, {4, 4}}));
  EXPECT_EQ(id_of_slot_[output_.rows[0].slot], 4);
  EXPECT_EQ(scheduler_->counters().num_preemptions, 1);
  Finish();
  std::vector<OutputEvent> events;
  scheduler_->Abort(4, -1, FinishReason::kAbort, now_, &events);
  Plan();
  // Then those that wait, the more urgent one first.
  EXPECT_EQ(TokensByRequest(), (Shares{{2, 1}, {3, 4}}));
  EXPECT_EQ(scheduler_->counters().num_preemptions, 1);
}

TEST_F(SchedulerTest, PriorityTakesBlocks) {
  options_.scheduling_policy = SchedulingPolicy::kPriority;
  options_.num_blocks = 8;
  options_.max_num_batched_tokens = 64;
  options_.enable_prefix_caching = false;
  MakeScheduler();
  Add(1, 12, 20, 1, /*priority=*/1);
  Add(2, 7, 20, 1, /*priority=*/2);
  PlanAndFinish();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 12}, {2, 7}}));
  Add(3, 12, 20, 1, /*priority=*/0);
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 1}, {3, 12}}));
  EXPECT_EQ(scheduler_->FindSequence(2, 0)->state, SequenceState::kWaiting);
}

TEST_F(SchedulerTest, WithoutItsPolicyPriorityDoesNotCount) {
  options_.max_num_seqs = 1;
  MakeScheduler();
  Add(1, 4, 50, 1, /*priority=*/3);
  PlanAndFinish();
  Add(2, 4, 50, 1, /*priority=*/-3);
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 1}}));
}

TEST_F(SchedulerTest, PreemptsTheLatestAndComputesItAgain) {
  options_.num_blocks = 7;
  options_.enable_prefix_caching = false;
  MakeScheduler();
  Add(1, 8);
  Add(2, 8);
  PlanAndFinish();  // Two blocks each; a third each for what they draw.
  for (int i = 0; i < 4; ++i) PlanAndFinish();
  EXPECT_EQ(cache_->num_available_blocks(), 1);
  EXPECT_EQ(scheduler_->counters().num_preemptions, 0);
  PlanAndFinish();  // Both need a fourth, one is left.
  EXPECT_EQ(scheduler_->counters().num_preemptions, 1);
  const Sequence* later = scheduler_->FindSequence(2, 0);
  EXPECT_EQ(later->state, SequenceState::kWaiting);
  EXPECT_EQ(later->num_computed_tokens, 0);
  const int num_known = later->num_known_tokens();
  int num_requests = 0;
  int64_t num_tokens = 0;
  scheduler_->CountWaiting(&num_requests, &num_tokens);
  EXPECT_EQ(num_requests, 1);
  EXPECT_EQ(num_tokens, 8);
  scheduler_->Abort(1, -1, FinishReason::kAbort, now_, &events_);
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{2, std::min(num_known, 16)}}));
  EXPECT_EQ(output_.slot_starts[0].history.size(), num_known);
  EXPECT_EQ(output_.slot_starts[0].num_prompt_tokens, 8);
}

TEST_F(SchedulerTest, AdmissionLeavesABlockForEachRunningSequence) {
  options_.num_blocks = 6;
  MakeScheduler();
  Add(1, 8);
  PlanAndFinish();
  Add(2, 16);  // Four blocks are free, but then none for the first to grow.
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 1}}));
  Finish();
  scheduler_->Abort(1, -1, FinishReason::kAbort, now_, &events_);
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{2, 16}}));
}

TEST_F(SchedulerTest, NobodyPassesWhoWaitsForBlocks) {
  options_.num_blocks = 6;
  MakeScheduler();
  Add(1, 8);
  PlanAndFinish();
  Add(2, 16);
  Add(3, 2);
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 1}}));
}

TEST_F(SchedulerTest, ChoicesShareThePromptOnceItIsComputed) {
  MakeScheduler();
  Add(1, 18, 50, 3);
  Plan();
  EXPECT_EQ(output_.rows.size(), 1);
  Finish();
  Plan();
  EXPECT_EQ(output_.rows.size(), 1);  // 16 of 18 tokens are not the prompt.
  Finish();
  Plan();
  ASSERT_EQ(output_.rows.size(), 3);
  EXPECT_EQ(output_.slot_starts.size(), 2);
  EXPECT_EQ(output_.block_copies.size(), 2);
  // The first decodes; the others compute the last prompt token.
  EXPECT_EQ(output_.rows[0].first_position, 18);
  EXPECT_EQ(output_.rows[1].first_position, 17);
  EXPECT_EQ(output_.rows[2].first_position, 17);
  std::set<uint64_t> draw_keys;
  for (const SlotStart& start : output_.slot_starts) {
    draw_keys.insert(start.draw_key);
  }
  EXPECT_EQ(draw_keys.size(), 2);
  // Five blocks of the prompt, and a copy of the fifth for each other choice.
  EXPECT_EQ(cache_->num_referenced_blocks(), 7);
}

TEST_F(SchedulerTest, AbortedFirstChoiceLeavesThePromptToTheNext) {
  MakeScheduler();
  Add(1, 18, 50, 2);
  PlanAndFinish();
  scheduler_->Abort(1, 0, FinishReason::kAbort, now_, &events_);
  ASSERT_EQ(events_.size(), 1);
  EXPECT_FALSE(events_[0].is_last);
  Plan();
  ASSERT_EQ(output_.slot_starts.size(), 1);
  // Found in the prefix cache: the 16 tokens that were computed.
  EXPECT_EQ(output_.slot_starts[0].num_computed_tokens, 16);
}

TEST_F(SchedulerTest, PlansAheadOfTokensNotYetKnown) {
  options_.steps_in_flight = 2;
  MakeScheduler();
  Add(1, 4, 3);
  Plan();
  Plan();
  ASSERT_EQ(output_.rows.size(), 1);
  EXPECT_TRUE(output_.rows[0].input_on_device);
  EXPECT_EQ(output_.rows[0].first_position, 4);
  EXPECT_TRUE(output_.token_ids.empty());
  EXPECT_EQ(output_.block_appends.size(), 1);
  Finish();
  Plan();
  EXPECT_EQ(output_.rows[0].first_position, 5);
  Finish();
  // Three tokens are known or being drawn: there is nothing more to plan.
  EXPECT_TRUE(Plan().empty());
  EXPECT_EQ(scheduler_->num_steps_in_flight(), 1);
  plans_.pop_back();
  Finish();
  EXPECT_EQ(events_.back().finish_reason, FinishReason::kLength);
  EXPECT_FALSE(scheduler_->HasUnfinished());
}

// Sequences of a plan.
#define EXPECT_ROWS_OF(...)                                     \
  do {                                                          \
    std::vector<int> found;                                     \
    for (const ScheduledRow& row : output_.rows) {              \
      EXPECT_FALSE(row.input_on_device);                        \
      found.push_back(static_cast<int>(id_of_slot_[row.slot])); \
    }                                                           \
    EXPECT_EQ(found, (std::vector<int>{__VA_ARGS__}));          \
  } while (false)

// Each sequence is in one step at a time, and each step has its part of them.
TEST_F(SchedulerTest, MicroBatchesShareTheSequences) {
  options_.steps_in_flight = options_.num_micro_batches = 2;
  options_.max_num_batched_tokens = 16;
  MakeScheduler();
  for (const int id : {1, 2, 3, 4}) Add(id, 2);
  Plan();  // All four prompts fit into its part of the budget.
  EXPECT_ROWS_OF(1, 2, 3, 4);
  EXPECT_TRUE(Plan().empty());
  plans_.pop_back();
  Finish();
  for (int round = 0; round < 3; ++round) {
    Plan();
    EXPECT_ROWS_OF(1, 2);
    if (round > 0) Finish();
    Plan();
    EXPECT_ROWS_OF(3, 4);
    Finish();
  }
  // Of three, the part is two; who waited longest comes first.
  scheduler_->Abort(1, -1, FinishReason::kAbort, now_, &events_);
  Finish();
  Plan();
  EXPECT_ROWS_OF(2, 3);
  Plan();
  EXPECT_ROWS_OF(4);
  Finish();
  Plan();
  EXPECT_ROWS_OF(2, 3);
}

// Chunks of one prompt follow each other through the stages, with a part of the
// budget each.
TEST_F(SchedulerTest, MicroBatchesOfOnePrompt) {
  options_.steps_in_flight = options_.num_micro_batches = 2;
  options_.max_num_batched_tokens = 16;
  MakeScheduler();
  Add(1, 20);
  Plan();
  EXPECT_EQ(output_.rows[0].num_tokens, 8);
  Plan();
  EXPECT_EQ(output_.rows[0].first_position, 8);
  EXPECT_EQ(output_.rows[0].num_tokens, 8);
  Finish();
  Plan();
  EXPECT_EQ(output_.rows[0].num_tokens, 4);
  EXPECT_TRUE(output_.rows[0].needs_token);
  Finish();
  // Its token is being drawn.
  EXPECT_TRUE(Plan().empty());
  plans_.pop_back();
  Finish();
  Plan();
  EXPECT_EQ(output_.rows[0].first_position, 20);
}

TEST_F(SchedulerTest, RowOfAnEndedSequenceIsDroppedAndHoldsItsBlocks) {
  options_.steps_in_flight = 2;
  MakeScheduler();
  Add(1, 4);
  Plan();
  Plan();
  Finish(/*token=*/1);  // The end token.
  EXPECT_TRUE(events_.back().is_last);
  EXPECT_GT(cache_->num_referenced_blocks(), 0);
  const size_t num_events = events_.size();
  Finish();
  EXPECT_EQ(events_.size(), num_events);
  EXPECT_EQ(cache_->num_referenced_blocks(), 0);
}

TEST_F(SchedulerTest, AbortInFlightFreesWhenTheStepIsCollected) {
  options_.steps_in_flight = 2;
  MakeScheduler();
  Add(1, 30);
  Plan();
  scheduler_->Abort(1, -1, FinishReason::kAbort, now_, &events_);
  ASSERT_EQ(events_.size(), 1);
  EXPECT_TRUE(events_[0].is_last);
  CheckIntegrity();
  EXPECT_GT(cache_->num_referenced_blocks(), 0);
  Finish();
  EXPECT_EQ(cache_->num_referenced_blocks(), 0);
  EXPECT_FALSE(scheduler_->HasRequest(1));
}

TEST_F(SchedulerTest, SourceOfACopyIsHeldUntilTheStepIsCollected) {
  options_.steps_in_flight = 2;
  MakeScheduler();
  Add(1, 6, 2, 2);
  Plan();
  Finish();
  Plan();  // The fork, beside the last token of the first choice.
  ASSERT_EQ(output_.block_copies.size(), 1);
  scheduler_->Abort(1, 0, FinishReason::kAbort, now_, &events_);
  CheckIntegrity();
  // Its two blocks, of which one is shared, and the copy.
  EXPECT_EQ(cache_->num_referenced_blocks(), 3);
  Finish();
  EXPECT_EQ(cache_->num_referenced_blocks(), 2);
}

TEST_F(SchedulerTest, FailedStepEndsItsRequestsOnly) {
  options_.steps_in_flight = 2;
  MakeScheduler();
  Add(1, 16, 50, 2);
  Add(2, 16);
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{1, 16}}));
  scheduler_->FailOldestStep(absl::InternalError("gone"), now_, &events_);
  ASSERT_EQ(events_.size(), 2);
  for (const OutputEvent& event : events_) {
    EXPECT_EQ(event.request_id, 1);
    EXPECT_EQ(event.finish_reason, FinishReason::kError);
    EXPECT_EQ(event.error.message(), "gone");
  }
  EXPECT_TRUE(events_[1].is_last);
  CheckIntegrity();
  plans_.clear();
  Plan();
  EXPECT_EQ(TokensByRequest(), (Shares{{2, 16}}));
}

TEST_F(SchedulerTest, NonFiniteRowFailsItsRequestAndLeavesTheCache) {
  MakeScheduler();
  Add(1, 8);
  Add(2, 8);
  Plan();
  UpdateWithoutTokenOfFirst(&SampledRow::non_finite);
  ASSERT_EQ(events_.size(), 2);
  EXPECT_EQ(events_[0].finish_reason, FinishReason::kError);
  EXPECT_FALSE(events_[0].error.ok());
  EXPECT_EQ(events_[1].finish_reason, std::nullopt);
  EXPECT_EQ(cache_->num_cached_blocks(), 2);  // The other's.
}

TEST_F(SchedulerTest, RowWithoutAnAllowedTokenFailsItsRequestAlone) {
  MakeScheduler();
  Add(1, 8);
  Add(2, 8);
  Plan();
  UpdateWithoutTokenOfFirst(&SampledRow::all_masked);
  ASSERT_EQ(events_.size(), 2);
  EXPECT_EQ(events_[0].finish_reason, FinishReason::kError);
  EXPECT_TRUE(absl::IsInvalidArgument(events_[0].error));
  EXPECT_TRUE(absl::StrContains(events_[0].error.message(),
                                "no token is allowed at position 8"));
  EXPECT_TRUE(events_[0].tokens.empty());
  EXPECT_EQ(events_[1].finish_reason, std::nullopt);
}

TEST_F(SchedulerTest, TokenOutsideTheVocabularyFailsTheRequest) {
  MakeScheduler();
  Add(1, 4);
  Plan();
  Finish(/*token=*/100);
  ASSERT_EQ(events_.size(), 1);
  EXPECT_EQ(events_[0].finish_reason, FinishReason::kError);
}

TEST_F(SchedulerTest, AlternativesAndScoresAreOfTheVocabularyToo) {
  options_.max_num_scored_tokens = 6;
  for (const bool is_scored : {false, true}) {
    MakeScheduler();
    events_.clear();
    Add(1, 4, 50, 1, 0, is_scored ? 0 : -1);
    Add(2, 4);
    const SchedulerOutput plan = Plan();
    plans_.clear();
    StepResult result;
    result.step_id = plan.step_id;
    for (const ScheduledRow& row : plan.rows) {
      SampledRow sampled;
      sampled.slot = row.slot;
      sampled.scored.resize(row.num_scored);
      if (row.needs_token) sampled.tokens.push_back({5, 0, {}});
      if (id_of_slot_[row.slot] == 1) {
        TokenOutput& token = is_scored ? sampled.scored[1] : sampled.tokens[0];
        token.top_logprobs = {{99, -1.0f}, {-1, -2.0f}};
      }
      result.rows.push_back(sampled);
    }
    ASSERT_TRUE(scheduler_->Update(std::move(result), now_, &events_).ok());
    CheckIntegrity();
    ASSERT_EQ(events_.size(), 2);
    EXPECT_EQ(events_[0].finish_reason, FinishReason::kError);
    EXPECT_TRUE(events_[0].tokens.empty());
    EXPECT_TRUE(events_[0].prompt_tokens.empty());
    EXPECT_EQ(events_[1].finish_reason, std::nullopt);
  }
}

TEST_F(SchedulerTest, ResultOfAnotherStepFailsTheStep) {
  MakeScheduler();
  Add(1, 4);
  Plan();
  StepResult result;
  result.step_id = 77;
  EXPECT_TRUE(
      absl::IsInternal(scheduler_->Update(std::move(result), now_, &events_)));
  ASSERT_EQ(events_.size(), 1);
  EXPECT_EQ(events_[0].finish_reason, FinishReason::kError);
  CheckIntegrity();
}

TEST_F(SchedulerTest, CountsPromptsAndCacheHitsOncePerRequest) {
  MakeScheduler();
  Add(1, 12, 1);
  PlanAndFinish();
  Request request;
  request.id = 2;
  request.n = 2;
  request.prompt_token_ids.assign(12, 11);
  request.sampling.max_tokens = 2;
  scheduler_->AddRequest(std::move(request), 0);
  while (scheduler_->HasUnfinished()) PlanAndFinish();
  EXPECT_EQ(events_.back().num_cached_tokens, 8);
  const SchedulerCounters& counters = scheduler_->counters();
  EXPECT_EQ(counters.num_prompt_tokens, 24);
  EXPECT_EQ(counters.prefix_cache_queries, 24);
  EXPECT_EQ(counters.prefix_cache_hits, 8);
  EXPECT_EQ(counters.num_generation_tokens, 5);
  // What was found in the cache is done as well, and a prompt once for all of
  // its choices.
  EXPECT_EQ(counters.num_prefilled_tokens, 24);
  EXPECT_EQ(counters.work(), 24 * kPromptTokenCost + 5 * kOutputTokenCost);
}

// However much is drafted, each running sequence finds the block that its next
// token may need, and none is preempted for drafts.
TEST_F(SchedulerTest, DraftsLeaveTheBlockReserve) {
  for (const int num_blocks : {6, 7, 8, 9, 12}) {
    SCOPED_TRACE(num_blocks);
    options_.num_blocks = num_blocks;
    options_.num_speculative_tokens = 5;
    options_.adapts_drafts = false;
    options_.enable_prefix_caching = false;
    plans_.clear();
    MakeScheduler();
    scheduler_->StartDrafting(false);
    Add(1, 6);
    Add(2, 6);
    PlanAndFinish();
    ASSERT_EQ(scheduler_->num_running(), 2);
    // Both know 7 tokens, and their two blocks have room for 8.
    std::vector<DraftSequence> sequences;
    scheduler_->PlanDrafts(nullptr, &sequences);
    EXPECT_GE(cache_->num_available_blocks(), 2);
    const int num_spare = num_blocks - 4 - 2;
    ASSERT_EQ(sequences.size(), 2u);
    EXPECT_EQ(sequences[0].max_num_drafts, num_spare > 0 ? 5 : 1);
    EXPECT_EQ(sequences[1].max_num_drafts, num_spare > 1 ? 5 : 1);
    std::vector<Draft> drafts(2);
    for (size_t i = 0; i < drafts.size(); ++i) {
      EXPECT_GE(sequences[i].block_table.size() * options_.block_size,
                sequences[i].token_ids.size() + sequences[i].max_num_drafts);
      drafts[i].token_ids.assign(sequences[i].max_num_drafts, 6);
    }
    ASSERT_TRUE(scheduler_->SetDrafts(absl::MakeSpan(drafts)).ok());
    // None is accepted; the next token needs room that is there.
    PlanAndFinish();
    EXPECT_EQ(scheduler_->counters().num_drafts, 2);
    PlanAndFinish();
    EXPECT_EQ(output_.rows.size(), 2u);
    EXPECT_EQ(scheduler_->counters().num_preemptions, 0);
  }
}

}  // namespace
}  // namespace quire
