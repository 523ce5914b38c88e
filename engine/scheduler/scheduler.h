// Decides which sequence computes which tokens in each step.
//
// A pure step function (D6): Schedule() and Update() depend on the state, the
// requests added and the results handed in; time comes in as an argument and
// nothing is drawn at random. Thread-compatible: used by the engine thread
// only. Borrows the cache manager, owns requests and sequences.
//
// Policy:
//   - One token budget per step. Every sequence that decodes gets its token
//     first; chunks of prompts share the rest.
//   - The oldest unfinished prompt is sure of half of that rest; the other half
//     goes to the prompts with the fewest tokens left. So equal prompts run in
//     order of arrival (the best mean time to the first token), a short prompt
//     passes a long one, and a long one keeps at least half its speed once it
//     is the oldest: nobody starves.
//   - A waiting sequence is admitted, in order of arrival, when blocks for all
//     its known tokens are there and one more for each running sequence: those
//     may need it before anything is given back, and without that reserve the
//     newcomer would be preempted at once. Waiting requests that would get no
//     tokens this step may be passed by shorter ones; those that lack blocks or
//     a slot may not.
//   - When a running sequence lacks a block, the sequence that arrived last is
//     preempted: it gives back its blocks and computes them again later. The
//     oldest sequence therefore always advances, so every sequence ends.
//   - Choices of one request (n > 1): the first computes the prompt; the others
//     wait for it, share its full blocks, copy the partial one and compute the
//     last prompt token themselves.
//   - Prompts whose tokens are scored (num_prompt_logprobs) read nothing from
//     the prefix cache, and share max_num_scored_tokens per step as they share
//     the token budget: the oldest is sure of half. Others do not notice.
//   - Owners (API keys) share: "oldest", "order of arrival" and "last" above
//     are by FairShare's tags, which with one owner is the order of arrival. So
//     the flood of one owner waits behind the first requests of the others.
//   - A request past its deadline ends with an error, wherever it is.
//   - Under SchedulingPolicy::kPriority "older" reads "more urgent, then older"
//     everywhere above, and the second half of a budget goes to the most urgent
//     prompts, the shortest first. Before a step is planned, a waiting sequence
//     takes slot and blocks from running ones that are strictly less urgent.
//     There is no aging: a steady load of urgent requests starves the others.
//   - An embed request is a prompt that ends with its last token. Where the
//     embedding depends on every token it takes nothing from the prefix cache,
//     and after a preemption it begins anew.
//   - Drafts of sequences that decode get what is left of the budget when all
//     of the above is served, and no block that a running sequence may need for
//     its next token. They take part in nothing else: who is admitted, chosen
//     or preempted is decided without them.
//   - Up to steps_in_flight steps are planned before their tokens are known. A
//     sequence that turns out to have ended wastes a row; the token is dropped.
#ifndef QUIRE_ENGINE_SCHEDULER_SCHEDULER_H_
#define QUIRE_ENGINE_SCHEDULER_SCHEDULER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/engine_options.h"
#include "engine/kv_cache/kv_cache_manager.h"
#include "engine/request.h"
#include "engine/scheduler/fair_share.h"
#include "engine/scheduler/scheduler_output.h"
#include "engine/sequence.h"
#include "engine/speculative/draft_control.h"
#include "engine/speculative/drafter.h"

namespace quire {

// Only grow.
struct SchedulerCounters {
  int64_t num_prompt_tokens = 0;  // Of requests that were scheduled.
  // Of prompts, computed or found in the cache; each once, however often it is
  // computed.
  int64_t num_prefilled_tokens = 0;
  int64_t num_generation_tokens = 0;  // Handed out in events.
  int64_t num_preemptions = 0;
  int64_t prefix_cache_queries = 0;  // Prompt tokens, once per request.
  int64_t prefix_cache_hits = 0;
  // Rows with drafts, their drafts, and those of them that became tokens; also
  // by place among the drafts of a row, [num_speculative_tokens].
  int64_t num_drafts = 0;
  int64_t num_draft_tokens = 0;
  int64_t num_accepted_tokens = 0;
  std::vector<int64_t> num_accepted_at;
  // Requests ended by their deadline, before and after they started.
  int64_t num_overdue_waiting = 0;
  int64_t num_overdue_running = 0;

  // What has been done, in the units of FairShare's estimates of requests.
  int64_t work() const {
    return kPromptTokenCost * num_prefilled_tokens +
           kOutputTokenCost * num_generation_tokens;
  }
};

class Scheduler {
 public:
  // Requires: valid options; `cache` is empty and outlives the scheduler.
  Scheduler(const EngineOptions& options, KvCacheManager* cache);

  // Prompt and generated tokens a sequence can have: the model's limit, or what
  // all blocks hold.
  int max_num_tokens() const { return max_num_tokens_; }

  // Requires: a valid request (ValidateRequest) with an id not in use. `seed`
  // is used if the request has none.
  void AddRequest(Request request, uint64_t seed);
  bool HasRequest(RequestId id) const { return requests_.contains(id); }

  // Ends all unfinished choices, or one (choice_idx >= 0), now; appends an
  // event for each. Blocks named by steps in flight follow when those are
  // collected. Unknown requests and choices are ignored.
  void Abort(RequestId id, int choice_idx, FinishReason reason, absl::Time now,
             std::vector<OutputEvent>* events);
  // Ends what is past its deadline with DEADLINE_EXCEEDED.
  void EndOverdue(absl::Time now, std::vector<OutputEvent>* events);
  // Ends everything; `error` goes with FinishReason::kError.
  void AbortAll(FinishReason reason, const absl::Status& error, absl::Time now,
                std::vector<OutputEvent>* events);

  // ---- Drafts; without EngineOptions::num_speculative_tokens there are none.
  // From here on tokens are drafted. is_costly: Drafter::is_costly().
  void StartDrafting(bool is_costly);
  void StopDrafting();
  // Whether the tokens of the steps in flight should be known before the next
  // one is planned: only then something can be drafted.
  bool ShouldCollectFirst();
  // What to draft for in the next step, in order of arrival; the views are
  // valid until the scheduler is called again, other than by SetDrafts. A
  // costly drafter is asked what it misses of each sequence; null: nobody is.
  void PlanDrafts(Drafter* drafter, std::vector<DraftSequence>* sequences);
  // The drafts for these, in their order; they are taken. INTERNAL if some are
  // impossible: then none is used.
  absl::Status SetDrafts(absl::Span<Draft> drafts);
  // A sequence that has ended since drafting began, for Drafter::End.
  struct EndedSequence {
    uint64_t sequence_id = 0;
    std::vector<int32_t> token_ids;
    int32_t num_prompt_tokens = 0;
    std::string cache_namespace;
  };
  std::vector<EndedSequence> TakeEnded() { return std::exchange(ended_, {}); }
  // The sequences that the rows of the oldest step in flight compute, in their
  // order.
  void ListOldestStep(std::vector<const Sequence*>* sequences) const;
  // As DraftControl's, of Drafter::Propose for the last plan.
  void NoteProposals(int depth, int num_rows, int num_caught_up_tokens,
                     absl::Duration duration) {
    draft_control_.NoteProposals(depth, num_rows, num_caught_up_tokens,
                                 duration);
  }

  // Plans the next step into *output (its capacity is reused). A plan with rows
  // counts as in flight from here; one without means that nothing can be
  // computed before a step is collected or a request arrives. Requires:
  // num_steps_in_flight() < options.steps_in_flight.
  void Schedule(absl::Time now, SchedulerOutput* output);

  // Takes the oldest step's result; appends its events. INTERNAL if the result
  // is not of that step: its requests then fail with that error.
  absl::Status Update(StepResult&& result, absl::Time now,
                      std::vector<OutputEvent>* events);

  // The step failed: every request in it ends with `error`. The newest (Submit
  // failed) or the oldest (Collect failed) step in flight.
  void FailNewestStep(const absl::Status& error, absl::Time now,
                      std::vector<OutputEvent>* events);
  void FailOldestStep(const absl::Status& error, absl::Time now,
                      std::vector<OutputEvent>* events);

  int num_steps_in_flight() const { return static_cast<int>(steps_.size()); }
  bool HasUnfinished() const { return !running_.empty() || !waiting_.empty(); }
  int num_running() const { return static_cast<int>(running_.size()); }
  // Requests of which something waits and nothing runs, and their prompt
  // tokens. Linear in what waits.
  void CountWaiting(int* num_requests, int64_t* num_tokens) const;
  // Requests of which nothing has run yet, and their prompt tokens.
  int num_unstarted_requests() const { return num_unstarted_requests_; }
  int64_t num_unstarted_tokens() const { return num_unstarted_tokens_; }
  const SchedulerCounters& counters() const { return counters_; }
  const FairShare& shares() const { return shares_; }

  // The choice, as long as the scheduler knows its request; null otherwise. For
  // tests.
  const Sequence* FindSequence(RequestId id, int choice_idx) const;

  // Tests the cache manager's I1 to I6 on all sequences, and I5, I8, I9 and the
  // bookkeeping here. INTERNAL naming the invariant. Linear in everything.
  absl::Status CheckIntegrity() const;

 private:
  // What a step in flight does to a sequence. num_tokens == 0: it reads the
  // sequence's blocks (source of a copy) and computes nothing for it.
  struct InFlightRow {
    Sequence* sequence = nullptr;
    int first_position = 0;
    int num_tokens = 0;
    bool needs_token = false;
    int num_scored = 0;
    int num_drafts = 0;  // Of num_tokens.
    bool could_draft = false;

    bool has_result() const { return needs_token || num_scored > 0; }
  };
  struct InFlightStep {
    int64_t step_id = 0;
    absl::Time planned_time;
    int num_tokens = 0;
    bool has_prompt = false;  // Chunks of prompts.
    std::vector<InFlightRow> rows;
  };

  // The parts of Schedule, in order; each takes what it grants off *budget.
  void PreemptForUrgent();
  // Which sequences may decode in this step, if not all.
  void ChooseDecodes();
  void GrantDecodes(int* budget);
  void AdmitWaiting(absl::Time now, int* budget, SchedulerOutput* output);
  void GrantPrefills(int* budget);
  void GrantDrafts(int budget);
  void EmitRows(SchedulerOutput* output);

  // Drafts that the sequence's next row may have.
  int MaxDraftsOf(const Sequence& sequence) const;
  // The sequence as a drafter is shown it.
  static DraftSequence Show(const Sequence& sequence);
  // Gets blocks for so many drafts, or as many as can be had; returns how many.
  int CoverDrafts(Sequence* sequence, int num_drafts);
  void NoteDrafts(const InFlightRow& row, int num_accepted);
  void NoteStepTime(const InFlightStep& step, absl::Time now);

  bool AppendBlockOrPreempt(Sequence* sequence);
  void PreemptLast();
  void Preempt(size_t running_idx);
  // Whether a sequence of so many tokens is beyond rope_switch_length.
  bool IsBeyondRopeSwitch(int num_tokens) const {
    return options_.rope_switch_length > 0 &&
           num_tokens > options_.rope_switch_length;
  }
  // Whether the waiting sequence, with so many tokens left to compute, would
  // get some beside the prompts in prefills_.
  bool WouldGetTokens(const Sequence& sequence, int num_remaining_tokens,
                      int budget) const;
  // The prefix that the sequence need not compute.
  PrefixHit FindPrefix(Sequence* sequence) const;
  // Whether the sequence has to wait for an earlier choice of its request, and
  // the one whose prompt it can take over.
  Sequence* FindForkParent(const Sequence& sequence, bool* must_wait) const;
  bool TryFork(Sequence* sequence, Sequence* parent, absl::Time now,
               SchedulerOutput* output);
  void StartSequence(Sequence* sequence, int num_computed_tokens,
                     absl::Time now);
  void EmitSlotChanges(Sequence* sequence, SchedulerOutput* output);

  // The parts of Update.
  void ApplyRow(const InFlightRow& row, SampledRow* sampled, absl::Time now,
                std::vector<OutputEvent>* events);
  void NotePrefilled(const Sequence& sequence);
  void ApplyResult(const InFlightRow& row, SampledRow* sampled, absl::Time now,
                   std::vector<OutputEvent>* events);
  // The token itself, and those it is told with.
  bool IsInVocabulary(const TokenOutput& token) const;
  // Whether the tokens can be what became of the row and its drafts.
  bool AreValidTokens(const InFlightRow& row,
                      absl::Span<const TokenOutput> tokens) const;
  // Where the token was to be drawn instead of which the row has a fault.
  static int PositionOfFault(const InFlightRow& row, const SampledRow& sampled);
  // Takes the drafts accepted before a fault, as if they had been drawn one by
  // one. False if they ended the sequence, which never reaches the fault then.
  bool TakeTokensBeforeFault(const InFlightRow& row, SampledRow* sampled,
                             absl::Time now, std::vector<OutputEvent>* events);
  // Takes the tokens, of which the first num_accepted were drafts. `event` may
  // hold scored prompt tokens.
  void AcceptTokens(const InFlightRow& row, absl::Span<TokenOutput> tokens,
                    int num_accepted, OutputEvent event,
                    std::vector<OutputEvent>* events);
  void FailRows(InFlightStep step, const absl::Status& error, absl::Time now,
                std::vector<OutputEvent>* events);
  void FailRequest(RequestState* request, const absl::Status& error,
                   absl::Time now, std::vector<OutputEvent>* events);

  // Ends the sequence and completes `event`, which may hold its last tokens.
  void FinishSequence(Sequence* sequence, FinishReason reason,
                      OutputEvent event, std::vector<OutputEvent>* events);
  OutputEvent MakeEvent(const Sequence& sequence, absl::Time now) const;
  // Gives back slot and blocks of a sequence that does not run, unless a step
  // in flight names them.
  void ReleaseHoldingsIfUnused(Sequence* sequence);
  void EraseRequestIfDone(RequestState* request);
  void InsertWaiting(Sequence* sequence);
  void SettleShares();
  void EndWithError(RequestState* request, FinishReason reason,
                    const absl::Status& error, absl::Time now,
                    std::vector<OutputEvent>* events);
  // Removes from running_ and waiting_ what no longer belongs there.
  void CompactQueues();
  InFlightStep TakeSpareStep();

  absl::Status CheckSequence(const Sequence& sequence) const;
  absl::Status CheckQueues() const;

  const EngineOptions options_;
  const int max_num_tokens_;
  KvCacheManager* const cache_;
  absl::flat_hash_map<RequestId, std::unique_ptr<RequestState>> requests_;
  FairShare shares_;
  // Of unfinished requests that have one.
  std::set<std::pair<absl::Time, RequestId>> deadlines_;
  std::vector<Sequence*> running_;         // By Sequence::IsBefore.
  std::vector<Sequence*> waiting_;         // As well.
  std::vector<int32_t> free_slots_;        // A stack.
  std::deque<InFlightStep> steps_;         // Oldest first.
  std::vector<InFlightStep> spare_steps_;  // Kept for their capacity.
  std::vector<Sequence*> prefills_;        // Scratch of Schedule.
  std::vector<Sequence*> decodes_;         // Likewise, of ChooseDecodes.
  // Sequences that do not run but hold blocks until a step is collected.
  int num_releasing_ = 0;
  bool queues_need_compaction_ = false;
  int num_unstarted_requests_ = 0;
  int64_t num_unstarted_tokens_ = 0;
  DraftControl draft_control_;
  bool is_drafting_ = false;
  std::vector<Sequence*> draft_plan_;  // From PlanDrafts to Schedule.
  std::vector<DraftControl::Candidate> candidates_;  // Scratch.
  std::vector<const DraftTrack*> tracks_;            // Scratch.
  std::vector<EndedSequence> ended_;
  absl::Time last_update_time_;
  uint64_t next_start_no_ = 0;
  uint64_t next_arrival_no_ = 0;
  int64_t next_step_id_ = 0;
  SchedulerCounters counters_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SCHEDULER_SCHEDULER_H_
