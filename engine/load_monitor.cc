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
  const int64_t num_started = interval.started_cost - last_started_cost_;
  last_started_cost_ = interval.started_cost;
  if (interval.has_queue) {
    served_cost_ = served_cost_ * kept + num_started;
    served_seconds_ = served_seconds_ * kept + seconds;
  }
  const double queue_use =
      std::min(1.0, absl::FDivDuration(PredictDelay(interval.queued_cost),
                                       target_queue_delay_));
  step_use_ += (1 - kept) * (interval.step_use - step_use_);
  kv_use_ += (1 - kept) * (interval.kv_use - kv_use_);
  queue_use_ += (1 - kept) * (queue_use - queue_use_);
}

std::optional<double> LoadMonitor::service_rate() const {
  if (served_seconds_ <= 0) return std::nullopt;
  // Where nothing has started for long, one unit may: the delay is long, but a
  // number.
  return std::max(served_cost_, 1.0) / served_seconds_;
}

absl::Duration LoadMonitor::PredictDelay(int64_t cost_ahead) const {
  const std::optional<double> rate = service_rate();
  if (cost_ahead <= 0 || !rate.has_value()) return absl::ZeroDuration();
  return std::min(absl::Seconds(cost_ahead / *rate), absl::Hours(24));
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
