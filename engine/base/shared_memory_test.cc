#include "engine/base/shared_memory.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(SharedMemoryTest, TwoMappingsShowTheSameBytes) {
  auto first = SharedMemory::Create(10000);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->num_bytes(), 10000);
  auto second = SharedMemory::Map(dup(first->fd()));
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->num_bytes(), 10000);
  EXPECT_EQ(second->data()[9999], 0);
  first->data()[9999] = 42;
  EXPECT_EQ(second->data()[9999], 42);
}

TEST(SharedMemoryTest, RefusesForeignFiles) {
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(SharedMemory::Map(pipes[0]).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(SharedMemory::Map(-1).status()));
  close(pipes[1]);
}

TEST(SharedCounterTest, WakesWhoWaitsInAnotherProcess) {
  auto memory = SharedMemory::Create(4096);
  ASSERT_TRUE(memory.ok());
  auto* const counters = reinterpret_cast<SharedCounter*>(memory->data());
  const pid_t child = fork();
  if (child == 0) {
    // Forever, but for the parent's Store.
    while (!counters[0].HasReached(1)) {
      counters[0].WaitWhile(0, absl::Seconds(100));
    }
    counters[1].Store(7);
    _exit(0);
  }
  while (counters[0].num_waiters.load() == 0) std::this_thread::yield();
  counters[0].Store(1);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(counters[1].Load(), 7u);
  EXPECT_EQ(counters[0].num_waiters.load(), 0u);
}

TEST(SharedCounterTest, WrapsAround) {
  SharedCounter counter = {};
  counter.Store(0xffffffff);
  EXPECT_TRUE(counter.HasReached(0xfffffffe));
  EXPECT_FALSE(counter.HasReached(0));
  counter.Store(1);
  EXPECT_TRUE(counter.HasReached(0xffffffff));
}

TEST(SharedCounterTest, WaitEndsAfterTheTimeoutAndWhenTheValueIsAnother) {
  SharedCounter counter = {};
  counter.WaitWhile(0, absl::Milliseconds(1));
  counter.WaitWhile(5, absl::Seconds(100));
}

TEST(ProcessWatchTest, SeesAZombieAsGone) {
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  const pid_t child = fork();
  if (child == 0) {
    char byte;
    close(pipes[1]);
    (void)!read(pipes[0], &byte, 1);  // Until the parent closes its end.
    _exit(0);
  }
  close(pipes[0]);
  ProcessWatch watch(child);
  EXPECT_TRUE(watch.has_process());
  EXPECT_FALSE(watch.IsGone());
  close(pipes[1]);
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, child, &info, WEXITED | WNOWAIT), 0);
  EXPECT_TRUE(watch.IsGone());  // Not reaped yet.
  waitpid(child, nullptr, 0);
  EXPECT_TRUE(watch.IsGone());
  EXPECT_FALSE(ProcessWatch().IsGone());
}

}  // namespace
}  // namespace quire
