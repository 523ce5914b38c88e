#include "engine/base/short_slice.h"

#include <sched.h>
#include <sys/resource.h>

#include <thread>

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(ShortSliceTest, KeepsPolicyAndPriority) {
  std::thread([] {
    const int nice = getpriority(PRIO_PROCESS, 0);
    TakeShortSlices();
    EXPECT_EQ(sched_getscheduler(0), SCHED_OTHER);
    EXPECT_EQ(getpriority(PRIO_PROCESS, 0), nice);
  }).join();
}

TEST(ShortSliceTest, LeavesOtherPoliciesAlone) {
  std::thread([] {
    const sched_param param = {};
    ASSERT_EQ(sched_setscheduler(0, SCHED_BATCH, &param), 0);
    TakeShortSlices();
    EXPECT_EQ(sched_getscheduler(0), SCHED_BATCH);
  }).join();
}

}  // namespace
}  // namespace quire
