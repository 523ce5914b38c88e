// Drafts by a smaller model with the same vocabulary (Leviathan et al. 2023,
// arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318). Verification keeps a
// draft if it is what the target draws, so the draft model draws by the same
// noise and parameters: as two Gumbel-max draws that share their noise, both
// agree more often than independent ones, and always where the distributions
// are equal.
//
// The model has a KV cache of its own with the blocks of the target's: what
// shares a block there shares it here. So nothing is allocated, copied or freed
// for drafts. For each block the drafter remembers of which tokens it has
// computed it; a sequence that starts, resumes or takes over a prefix begins
// behind the blocks that are known, and computes the rest in pieces.
#ifndef QUIRE_ENGINE_SPECULATIVE_MODEL_DRAFTER_H_
#define QUIRE_ENGINE_SPECULATIVE_MODEL_DRAFTER_H_

#include <cstdint>
#include <vector>

#include "engine/model/loaded_model.h"
#include "engine/scheduler/scheduler_output.h"
#include "engine/speculative/drafter.h"

namespace quire {

// As Drafter. Invariants of a slot:
// 1. Positions [0, num_computed) of its blocks hold what the draft model
//    computes for the tokens of known_tokens, then fed_ids.
// 2. tags_[b] of its block b < num_tagged is the hash of all tokens up to the
//    end of that block.
class ModelDrafter : public Drafter {
 public:
  // Requires: FinishLoadingCompanion(target, &draft) succeeded.
  ModelDrafter(LoadedModel draft, int target_vocab_size);

  absl::string_view method() const override { return "draft_model"; }
  bool is_costly() const override { return true; }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override;
  // Looks at the sequence as Propose does: a new one is looked up once.
  int NumMissingTokens(const DraftSequence& sequence) override;
  int num_caught_up_tokens() const override { return num_caught_up_tokens_; }
  bool PrepareAhead() override { return draft_.runner->PrepareAhead(); }

  const LoadedModel& model() const { return draft_; }
  // Tokens of contexts that the draft model has computed; for tests.
  int64_t num_context_tokens() const { return num_context_tokens_; }

 private:
  struct Slot {
    bool is_used = false;
    uint64_t sequence_id = 0;
    uint64_t start_no = 0;
    SamplingParams params;
    bool is_beyond_rope_switch = false;
    int num_computed = 0;
    // Drafts that were computed, behind num_known tokens.
    int num_known = 0;
    std::vector<int32_t> fed_ids;
    uint64_t hash = 0;
    int num_tagged = 0;  // Blocks.
    // What the backend has been told: nothing, if num_blocks is 0.
    int device_computed = 0;
    int num_blocks = 0;
    int chain_idx = 0;
  };
  // Drafts being made for a sequence.
  struct Chain {
    const DraftSequence* sequence = nullptr;
    Draft* draft = nullptr;
    Slot* slot = nullptr;
    int max_drafts = 0;
    int num_submitted = 0;  // Draws.
    double chance = 1;
    bool is_done = false;
  };

  void BeginSequence(const DraftSequence& sequence, Slot* slot);
  // Notes what is known of the sequence now.
  void CatchUp(const DraftSequence& sequence, Slot* slot);
  bool CanTake(const DraftSequence& sequence, const Slot& slot) const;
  void AnnounceSlot(const DraftSequence& sequence, Slot* slot);
  // Adds the row that computes the next `num_tokens` known tokens.
  void AddContextRow(const DraftSequence& sequence, int num_tokens, Slot* slot);
  void TagBlocks(const DraftSequence& sequence, Slot* slot);
  // Plans a draw more for each chain that goes on; false if none does.
  bool PlanDraws(bool input_on_device);
  absl::Status Submit();
  absl::Status Collect();
  void ClearOutput();

  LoadedModel draft_;
  const int target_vocab_size_;
  std::vector<Slot> slots_;
  std::vector<uint64_t> tags_;  // Of each block; 0: unknown.
  std::vector<Chain> chains_;
  SchedulerOutput output_;  // Being planned.
  int num_in_flight_ = 0;
  int64_t next_step_id_ = 0;
  int num_caught_up_tokens_ = 0;
  int64_t num_context_tokens_ = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_MODEL_DRAFTER_H_
