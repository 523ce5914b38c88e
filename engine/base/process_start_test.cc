#include "engine/base/process_start.h"

#include <sys/wait.h>
#include <unistd.h>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

// The kernel counts in ticks of 10 ms.
constexpr absl::Duration kTick = absl::Milliseconds(10);

TEST(ProcessStartTest, GrowsWithTime) {
  const absl::Duration before = TimeSinceProcessStart();
  EXPECT_GT(before, absl::ZeroDuration());
  const absl::Time begin = absl::Now();
  while (absl::Now() - begin < absl::Milliseconds(30)) continue;
  const absl::Duration passed = TimeSinceProcessStart() - before;
  EXPECT_GE(passed, absl::Milliseconds(29));
  EXPECT_LE(passed, absl::Now() - begin + kTick);
}

TEST(ProcessStartTest, BelongsToThisProcess) {
  const absl::Time begin = absl::Now();
  while (absl::Now() - begin < absl::Milliseconds(50)) continue;
  const absl::Time fork_time = absl::Now();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const absl::Duration since_start = TimeSinceProcessStart();
    _exit(since_start <= absl::Now() - fork_time + kTick ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace
}  // namespace quire
