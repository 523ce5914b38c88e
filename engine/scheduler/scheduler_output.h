// One step's plan, and what came of it, as plain data: the only thing that the
// scheduler and a ModelRunner share. Includes no kernel header: the scheduler
// runs and is tested without a device.
#ifndef QUIRE_ENGINE_SCHEDULER_SCHEDULER_OUTPUT_H_
#define QUIRE_ENGINE_SCHEDULER_SCHEDULER_OUTPUT_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "engine/request.h"

namespace quire {

// A sequence enters a slot (or re-enters one after preemption).
struct SlotStart {
  int32_t slot = 0;
  // Of the sequence's request; lives until the sequence leaves the slot.
  const SamplingParams* params = nullptr;
  uint64_t draw_key = 0;  // H(request seed, choice index).
  // End and stop tokens, banned until min_tokens are generated.
  std::vector<int32_t> banned_before_min;
  std::vector<int32_t> history;  // Prompt and what has been generated so far.
  int32_t num_prompt_tokens = 0;
  int32_t num_computed_tokens = 0;  // Already in the blocks of its block table.
};

// New blocks at the end of a slot's block table.
struct BlockAppend {
  int32_t slot = 0;
  std::vector<int32_t> block_ids;
};

// "These query tokens of this sequence."
struct ScheduledRow {
  int32_t slot = 0;
  int32_t first_position = 0;  // = num_computed_tokens of the slot.
  int32_t num_tokens = 0;      // >= 1.
  // True if a token is drawn after the row's last token, or the embedding of
  // the prompt is ready with it; false for an inner prefill chunk.
  bool needs_token = false;
  // True: the single input token is the one drawn by the step before, not yet
  // known to the scheduler (steps overlap); token_ids hold nothing for it.
  bool input_on_device = false;
  int32_t first_token_idx = 0;  // Into SchedulerOutput::token_ids.
  // The row's last num_scored tokens (with needs_token: those before its very
  // last) say how likely the prompt token after each of them is.
  int32_t num_scored = 0;
  // The row's last num_drafts tokens are guesses to verify: a token is drawn
  // after each of them and after the one before them, as long as the draft is
  // what was drawn. Then needs_token, and nothing is scored.
  int32_t num_drafts = 0;

  bool has_result() const { return needs_token || num_scored > 0; }
};

struct SchedulerOutput {
  int64_t step_id = 0;
  // Applied in this order: starts, appends, copies, rows.
  std::vector<SlotStart> slot_starts;
  std::vector<BlockAppend> block_appends;
  std::vector<std::pair<int32_t, int32_t>> block_copies;  // (from, to)
  std::vector<ScheduledRow> rows;  // In order of arrival.
  std::vector<int32_t> token_ids;  // Of the rows whose input is known.
  // The prompt tokens to score, row by row: [sum of num_scored].
  std::vector<int32_t> scored_token_ids;

  bool empty() const { return rows.empty(); }
};

struct SampledRow {
  int32_t slot = 0;
  // If the row needs_token: its accepted drafts, then one more, unless a fault
  // below is in its place. Else none.
  // One, as a rule: it needs no memory of its own.
  absl::InlinedVector<TokenOutput, 1> tokens;
  std::vector<TokenOutput> scored;  // [num_scored], with their ranks.
  std::vector<float> embedding;     // Instead of tokens, of an embed request.
  // Faults of the place behind `tokens`: the logits were not finite, or no
  // token was allowed.
  bool non_finite = false;
  bool all_masked = false;
};

struct StepResult {
  int64_t step_id = 0;
  std::vector<SampledRow> rows;  // Of the rows with a result, in row order.
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SCHEDULER_SCHEDULER_OUTPUT_H_
