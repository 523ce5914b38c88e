// Proposes tokens that a sequence may go on with. The target model verifies
// them in its next step, beside everything else, and draws every token itself
// (engine/DESIGN.md, "Speculation"): what a drafter says, or that it says
// nothing, changes speed only, never a token.
//
// A drafter is pulled. It is shown whole sequences and catches up from where it
// was: with a sequence_id it has seen before, the tokens that it was shown then
// are still there, followed by those that were drawn since (of its drafts, the
// accepted ones among them). So preemption, aborts and rejected drafts need no
// message of their own; a drafter that keeps KV of its own compares what it has
// computed with the tokens it is shown.
#ifndef QUIRE_ENGINE_SPECULATIVE_DRAFTER_H_
#define QUIRE_ENGINE_SPECULATIVE_DRAFTER_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/request.h"

namespace quire {

// A sequence to draft for. Views are valid during the call.
struct DraftSequence {
  // One choice of one request, as long as the engine knows it; never reused.
  uint64_t sequence_id = 0;
  // Its slot in the target's backend, in [0, max_num_seqs): no other sequence
  // holds it at the same time. After a preemption the sequence comes back in
  // another slot with other blocks; start_no then differs, and grows.
  int32_t slot = 0;
  uint64_t start_no = 0;
  // Prompt and generated tokens. The target has computed all but the last.
  absl::Span<const int32_t> token_ids;
  int32_t num_prompt_tokens = 0;
  // The target's blocks of the sequence, for a drafter whose KV cache has the
  // same geometry: they cover token_ids.size() + max_num_drafts positions.
  // Shared blocks (of a common prefix) are shared here too; whoever writes one
  // writes the same.
  absl::Span<const int32_t> block_table;
  // Requests share what was learnt from them only under the same value.
  absl::string_view cache_namespace;
  int32_t max_num_drafts = 0;  // >= 1.
  // How the target draws, for a drafter that draws by the same noise, a
  // function of (draw_key, position): where both distributions are near each
  // other the draws then mostly agree at any temperature. Null: greedily. It
  // lives until the sequence leaves the slot.
  const SamplingParams* params = nullptr;
  uint64_t draw_key = 0;
  // A draft that is less likely accepted, with all before it, does not pay.
  float min_chance = 0;
  // Whose sequence it is, for a drafter that is told of requests elsewhere.
  uint64_t request_id = 0;
  int32_t choice_idx = 0;
};

// What becomes of one row of a step of the target, for drafters that use its
// hidden states.
struct TargetRow {
  int32_t slot = 0;
  int32_t first_position = 0;
  int32_t num_tokens = 0;  // Input tokens, drafts included.
  // Of num_tokens, those that stay: less the rejected drafts.
  int32_t num_kept_tokens = 0;
  // The row's tokens are rows first_token_idx and on of the step's activations
  // (those of ActivationRows::kTokens).
  int32_t first_token_idx = 0;
  // As DraftSequence's. Embed requests have rows, too.
  uint64_t start_no = 0;
  absl::Span<const int32_t> block_table;
  // The token after each of those that stay; -1, at the end only: none was
  // drawn. [num_kept_tokens]
  absl::Span<const int32_t> next_ids;
  // The last of them was drawn in this step: the sequence may go on with
  // drafts.
  bool has_drawn = false;
};

// Views are valid during the call.
struct TargetStep {
  absl::Span<const TargetRow> rows;
  // (from, to): blocks whose contents were copied before the rows were
  // computed.
  absl::Span<const std::pair<int32_t, int32_t>> block_copies;
};

// The drafts for one sequence, best guess of a chain: token i follows token
// i - 1. Empty: none.
struct Draft {
  std::vector<int32_t> token_ids;  // At most max_num_drafts; in the vocabulary.
  // For each token how likely the drafter finds it, given those before it, in
  // [0, 1]. Empty: it does not say, and what was accepted so far decides.
  std::vector<float> probabilities;
};

// Thread-compatible: the engine thread calls everything, Propose and
// ObserveStep while no step of the target is in flight. A model drafter runs
// steps of a backend inside them and waits for those.
class Drafter {
 public:
  virtual ~Drafter() = default;

  // "ngram", as in --speculative-config.
  virtual absl::string_view method() const = 0;

  // Whether a proposal costs about as much for each further draft (a model) or
  // next to nothing (a lookup). Control asks the former for what it will use.
  virtual bool is_costly() const = 0;

  // Sets (*drafts)[i] to the drafts for sequences[i], in order. `drafts` has as
  // many elements, all empty, whose capacity may be reused. An error ends
  // drafting for the life of the process; requests go on without it.
  virtual absl::Status Propose(absl::Span<const DraftSequence> sequences,
                               absl::Span<Draft> drafts) = 0;

  // Tokens of its context that Propose would have to compute for the sequence
  // before it can draft, beyond the last one; -1: it cannot draft for it at
  // all. Asked before every plan of a costly drafter; control weighs them
  // against what drafts will bring.
  virtual int NumMissingTokens(const DraftSequence& /*sequence*/) { return 0; }
  // Of those, how many the last Propose has computed.
  virtual int num_caught_up_tokens() const { return 0; }

  // A step of the target was collected; rows in its order, prompts' chunks
  // included. Not called unless UsesTargetSteps, which also keeps the engine
  // from having a second step in flight: the target's activations are those of
  // this step until the call returns. An error is treated as Propose's.
  virtual bool UsesTargetSteps() const { return false; }
  virtual absl::Status ObserveStep(const TargetStep& /*step*/) {
    return absl::OkStatus();
  }

  // The sequence has ended and will not be shown again; token_ids as above,
  // with all that was drawn. Called for every sequence that has started, also
  // if it was never shown.
  virtual void End(uint64_t /*sequence_id*/,
                   absl::Span<const int32_t> /*token_ids*/,
                   int32_t /*num_prompt_tokens*/,
                   absl::string_view /*cache_namespace*/) {}

  // Called while there is nothing else to do; as ModelRunner::PrepareAhead.
  virtual bool PrepareAhead() { return false; }
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_DRAFTER_H_
