// Ranks that are killed, stopped, stuck or lost while they load or run, seen
// from both sides.
#include <signal.h>

#include <atomic>
#include <chrono>
#include <future>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "engine/base/clock.h"
#include "engine/parallel/control_link.h"
#include "engine/parallel/rank_group_fixture.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(RankGroupProcessesTest, KilledWorkerIsNamedWithinASecond) {
  RunningGroup running(LocalGroup(3, 1, "kill"));
  ASSERT_TRUE(running.status.ok()) << running.status;
  PlanMaker plans;
  ASSERT_TRUE(RunSteps(running.runner, plans, 10).ok());
  const absl::Time begin = Clock::Monotonic()->Now();
  const absl::Status status = RunUntilFailure(running.runner, plans);
  EXPECT_LT(Clock::Monotonic()->Now() - begin, absl::Seconds(1));
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "rank 2")) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "signal 9")) << status;
  EXPECT_EQ(running.group->Health(), status);
  EXPECT_EQ(running.runner->Submit(plans.Next()), status);
}

// When a rank is given up whatever it may be: long after what is expected here.
constexpr absl::Duration kWatchdog = absl::Seconds(20);
// A second, and what a busy machine adds, where the watcher counts only the
// time that it is awake.
constexpr absl::Duration kSoon = absl::Seconds(3);

void ExpectSilenceWasNoticed(const absl::Status& status, absl::Time stopped_at,
                             absl::string_view name) {
  const absl::Duration taken = Clock::Monotonic()->Now() - stopped_at;
  EXPECT_GT(taken, absl::Seconds(0.8));
  EXPECT_LT(taken, kSoon);
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_TRUE(absl::StrContains(
      status.message(), absl::StrCat(name, " (", OwnHostName(), ", process ")))
      << status;
  EXPECT_TRUE(
      absl::StrContains(status.message(), "hangs: no sign of life for 1s"))
      << status;
}

TEST(RankGroupProcessesTest, AStoppedWorkerIsNamedWithinASecond) {
  RankGroupOptions options = LocalGroup(3, 1, "stop");
  options.ranks.watchdog = kWatchdog;
  RunningGroup running(std::move(options));
  ASSERT_TRUE(running.status.ok()) << running.status;
  PlanMaker plans;
  ASSERT_TRUE(RunSteps(running.runner, plans, 10).ok());
  const absl::Time begin = Clock::Monotonic()->Now();
  const absl::Status status = RunUntilFailure(running.runner, plans);
  ExpectSilenceWasNoticed(status, begin, "rank 2");
  EXPECT_TRUE(absl::StrContains(status.message(), "its process is stopped"))
      << status;
}

// Also while there is nothing to compute.
TEST(RankGroupNodesTest, AStoppedWorkerOfAnotherNodeIsNamedWithinASecond) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  options.ranks.watchdog = kWatchdog;
  const NodeProcess worker(1, options.ranks.master.port);
  RunningGroup running(options);
  ASSERT_TRUE(running.status.ok()) << running.status;
  PlanMaker plans;
  ASSERT_TRUE(RunSteps(running.runner, plans, 10).ok());
  const absl::Time begin = Clock::Monotonic()->Now();
  worker.Signal(SIGSTOP);
  while (running.group->Health().ok() &&
         Clock::Monotonic()->Now() < begin + kWatchdog) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  ExpectSilenceWasNoticed(running.group->Health(), begin, "rank 1");
}

TEST(RankGroupNodesTest, AStoppedRank0IsNamedWithinASecond) {
  RankOptions ranks = TestRanks(2, 1, 2);
  ranks.watchdog = kWatchdog;
  absl::Notification runs;
  RemoteWorker worker(ranks, 1, "none", [&](int64_t step_id) {
    if (step_id == 110) runs.Notify();
  });
  const NodeProcess leader(0, ranks.master.port);
  ASSERT_TRUE(runs.WaitForNotificationWithTimeout(absl::Seconds(20)));
  const absl::Time begin = Clock::Monotonic()->Now();
  leader.Signal(SIGSTOP);
  ExpectSilenceWasNoticed(worker.Join(), begin, "rank 0");
}

// Who is stopped for less goes on.
TEST(RankGroupNodesTest, AShortStallCostsNothing) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  const NodeProcess worker(1, options.ranks.master.port);
  RunningGroup running(options);
  ASSERT_TRUE(running.status.ok()) << running.status;
  PlanMaker plans;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(RunSteps(running.runner, plans, 10).ok());
    worker.Signal(SIGSTOP);
    absl::SleepFor(absl::Seconds(0.4));
    worker.Signal(SIGCONT);
  }
  const absl::Status status = RunSteps(running.runner, plans, 10);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(RankGroupProcessesTest, ARankThatGetsNoFurtherIsNamed) {
  RunningGroup running(LocalGroup(2, 1, "hang"));
  ASSERT_TRUE(running.status.ok()) << running.status;
  PlanMaker plans;
  ASSERT_TRUE(RunSteps(running.runner, plans, 10).ok());
  const absl::Time begin = Clock::Monotonic()->Now();
  const absl::Status status = RunUntilFailure(running.runner, plans);
  const absl::Duration taken = Clock::Monotonic()->Now() - begin;
  EXPECT_GT(taken, absl::Seconds(1.7));
  EXPECT_LT(taken, absl::Seconds(3.3));
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "rank 1")) << status;
  // That one waits for it.
  EXPECT_FALSE(absl::StrContains(status.message(), "rank 0")) << status;
}

// Who computes on CPUs has no reason to sleep in a step, but for the others.
TEST(RankGroupProcessesTest, AWorkerThatSleepsInAStepIsNamedWithinASecond) {
  RankGroupOptions options = LocalGroup(3, 1, "cpu hang");
  options.ranks.watchdog = kWatchdog;
  RunningGroup running(std::move(options));
  ASSERT_TRUE(running.status.ok()) << running.status;
  PlanMaker plans;
  ASSERT_TRUE(RunSteps(running.runner, plans, 10).ok());
  const absl::Time begin = Clock::Monotonic()->Now();
  const absl::Status status = RunUntilFailure(running.runner, plans);
  const absl::Duration taken = Clock::Monotonic()->Now() - begin;
  EXPECT_GT(taken, absl::Seconds(0.8));
  EXPECT_LT(taken, kSoon);
  EXPECT_TRUE(absl::IsUnavailable(status));
  for (const char* part :
       {"rank 2 (", "none of its threads has computed for 1s in step 10"}) {
    EXPECT_TRUE(absl::StrContains(status.message(), part)) << status;
  }
}

TEST(RankGroupProcessesTest, WhoComputesOrWaitsForAnotherDoesNotSleep) {
  for (const char* fault : {"cpu busy", "cpu none"}) {
    SCOPED_TRACE(fault);
    RankGroupOptions options = LocalGroup(2, 1, fault);
    options.ranks.watchdog = kWatchdog;
    RunningGroup running(std::move(options));
    ASSERT_TRUE(running.status.ok()) << running.status;
    // Rank 1 waits for it in the sum.
    if (std::string(fault) == "cpu none") running.shard->before_sum = BeSlow;
    PlanMaker plans;
    const absl::Status status = RunSteps(running.runner, plans, 20);
    EXPECT_TRUE(status.ok()) << status;
  }
}

// With signs of life a step may take long: 31 tokens 3.1 s more than the
// watchdog's time.
TEST(RankGroupProcessesTest, SlowStepsOfManyTokensMayTakeLong) {
  RankGroupOptions options = LocalGroup(2, 1, "slow");
  options.ranks.watchdog = absl::Seconds(1);
  options.ranks.heartbeat_timeout = absl::Seconds(0.5);
  RunningGroup running(std::move(options));
  ASSERT_TRUE(running.status.ok()) << running.status;
  running.shard->before_sum = BeSlow;
  PlanMaker plans(31);
  const absl::Status status = RunSteps(running.runner, plans, 20);
  EXPECT_TRUE(status.ok()) << status;
}

// And as long as it likes, if it gets on: 3 tokens take 3 s.
TEST(RankGroupProcessesTest, StepsThatGetOnMayTakeLong) {
  RankGroupOptions options = LocalGroup(2, 1, "layers");
  options.ranks.watchdog = absl::Seconds(1);
  RunningGroup running(std::move(options));
  ASSERT_TRUE(running.status.ok()) << running.status;
  running.shard->before_sum = [&](int64_t step_id) {
    BeSlowAndGetOn(step_id, running.group->config().progress);
  };
  PlanMaker plans(3);
  const absl::Status status = RunSteps(running.runner, plans, 20);
  EXPECT_TRUE(status.ok()) << status;
}

// An abort that takes long holds nobody up.
TEST(RankGroupProcessesTest, LostRankAbortsTheDevicesOfRank0) {
  RunningGroup running(LocalGroup(2, 1, "kill"));
  ASSERT_TRUE(running.status.ok()) << running.status;
  absl::Notification may_end, has_begun;
  int num_aborts = 0;
  running.group->AbortOnFailure([&] {
    ++num_aborts;
    has_begun.Notify();
    may_end.WaitForNotification();
  });
  PlanMaker plans;
  const absl::Status status = RunUntilFailure(running.runner, plans);
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_TRUE(has_begun.WaitForNotificationWithTimeout(absl::Seconds(20)));
  EXPECT_EQ(running.group->Health(), status);
  EXPECT_EQ(running.runner->Submit(plans.Next()), status);
  may_end.Notify();
  // Who comes too late is called at once.
  bool is_called = false;
  running.group->AbortOnFailure([&] { is_called = true; });
  EXPECT_TRUE(is_called);
  running.group.reset();
  EXPECT_EQ(num_aborts, 1);
}

// A rank that says that it lives and never gets its shard loaded.
TEST(RankGroupProcessesTest, ARankThatHangsWhileLoadingIsGivenUp) {
  RankGroupOptions options = LocalGroup(3, 1, "load_hang");
  options.ranks.load_timeout = absl::Seconds(1);
  const absl::Time begin = Clock::Monotonic()->Now();
  RunningGroup running(std::move(options));
  EXPECT_LT(Clock::Monotonic()->Now() - begin, absl::Seconds(5));
  EXPECT_TRUE(absl::IsUnavailable(running.status));
  // Both sides, and not rank 1, which has loaded.
  for (const char* part :
       {"rank 2 (", "has not loaded 1s after", "rank 0 (", "--load-timeout"}) {
    EXPECT_TRUE(absl::StrContains(running.status.message(), part))
        << running.status;
  }
  EXPECT_FALSE(absl::StrContains(running.status.message(), "rank 1"))
      << running.status;
}

// Who reads weights hears of nothing; the process ended 4.5 s later.
TEST(RankGroupProcessesTest, ALossWhileRankZeroLoadsIsNotWaitedFor) {
  RankGroupOptions options = LocalGroup(2, 1, "load_exit");
  // Not an absl::Notification, through which race detectors do not see.
  std::promise<absl::Status> stuck;
  options.on_stuck = [&](const absl::Status& why) { stuck.set_value(why); };
  const auto group = RankGroup::Start(std::move(options));
  ASSERT_TRUE(group.ok()) << group.status();
  ASSERT_TRUE((*group)->Share("").ok());
  std::future<absl::Status> future = stuck.get_future();
  ASSERT_EQ(future.wait_for(std::chrono::seconds(3)),
            std::future_status::ready);
  const absl::Status status = future.get();
  EXPECT_TRUE(absl::StrContains(status.message(), "exit code 65")) << status;
}

// The drawing rank tells what it drew: rank 0 has no tokens of its own.
TEST(RankGroupProcessesTest, AStageThatIsLostIsNamed) {
  for (const auto& [fault, min_taken] :
       {std::pair{"kill", 0.0}, {"stop", 0.8}, {"hang", 1.7}}) {
    SCOPED_TRACE(fault);
    RunningGroup running(LocalGroup(1, 2, fault));
    ASSERT_TRUE(running.status.ok()) << running.status;
    PlanMaker plans;
    ASSERT_TRUE(RunSteps(running.runner, plans, 10).ok());
    const absl::Time begin = Clock::Monotonic()->Now();
    const absl::Status status = RunUntilFailure(running.runner, plans);
    const absl::Duration taken = Clock::Monotonic()->Now() - begin;
    EXPECT_GE(taken, absl::Seconds(min_taken));
    EXPECT_LT(taken, absl::Seconds(min_taken + 1.6));
    EXPECT_TRUE(absl::IsUnavailable(status));
    EXPECT_TRUE(absl::StrContains(status.message(), "rank 1")) << status;
  }
}

// Of three nodes: rank 2 is lost, and rank 1 hears which one it was.
TEST(RankGroupNodesTest, TheOthersHearWhoWasLost) {
  RankGroupOptions options;
  options.ranks = TestRanks(3, 1, 3);
  RemoteWorker first(options.ranks, 1), second(options.ranks, 2, "fail");
  RunningGroup running(options);
  ASSERT_TRUE(running.status.ok()) << running.status;
  PlanMaker plans;
  const absl::Status status = RunUntilFailure(running.runner, plans);
  for (const absl::Status& ended : {status, first.Join()}) {
    EXPECT_TRUE(absl::IsUnavailable(ended)) << ended;
    EXPECT_TRUE(absl::StrContains(
        ended.message(), absl::StrCat("rank 2 (", OwnHostName(), ", process ")))
        << ended;
    EXPECT_TRUE(absl::StrContains(ended.message(), "a broken device")) << ended;
  }
  EXPECT_TRUE(absl::StrContains(second.Join().message(), "a broken device"));
}

// Rank 0 whose process says nothing, as one that was stopped: a link that
// nobody serves stands for it.
TEST(RankGroupNodesTest, ARank0ThatSaysNothingIsGivenUp) {
  RankOptions ranks = TestRanks(1, 2, 2);
  ranks.watchdog = absl::Seconds(1);
  auto listener = ListenTcp(ranks.master);
  ASSERT_TRUE(listener.ok());
  auto mesh_listener = ListenTcp({"127.0.0.1", 0});
  ASSERT_TRUE(mesh_listener.ok());
  RemoteWorker worker(ranks, 1);
  const absl::Time soon = Clock::Monotonic()->Now() + absl::Seconds(20);
  auto fd = AcceptTcp(listener->get(), soon);
  ASSERT_TRUE(fd.ok()) << fd.status();
  ControlLink link(*std::move(fd));
  EXPECT_EQ(link.Receive(kMaxHelloBytes, soon)->type, MessageType::kHello);
  Welcome welcome;
  welcome.leader_name = "rank 0 (leader, process 7)";
  welcome.mesh.resize(2);
  welcome.mesh[0].port = LocalAddress(mesh_listener->get()).port;
  ASSERT_TRUE(
      link.Send(MessageType::kWelcome, ToBytes(welcome), absl::Seconds(5))
          .ok());
  auto mesh = AcceptTcp(mesh_listener->get(), soon);
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  // Signs of life count, and then there are none.
  absl::Time last;
  for (int i = 0; i < 30; ++i) {
    ASSERT_TRUE(*link.TrySend(MessageType::kHeartbeat, ""));
    last = Clock::Monotonic()->Now();
    absl::SleepFor(absl::Milliseconds(50));
  }
  const absl::Status ended = worker.Join();
  EXPECT_GT(Clock::Monotonic()->Now() - last, absl::Seconds(0.9));
  EXPECT_TRUE(absl::StrContains(
      ended.message(),
      "rank 0 (leader, process 7) hangs: no sign of life for 1s, says rank 1"))
      << ended;
}

}  // namespace
}  // namespace quire
