// A step's plan as bytes: rank 0 sends it, the other ranks execute it.
#ifndef QUIRE_ENGINE_PARALLEL_STEP_PLAN_CODEC_H_
#define QUIRE_ENGINE_PARALLEL_STEP_PLAN_CODEC_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/scheduler/scheduler_output.h"

namespace quire {

// What the indices of a plan stay below: the sizes of the engine.
struct StepPlanLimits {
  int max_num_seqs = 0;
  int max_num_batched_tokens = 0;
  int max_model_len = 0;
  int num_blocks = 0;
  int vocab_size = 0;

  bool operator==(const StepPlanLimits&) const = default;
};

// Appends the plan to `out`.
void EncodeStepPlan(const SchedulerOutput& plan, std::string* out);

// Thread-compatible. Owns the sampling parameters of the sequences in the
// slots.
class StepPlanDecoder {
 public:
  explicit StepPlanDecoder(const StepPlanLimits& limits);

  // `plan`: reused from step to step, so that a steady state allocates nothing.
  // Its parameters live until another sequence starts in their slot, or as long
  // as this. INVALID_ARGUMENT, naming the field, if an index is out of range or
  // the bytes are no plan; `plan` is then of no use.
  absl::Status Decode(absl::string_view bytes, SchedulerOutput* plan);

 private:
  absl::Status Check(const SchedulerOutput& plan) const;
  absl::Status CheckParams(const SamplingParams& params) const;
  absl::Status CheckRows(const SchedulerOutput& plan) const;

  const StepPlanLimits limits_;
  std::vector<std::unique_ptr<const SamplingParams>> params_;  // [max_num_seqs]
};

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_STEP_PLAN_CODEC_H_
