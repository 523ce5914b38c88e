// A ModelRunner that computes on a Backend in this process.
#ifndef QUIRE_ENGINE_MODEL_BACKEND_MODEL_RUNNER_H_
#define QUIRE_ENGINE_MODEL_BACKEND_MODEL_RUNNER_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "engine/model_runner.h"
#include "kernels/backend.h"

namespace quire {

// Thread-compatible: the engine thread calls everything. Borrows backend and
// model, which must outlive it; waits at its end for the steps that nobody has
// collected.
class BackendModelRunner : public ModelRunner {
 public:
  // Requires: backend->Prepare succeeded, with `steps_in_flight`.
  BackendModelRunner(Backend* backend, Model* model, int max_num_seqs,
                     int steps_in_flight);
  ~BackendModelRunner() override;

  int steps_in_flight() const override { return steps_in_flight_; }
  // RESOURCE_EXHAUSTED if steps_in_flight() steps wait to be collected.
  absl::Status Submit(const SchedulerOutput& output) override;
  absl::StatusOr<StepResult> Collect() override;
  void Recycle(StepResult result) override;
  bool Done() const override;
  bool PrepareAhead() override;

 private:
  struct PendingStep {
    Step* step = nullptr;
    int64_t step_id = 0;
    std::vector<int32_t> scored_ids;  // SchedulerOutput::scored_token_ids.
  };

  void BuildPlan(const SchedulerOutput& output);

  Backend* const backend_;
  Model* const model_;
  const int steps_in_flight_;
  // A ring of steps_in_flight_ that keeps its memory, like all below: a steady
  // state allocates nothing.
  std::vector<PendingStep> pending_;
  int first_pending_ = 0;
  int num_pending_ = 0;
  StepResult spare_result_;

  // Of the plan being built.
  std::vector<SlotParams> slot_params_;
  std::vector<SlotUpdate> updates_;
  std::vector<StepRow> rows_;
  std::vector<int32_t> token_ids_;
  GraphKey key_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_BACKEND_MODEL_RUNNER_H_
