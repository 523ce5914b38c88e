// Executes the scheduler's plans on a model.
#ifndef QUIRE_ENGINE_MODEL_RUNNER_H_
#define QUIRE_ENGINE_MODEL_RUNNER_H_

#include "absl/status/statusor.h"
#include "engine/scheduler/scheduler_output.h"

namespace quire {

// Steps are submitted and collected, in order; up to steps_in_flight() may be
// submitted and not collected. A runner that computes synchronously has 1.
// Used by the engine thread only.
class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  virtual int steps_in_flight() const = 0;

  // Enqueues the step. `output` is not read after the call returns. An error
  // ends the step: it must not be collected, and every request in it fails.
  // UNAVAILABLE, here or from Collect: the device is broken for good, and so is
  // the engine.
  virtual absl::Status Submit(const SchedulerOutput& output) = 0;

  // Waits for the oldest submitted step.
  virtual absl::StatusOr<StepResult> Collect() = 0;

  // What Collect gave, once it is used up: its memory may serve again.
  virtual void Recycle(StepResult /*result*/) {}

  // True if Collect would not wait. Requires: a step is submitted.
  virtual bool Done() const = 0;

  // Called while there is nothing else to do: a little work (some milliseconds)
  // that makes a later step faster. False: there is none left.
  virtual bool PrepareAhead() { return false; }
};

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_RUNNER_H_
