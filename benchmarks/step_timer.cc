#include "benchmarks/step_timer.h"

#include <algorithm>
#include <utility>

#include "benchmarks/statistics.h"

namespace quire {

absl::Status StepTimer::Submit(const SchedulerOutput& output) {
  // Whether the step before still runs: the device has what to do.
  const bool is_busy = num_in_flight_ > 0 && !runner_.Done();
  if (is_busy) last_busy_ = now_();
  const absl::Status status = runner_.Submit(output);
  const double end = now_();
  if (!is_first_) {
    host_.push_back(end - last_submit_ - waited_);
    exposed_.push_back(is_busy ? 0.0 : end - last_busy_);
  }
  is_first_ = false;
  waited_ = 0;
  last_submit_ = last_busy_ = end;
  num_in_flight_ += status.ok();
  return status;
}

absl::StatusOr<StepResult> StepTimer::Collect() {
  const double begin = now_();
  absl::StatusOr<StepResult> result = runner_.Collect();
  const double end = now_();
  waited_ += end - begin;
  --num_in_flight_;
  // What it waited for ran until now.
  last_busy_ = end;
  return result;
}

bool StepTimer::PrepareAhead() {
  is_first_ = true;
  return runner_.PrepareAhead();
}

StepTimes StepTimer::Times() const {
  StepTimes times;
  times.num_steps = static_cast<int64_t>(host_.size());
  if (host_.empty()) return times;
  times.host = Median(host_) * 1e6;
  times.exposed = Median(exposed_) * 1e6;
  times.exposed_steps =
      100.0 *
      std::count_if(exposed_.begin(), exposed_.end(),
                    [](double seconds) { return seconds > 0; }) /
      host_.size();
  return times;
}

}  // namespace quire
