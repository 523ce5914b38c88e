// How loaded an engine is: the rate at which it works while requests wait, and
// one figure from 0 to 1 to scale by.
#ifndef QUIRE_ENGINE_LOAD_MONITOR_H_
#define QUIRE_ENGINE_LOAD_MONITOR_H_

#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace quire {

// Averages over time, not over steps: an engine that is idle half of the time
// is half used, however full its steps are. Weights of the past fall by e in
// kMemory. A function of its arguments. Thread-compatible.
class LoadMonitor {
 public:
  // Short enough to see a step of load within the period of an autoscaler (15
  // s), long enough that a burst of some seconds is no step.
  static constexpr absl::Duration kMemory = absl::Seconds(10);

  // target_queue_delay: at which the queue alone makes saturation 1; > 0.
  LoadMonitor(absl::Duration target_queue_delay, absl::Time now);

  // What an interval that has just ended was like.
  struct Interval {
    double step_use = 0;  // Of the token budget or the slots, the larger one.
    double kv_use = 0;    // Of the blocks.
    bool has_queue = false;   // Something waited while the step ran.
    int64_t work = 0;         // SchedulerCounters::work, now.
    int64_t queued_cost = 0;  // Of what waits now, in the same units.
  };
  // The time since the last call was so. Time that seems to go back counts for
  // nothing.
  void Note(absl::Time now, const Interval& interval);

  // Work per second lately, while requests waited. Work and not starts: where
  // all slots are taken nothing starts until the first answer ends, however
  // fast all of them come along. None as long as nothing was done while
  // somebody waited.
  std::optional<double> service_rate() const;
  // Until a request starts that is behind so much. What is not known delays
  // nobody: without a rate it is the time for which others have waited and
  // nothing was done. `stalled`: for so long the present step should have been
  // over; a wait is never shorter than that, and the rate falls by it.
  absl::Duration PredictDelay(
      int64_t cost_ahead, absl::Duration stalled = absl::ZeroDuration()) const;

  // The largest of these, at most 1. `now`: no later than the next Note.
  double Saturation(absl::Time now) const;
  double step_use() const { return step_use_; }
  double kv_use() const { return kv_use_; }
  // The predicted delay of a request at the end of the queue, as a part of the
  // target.
  double queue_use() const { return queue_use_; }

 private:
  const absl::Duration target_queue_delay_;
  absl::Time last_;
  int64_t last_work_ = 0;
  double step_use_ = 0;
  double kv_use_ = 0;
  double queue_use_ = 0;
  // While something waited; both fade, so that their quotient is recent.
  double served_work_ = 0;
  double served_seconds_ = 0;
  bool has_rate_ = false;
  // Something waits, and nothing has been done.
  double seconds_without_work_ = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_LOAD_MONITOR_H_
