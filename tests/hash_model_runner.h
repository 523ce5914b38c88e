// A model whose every mistake shows: the hash model of deterministic engine
// tests.
//
// A slot of the KV cache holds a hash of the token written there, its position,
// the value of the slot before it and the request's namespace; the next token
// is a function of all slots that the row reaches through its block table. Any
// stale, leaked, wrongly shared or missing block changes what is drawn. (The
// idea of simulating a storage engine under a model that can tell:
// TigerBeetle's VOPR, FoundationDB's simulation.)
//
// With penalties in its parameters, a token depends on the counts of the tokens
// before it besides, as a sampler keeps them: from the history that a slot
// starts with, then from what was drawn.
//
// The engine does not hand the namespace to the runner. Tests put a number that
// stands for it into logit_bias (see HashNamespaceBias), where it rides along.
// So does the mark of an embed request.
#ifndef QUIRE_TESTS_HASH_MODEL_RUNNER_H_
#define QUIRE_TESTS_HASH_MODEL_RUNNER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/engine_options.h"
#include "engine/model_runner.h"
#include "engine/request.h"

namespace quire {

// The logit_bias that tells the hash model a request's namespace.
std::vector<std::pair<int32_t, float>> HashNamespaceBias(
    int namespace_no, RequestKind kind = RequestKind::kGenerate);

// Of the tokens drawn, so many in 1000 are eos_token_ids[0] (if there is one);
// the others are spread over the vocabulary.
struct HashModelOptions {
  int eos_per_1000 = 20;
  // A token depends on the slot before it only (and through that slot's value
  // on the tokens before it): a step costs the same however long its sequences
  // are, but blocks that are not written any more are not looked at.
  bool reads_last_slot_only = false;
};

// What the hash model says to a request run alone, computed without an engine,
// a cache or a scheduler. max_num_tokens: prompt and generated tokens.
struct HashModelAnswer {
  std::vector<int32_t> token_ids;
  FinishReason finish_reason = FinishReason::kLength;
  std::optional<int32_t> stop_token_id;
  // Of the prompt's tokens from the second one on, whether asked for or not.
  std::vector<float> prompt_logprobs;
  // kEmbed: a function of the slots reached, or with embeds_every_token of the
  // tokens that were computed since the slot's start.
  std::vector<float> embedding;
};
HashModelAnswer AnswerAlone(const EngineOptions& engine_options,
                            const HashModelOptions& options,
                            const Request& request, uint64_t seed,
                            int choice_idx, int max_num_tokens);

// Thread-compatible. Computes in Submit, hands out in Collect.
class HashModelRunner : public ModelRunner {
 public:
  // Uses num_blocks, block_size, max_num_seqs, vocab_size, rope_switch_length,
  // eos_token_ids and steps_in_flight of `engine_options`.
  HashModelRunner(const EngineOptions& engine_options,
                  const HashModelOptions& options);

  int steps_in_flight() const override { return options_.steps_in_flight; }
  absl::Status Submit(const SchedulerOutput& output) override;
  absl::StatusOr<StepResult> Collect() override;
  bool Done() const override { return true; }

  // Faults; each may be empty. A failing step leaves rubbish in every slot it
  // was to write, or, if Submit fails and `is_applied` was left false, nothing
  // at all.
  std::function<absl::Status(const SchedulerOutput&, bool* is_applied)>
      fail_submit;
  std::function<absl::Status(int64_t step_id)> fail_collect;
  // Asked for every row: the first of its tokens whose slot turns into a NaN;
  // a number < 0: none. As on a real device the NaN spreads to every slot
  // computed after it in the same sequence, and to every sequence that shares
  // the slot.
  std::function<int(const SchedulerOutput&, const ScheduledRow&)> poison_from;
  // Told for every row reported as non_finite, and whose row brought the NaN.
  std::function<void(uint64_t draw_key, uint64_t source_draw_key)>
      on_non_finite;
  // Runs at the beginning of Collect; a test may block there.
  std::function<void()> on_collect;
  // May spoil a result that is about to be handed out.
  std::function<void(StepResult*)> on_result;

  // Empty, or the first broken rule of SchedulerOutput: a row that does not
  // continue its slot, a write to a block the slot was not given, two rows
  // writing one block, token ids that do not add up or are not those of the
  // slot.
  const std::string& violation() const { return violation_; }
  // The blocks that steps not yet collected read or write, perhaps repeatedly.
  std::vector<int32_t> BlocksInFlight() const;

 private:
  struct Slot {
    bool is_started = false;
    const SamplingParams* params = nullptr;
    uint64_t draw_key = 0;
    std::vector<int32_t> banned_before_min;
    int32_t num_prompt_tokens = 0;
    int32_t num_start_tokens = 0;  // Known when it started.
    int32_t num_computed_tokens = 0;
    bool has_drawn = false;  // Since it started.
    // Drafts in its last step, until that is collected: the length is unknown.
    bool has_pending_drafts = false;
    std::vector<int32_t> tokens;  // Its history, then what was drawn.
    uint64_t penalty = 0;         // Of those tokens.
    uint64_t pooled = 0;          // Of the tokens computed since the start.
    std::vector<int32_t> block_table;
  };

  struct Submitted {
    absl::Status status;  // What Collect will say.
    StepResult result;
    std::vector<int32_t> block_ids;  // Read or written.
    std::vector<int32_t> slots_with_drafts;
  };

  std::string ApplySlotChanges(const SchedulerOutput& output);
  std::string CheckRow(const SchedulerOutput& output, const ScheduledRow& row);
  // Scores the prompt tokens that follow the row's last tokens.
  void ScoreRow(const SchedulerOutput& output, const ScheduledRow& row,
                int first_scored_idx, SampledRow* sampled);
  // Whether one of the slots up to `end` is a NaN; tells on_non_finite.
  bool FindNan(const Slot& slot, int end);
  // Draws after the row's last known token and after its drafts, as long as
  // these are what was drawn.
  void DrawRow(const SchedulerOutput& output, const ScheduledRow& row,
               SampledRow* sampled);
  void RunRow(const SchedulerOutput& output, const ScheduledRow& row,
              bool is_garbage, int first_scored_idx, StepResult* result);
  uint64_t* SlotAt(const Slot& slot, int position);

  const EngineOptions options_;
  const HashModelOptions model_options_;
  std::vector<uint64_t> kv_;              // [num_blocks, block_size]
  std::vector<Slot> slots_;               // [max_num_seqs]
  std::vector<int64_t> written_in_step_;  // [num_blocks], last step to write.
  std::vector<int64_t> row_in_step_;      // [max_num_seqs]
  std::deque<Submitted> submitted_;
  std::string violation_;
  std::vector<uint64_t> nan_sources_;  // Draw keys, by number of the NaN.
  int64_t last_step_id_ = -1;
  uint64_t garbage_ = 0xDEAD;
};

}  // namespace quire

#endif  // QUIRE_TESTS_HASH_MODEL_RUNNER_H_
