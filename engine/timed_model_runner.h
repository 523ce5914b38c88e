// A model that takes time and computes nothing, for simulations in virtual time
// and nothing else.
#ifndef QUIRE_ENGINE_TIMED_MODEL_RUNNER_H_
#define QUIRE_ENGINE_TIMED_MODEL_RUNNER_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "engine/model_runner.h"

namespace quire {

// Draws the same token for every row that needs one; a step takes step_base and
// step_per_token for each of its tokens, by which Collect advances the clock.
// Thread-compatible.
class TimedModelRunner final : public ModelRunner {
 public:
  // `clock` is borrowed.
  TimedModelRunner(absl::Duration step_base, absl::Duration step_per_token,
                   FakeClock* clock)
      : step_base_(step_base), step_per_token_(step_per_token), clock_(clock) {}

  int steps_in_flight() const override { return 1; }
  absl::Status Submit(const SchedulerOutput& output) override {
    result_ = StepResult();
    result_.step_id = output.step_id;
    int num_tokens = 0;
    for (const ScheduledRow& row : output.rows) {
      num_tokens += row.num_tokens;
      if (!row.needs_token) continue;
      result_.rows.emplace_back();
      result_.rows.back().slot = row.slot;
      result_.rows.back().tokens.push_back({});
    }
    duration_ = step_base_ + num_tokens * step_per_token_;
    return absl::OkStatus();
  }
  absl::StatusOr<StepResult> Collect() override {
    clock_->Advance(duration_);
    busy_ += duration_;
    return std::move(result_);
  }
  bool Done() const override { return true; }
  // All steps together.
  absl::Duration busy() const { return busy_; }

 private:
  const absl::Duration step_base_;
  const absl::Duration step_per_token_;
  FakeClock* const clock_;
  StepResult result_;
  absl::Duration duration_;
  absl::Duration busy_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_TIMED_MODEL_RUNNER_H_
