// The engine without its thread: takes requests, runs steps, returns events.
#ifndef QUIRE_ENGINE_ENGINE_H_
#define QUIRE_ENGINE_ENGINE_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "engine/engine_loop.h"
#include "engine/engine_options.h"
#include "engine/kv_cache/kv_cache_manager.h"
#include "engine/model_runner.h"
#include "engine/request.h"
#include "engine/scheduler/scheduler.h"
#include "engine/speculative/drafter.h"

namespace quire {

// Choices of a request; each is a sequence to keep and a slot to fill.
inline constexpr int kMaxChoices = 128;

// INVALID_ARGUMENT, with the figures, for a request that could never run under
// these options or would endanger memory: an empty prompt, an id outside the
// vocabulary, a prompt that leaves no room for one token. Thread-safe.
absl::Status ValidateRequest(const EngineOptions& options,
                             const Request& request);

// What requests are told when the engine has failed. Why it has, Health() says:
// a client is not to read of hosts, processes and files.
absl::Status EngineHasFailed();

// Thread-compatible: used by one thread. Owns scheduler and cache manager,
// borrows runner and clock.
class Engine {
 public:
  // `runner`, `clock` and `drafter` (null: nothing is drafted) must outlive the
  // engine. INVALID_ARGUMENT from ValidateEngineOptions, or if the runner
  // overlaps more or fewer steps than the options say, or if there is a drafter
  // and no num_speculative_tokens.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      const EngineOptions& options, ModelRunner* runner, Clock* clock,
      Drafter* drafter = nullptr);

  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // After OK, exactly one event with is_last follows. INVALID_ARGUMENT from
  // ValidateRequest, ALREADY_EXISTS for an id in use, UNAVAILABLE if !Health().
  absl::Status AddRequest(Request request);

  // See EngineLoop::Abort; appends the events.
  void Abort(RequestId id, int32_t choice_idx, bool reason_is_stop,
             std::vector<OutputEvent>* events);
  // Ends everything with kAbort, and collects what is in flight so that nothing
  // runs when the runner is destroyed. Blocks as long as the runner does.
  void Shutdown(std::vector<OutputEvent>* events);

  // Plans and submits a step if one more may be in flight; collects the oldest
  // if no more may be, or nothing could be planned, or before anything is
  // drafted. Appends what came of it.
  // Blocks while the runner computes. Requires: HasWork().
  void Step(std::vector<OutputEvent>* events);

  // Something runs or waits, or a step is in flight.
  bool HasWork() const {
    return scheduler_.HasUnfinished() || scheduler_.num_steps_in_flight() > 0;
  }
  // Not OK once kMaxFailuresInARow steps in a row failed, or one because the
  // device did (UNAVAILABLE): everything was ended with this error, and nothing
  // more is accepted.
  const absl::Status& Health() const { return health_; }
  static constexpr int kMaxFailuresInARow = 3;

  // OK, or why nothing is drafted any more. The engine goes on without.
  const absl::Status& DrafterHealth() const { return drafter_health_; }

  // Tokens of the steps that were planned and not collected. Thread-safe.
  int64_t num_tokens_in_flight() const {
    return num_tokens_in_flight_.load(std::memory_order_relaxed);
  }
  // Of the last step.
  int num_step_tokens() const { return num_step_tokens_; }

  // Without the inbox's share.
  EngineStats Stats() const;
  absl::Time Now() const { return clock_->Now(); }
  const Scheduler& scheduler() const { return scheduler_; }
  const KvCacheManager& cache() const { return cache_; }
  absl::Status CheckIntegrity() const { return scheduler_.CheckIntegrity(); }

 private:
  Engine(const EngineOptions& options, ModelRunner* runner, Clock* clock,
         Drafter* drafter);

  void PlanOrCollect(std::vector<OutputEvent>* events);
  void SubmitPlanned(std::vector<OutputEvent>* events);
  void CollectOldest(std::vector<OutputEvent>* events);
  void NoteFailure(const absl::Status& error, std::vector<OutputEvent>* events);
  void CountStep(const SchedulerOutput& output);
  // What precedes a step if there is a drafter.
  bool MustCollectForDrafts();
  void ProposeDrafts();
  void TellDrafterOfEnds();
  void NoteObservedRows(const SchedulerOutput& output);
  void ShowStep(std::vector<TargetRow> rows, const StepResult& result);
  // Sets what follows each token of the rows, and where they are stored.
  void DescribeRows(const StepResult& result, absl::Span<TargetRow> rows);
  void StopDrafting(const absl::Status& error);

  const EngineOptions options_;
  ModelRunner* const runner_;
  Clock* const clock_;
  KvCacheManager cache_;
  Scheduler scheduler_;
  SchedulerOutput output_;  // Reused for its capacity.
  Drafter* drafter_;        // Null once it has failed.
  absl::Status drafter_health_;
  std::vector<DraftSequence> draft_sequences_;  // Reused.
  std::vector<Draft> drafts_;                   // Reused.
  // Of the steps in flight, if the drafter wants to see them.
  std::deque<std::vector<TargetRow>> observed_rows_;
  std::vector<const Sequence*> observed_sequences_;  // Scratch.
  std::vector<int32_t> next_ids_;                    // Scratch.
  absl::Status health_;
  int num_failures_in_a_row_ = 0;
  uint64_t num_seeds_drawn_ = 0;
  int64_t num_steps_ = 0;
  int num_step_tokens_ = 0;
  std::deque<int> tokens_in_flight_;  // By step, the oldest first.
  std::atomic<int64_t> num_tokens_in_flight_{0};
  absl::Time last_step_time_;
  std::vector<int64_t> step_token_histogram_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_ENGINE_H_
