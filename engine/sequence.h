// One choice of a request on its way through the scheduler.
//
//            Start                     Finish
//   WAITING ───────► RUNNING ───────────────────► FINISHED
//      ▲  │             │                             ▲
//      │  └─────────────┼─────────────────────────────┘
//      └────────────────┘ Preempt       Finish
//
// Plain state of the scheduler, which is the only one to change it (engine
// thread). What needs other objects (blocks, slots, queues) is done there; here
// is what a sequence can know of itself.
#ifndef QUIRE_ENGINE_SEQUENCE_H_
#define QUIRE_ENGINE_SEQUENCE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/base/planted_bug.h"
#include "engine/kv_cache/kv_cache_manager.h"
#include "engine/request.h"
#include "engine/speculative/draft_control.h"
#include "engine/speculative/drafter.h"

namespace quire {

struct RequestState;

enum class SequenceState : uint8_t { kWaiting, kRunning, kFinished };

struct Sequence {
  // `request` must outlive the sequence. max_num_tokens: prompt and generated
  // tokens at which the sequence ends by length.
  Sequence(RequestState* request, int choice_idx, int max_num_tokens);

  // ---- Transitions. Each checks the state it comes from.
  void Start(int slot, int num_computed_tokens);
  void Preempt();
  void Finish();

  // Appends a drawn token. Returns why the sequence ends with it, if it does,
  // and sets *stop_token_id if a stop token of the request was the reason.
  std::optional<FinishReason> Append(int32_t token_id,
                                     absl::Span<const int32_t> eos_token_ids,
                                     std::optional<int32_t>* stop_token_id);

  // Whether it would end with this token, given that `num_after` tokens, none
  // of which ends it, follow those that are known.
  bool WouldStopAt(int32_t token_id, int num_after,
                   absl::Span<const int32_t> eos_token_ids) const;

  // ---- What is known.
  // Prompt and generated tokens; the request's own prompt until the first
  // start, so that choices still waiting cost no copy.
  absl::Span<const int32_t> known_tokens() const;
  int num_known_tokens() const {
    return static_cast<int>(known_tokens().size());
  }
  int num_generated_tokens() const {
    return num_known_tokens() - num_prompt_tokens;
  }
  // Known tokens that no step has been given yet.
  int num_remaining_tokens() const {
    return num_known_tokens() - num_submitted_tokens;
  }
  // The next row has one token: the last one drawn, or a rest of the prompt.
  bool is_decode() const {
    return num_pending_tokens > 0 || num_remaining_tokens() == 1;
  }
  // The tokens that are being drawn reach the length limit.
  bool will_end() const {
    return num_known_tokens() + num_pending_tokens >=
           max_num_tokens + HasPlantedBug(PlantedBug::kEndNotForeseen);
  }
  bool has_holdings() const { return slot >= 0; }
  // One choice of one request, never again: n is at most kMaxChoices (128).
  uint64_t sequence_id() const;
  // Of what is drawn for it.
  uint64_t draw_key() const;
  // Of the next `num_tokens` tokens to submit, those whose successor in the
  // prompt is to be scored and has not been: they are the last ones, before the
  // one that a token is drawn from.
  int NumScoredAmong(int num_tokens) const;
  // Tokens to submit next so that at most `max_scored` of them score.
  int NumTokensScoringAtMost(int max_scored) const;
  // More urgent first, then by fair share, then in order of arrival (the only
  // order there is with one owner); choices of one request in their order.
  bool IsBefore(const Sequence& other) const;

  RequestState* const request;
  const int choice_idx;
  const int num_prompt_tokens;
  const int max_num_tokens;

  SequenceState state = SequenceState::kWaiting;
  bool has_started = false;  // Was running at least once.
  // Its blocks hold what a sequence beyond rope_switch_length computes. Of the
  // time since it was last looked up for a start.
  bool is_beyond_rope_switch = false;
  std::vector<int32_t> token_ids;  // Empty until then.

  // num_computed_tokens <= num_submitted_tokens: what collected steps have put
  // into the blocks, and what submitted ones will have.
  int num_computed_tokens = 0;
  int num_submitted_tokens = 0;
  int num_pending_tokens = 0;  // Being drawn by steps in flight.
  // Drafts that a step in flight verifies; they count as submitted, and nothing
  // is planned after them until it is known how many stay.
  int num_pending_drafts = 0;
  // Steps in flight that name the sequence's blocks. Slot and blocks are given
  // back when it is 0 and the sequence does not run (I5).
  int num_inflight_rows = 0;

  int slot = -1;
  SequenceBlocks blocks;
  // What the runner has been told of the slot.
  bool is_slot_announced = false;
  int num_announced_blocks = 0;

  // Scratch of one Schedule(): tokens granted to the sequence, and drafts to
  // verify behind them.
  int num_granted_tokens = 0;
  int num_granted_drafts = 0;
  // EngineOptions::num_micro_batches: it decodes in another step than that, and
  // the last step that it was in.
  bool waits_for_step = false;
  int64_t last_step_id = -1;
  // Proposed for the next row; then those of the row in flight.
  Draft draft;
  DraftTrack draft_track;
  uint64_t start_no = 0;  // DraftSequence's.
  // Positions that its blocks had to cover at most, drafts included.
  int num_covered_tokens = 0;
  // Prompt tokens found in the cache when last looked up; -1: never. A guess:
  // the cache changes.
  int num_hit_tokens_guess = -1;
};

struct RequestState;

// What one owner's requests of one priority have had and are to have; changed
// by FairShare only (engine/scheduler/fair_share.h says what tags are).
struct ShareAccount {
  // What a request was charged too little (too much: < 0), to be made up for by
  // those that came after it.
  struct Correction {
    int64_t tag = 0;  // The request's.
    int64_t delta = 0;
  };

  int32_t weight = 1;
  int64_t next_tag = 0;
  std::optional<int64_t> last_started_tag;
  std::vector<RequestState*> live;      // In order of their tags.
  std::vector<Correction> corrections;  // Take effect with FairShare::Settle.
  double mean_output_tokens = 0;        // Of recent answers.
  // Of answers that have ended, later ones counting more; begins as half an
  // answer of the usual length.
  double num_ended = 0;
  double num_ended_tokens = 0;
  // Drawn while they ended, by whichever answer, and up to which count of all.
  double num_drawn_tokens = 0;
  int64_t last_drawn_count = 0;
  int64_t num_removed_tokens = 0;  // Of requests that are not live any more.
  // What an answer that has not begun is taken to have.
  double expected_output_tokens = 0;
  // What has not started.
  int num_queued = 0;
  int64_t num_queued_tokens = 0;
  int64_t num_queued_bytes = 0;
  int64_t num_queued_prompt_cost = 0;
  // Answers whose limit has so many bits, and their limits' sum.
  struct Answers {
    int64_t num = 0;
    int64_t num_max_tokens = 0;
  };
  std::array<Answers, 32> queued_answers;
};

// A request the scheduler has accepted, with its choices.
struct RequestState {
  Request request;
  uint64_t arrival_no = 0;  // Order in which the scheduler accepted it.
  int32_t priority = 0;     // The request's, or 0 where it does not count.
  // Its place among requests of its priority, smaller first; see FairShare.
  ShareAccount* account = nullptr;
  int64_t tag = 0;
  int64_t estimated_cost = 0;
  uint64_t seed = 0;  // The request's, or the one drawn for it.
  std::vector<std::unique_ptr<Sequence>> sequences;  // [n]
  std::vector<int32_t> banned_before_min;
  // Keys of the prefix cache, by is_beyond_rope_switch: what one kind of
  // sequence computes is of no use to the other.
  std::string cache_namespaces[2];
  bool has_started = false;
  absl::Time scheduled_time;
  int num_cached_tokens = 0;
  // Of the prompt, by whichever choice has come farthest, ever.
  int num_prefilled_tokens = 0;
  // Prompt tokens whose successor was scored by a collected step, whichever
  // choice computed it.
  int num_scored_tokens = 0;
  int num_unfinished = 0;
  int num_running = 0;
  int num_inflight_rows = 0;  // Of all its sequences.

  // Prompt tokens remain to be scored, so none of them may be skipped.
  bool needs_scores() const {
    return request.sampling.num_prompt_logprobs >= 0 &&
           num_scored_tokens + 1 <
               static_cast<int>(request.prompt_token_ids.size());
  }
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SEQUENCE_H_
