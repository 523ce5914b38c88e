#include "engine/parallel/liveness.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/time/clock.h"
#include "engine/base/clock.h"
#include "engine/parallel/tcp.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

absl::Time At(double seconds) {
  return absl::UnixEpoch() + absl::Seconds(seconds);
}

TEST(WakefulTimeTest, CountsWhatTheWatcherCouldSee) {
  WakefulTime time(absl::Milliseconds(50));
  time.Advance(At(7));
  EXPECT_EQ(time.total(), absl::ZeroDuration());
  time.Advance(At(7.05));
  time.Advance(At(7.12));  // A little late.
  EXPECT_EQ(time.total(), absl::Milliseconds(120));
  time.Advance(At(60));  // It was stopped itself.
  EXPECT_EQ(time.total(), absl::Milliseconds(220));
}

TEST(BeatRecordTest, TheLongestGapOfTheLastHalfMinute) {
  BeatRecord beats;
  double now = 0;
  const auto beat_for = [&](double seconds) {
    const double end = now + seconds;
    while (now < end) beats.Heard(absl::Seconds(now += 0.1));
  };
  beat_for(2);
  EXPECT_LT(beats.LongestGap(), absl::Milliseconds(101));
  EXPECT_EQ(beats.SilenceAt(absl::Seconds(now + 0.7)), absl::Seconds(0.7));
  beats.Heard(absl::Seconds(now += 0.8));
  EXPECT_GT(beats.LongestGap(), absl::Milliseconds(799));
  beat_for(14);
  EXPECT_GT(beats.LongestGap(), absl::Milliseconds(799));
  beat_for(31);
  EXPECT_LT(beats.LongestGap(), absl::Milliseconds(101));
}

TEST(MaxSilenceTest, FollowsFromWhatIsSeen) {
  const SilenceLimits limits = {absl::Seconds(1), absl::Seconds(30)};
  BeatRecord beats;
  for (int i = 1; i < 20; ++i) beats.Heard(absl::Milliseconds(100 * i));
  const auto limit = [&](SilenceCause cause, bool is_serving) {
    return MaxSilence(cause, is_serving, beats, limits);
  };
  EXPECT_EQ(limit(SilenceCause::kHangs, true), absl::Seconds(1));
  EXPECT_EQ(limit(SilenceCause::kHangs, false), absl::Seconds(30));
  EXPECT_EQ(limit(SilenceCause::kStopped, true), absl::Seconds(1));
  EXPECT_EQ(limit(SilenceCause::kStopped, false), absl::Seconds(1));
  EXPECT_EQ(limit(SilenceCause::kStarved, true), absl::Seconds(30));
  EXPECT_EQ(limit(SilenceCause::kUnreachable, true), absl::Seconds(30));
  // One that has been late before, on its machine.
  beats.Heard(absl::Seconds(2.7));
  EXPECT_EQ(limit(SilenceCause::kHangs, true), absl::Seconds(2.4));
  EXPECT_EQ(MaxSilence(SilenceCause::kHangs, true, beats,
                       {absl::Seconds(1), absl::Seconds(2)}),
            absl::Seconds(2));
  // Or whose network was out: its next attempt may be as far away.
  BeatRecord plugged;
  for (int i = 1; i < 20; ++i) plugged.Heard(absl::Milliseconds(100 * i));
  plugged.NoteUnreachable(absl::Seconds(3.4));
  EXPECT_EQ(MaxSilence(SilenceCause::kHangs, true, plugged, limits),
            absl::Seconds(4));
  EXPECT_EQ(MaxSilence(SilenceCause::kStopped, true, plugged, limits),
            absl::Seconds(1));
  plugged.Heard(absl::Seconds(5));
  EXPECT_EQ(plugged.outage(), absl::ZeroDuration());
  EXPECT_EQ(SilenceToLookInto(limits), absl::Seconds(0.5));
  EXPECT_EQ(DescribeSilence(SilenceCause::kHangs, absl::Seconds(1)),
            "no sign of life for 1s");
  EXPECT_EQ(DescribeSilence(SilenceCause::kStopped, absl::Seconds(1)),
            "no sign of life for 1s, its process is stopped");
}

// A child whose thread of that name sleeps or computes.
class LookAtProcessTest : public testing::Test {
 protected:
  void Start(bool sleeps, bool has_name = true) {
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    pid_ = fork();
    ASSERT_GE(pid_, 0);
    if (pid_ == 0) {
      // The main thread is the one: this process has no other.
      if (has_name) NameBeatThread();
      (void)!write(ready[1], "", 1);
      volatile int counter = 0;
      while (!sleeps) counter = counter + 1;
      for (;;) pause();
    }
    char byte = 0;
    EXPECT_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
  }
  ~LookAtProcessTest() override { End(); }
  void End() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  // True as soon as it is seen so.
  bool BecomesSeen(SilenceCause cause) const {
    const absl::Time end = Clock::Monotonic()->Now() + absl::Seconds(20);
    while (Clock::Monotonic()->Now() < end) {
      if (LookAtProcess(pid_) == cause) return true;
      std::this_thread::yield();
    }
    return false;
  }

  int pid_ = -1;
};

TEST_F(LookAtProcessTest, WhoSleepsCouldSpeak) {
  Start(/*sleeps=*/true);
  EXPECT_TRUE(BecomesSeen(SilenceCause::kHangs));
}

TEST_F(LookAtProcessTest, WhoWantsACpuMayLackOne) {
  Start(/*sleeps=*/false);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(LookAtProcess(pid_), SilenceCause::kStarved);
  }
}

TEST_F(LookAtProcessTest, AStoppedProcessIsSeen) {
  for (const bool sleeps : {true, false}) {
    Start(sleeps);
    kill(pid_, SIGSTOP);
    EXPECT_TRUE(BecomesSeen(SilenceCause::kStopped));
    kill(pid_, SIGCONT);
    EXPECT_TRUE(
        BecomesSeen(sleeps ? SilenceCause::kHangs : SilenceCause::kStarved));
    End();
  }
}

TEST_F(LookAtProcessTest, OfWhomNothingIsKnownNothingIsSaid) {
  Start(/*sleeps=*/true, /*has_name=*/false);
  EXPECT_EQ(LookAtProcess(pid_), SilenceCause::kStarved);
  const int pid = pid_;
  End();
  EXPECT_EQ(LookAtProcess(pid), SilenceCause::kStarved);
}

// Of a process with one more thread: that works, sleeps, or is stopped at.
TEST(IdleRecordTest, SleepIsTold) {
  const auto busy_for = [](absl::Duration time) {
    const absl::Time end = Clock::Monotonic()->Now() + time;
    while (Clock::Monotonic()->Now() < end) {
    }
  };
  std::mutex mu;
  std::condition_variable changed;
  bool sleeps = false, ends = false;
  std::thread worker([&] {
    std::unique_lock<std::mutex> lock(mu);
    while (!ends) {
      if (sleeps) {
        changed.wait(lock);
      } else {
        lock.unlock();
        busy_for(absl::Milliseconds(1));
        lock.lock();
      }
    }
  });
  const auto tell = [&](bool& what) {
    std::lock_guard<std::mutex> lock(mu);
    what = true;
    changed.notify_all();
  };
  IdleRecord idle;
  double now = 0;
  const auto look = [&](bool is_working, int64_t progress) {
    return idle.Update(absl::Seconds(now += 0.1), is_working, progress);
  };
  look(true, 1);
  for (int i = 0; i < 5; ++i) {
    busy_for(absl::Milliseconds(8));
    EXPECT_EQ(look(true, 1), absl::ZeroDuration());
  }
  tell(sleeps);
  // It may take a moment to fall asleep.
  while (look(true, 1) == absl::ZeroDuration()) std::this_thread::yield();
  for (int i = 0; i < 5; ++i) {
    busy_for(absl::Milliseconds(8));  // The watcher's own time.
    EXPECT_GT(look(true, 1), absl::Seconds(0.1 * i + 0.15));
  }
  // Something has been done, or there is nothing to do.
  EXPECT_EQ(look(true, 2), absl::ZeroDuration());
  EXPECT_GT(look(true, 2), absl::ZeroDuration());
  EXPECT_EQ(look(false, 2), absl::ZeroDuration());
  tell(ends);
  worker.join();
}

// Its kernel answers for a process that reads nothing.
TEST(LookAtConnectionTest, AHostThatAcknowledgesIsThere) {
  auto listener = ListenTcp({"127.0.0.1", 0});
  ASSERT_TRUE(listener.ok());
  const absl::Time soon = Clock::Monotonic()->Now() + absl::Seconds(20);
  auto mine = ConnectTcp(LocalAddress(listener->get()), soon);
  auto theirs = AcceptTcp(listener->get(), soon);
  ASSERT_TRUE(mine.ok() && theirs.ok());
  EXPECT_EQ(LookAtConnection(mine->get()), SilenceCause::kHangs);
  ASSERT_EQ(send(mine->get(), "beat", 4, 0), 4);
  EXPECT_EQ(LookAtConnection(mine->get()), SilenceCause::kHangs);
  // Also when it can take nothing more.
  const std::string much(1 << 20, 'x');
  while (send(mine->get(), much.data(), much.size(), MSG_DONTWAIT) > 0) {
  }
  EXPECT_EQ(LookAtConnection(mine->get()), SilenceCause::kHangs);
  EXPECT_EQ(LookAtConnection(STDIN_FILENO), SilenceCause::kHangs);
}

}  // namespace
}  // namespace quire
