// The one source of time, so that tests can own it.
#ifndef QUIRE_ENGINE_BASE_CLOCK_H_
#define QUIRE_ENGINE_BASE_CLOCK_H_

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"

namespace quire {

// Thread-safe. Monotonic: never goes back, unaffected by changes of the wall
// clock. Only differences of two readings mean anything.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() = 0;

  // The process's CLOCK_MONOTONIC; never destroyed.
  static Clock* Monotonic();
};

// Stands still until a test moves it.
class FakeClock : public Clock {
 public:
  absl::Time Now() override;
  void Advance(absl::Duration duration);

 private:
  std::atomic<int64_t> nanos_{1'000'000'000};
};

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_CLOCK_H_
