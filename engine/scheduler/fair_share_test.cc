#include "engine/scheduler/fair_share.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace quire {
namespace {

// One place to be served at: who is first is served whole. Only the counts and
// the order are looked at.
class FairShareTest : public testing::Test {
 protected:
  RequestState* Add(const std::string& owner, int num_prompt_tokens,
                    int max_tokens, int weight = 1, int priority = 0) {
    auto state = std::make_unique<RequestState>();
    state->request.owner = owner;
    state->request.share_weight = weight;
    state->request.prompt_token_ids.assign(num_prompt_tokens, 7);
    state->request.sampling.max_tokens = max_tokens;
    state->priority = priority;
    state->arrival_no = requests_.size();
    state->num_unfinished = 1;
    state->sequences.push_back(
        std::make_unique<Sequence>(state.get(), 0, 1 << 30));
    shares_.Add(state.get());
    requests_.push_back(std::move(state));
    waiting_.push_back(requests_.back()->sequences[0].get());
    return requests_.back().get();
  }

  // Starts and ends the first one, which draws so many tokens.
  RequestState* ServeFirst(int num_output_tokens) {
    const auto first = std::min_element(
        waiting_.begin(), waiting_.end(),
        [](const Sequence* a, const Sequence* b) { return a->IsBefore(*b); });
    Sequence* sequence = *first;
    waiting_.erase(first);
    RequestState* request = sequence->request;
    shares_.NoteStart(request);
    sequence->Start(0, 0);
    sequence->token_ids.resize(sequence->num_prompt_tokens + num_output_tokens);
    sequence->Finish();
    cost_[request->request.owner] +=
        sequence->num_prompt_tokens + 2 * num_output_tokens;
    shares_.NoteEnd(request);
    shares_.Remove(request);
    shares_.Settle();
    return request;
  }

  FairShare shares_;
  std::vector<std::unique_ptr<RequestState>> requests_;
  std::vector<Sequence*> waiting_;
  std::map<std::string, int64_t> cost_;
};

TEST_F(FairShareTest, OneOwnerIsServedInOrderOfArrival) {
  for (int i = 0; i < 50; ++i) Add("", 1 + (i * 37) % 100, 1 + (i * 11) % 50);
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(ServeFirst((i * 13) % 40)->arrival_no, i);
    // Some come while others are served.
    if (i % 7 == 0) Add("", 500, 5);
  }
}

TEST_F(FairShareTest, AFloodWaitsBehindTheFirstRequestsOfOthers) {
  for (int i = 0; i < 1000; ++i) Add("flood", 100, 20);
  for (int i = 0; i < 10; ++i) ServeFirst(20);
  const RequestState* request = Add("calm", 100, 20);
  // At once: nothing of the flood that has not started goes before it.
  EXPECT_EQ(ServeFirst(20), request);
  // Twenty more, one after the other: each waits for one of the flood at most.
  for (int i = 0; i < 20; ++i) {
    request = Add("calm", 100, 20);
    int num_before = 0;
    while (ServeFirst(20) != request) ++num_before;
    EXPECT_LE(num_before, 1);
  }
}

TEST_F(FairShareTest, SharesAreEqualWhateverTheSizes) {
  // Many small ones against few large ones, and answers that nobody foresaw.
  for (int i = 0; i < 4000; ++i) Add("small", 10, 1000);
  for (int i = 0; i < 400; ++i) Add("large", 1000, 1000);
  while (cost_["small"] + cost_["large"] < 200'000) {
    // The owner of the next one is not known before, and does not matter.
    ServeFirst(cost_["small"] % 3 == 0 ? 40 : 5);
  }
  EXPECT_NEAR(cost_["small"], cost_["large"], 4000);
}

TEST_F(FairShareTest, AnswersLongerThanBeforeAreChargedInTheEnd) {
  // The same requests, but one owner's answers are ten times as long.
  for (int i = 0; i < 3000; ++i) {
    Add("short", 20, 4000);
    Add("long", 20, 4000);
  }
  int num_served = 0;
  while (++num_served < 1000) {
    const auto first = std::min_element(
        waiting_.begin(), waiting_.end(),
        [](const Sequence* a, const Sequence* b) { return a->IsBefore(*b); });
    ServeFirst((*first)->request->request.owner == "long" ? 300 : 30);
  }
  EXPECT_NEAR(double(cost_["long"]) / cost_["short"], 1.0, 0.05);
}

TEST_F(FairShareTest, WeightsCount) {
  for (int i = 0; i < 3000; ++i) {
    Add("one", 100, 10, 1);
    Add("three", 100, 10, 3);
  }
  for (int i = 0; i < 800; ++i) ServeFirst(10);
  EXPECT_NEAR(double(cost_["three"]) / cost_["one"], 3.0, 0.1);
}

TEST_F(FairShareTest, WhoWasAwayGetsNoCredit) {
  Add("away", 100, 10);
  for (int i = 0; i < 2000; ++i) Add("busy", 100, 10);
  for (int i = 0; i < 1000; ++i) ServeFirst(10);
  EXPECT_EQ(cost_["away"], 120);
  for (int i = 0; i < 1000; ++i) Add("away", 100, 10);
  const int64_t before = cost_["busy"];
  for (int i = 0; i < 200; ++i) ServeFirst(10);
  // Not all 200, which would be its share of the past.
  EXPECT_NEAR(cost_["busy"] - before, 100 * 120, 3 * 120);
}

TEST_F(FairShareTest, WhatNeverStartedCostsNothing) {
  RequestState* aborted = Add("a", 5000, 10);
  RequestState* first_of_b = Add("b", 100, 10);
  Add("b", 100, 10);
  RequestState* next = Add("a", 100, 10);
  waiting_.erase(waiting_.begin());
  aborted->sequences[0]->Finish();
  shares_.NoteEnd(aborted);
  shares_.Remove(aborted);
  EXPECT_TRUE(shares_.Settle());
  EXPECT_EQ(ServeFirst(10), first_of_b);
  EXPECT_EQ(ServeFirst(10), next);  // Not after the 5000 tokens.
}

TEST_F(FairShareTest, WhatIsWithdrawnMovesNothingThatWaitedBeforeIt) {
  for (int i = 0; i < 100; ++i) Add("b", 100, 10);
  for (int i = 0; i < 100; ++i) Add("a", 100, 10);
  for (int i = 0; i < 50; ++i) {
    RequestState* withdrawn = Add("a", 100'000, 10);
    waiting_.pop_back();
    withdrawn->sequences[0]->Finish();
    shares_.NoteEnd(withdrawn);
    shares_.Remove(withdrawn);
    shares_.Settle();
  }
  for (int i = 0; i < 100; ++i) ServeFirst(10);
  EXPECT_NEAR(cost_["a"], cost_["b"], 2 * 120);
}

TEST_F(FairShareTest, ALongAnswerThatStillRunsIsNoCreditForOthers) {
  Sequence* running = Add("a", 100, 1000)->sequences[0].get();
  Add("b", 1, 1);
  waiting_.erase(waiting_.begin());
  shares_.NoteStart(running->request);
  for (int i = 0; i < 400; ++i) {
    Add("a", 100, 10);
    ServeFirst(10);
  }
  for (int i = 0; i < 300; ++i) Add("a", 100, 10);
  for (int i = 0; i < 300; ++i) Add("b", 100, 10);
  cost_.clear();
  for (int i = 0; i < 200; ++i) ServeFirst(10);
  EXPECT_NEAR(cost_["a"], cost_["b"], 3 * 120);
}

TEST_F(FairShareTest, PrioritiesHaveAccountsOfTheirOwn) {
  for (int i = 0; i < 100; ++i) Add("a", 100, 10, 1, /*priority=*/5);
  const RequestState* of_a = Add("a", 100, 10, 1, /*priority=*/0);
  Add("b", 100, 10, 1, /*priority=*/0);
  // As if the 100 were not there.
  EXPECT_EQ(ServeFirst(10), of_a);
}

TEST_F(FairShareTest, WhatIsQueuedIsCounted) {
  Add("a", 100, 10);
  Add("a", 50, 10);
  Add("b", 30, 10, 4, 2);
  std::vector<QueuedShare> queued;
  shares_.AppendQueued(&queued);
  ASSERT_EQ(queued.size(), 2);
  EXPECT_EQ(queued[0].owner, "a");
  EXPECT_EQ(queued[0].num_requests, 2);
  EXPECT_EQ(queued[0].num_tokens, 150);
  EXPECT_EQ(queued[0].cost, 150 + 2 * 2 * 10);
  EXPECT_EQ(queued[1].priority, 2);
  EXPECT_EQ(queued[1].weight, 4);
  const int64_t version = shares_.queued_version();
  while (!waiting_.empty()) ServeFirst(10);
  EXPECT_NE(shares_.queued_version(), version);
  queued.clear();
  shares_.AppendQueued(&queued);
  EXPECT_TRUE(queued.empty());
}

}  // namespace
}  // namespace quire
