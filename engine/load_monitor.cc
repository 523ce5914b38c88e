#include "engine/load_monitor.h"

#include <algorithm>
#include <cmath>

namespace quire {

LoadMonitor::LoadMonitor(absl::Duration target_queue_delay, absl::Time now)
    : target_queue_delay_(target_queue_delay), last_(now) {}

void LoadMonitor::Note(absl::Time now, const Interval& interval) {
  const double seconds = std::max(0.0, absl::ToDoubleSeconds(now - last_));
  last_ = now;
  const double kept = std::exp(-seconds / absl::ToDoubleSeconds(kMemory));
  const int64_t work = interval.work - last_work_;
  last_work_ = interval.work;
  if (interval.has_queue) {
    served_work_ = served_work_ * kept + work;
    served_seconds_ = served_seconds_ * kept + seconds;
    has_rate_ = has_rate_ || (work > 0 && served_seconds_ > 0);
  }
  seconds_without_work_ =
      interval.has_queue && work == 0 ? seconds_without_work_ + seconds : 0;
  const double queue_use =
      std::min(1.0, absl::FDivDuration(PredictDelay(interval.queued_cost),
                                       target_queue_delay_));
  step_use_ += (1 - kept) * (interval.step_use - step_use_);
  kv_use_ += (1 - kept) * (interval.kv_use - kv_use_);
  queue_use_ += (1 - kept) * (queue_use - queue_use_);
}

std::optional<double> LoadMonitor::service_rate() const {
  if (!has_rate_) return std::nullopt;
  return served_work_ / served_seconds_;
}

absl::Duration LoadMonitor::PredictDelay(int64_t cost_ahead,
                                         absl::Duration stalled) const {
  // Who has waited so long in vain may as well wait as long again.
  const double in_vain = seconds_without_work_ + absl::ToDoubleSeconds(stalled);
  double seconds = in_vain;
  if (cost_ahead > 0 && has_rate_) {
    const double served_seconds =
        served_seconds_ + absl::ToDoubleSeconds(stalled);
    // Where nothing was done for very long, the work has faded to nothing.
    seconds = std::max(
        in_vain, cost_ahead * served_seconds / std::max(served_work_, 1e-9));
  }
  return std::min(absl::Seconds(seconds), absl::Hours(24));
}

double LoadMonitor::Saturation(absl::Time now) const {
  // Since the last note nothing has been done, as far as is known: a step is
  // short beside the memory, and idleness may last.
  const double seconds = std::max(0.0, absl::ToDoubleSeconds(now - last_));
  const double kept = std::exp(-seconds / absl::ToDoubleSeconds(kMemory));
  return std::clamp(kept * std::max({step_use_, kv_use_, queue_use_}), 0.0,
                    1.0);
}

}  // namespace quire
