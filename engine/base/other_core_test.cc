#include "engine/base/other_core.h"

#include <sched.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "gtest/gtest.h"

namespace quire {
namespace {

// A thread that is bound and does nothing until it is let go.
class BoundThread {
 public:
  explicit BoundThread(OtherCore* other) {
    thread_ = std::thread([this, other] {
      other->Bind();
      tid_ = gettid();
      tid_.notify_one();
      ends_.wait(false);
    });
    tid_.wait(0);
  }
  ~BoundThread() {
    ends_ = true;
    ends_.notify_one();
    thread_.join();
  }
  cpu_set_t cpus() const {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    EXPECT_EQ(sched_getaffinity(tid_, sizeof(cpus), &cpus), 0);
    return cpus;
  }

 private:
  std::atomic<pid_t> tid_{0};
  std::atomic<bool> ends_{false};
  std::thread thread_;
};

void PinTo(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
}

TEST(OtherCoreTest, LeavesTheWakersCoreWhereverThatIs) {
  cpu_set_t all;
  ASSERT_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
  if (CPU_COUNT(&all) < 2) GTEST_SKIP() << "one core";
  OtherCore other;
  BoundThread bound(&other);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &all)) continue;
    PinTo(cpu);
    other.Avoid();
    cpu_set_t expected = all;
    CPU_CLR(cpu, &expected);
    const cpu_set_t got = bound.cpus();
    EXPECT_TRUE(CPU_EQUAL(&got, &expected)) << cpu;
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(all), &all), 0);
}

TEST(OtherCoreTest, LeavesTheCoresThatTheWakerMayNotUse) {
  cpu_set_t all;
  ASSERT_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
  if (CPU_COUNT(&all) < 2) GTEST_SKIP() << "one core";
  OtherCore other;
  BoundThread bound(&other);
  // All but one are for the waker.
  cpu_set_t mine = all;
  int kept_from = 0;
  while (!CPU_ISSET(kept_from, &all)) ++kept_from;
  CPU_CLR(kept_from, &mine);
  ASSERT_EQ(sched_setaffinity(0, sizeof(mine), &mine), 0);
  other.AvoidAsIDo();
  const cpu_set_t got = bound.cpus();
  if (CPU_COUNT(&mine) == 1) {
    EXPECT_TRUE(CPU_EQUAL(&got, &all));  // None would be left.
  } else {
    EXPECT_FALSE(CPU_ISSET(kept_from, &got));
    EXPECT_EQ(CPU_COUNT(&got), CPU_COUNT(&mine) - 1);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(all), &all), 0);
}

TEST(OtherCoreTest, OneCoreIsForBoth) {
  cpu_set_t all;
  ASSERT_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
  PinTo(sched_getcpu());
  OtherCore other;
  BoundThread bound(&other);  // Inherits the core.
  const cpu_set_t before = bound.cpus();
  EXPECT_EQ(CPU_COUNT(&before), 1);
  other.Avoid();
  const cpu_set_t after = bound.cpus();
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
  ASSERT_EQ(sched_setaffinity(0, sizeof(all), &all), 0);
}

TEST(OtherCoreTest, NobodyIsBound) {
  OtherCore other;
  other.Avoid();
}

}  // namespace
}  // namespace quire
