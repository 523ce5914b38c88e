#include "engine/admission.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

class AdmissionTest : public testing::Test {
 protected:
  static EngineOptions TestOptions() {
    EngineOptions options;
    options.max_num_seqs = 2;
    options.max_num_batched_tokens = 64;
    options.max_num_queued_reqs = 10;
    options.max_num_queued_tokens = 1000;
    return options;
  }

  static Request MakeRequest(int num_prompt_tokens,
                             const std::string& owner = "", int weight = 1) {
    Request request;
    request.prompt_token_ids.assign(num_prompt_tokens, 3);
    request.sampling.max_tokens = 10;
    request.owner = owner;
    request.share_weight = weight;
    return request;
  }
  absl::Status Admit(Request request) {
    return admission_->Admit(now_, &request);
  }
  // Of the scheduler, both slots in use: `queued` waits, and 1000 units of work
  // are done in a second.
  void ServeForAWhile(const std::vector<QueuedShare>& queued) {
    for (int i = 0; i < 300; ++i) {
      now_ += absl::Milliseconds(100);
      NoteStep(queued, /*num_running=*/2, /*num_step_tokens=*/64);
    }
  }
  void NoteStep(const std::vector<QueuedShare>& queued, int num_running,
                int num_step_tokens) {
    work_ += 100;
    admission_->NoteStep(now_, {num_running, num_step_tokens, 0.5, work_, 10},
                         &queued, {});
  }
  static QueuedShare Queued(int num_requests, int64_t cost,
                            const std::string& owner = "", int priority = 0,
                            int weight = 1) {
    return {owner,        priority,          weight,
            num_requests, 10 * num_requests, 100 * num_requests,
            cost};
  }

  EngineOptions options_ = TestOptions();
  absl::Time now_ = absl::UnixEpoch();
  int64_t work_ = 0;
  std::optional<Admission> admission_{std::in_place, options_,
                                      absl::UnixEpoch()};
};

TEST_F(AdmissionTest, BoundsTheBytesOfWhatWaits) {
  options_.max_num_queued_bytes = 50'000;
  Admission admission(options_, now_);
  Request large = MakeRequest(10);
  large.sampling.logit_bias.resize(5000);
  EXPECT_TRUE(admission.Admit(now_, &large).ok());
  EXPECT_GT(large.num_bytes, 40'000);
  Request other = large;
  const absl::Status status = admission.Admit(now_, &other);
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "bytes"));
  Request small = MakeRequest(10);
  EXPECT_TRUE(admission.Admit(now_, &small).ok());
  EXPECT_EQ(admission.refusals().num_queue_full, 1);
}

// What has just come counts as what its owner has in the queue, not by the mean
// of answers that ended long ago.
TEST_F(AdmissionTest, ArrivalsAreValuedAsTheQueueOfTheirOwner) {
  QueuedShare queued = Queued(1, 1000, "a");
  queued.expected_output_tokens = 500;
  ServeForAWhile({queued});
  const auto added_by = [&](const std::string& owner) {
    Request request = MakeRequest(10, owner);
    request.sampling.max_tokens = 10'000;
    const absl::Duration before = admission_->predicted_delay();
    EXPECT_TRUE(Admit(request).ok());
    return admission_->predicted_delay() - before;
  };
  // At 1000 units a second: 10 and 2 * 500 for the one, the mean of 10 for the
  // other.
  EXPECT_NEAR(absl::ToDoubleSeconds(added_by("a")), 1.010, 0.05);
  EXPECT_NEAR(absl::ToDoubleSeconds(added_by("b")), 0.030, 0.005);
}

TEST_F(AdmissionTest, EveryListCounts) {
  const int64_t plain = NumBytesOf(MakeRequest(10));
  Request request = MakeRequest(10);
  request.n = 5;
  EXPECT_GE(NumBytesOf(request), plain + 4 * 200);
  request = MakeRequest(10);
  request.sampling.allowed_token_ids.resize(1000);
  EXPECT_EQ(NumBytesOf(request), plain + 4000);
  request = MakeRequest(10);
  request.sampling.stop_token_ids.resize(1000);
  EXPECT_EQ(NumBytesOf(request), plain + 8000);
  request = MakeRequest(10);
  request.sampling.bad_words =
      std::make_shared<std::vector<std::vector<int32_t>>>(
          10, std::vector<int32_t>(100));
  EXPECT_GE(NumBytesOf(request), plain + 4000);
}

TEST_F(AdmissionTest, SharesOfAQueueThatTwoFlood) {
  int num_a = 0, num_b = 0;
  for (int i = 0; i < 20; ++i) {
    num_a += Admit(MakeRequest(10, "a")).ok();
    num_b += Admit(MakeRequest(10, "b")).ok();
  }
  // Of ten places and two free slots.
  EXPECT_EQ(num_a, 4);
  EXPECT_EQ(num_b, 4);
  EXPECT_TRUE(Admit(MakeRequest(10, "c")).ok());
  EXPECT_TRUE(Admit(MakeRequest(10)).ok());
}

TEST_F(AdmissionTest, TheRefusalOfAShareIsTheCallersOwn) {
  while (Admit(MakeRequest(10, "a")).ok()) {
  }
  const absl::Status own = Admit(MakeRequest(10, "a"));
  EXPECT_TRUE(own.GetPayload(kOwnLimitPayload).has_value());
  EXPECT_EQ(own.GetPayload(kRetryAfterPayload), absl::Cord("1"));
  while (Admit(MakeRequest(10)).ok()) {
  }
  const absl::Status full = Admit(MakeRequest(10, "fresh"));
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_FALSE(full.GetPayload(kOwnLimitPayload).has_value());
}

TEST_F(AdmissionTest, RefusesWhatWouldWaitBeyondItsDeadline) {
  ServeForAWhile({Queued(5, 5000)});
  EXPECT_NEAR(absl::ToDoubleSeconds(admission_->predicted_delay()), 5, 0.2);
  Request request = MakeRequest(10);
  request.deadline = now_ + absl::Seconds(6);
  EXPECT_TRUE(Admit(request).ok());
  request.deadline = now_ + absl::Milliseconds(1500);
  const absl::Status status = Admit(request);
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  // When the queue is short enough.
  EXPECT_EQ(status.GetPayload(kRetryAfterPayload), absl::Cord("4"));
  request.deadline = now_;
  EXPECT_TRUE(absl::IsDeadlineExceeded(Admit(request)));
  EXPECT_EQ(admission_->refusals().num_too_late, 2);
}

TEST_F(AdmissionTest, OfThoseWhoFindAFreeSlotThePromptsAreAhead) {
  options_.max_num_seqs = 8;
  admission_.emplace(options_, now_);
  const auto delay = [this] {
    return absl::ToDoubleSeconds(admission_->predicted_delay());
  };
  // Five with prompts of 10 tokens; 1000 units are done in a second.
  const std::vector<QueuedShare> queued = {Queued(5, 5000)};
  ServeForAWhile(queued);
  NoteStep(queued, /*num_running=*/8, 64);
  EXPECT_NEAR(delay(), 5, 0.3);
  NoteStep(queued, /*num_running=*/3, 64);
  EXPECT_NEAR(delay(), 0.05, 0.01);
  // A free slot for each second one.
  const std::vector<QueuedShare> more = {Queued(10, 10'000)};
  NoteStep(more, /*num_running=*/3, 64);
  EXPECT_NEAR(delay(), 5.05, 0.5);
  // The step had room for them: it is blocks that are missing, and those come
  // with the ends of answers.
  NoteStep(queued, /*num_running=*/3, /*num_step_tokens=*/10);
  EXPECT_NEAR(delay(), 5, 0.3);
}

// On a server that has just started any time may be enough, and on one whose
// step does not end none that is short beside it.
TEST_F(AdmissionTest, NobodyIsRefusedForWhatIsNotKnown) {
  Request request = MakeRequest(10);
  request.deadline = now_ + absl::Milliseconds(1);
  for (int i = 0; i < 9; ++i) EXPECT_TRUE(Admit(request).ok());
  request.deadline = now_ + absl::Seconds(10);
  EXPECT_TRUE(admission_->Admit(now_, &request, absl::Seconds(9)).ok());
  const absl::Status status =
      admission_->Admit(now_, &request, absl::Seconds(12));
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ(status.GetPayload(kRetryAfterPayload), absl::Cord("2"));
  EXPECT_EQ(admission_->predicted_delay(absl::Seconds(12)), absl::Seconds(12));
}

TEST_F(AdmissionTest, ADeadlineIsMeasuredByTheOwnersOwnQueue) {
  // The flood is long; a newcomer's turn comes soon.
  ServeForAWhile({Queued(5, 50'000, "flood")});
  Request request = MakeRequest(100, "calm");
  request.deadline = now_ + absl::Seconds(1);
  EXPECT_TRUE(Admit(request).ok());
  request.owner = "flood";
  request.prompt_token_ids.resize(1);
  EXPECT_TRUE(absl::IsResourceExhausted(Admit(request)));
}

TEST_F(AdmissionTest, WhatIsLessUrgentIsNotAhead) {
  options_.scheduling_policy = SchedulingPolicy::kPriority;
  admission_.emplace(options_, now_);
  ServeForAWhile({Queued(2, 10'000, "", 5), Queued(2, 500, "", -1)});
  Request request = MakeRequest(10);
  request.deadline = now_ + absl::Seconds(1);
  EXPECT_TRUE(Admit(request).ok());
  request.priority = 5;
  EXPECT_TRUE(absl::IsResourceExhausted(Admit(request)));
}

TEST_F(AdmissionTest, QueueUseIsOfTheFullestBound) {
  EXPECT_EQ(admission_->QueueUse(), 0);
  EXPECT_TRUE(Admit(MakeRequest(900)).ok());
  // Free slots take it.
  EXPECT_EQ(admission_->QueueUse(), 0);
  EXPECT_TRUE(Admit(MakeRequest(10)).ok());
  EXPECT_TRUE(Admit(MakeRequest(10)).ok());
  EXPECT_NEAR(admission_->QueueUse(), 0.92, 1e-9);
  const std::vector<QueuedShare> queued = {Queued(8, 100)};
  admission_->NoteStep(now_, {2, 64, 0.5, 0, 10}, &queued, {});
  EXPECT_NEAR(admission_->QueueUse(), 0.8, 1e-9);
}

}  // namespace
}  // namespace quire
