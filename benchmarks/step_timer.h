// What the steps of an engine cost the host, seen from between it and the
// model: beside a device that computes, and while the device waits for it.
#ifndef QUIRE_BENCHMARKS_STEP_TIMER_H_
#define QUIRE_BENCHMARKS_STEP_TIMER_H_

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model_runner.h"

namespace quire {

struct StepTimes {
  int64_t num_steps = 0;
  // Medians over the steps, in microseconds. What the engine's thread does in a
  // step but wait for the device: planning, submitting, telling results.
  double host = 0;
  // Of it, at most so much while the device had nothing to do: since a step was
  // last seen to run, where it had ended before the next one was submitted.
  double exposed = 0;
  // Steps (percent) before which the device had nothing to do.
  double exposed_steps = 0;
};

// Passes everything on. Used by the engine's thread; Times once that has ended
// or is idle.
class StepTimer : public ModelRunner {
 public:
  // `runner` outlives it. `now`: seconds.
  StepTimer(ModelRunner* runner, std::function<double()> now)
      : runner_(*runner), now_(std::move(now)) {}

  int steps_in_flight() const override { return runner_.steps_in_flight(); }
  absl::Status Submit(const SchedulerOutput& output) override;
  absl::StatusOr<StepResult> Collect() override;
  void Recycle(StepResult result) override {
    runner_.Recycle(std::move(result));
  }
  bool Done() const override { return runner_.Done(); }
  // Between bursts of work: what passes is no step's.
  bool PrepareAhead() override;

  StepTimes Times() const;

 private:
  ModelRunner& runner_;
  const std::function<double()> now_;
  int num_in_flight_ = 0;
  bool is_first_ = true;    // Since the engine was idle.
  double last_busy_ = 0;    // When a step was last seen to run.
  double last_submit_ = 0;  // When the last Submit returned.
  double waited_ = 0;       // In Collect, since then.
  std::vector<double> host_, exposed_;
};

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_STEP_TIMER_H_
