#include "engine/base/clock.h"

#include <time.h>

namespace quire {
namespace {

class MonotonicClock : public Clock {
 public:
  absl::Time Now() override {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return absl::TimeFromTimespec(now);
  }
};

}  // namespace

Clock* Clock::Monotonic() {
  static MonotonicClock* const clock = new MonotonicClock;
  return clock;
}

absl::Time FakeClock::Now() {
  return absl::FromUnixNanos(nanos_.load(std::memory_order_relaxed));
}

void FakeClock::Advance(absl::Duration duration) {
  nanos_.fetch_add(absl::ToInt64Nanoseconds(duration),
                   std::memory_order_relaxed);
}

}  // namespace quire
