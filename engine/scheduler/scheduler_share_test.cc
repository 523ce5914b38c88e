// What owners get of a scheduler, by weights, priorities and deadlines.
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "engine/scheduler/scheduler_fixture.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

class SchedulerShareTest : public SchedulerTest {
 protected:
  void AddOf(const std::string& owner, RequestId id, int num_prompt_tokens,
             int max_tokens, absl::Time deadline = absl::InfiniteFuture(),
             int n = 1) {
    Request request;
    request.id = id;
    request.n = n;
    request.owner = owner;
    request.prompt_token_ids.assign(num_prompt_tokens, 7);
    request.prompt_token_ids[0] = static_cast<int32_t>(10 + id % 80);
    request.sampling.max_tokens = max_tokens;
    request.deadline = deadline;
    scheduler_->AddRequest(std::move(request), 0);
  }
  // Steps until the request has started; returns how many others of `from` on
  // started before it.
  int StepsUntilStarted(RequestId id) {
    int num_steps = 0;
    while (scheduler_->FindSequence(id, 0) != nullptr &&
           !scheduler_->FindSequence(id, 0)->has_started && num_steps < 5000) {
      ++num_steps;
      PlanAndFinish();
    }
    return num_steps;
  }
};

TEST_F(SchedulerShareTest, AFloodOfOneOwnerDoesNotDelayTheOthers) {
  options_.max_num_seqs = 4;
  options_.max_model_len = 100;
  MakeScheduler();
  for (int i = 0; i < 300; ++i) AddOf("flood", 1000 + i, 20, 10);
  for (int i = 0; i < 30; ++i) PlanAndFinish();
  for (int k = 0; k < 10; ++k) {
    AddOf("calm", 1 + k, 20, 10);
    // As soon as a slot is free: an answer has 10 tokens.
    EXPECT_LE(StepsUntilStarted(1 + k), 12);
    while (scheduler_->FindSequence(1 + k, 0) != nullptr) PlanAndFinish();
  }
  int num_requests = 0;
  int64_t num_tokens = 0;
  scheduler_->CountWaiting(&num_requests, &num_tokens);
  EXPECT_GT(num_requests, 100);  // The flood still waits.
}

TEST_F(SchedulerShareTest, BlocksAreTakenFromWhoIsBehindInItsShare) {
  // Two sequences of "greedy" run when one of "calm" comes; when blocks end, it
  // is not the newcomer that gives up its own.
  options_.num_blocks = 18;
  options_.max_num_seqs = 3;
  options_.enable_prefix_caching = false;
  MakeScheduler();
  AddOf("greedy", 1, 12, 60);
  AddOf("greedy", 2, 12, 60);
  for (int i = 0; i < 3; ++i) PlanAndFinish();
  AddOf("calm", 3, 12, 20);
  while (scheduler_->counters().num_preemptions == 0) PlanAndFinish();
  EXPECT_EQ(scheduler_->FindSequence(2, 0)->state, SequenceState::kWaiting);
  EXPECT_EQ(scheduler_->FindSequence(3, 0)->state, SequenceState::kRunning);
}

TEST_F(SchedulerShareTest, PrioritiesComeBeforeShares) {
  options_.scheduling_policy = SchedulingPolicy::kPriority;
  options_.max_num_seqs = 1;
  MakeScheduler();
  Request urgent;
  urgent.id = 9;
  urgent.owner = "flood";
  urgent.priority = -1;
  urgent.prompt_token_ids = {3, 4};
  urgent.sampling.max_tokens = 2;
  for (int i = 0; i < 5; ++i) AddOf("flood", 20 + i, 4, 4);
  AddOf("calm", 1, 4, 4);
  scheduler_->AddRequest(urgent, 0);
  Plan();
  EXPECT_TRUE(scheduler_->FindSequence(9, 0)->has_started);
  Finish();
  PlanAndFinish();
  Plan();
  EXPECT_TRUE(scheduler_->FindSequence(20, 0)->has_started);
  while (scheduler_->FindSequence(20, 0) != nullptr) {
    Finish();
    Plan();
  }
  // One of each, not the flood first.
  EXPECT_TRUE(scheduler_->FindSequence(1, 0)->has_started);
}

TEST_F(SchedulerShareTest, DeadlinesEndWhatWaitsAndWhatRuns) {
  options_.max_num_seqs = 2;
  options_.steps_in_flight = 2;
  MakeScheduler();
  now_ = absl::UnixEpoch() + absl::Hours(1);
  AddOf("a", 1, 4, 50, now_ + absl::Seconds(2), 2);
  PlanAndFinish();
  PlanAndFinish();
  AddOf("a", 2, 4, 50, now_ + absl::Seconds(1));
  AddOf("a", 3, 4, 50);
  PlanAndFinish();
  events_.clear();
  scheduler_->EndOverdue(now_, &events_);
  EXPECT_TRUE(events_.empty());
  now_ += absl::Seconds(1);
  Plan();  // Also with a step in flight.
  scheduler_->EndOverdue(now_, &events_);
  ASSERT_EQ(events_.size(), 1);
  EXPECT_EQ(events_[0].request_id, 2);
  EXPECT_TRUE(absl::StrContains(events_[0].error.message(), "waited"));
  now_ += absl::Seconds(5);
  scheduler_->EndOverdue(now_, &events_);
  ASSERT_EQ(events_.size(), 3);
  for (const int i : {1, 2}) {
    EXPECT_EQ(events_[i].request_id, 1);
    EXPECT_EQ(events_[i].finish_reason, FinishReason::kError);
    EXPECT_TRUE(absl::IsDeadlineExceeded(events_[i].error));
    EXPECT_EQ(events_[i].is_last, i == 2);
  }
  EXPECT_EQ(scheduler_->counters().num_overdue_waiting, 1);
  EXPECT_EQ(scheduler_->counters().num_overdue_running, 1);
  Finish();
  // What has none goes on.
  PlanAndFinish();
  EXPECT_TRUE(scheduler_->FindSequence(3, 0)->has_started);
}

}  // namespace
}  // namespace quire
