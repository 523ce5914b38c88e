#include "engine/sequence.h"

#include <optional>

#include "gtest/gtest.h"

namespace quire {
namespace {

class SequenceTest : public testing::Test {
 protected:
  SequenceTest() {
    request_.request.prompt_token_ids = {10, 11, 12};
    request_.num_unfinished = 1;
  }
  std::optional<FinishReason> Append(Sequence* sequence, int32_t token) {
    stop_token_id_.reset();
    return sequence->Append(token, {7}, &stop_token_id_);
  }

  RequestState request_;
  std::optional<int32_t> stop_token_id_;
};

TEST_F(SequenceTest, KnowsThePromptBeforeItStarts) {
  const Sequence sequence(&request_, 0, 10);
  EXPECT_EQ(sequence.num_known_tokens(), 3);
  EXPECT_EQ(sequence.num_remaining_tokens(), 3);
  EXPECT_FALSE(sequence.has_holdings());
  EXPECT_TRUE(sequence.token_ids.empty());
}

TEST_F(SequenceTest, EndsWithAnEndToken) {
  Sequence sequence(&request_, 0, 10);
  sequence.Start(0, 0);
  EXPECT_EQ(Append(&sequence, 8), std::nullopt);
  EXPECT_EQ(Append(&sequence, 7), FinishReason::kStop);
  EXPECT_EQ(stop_token_id_, std::nullopt);
  EXPECT_EQ(sequence.num_generated_tokens(), 2);
}

TEST_F(SequenceTest, IgnoresEndTokensOnRequest) {
  request_.request.sampling.ignore_eos = true;
  request_.request.sampling.stop_token_ids = {9};
  Sequence sequence(&request_, 0, 10);
  sequence.Start(0, 0);
  EXPECT_EQ(Append(&sequence, 7), std::nullopt);
  EXPECT_EQ(Append(&sequence, 9), FinishReason::kStop);
  EXPECT_EQ(stop_token_id_, 9);
}

TEST_F(SequenceTest, EndTokenOfTheModelComesBeforeTheRequests) {
  request_.request.sampling.stop_token_ids = {7};
  Sequence sequence(&request_, 0, 10);
  sequence.Start(0, 0);
  EXPECT_EQ(Append(&sequence, 7), FinishReason::kStop);
  EXPECT_EQ(stop_token_id_, std::nullopt);
}

TEST_F(SequenceTest, StopsNoEarlierThanMinTokens) {
  request_.request.sampling.min_tokens = 2;
  Sequence sequence(&request_, 0, 10);
  sequence.Start(0, 0);
  EXPECT_EQ(Append(&sequence, 7), std::nullopt);
  EXPECT_EQ(Append(&sequence, 7), std::nullopt);
  EXPECT_EQ(Append(&sequence, 7), FinishReason::kStop);
}

TEST_F(SequenceTest, EndsByLength) {
  Sequence sequence(&request_, 0, 5);
  sequence.Start(0, 0);
  EXPECT_EQ(Append(&sequence, 1), std::nullopt);
  sequence.num_pending_tokens = 1;
  EXPECT_TRUE(sequence.will_end());
  sequence.num_pending_tokens = 0;
  EXPECT_FALSE(sequence.will_end());
  EXPECT_EQ(Append(&sequence, 1), FinishReason::kLength);
  // A stop token in the last place is a stop.
  Sequence other(&request_, 0, 4);
  other.Start(0, 0);
  EXPECT_EQ(Append(&other, 7), FinishReason::kStop);
}

TEST_F(SequenceTest, ReturnsToTheQueueWhenPreempted) {
  Sequence sequence(&request_, 0, 10);
  sequence.Start(3, 0);
  EXPECT_EQ(request_.num_running, 1);
  Append(&sequence, 1);
  sequence.Preempt();
  EXPECT_EQ(sequence.state, SequenceState::kWaiting);
  EXPECT_EQ(request_.num_running, 0);
  EXPECT_EQ(sequence.num_known_tokens(), 4);  // What was drawn stays.
  sequence.Start(1, 2);
  EXPECT_EQ(sequence.num_remaining_tokens(), 2);
  sequence.Finish();
  EXPECT_EQ(request_.num_running, 0);
  EXPECT_EQ(request_.num_unfinished, 0);
}

TEST_F(SequenceTest, RefusesImpossibleTransitions) {
  Sequence sequence(&request_, 0, 10);
  EXPECT_DEATH(sequence.Preempt(), "check failed");
  sequence.Start(0, 0);
  EXPECT_DEATH(sequence.Start(0, 0), "check failed");
  sequence.Finish();
  EXPECT_DEATH(sequence.Finish(), "check failed");
}

TEST_F(SequenceTest, OrderIsArrivalThenChoice) {
  RequestState later;
  later.arrival_no = 1;
  const Sequence a(&request_, 0, 10);
  const Sequence b(&request_, 1, 10);
  const Sequence c(&later, 0, 10);
  EXPECT_TRUE(a.IsBefore(b));
  EXPECT_TRUE(b.IsBefore(c));
  EXPECT_FALSE(c.IsBefore(a));
  EXPECT_FALSE(a.IsBefore(a));
}

}  // namespace
}  // namespace quire
