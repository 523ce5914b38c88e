#include "engine/engine_loop.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "engine/base/status.h"
#include "engine/base/warning.h"
#include "engine/speculative/drafter.h"
#include "gtest/gtest.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

// Far more than any wait here takes; reached only if the engine hangs.
constexpr absl::Duration kHangTimeout = absl::Seconds(60);

EngineOptions TestOptions() {
  EngineOptions options;
  options.block_size = 4;
  options.num_blocks = 64;
  options.max_model_len = 128;
  options.vocab_size = 500;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 32;
  options.eos_token_ids = {1};
  options.check_integrity = true;
  return options;
}

Request MakeRequest(RequestId id, int num_prompt_tokens, int max_tokens) {
  Request request;
  request.id = id;
  for (int i = 0; i < num_prompt_tokens; ++i) {
    request.prompt_token_ids.push_back(2 +
                                       (i * 7 + static_cast<int>(id)) % 400);
  }
  request.sampling.max_tokens = max_tokens;
  request.sampling.seed = id;
  return request;
}

// Keeps all events; lets tests wait for what they need.
class CollectingSink : public OutputSink {
 public:
  void Push(std::vector<OutputEvent> events) override {
    std::lock_guard<std::mutex> lock(mu_);
    for (OutputEvent& event : events) {
      if (event.is_last) ++num_last_[event.request_id];
      events_.push_back(std::move(event));
    }
    has_changed_.notify_all();
  }

  // Whether the request's last event came.
  bool WaitForLast(RequestId id) {
    std::unique_lock<std::mutex> lock(mu_);
    return has_changed_.wait_for(lock, absl::ToChronoSeconds(kHangTimeout),
                                 [&] { return num_last_.count(id) > 0; });
  }
  std::vector<OutputEvent> EventsOf(RequestId id) {
    std::lock_guard<std::mutex> lock(mu_);
    std::vector<OutputEvent> events;
    for (const OutputEvent& event : events_) {
      if (event.request_id == id) events.push_back(event);
    }
    return events;
  }
  std::vector<int32_t> TokensOf(RequestId id) {
    std::vector<int32_t> tokens;
    for (const OutputEvent& event : EventsOf(id)) {
      for (const TokenOutput& token : event.tokens) {
        tokens.push_back(token.token_id);
      }
    }
    return tokens;
  }
  std::map<RequestId, int> num_last() {
    std::lock_guard<std::mutex> lock(mu_);
    return num_last_;
  }

 private:
  std::mutex mu_;
  std::condition_variable has_changed_;
  std::vector<OutputEvent> events_;
  std::map<RequestId, int> num_last_;
};

// Breaks at once, as a draft model does whose device has failed.
class FailingDrafter : public Drafter {
 public:
  absl::string_view method() const override { return "draft_model"; }
  bool is_costly() const override { return false; }
  absl::Status Propose(absl::Span<const DraftSequence> /*sequences*/,
                       absl::Span<Draft> /*drafts*/) override {
    return absl::InternalError("no device any more");
  }
};

class EngineLoopTest : public testing::Test {
 protected:
  void Start(const EngineOptions& options) {
    options_ = options;
    runner_ = std::make_unique<HashModelRunner>(options, model_options_);
    sink_ = std::make_unique<CollectingSink>();
  }
  void Create() {
    auto loop =
        EngineLoop::Create(options_, runner_.get(), &clock_, sink_.get());
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
  }

  HashModelOptions model_options_;
  EngineOptions options_;
  FakeClock clock_;
  std::unique_ptr<HashModelRunner> runner_;
  std::unique_ptr<CollectingSink> sink_;
  std::unique_ptr<EngineLoop> loop_;
};

TEST_F(EngineLoopTest, AnswersARequestAsTheModelDoesAlone) {
  for (int steps_in_flight : {1, 2}) {
    EngineOptions options = TestOptions();
    options.steps_in_flight = steps_in_flight;
    Start(options);
    Create();
    const RequestId id = loop_->NewRequestId();
    const Request request = MakeRequest(id, 19, 12);
    const HashModelAnswer answer =
        AnswerAlone(options, model_options_, request, 0, 0, 128);
    ASSERT_TRUE(loop_->Submit(request).ok());
    ASSERT_TRUE(sink_->WaitForLast(id));
    EXPECT_EQ(sink_->TokensOf(id), answer.token_ids);
    const OutputEvent last = sink_->EventsOf(id).back();
    EXPECT_EQ(last.finish_reason, answer.finish_reason);
    ASSERT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
    const EngineStats stats = loop_->Stats();
    EXPECT_TRUE(stats.is_idle);
    EXPECT_EQ(stats.num_running, 0);
    EXPECT_EQ(stats.num_waiting, 0);
    EXPECT_EQ(stats.num_free_blocks, stats.num_blocks);
    EXPECT_EQ(stats.num_prompt_tokens, 19);
    EXPECT_EQ(stats.num_generation_tokens,
              static_cast<int64_t>(answer.token_ids.size()));
    loop_.reset();
    EXPECT_EQ(runner_->violation(), "");
  }
}

TEST_F(EngineLoopTest, ADrafterThatFailsIsWarnedOfOnce) {
  std::mutex mu;
  std::vector<std::string> warnings;
  SetWarningHandler([&](const std::string& text) {
    std::lock_guard<std::mutex> lock(mu);
    warnings.push_back(text);
  });
  FailingDrafter drafter;
  EngineOptions options = TestOptions();
  options.num_speculative_tokens = 3;
  Start(options);
  auto loop = EngineLoop::Create(options_, runner_.get(), &clock_, sink_.get(),
                                 &drafter);
  ASSERT_TRUE(loop.ok()) << loop.status();
  loop_ = *std::move(loop);
  for (int i = 0; i < 2; ++i) {
    const RequestId id = loop_->NewRequestId();
    const Request request = MakeRequest(id, 19, 12);
    ASSERT_TRUE(loop_->Submit(request).ok());
    ASSERT_TRUE(sink_->WaitForLast(id));
    EXPECT_EQ(
        sink_->TokensOf(id),
        AnswerAlone(options, model_options_, request, 0, 0, 128).token_ids);
  }
  EXPECT_EQ(loop_->Stats().num_drafter_failures, 1);
  loop_.reset();
  SetWarningHandler(nullptr);
  EXPECT_EQ(warnings,
            std::vector<std::string>(
                {"nothing is drafted any more: the draft_model drafter failed: "
                 "no device any more"}));
}

TEST_F(EngineLoopTest, RefusesWhatCanNeverRun) {
  Start(TestOptions());
  Create();
  EXPECT_TRUE(absl::IsInvalidArgument(
      loop_->Submit(MakeRequest(loop_->NewRequestId(), 128, 1))));
  EXPECT_TRUE(absl::IsInvalidArgument(
      loop_->Submit(MakeRequest(loop_->NewRequestId(), 0, 1))));
  EngineOptions options = TestOptions();
  options.num_blocks = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(
      EngineLoop::Create(options, runner_.get(), &clock_, sink_.get())
          .status()));
}

// Holds the engine thread inside its first step until released.
class BlockedLoopTest : public EngineLoopTest {
 protected:
  void StartBlocked(const EngineOptions& options) {
    Start(options);
    runner_->on_collect = [this] {
      if (!has_begun_.HasBeenNotified()) has_begun_.Notify();
      release_.WaitForNotification();
    };
    Create();
    first_ = loop_->NewRequestId();
    ASSERT_TRUE(loop_->Submit(MakeRequest(first_, 5, 20)).ok());
    has_begun_.WaitForNotification();
  }
  ~BlockedLoopTest() override {
    if (!release_.HasBeenNotified()) release_.Notify();
    loop_.reset();
  }

  absl::Notification has_begun_;
  absl::Notification release_;
  RequestId first_ = 0;
};

TEST_F(BlockedLoopTest, QueueIsBoundedByRequests) {
  EngineOptions options = TestOptions();
  options.max_num_queued_reqs = 2;
  options.max_num_seqs = 1;
  StartBlocked(options);
  // The first runs, but its step has not published that: its slot counts as
  // free, and it as waiting.
  std::vector<RequestId> ids;
  for (int i = 0; i < 2; ++i) {
    ids.push_back(loop_->NewRequestId());
    EXPECT_TRUE(loop_->Submit(MakeRequest(ids.back(), 5, 3)).ok());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(
      loop_->Submit(MakeRequest(loop_->NewRequestId(), 5, 3))));
  EXPECT_EQ(loop_->Stats().num_waiting, 3);
  release_.Notify();
  for (RequestId id : ids) EXPECT_TRUE(sink_->WaitForLast(id));
  const RequestId id = loop_->NewRequestId();
  EXPECT_TRUE(loop_->Submit(MakeRequest(id, 5, 3)).ok());
  EXPECT_TRUE(sink_->WaitForLast(id));
}

TEST_F(BlockedLoopTest, QueueIsBoundedByPromptTokens) {
  EngineOptions options = TestOptions();
  options.max_num_queued_tokens = 30;
  StartBlocked(options);
  EXPECT_TRUE(loop_->Submit(MakeRequest(loop_->NewRequestId(), 20, 3)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(
      loop_->Submit(MakeRequest(loop_->NewRequestId(), 6, 3))));
  EXPECT_TRUE(loop_->Submit(MakeRequest(loop_->NewRequestId(), 5, 3)).ok());
  EXPECT_EQ(loop_->Stats().num_waiting_tokens, 30);
}

// A burst that finds free slots does not wait: it is no queue.
TEST_F(BlockedLoopTest, FreeSlotsAreNoQueue) {
  EngineOptions options = TestOptions();
  options.max_num_queued_reqs = 1;
  options.max_num_seqs = 4;
  StartBlocked(options);
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) {
    ids.push_back(loop_->NewRequestId());
    EXPECT_TRUE(loop_->Submit(MakeRequest(ids.back(), 5, 3)).ok()) << i;
  }
  EXPECT_TRUE(absl::IsResourceExhausted(
      loop_->Submit(MakeRequest(loop_->NewRequestId(), 5, 3))));
  release_.Notify();
  for (RequestId id : ids) EXPECT_TRUE(sink_->WaitForLast(id));
}

TEST_F(BlockedLoopTest, AnOwnerThatFloodsLeavesRoomInTheQueue) {
  EngineOptions options = TestOptions();
  options.max_num_queued_reqs = 8;
  options.max_num_seqs = 1;
  StartBlocked(options);
  const auto submit = [&](const std::string& owner) {
    Request request = MakeRequest(loop_->NewRequestId(), 5, 3);
    request.owner = owner;
    return loop_->Submit(request);
  };
  absl::Status status;
  int num_accepted = 0;
  while ((status = submit("flood")).ok()) ++num_accepted;
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_TRUE(status.GetPayload(kOwnLimitPayload).has_value());
  EXPECT_EQ(num_accepted, 4);
  EXPECT_TRUE(submit("calm").ok());
  EXPECT_TRUE(submit("other").ok());
  EXPECT_FALSE(submit("flood").ok());
  EXPECT_EQ(loop_->Stats().refusals.num_share_full, 2);
  release_.Notify();
  EXPECT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
  EXPECT_TRUE(submit("flood").ok());
}

TEST_F(BlockedLoopTest, WatchdogSeesAStepThatDoesNotEnd) {
  EngineOptions options = TestOptions();
  options.watchdog_seconds = 30;
  options.watchdog_seconds_per_token = 0.1;
  StartBlocked(options);
  // The step has five prompt tokens.
  clock_.Advance(absl::Milliseconds(30400));
  EXPECT_TRUE(loop_->Health().ok());
  EXPECT_FALSE(loop_->is_hanging());
  clock_.Advance(absl::Milliseconds(200));
  EXPECT_TRUE(absl::IsUnavailable(loop_->Health()));
  EXPECT_TRUE(loop_->is_hanging());
  release_.Notify();
  EXPECT_TRUE(sink_->WaitForLast(first_));
  EXPECT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
  // Idle for long is no fault, and neither is what comes after.
  clock_.Advance(absl::Hours(10));
  EXPECT_TRUE(loop_->Health().ok());
  const RequestId id = loop_->NewRequestId();
  EXPECT_TRUE(loop_->Submit(MakeRequest(id, 5, 3)).ok());
  EXPECT_TRUE(loop_->Health().ok());
  EXPECT_TRUE(sink_->WaitForLast(id));
}

// Every step takes as long as its tokens may, and the watchdog is asked while
// it runs.
TEST_F(EngineLoopTest, WatchdogIsSilentInAHundredThousandLongSteps) {
  EngineOptions options = TestOptions();
  options.check_integrity = false;
  options.watchdog_seconds = 1;
  options.watchdog_seconds_per_token = 0.1;
  options.max_model_len = 4096;
  options.num_blocks = 4096;
  Start(options);
  std::atomic<int64_t> num_steps = 0;
  std::atomic<int64_t> num_alarms = 0;
  EngineLoop* loop = nullptr;
  int64_t num_tokens = 0;
  runner_->fail_submit = [&](const SchedulerOutput& output, bool*) {
    num_tokens = 0;
    for (const ScheduledRow& row : output.rows) num_tokens += row.num_tokens;
    return absl::OkStatus();
  };
  runner_->on_collect = [&] {
    clock_.Advance(absl::Milliseconds(990 + 100 * num_tokens));
    num_alarms += !loop->Health().ok();
    ++num_steps;
  };
  Create();
  loop = loop_.get();
  // Long prompts in chunks beside answers.
  while (num_steps < 100'000) {
    std::vector<RequestId> ids;
    for (int i = 0; i < 16; ++i) {
      ids.push_back(loop_->NewRequestId());
      Request request = MakeRequest(ids.back(), i % 2 == 0 ? 3000 : 5, 900);
      request.sampling.ignore_eos = true;
      ASSERT_TRUE(loop_->Submit(request).ok());
    }
    for (RequestId id : ids) ASSERT_TRUE(sink_->WaitForLast(id));
  }
  EXPECT_EQ(num_alarms, 0);
}

TEST_F(BlockedLoopTest, DeadlinesAreKeptAndRefused) {
  EngineOptions options = TestOptions();
  options.max_num_seqs = 1;
  StartBlocked(options);
  Request late = MakeRequest(loop_->NewRequestId(), 5, 3);
  late.deadline = clock_.Now();
  EXPECT_TRUE(absl::IsDeadlineExceeded(loop_->Submit(late)));
  Request waits = MakeRequest(loop_->NewRequestId(), 5, 3);
  waits.deadline = clock_.Now() + absl::Seconds(1);
  EXPECT_TRUE(loop_->Submit(waits).ok());
  clock_.Advance(absl::Seconds(2));
  release_.Notify();
  EXPECT_TRUE(sink_->WaitForLast(waits.id));
  EXPECT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
  EXPECT_EQ(loop_->Stats().num_overdue_waiting, 1);
  EXPECT_EQ(loop_->Stats().refusals.num_too_late, 1);
}

TEST_F(BlockedLoopTest, AStepThatDoesNotEndDelaysLongerAndLonger) {
  EngineOptions options = TestOptions();
  options.watchdog_seconds_per_token = 0.1;
  options.watchdog_seconds = 1000;
  StartBlocked(options);
  const auto submit = [this](absl::Duration timeout) {
    Request request = MakeRequest(loop_->NewRequestId(), 5, 3);
    request.deadline = clock_.Now() + timeout;
    return loop_->Submit(request);
  };
  // Its five prompt tokens may take half a second.
  clock_.Advance(absl::Milliseconds(490));
  EXPECT_EQ(loop_->Stats().predicted_delay, absl::ZeroDuration());
  EXPECT_TRUE(submit(absl::Milliseconds(1)).ok());
  clock_.Advance(absl::Milliseconds(30'010));
  EXPECT_EQ(loop_->Stats().predicted_delay, absl::Seconds(30));
  EXPECT_TRUE(absl::IsResourceExhausted(submit(absl::Seconds(29))));
  EXPECT_TRUE(submit(absl::Seconds(31)).ok());
  clock_.Advance(absl::Seconds(30));
  EXPECT_EQ(loop_->Stats().predicted_delay, absl::Seconds(60));
  release_.Notify();
  EXPECT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
  EXPECT_EQ(loop_->Stats().predicted_delay, absl::ZeroDuration());
}

// Only the first request of a call is held to the limits.
TEST_F(BlockedLoopTest, WhatContinuesACallIsAccepted) {
  EngineOptions options = TestOptions();
  options.max_num_queued_reqs = 1;
  options.max_num_seqs = 1;
  StartBlocked(options);
  EXPECT_TRUE(loop_->Submit(MakeRequest(loop_->NewRequestId(), 5, 3)).ok());
  Request refused = MakeRequest(loop_->NewRequestId(), 5, 3);
  EXPECT_TRUE(absl::IsResourceExhausted(loop_->Submit(refused)));
  refused.continues_call = true;
  EXPECT_TRUE(loop_->Submit(refused).ok());
  loop_->StartDraining();
  Request draining = MakeRequest(loop_->NewRequestId(), 5, 3);
  EXPECT_TRUE(absl::IsUnavailable(loop_->Submit(draining)));
  draining.continues_call = true;
  EXPECT_TRUE(loop_->Submit(draining).ok());
  release_.Notify();
  EXPECT_TRUE(sink_->WaitForLast(refused.id));
  EXPECT_TRUE(sink_->WaitForLast(draining.id));
}

TEST_F(BlockedLoopTest, StatsAndSubmitDoNotWaitForAStep) {
  StartBlocked(TestOptions());
  // Would hang here if the step held the lock.
  EXPECT_FALSE(loop_->Stats().is_idle);
  EXPECT_TRUE(loop_->Health().ok());
  EXPECT_FALSE(loop_->WaitUntilIdle(absl::ZeroDuration()));
}

TEST_F(BlockedLoopTest, AbortFollowsItsRequestThroughTheInbox) {
  StartBlocked(TestOptions());
  const RequestId queued = loop_->NewRequestId();
  ASSERT_TRUE(loop_->Submit(MakeRequest(queued, 5, 100)).ok());
  loop_->Abort(queued, -1, false);
  loop_->Abort(first_, -1, true);
  loop_->Abort(12345, -1, false);  // Unknown.
  release_.Notify();
  ASSERT_TRUE(sink_->WaitForLast(queued));
  ASSERT_TRUE(sink_->WaitForLast(first_));
  EXPECT_EQ(sink_->EventsOf(queued).back().finish_reason, FinishReason::kAbort);
  EXPECT_TRUE(sink_->TokensOf(queued).empty());
  EXPECT_EQ(sink_->EventsOf(first_).back().finish_reason, FinishReason::kStop);
  // One token was under way; none came after the abort.
  EXPECT_EQ(sink_->TokensOf(first_).size(), 1);
  ASSERT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
  EXPECT_EQ(loop_->Stats().num_free_blocks, loop_->Stats().num_blocks);
}

TEST_F(BlockedLoopTest, DrainingFinishesWhatWasAccepted) {
  StartBlocked(TestOptions());
  loop_->StartDraining();
  EXPECT_TRUE(absl::IsUnavailable(
      loop_->Submit(MakeRequest(loop_->NewRequestId(), 5, 3))));
  release_.Notify();
  ASSERT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
  EXPECT_NE(sink_->EventsOf(first_).back().finish_reason, FinishReason::kAbort);
  EXPECT_EQ(sink_->num_last()[first_], 1);
}

TEST_F(BlockedLoopTest, DestructorGivesEveryRequestItsLastEvent) {
  EngineOptions options = TestOptions();
  options.steps_in_flight = 2;
  StartBlocked(options);
  Request request = MakeRequest(loop_->NewRequestId(), 5, 100);
  request.n = 3;
  const RequestId queued = request.id;
  ASSERT_TRUE(loop_->Submit(request).ok());
  std::thread releaser([this] { release_.Notify(); });
  loop_.reset();
  releaser.join();
  EXPECT_EQ(sink_->num_last()[first_], 1);
  EXPECT_EQ(sink_->num_last()[queued], 1);
}

// Has four pieces of work to do ahead.
class AheadRunner : public HashModelRunner {
 public:
  using HashModelRunner::HashModelRunner;
  bool PrepareAhead() override {
    if (++num_ahead == 1) {
      has_begun.Notify();
      may_go_on.WaitForNotification();
    }
    return num_ahead < 4;
  }
  std::atomic<int> num_ahead{0};
  absl::Notification has_begun, may_go_on;
};

TEST_F(EngineLoopTest, PreparesAheadWhileThereIsNothingElseToDo) {
  Start(TestOptions());
  auto owned = std::make_unique<AheadRunner>(options_, model_options_);
  AheadRunner& runner = *owned;
  runner_ = std::move(owned);
  int num_ahead_at_step = -1;
  runner.on_collect = [&] {
    if (num_ahead_at_step < 0) num_ahead_at_step = runner.num_ahead;
  };
  Create();
  runner.has_begun.WaitForNotification();
  const RequestId id = loop_->NewRequestId();
  ASSERT_TRUE(loop_->Submit(MakeRequest(id, 5, 3)).ok());
  runner.may_go_on.Notify();
  ASSERT_TRUE(sink_->WaitForLast(id));
  EXPECT_EQ(num_ahead_at_step, 1);  // The request waited for one piece.
  // Then for the rest, and no longer.
  while (runner.num_ahead < 4) std::this_thread::yield();
  const RequestId second = loop_->NewRequestId();
  ASSERT_TRUE(loop_->Submit(MakeRequest(second, 5, 3)).ok());
  ASSERT_TRUE(sink_->WaitForLast(second));
  loop_.reset();
  EXPECT_EQ(runner.num_ahead, 4);
}

TEST_F(EngineLoopTest, DeadEngineSaysSoAndEndsEverything) {
  Start(TestOptions());
  runner_->fail_submit = [](const SchedulerOutput&, bool*) {
    return absl::InternalError("no device");
  };
  Create();
  absl::Status status;
  // Each failing step takes its requests along; after three in a row the
  // engine has stopped.
  for (int i = 0; i < 3; ++i) {
    const RequestId id = loop_->NewRequestId();
    ASSERT_TRUE(loop_->Submit(MakeRequest(id, 5, 3)).ok());
    ASSERT_TRUE(sink_->WaitForLast(id));
    EXPECT_EQ(sink_->EventsOf(id).back().finish_reason, FinishReason::kError);
  }
  ASSERT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
  EXPECT_TRUE(absl::IsUnavailable(loop_->Health()));
  EXPECT_TRUE(absl::IsUnavailable(
      loop_->Submit(MakeRequest(loop_->NewRequestId(), 5, 3))));
}

TEST_F(EngineLoopTest, ManyThreadsGetTheirOwnAnswers) {
  for (int steps_in_flight : {1, 2}) {
    EngineOptions options = TestOptions();
    options.steps_in_flight = steps_in_flight;
    options.num_blocks = 24;  // Preemption happens.
    options.max_num_queued_reqs = 1000;
    Start(options);
    Create();
    constexpr int kNumThreads = 4;
    constexpr int kNumRequests = 40;
    std::vector<std::vector<Request>> requests(kNumThreads);
    std::vector<std::thread> threads;
    for (int t = 0; t < kNumThreads; ++t) {
      threads.emplace_back([this, t, &requests] {
        for (int i = 0; i < kNumRequests; ++i) {
          const RequestId id = loop_->NewRequestId();
          Request request = MakeRequest(id, 1 + (i * 5 + t) % 40, 1 + i % 20);
          requests[t].push_back(request);
          EXPECT_TRUE(loop_->Submit(std::move(request)).ok());
          if (i % 4 == 3) loop_->Abort(id, -1, false);
          EXPECT_GE(loop_->Stats().num_steps, 0);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
    const std::map<RequestId, int> num_last = sink_->num_last();
    EXPECT_EQ(num_last.size(), kNumThreads * kNumRequests);
    for (const auto& of_thread : requests) {
      for (size_t i = 0; i < of_thread.size(); ++i) {
        const Request& request = of_thread[i];
        EXPECT_EQ(num_last.at(request.id), 1);
        const HashModelAnswer answer =
            AnswerAlone(options, model_options_, request, 0, 0, 24 * 4);
        std::vector<int32_t> told = sink_->TokensOf(request.id);
        if (i % 4 == 3) {  // Aborted, perhaps too late.
          ASSERT_LE(told.size(), answer.token_ids.size());
          EXPECT_TRUE(
              std::equal(told.begin(), told.end(), answer.token_ids.begin()));
        } else {
          EXPECT_EQ(told, answer.token_ids);
        }
      }
    }
    const EngineStats stats = loop_->Stats();
    EXPECT_EQ(stats.num_free_blocks, stats.num_blocks);
    loop_.reset();
    EXPECT_EQ(runner_->violation(), "");
  }
}

}  // namespace
}  // namespace quire
