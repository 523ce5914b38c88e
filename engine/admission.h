// Who may wait for the engine: the bounds of its queue, and what is known of
// the time that waiting takes.
#ifndef QUIRE_ENGINE_ADMISSION_H_
#define QUIRE_ENGINE_ADMISSION_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/engine_options.h"
#include "engine/load_monitor.h"
#include "engine/request.h"
#include "engine/scheduler/fair_share.h"

namespace quire {

// Why requests were refused, since the start.
struct RefusalCounts {
  int64_t num_queue_full = 0;  // By requests, tokens or bytes.
  int64_t num_share_full = 0;  // Of the owner.
  int64_t num_too_late = 0;    // The deadline would pass while it waits.
};

// Bytes that the request holds while it waits, lists and choices included.
int64_t NumBytesOf(const Request& request);

// Thread-compatible. A function of its arguments.
//
// A named owner may use as much of the queue as it leaves free (dynamic
// thresholds: Choudhury & Hahne 1998, "Dynamic queue length thresholds for
// shared-memory packet switches", with alpha 1): one that floods has half of
// the queue, two have a third each, and for a newcomer there is always room.
// Without a name all of it.
class Admission {
 public:
  Admission(const EngineOptions& options, absl::Time now);

  // Counts the request as waiting. Else RESOURCE_EXHAUSTED with
  // kRetryAfterPayload, and kOwnLimitPayload if the bound is the owner's;
  // DEADLINE_EXCEEDED if its deadline has passed. Sets request->num_bytes.
  // Request::continues_call: always OK.
  // stalled: see LoadMonitor::PredictDelay.
  absl::Status Admit(absl::Time now, Request* request,
                     absl::Duration stalled = absl::ZeroDuration());

  // The state of the engine between two steps.
  struct Snapshot {
    int num_running = 0;
    // Of the last step.
    int num_step_tokens = 0;
    double kv_use = 0;
    int64_t work = 0;  // SchedulerCounters::work.
    double mean_output_tokens = 0;
  };
  // Once per step, and when the engine becomes idle or begins again. `queued`:
  // what the scheduler has not started; null if that is as before. `inbox`:
  // what it has not seen.
  void NoteStep(absl::Time now, const Snapshot& snapshot,
                const std::vector<QueuedShare>* queued,
                const std::vector<const Request*>& inbox);
  // Nothing was done until now.
  void NoteIdle(absl::Time now);

  // Until a request at the end of the whole queue starts.
  absl::Duration predicted_delay(
      absl::Duration stalled = absl::ZeroDuration()) const {
    return PredictDelay(total_.cost, stalled);
  }
  // Of the queue's bounds, the largest part in use; the free slots take some.
  double QueueUse() const;
  const LoadMonitor& monitor() const { return monitor_; }
  const RefusalCounts& refusals() const { return refusals_; }
  int num_requests() const { return total_.num_requests; }

 private:
  using Key = std::pair<int32_t, std::string>;  // Priority, owner.

  absl::Status CheckBounds(const Request& request, int64_t cost,
                           absl::Duration stalled);
  absl::Status CheckDeadline(absl::Time now, const Request& request,
                             int64_t cost, absl::Duration stalled);
  int32_t PriorityOf(const Request& request) const;
  int64_t CostOf(const Request& request) const;
  double ExpectedOutputTokens(const Request& request) const;
  int64_t CostAhead(const Request& request, int64_t cost) const;
  int64_t CostInTheWay(int64_t cost_ahead) const;
  absl::Duration PredictDelay(int64_t cost_ahead, absl::Duration stalled) const;
  void Add(const Request& request, int64_t cost);
  int NumFreeSlots() const;
  absl::Status Refuse(absl::Status status, absl::Duration wait) const;

  const EngineOptions options_;
  LoadMonitor monitor_;
  Snapshot last_;
  // Requests wait although the last step had room for their tokens.
  bool lacks_blocks_ = false;
  std::vector<QueuedShare> scheduler_queued_;
  std::map<Key, QueuedShare> queued_;  // With the inbox.
  QueuedShare total_;
  bool had_queue_ = false;
  RefusalCounts refusals_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_ADMISSION_H_
