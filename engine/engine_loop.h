// The engine thread: takes requests from a bounded inbox, runs steps, and hands
// each step's events to one sink.
#ifndef QUIRE_ENGINE_ENGINE_LOOP_H_
#define QUIRE_ENGINE_ENGINE_LOOP_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/admission.h"
#include "engine/base/clock.h"
#include "engine/engine_options.h"
#include "engine/model_runner.h"
#include "engine/request.h"
#include "engine/speculative/drafter.h"

namespace quire {

// Receives what happens to requests. One call per step with all its events (the
// engine thread pays for one queue push, not one per stream). Called on the
// engine thread: must not block.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  virtual void Push(std::vector<OutputEvent> events) = 0;
};

// A snapshot for metrics and health. Counters only grow.
struct EngineStats {
  // Now.
  int num_running = 0;  // Sequences in slots.
  int num_waiting =
      0;  // Requests accepted and not yet scheduled, or preempted.
  int64_t num_waiting_tokens = 0;
  int num_blocks = 0;
  int num_free_blocks = 0;  // Free, or cached and evictable.
  // Averages of the last seconds, 0 to 1; see LoadMonitor.
  double saturation = 0;
  double step_use = 0;
  double kv_use = 0;
  double delay_use = 0;
  // Of the queue's bounds, the largest part in use, now.
  double queue_use = 0;
  absl::Duration predicted_delay;  // Of a request at the end of the queue.
  // Since start.
  int64_t num_steps = 0;
  int64_t num_prompt_tokens = 0;  // Of scheduled requests, cached or not.
  int64_t num_generation_tokens = 0;
  int64_t num_preemptions = 0;
  int64_t prefix_cache_queries =
      0;                          // Prompt tokens looked up, once per request.
  int64_t prefix_cache_hits = 0;  // Of those, found.
  // As SchedulerCounters; zero without a drafter.
  int64_t num_drafts = 0;
  int64_t num_draft_tokens = 0;
  int64_t num_accepted_tokens = 0;
  std::vector<int64_t> num_accepted_at;
  int64_t num_drafter_failures = 0;  // 1 once nothing is drafted any more.
  // Ended by their deadline, before and after they started.
  int64_t num_overdue_waiting = 0;
  int64_t num_overdue_running = 0;
  RefusalCounts refusals;
  absl::Time last_step_time;  // When the last step ended.
  bool is_idle = true;        // Nothing to compute.
  std::vector<int64_t>
      step_token_histogram;  // kStepTokenBuckets, cumulative no.
};

// Upper bounds of EngineStats::step_token_histogram; one more bucket for above.
inline constexpr int kStepTokenBuckets[] = {1,   8,   16,   32,   64,   128,
                                            256, 512, 1024, 2048, 4096, 8192};

// Thread-safe.
class EngineLoop {
 public:
  // `runner`, `clock`, `sink` and `drafter` (null: nothing is drafted) must
  // outlive the loop. Starts the thread. Errors as Engine::Create's.
  static absl::StatusOr<std::unique_ptr<EngineLoop>> Create(
      const EngineOptions& options, ModelRunner* runner, Clock* clock,
      OutputSink* sink, Drafter* drafter = nullptr);
  // Aborts what is running (each request still gets its last event) and joins.
  virtual ~EngineLoop() = default;

  virtual RequestId NewRequestId() = 0;

  // Accepts the request: exactly one event with is_last will follow, also if it
  // fails. Not accepted: INVALID_ARGUMENT (could never run, with the figures),
  // RESOURCE_EXHAUSTED (queue full, or the owner's share of it, or no time left
  // to wait; see Admission), DEADLINE_EXCEEDED, UNAVAILABLE (draining, or the
  // engine died). With Request::continues_call, neither a full queue nor
  // draining is a reason.
  virtual absl::Status Submit(Request request) = 0;

  // Ends all choices, or one (choice_idx >= 0), with FinishReason::kAbort;
  // takes effect within one step at every stage, and frees all blocks. Unknown
  // or finished requests are ignored. `reason_is_stop`: the choice ended by a
  // stop string (its finish reason is then kStop; for metrics).
  virtual void Abort(RequestId id, int32_t choice_idx = -1,
                     bool reason_is_stop = false) = 0;

  // No further Submit succeeds; what was accepted goes on.
  virtual void StartDraining() = 0;
  // Waits until nothing runs or waits; false on timeout.
  virtual bool WaitUntilIdle(absl::Duration timeout) = 0;

  virtual EngineStats Stats() const = 0;
  // OK, or why the engine can serve no more: a step failed for good, or none
  // ends (EngineOptions::watchdog_seconds; the engine thread may then hang
  // forever, and with it the destructor).
  virtual absl::Status Health() const = 0;
  // Whether the watchdog is why.
  virtual bool is_hanging() const { return false; }
};

}  // namespace quire

#endif  // QUIRE_ENGINE_ENGINE_LOOP_H_
