// How long ranks wait for each other, where both sides must know it.
#ifndef QUIRE_ENGINE_PARALLEL_RANK_TIMING_H_
#define QUIRE_ENGINE_PARALLEL_RANK_TIMING_H_

#include <algorithm>
#include <cstdint>
#include <deque>

#include "absl/time/time.h"
#include "engine/parallel/rank_group.h"
#include "engine/scheduler/scheduler_output.h"

namespace quire {

// All ranks are there and alive when they connect to each other.
inline constexpr absl::Duration kMeshTimeout = absl::Seconds(20);
// A large model on a slow CPU computes 10 tokens of a prompt in a second; what
// is slower than that while signs of life come is taken for a deadlock.
inline constexpr absl::Duration kMaxTimePerToken = absl::Milliseconds(100);

// Between signs of life, of rank 0 and of the others.
inline absl::Duration HeartbeatInterval(const RankOptions& options) {
  return std::min({absl::Milliseconds(100), options.watchdog / 20,
                   options.heartbeat_timeout / 10});
}

inline int64_t NumTokensOf(const SchedulerOutput& plan) {
  int64_t num_tokens = 0;
  for (const ScheduledRow& row : plan.rows) num_tokens += row.num_tokens;
  return num_tokens;
}

// What a stage of a pipeline may wait for another one, which has to be done
// with the steps before: those that may be in flight here and there.
class StageTimeLimit {
 public:
  StageTimeLimit(absl::Duration watchdog, int steps_in_flight)
      : watchdog_(watchdog), num_steps_(2 * steps_in_flight) {}

  // With the step that begins.
  absl::Duration Next(int64_t num_tokens) {
    sizes_.push_back(num_tokens);
    sum_ += num_tokens;
    if (sizes_.size() > num_steps_) {
      sum_ -= sizes_.front();
      sizes_.pop_front();
    }
    return watchdog_ + kMaxTimePerToken * sum_;
  }

 private:
  const absl::Duration watchdog_;
  const size_t num_steps_;
  std::deque<int64_t> sizes_;  // Tokens of the last steps.
  int64_t sum_ = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_RANK_TIMING_H_
