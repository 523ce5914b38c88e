// Drafts by a head on the target's hidden states (engine/model/draft_head.h):
// EAGLE-3 (arXiv:2503.01840) and MTP. Chains only, drawn greedily.
//
// After each step of the target the head computes the same tokens, behind which
// stand those that were drawn: so its own KV cache, which has the target's
// blocks, follows the target's, prompts' chunks, prefix hits and copies
// included, and the first draft of every sequence is known. Further ones are
// drawn in Propose, if somebody asks for them.
//
// The head's steps have the rows of the target's activations, so that they are
// read where they lie. What is of no use there, rejected drafts, is computed
// for a slot that nobody has: slot max_num_seqs + s stands in for slot s, with
// blocks behind the target's.
#ifndef QUIRE_ENGINE_SPECULATIVE_HEAD_DRAFTER_H_
#define QUIRE_ENGINE_SPECULATIVE_HEAD_DRAFTER_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/draft_head.h"
#include "engine/model/loaded_model.h"
#include "engine/speculative/drafter.h"

namespace quire {

// As Drafter. The first part of a block is computed with the token after it:
// where sequences that share a block go on differently, its last position is
// that of the one that came last. That costs a little acceptance.
class HeadDrafter : public Drafter {
 public:
  // Blocks that stand-ins need beside the target's.
  static int NumBlocksBeside(const EngineShape& target, int max_drafts);

  // Requires: `target` was loaded with the taps of the head, and `head`
  // finished with NumBlocksBeside(target->shape, max_drafts) more blocks; the
  // target outlives the drafter. INVALID_ARGUMENT if they do not fit.
  static absl::StatusOr<std::unique_ptr<HeadDrafter>> Create(
      absl::string_view method, LoadedModel head, int max_positions,
      int max_drafts, const LoadedModel& target);

  absl::string_view method() const override { return method_; }
  bool is_costly() const override { return true; }
  bool UsesTargetSteps() const override { return true; }
  absl::Status ObserveStep(const TargetStep& step) override;
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override;

 private:
  struct Slot {
    bool is_used = false;
    uint64_t start_no = 0;
    int num_computed = 0;  // Positions that the backend has.
    int num_known = 0;     // Of them, those of tokens that stay.
    int num_blocks = 0;
    // Drawn behind num_known + 1 tokens, if the last step did.
    bool has_draft = false;
    int32_t draft_id = 0;
    float probability = 0;
  };
  struct Chain {
    const DraftSequence* sequence = nullptr;
    Draft* draft = nullptr;
    double chance = 1;
    bool is_done = false;
  };

  HeadDrafter(absl::string_view method, LoadedModel head, int max_positions,
              int max_drafts, const LoadedModel& target);

  void AddUpdate(int32_t slot, bool starts, int num_computed,
                 absl::Span<const int32_t> blocks);
  void AddRow(int32_t slot, int num_tokens, int first_position, bool draws);
  // A row of `num_tokens` that mean nothing.
  void AddStandIn(int32_t slot, int num_tokens, bool draws);
  void AddTargetRow(const TargetRow& row);
  // Runs what was added, and clears it; the results are valid until the next.
  absl::StatusOr<absl::Span<const RowResult>> RunStep(bool reads_taps);
  // The token of a result, as the target's; none if it means nothing.
  bool TakeDraft(const RowResult& result, int32_t* id, float* probability);
  void Extend(Chain* chain, int32_t id, float probability);

  const std::string method_;
  LoadedModel loaded_;
  DraftHead* const head_;
  const int max_positions_;  // Of the sequences that it drafts for.
  const int num_slots_;      // Without stand-ins.
  const int blocks_of_stand_in_;
  const int num_target_blocks_;
  SlotParams greedy_;
  std::vector<int32_t> zeros_;  // As long as a sequence.
  std::vector<int32_t> stand_in_blocks_;
  std::vector<Slot> slots_;
  std::vector<uint8_t> has_stand_in_;
  // The slots of the last step's rows with logits, in order.
  std::vector<int32_t> drawn_slots_;

  // Being planned.
  std::vector<SlotUpdate> updates_;
  std::vector<StepRow> rows_;
  std::vector<int32_t> token_ids_;
  int num_logits_ = 0;
  absl::Span<const std::pair<int32_t, int32_t>> block_copies_;
  std::vector<Chain> chains_;
  std::vector<int> chain_of_row_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_HEAD_DRAFTER_H_
