// Takes the engine's events to the answers they belong to, on a thread of its
// own: detokenizing and JSON never cost the engine a microsecond. A stream gets
// its first token and its end at once, what is between them once a millisecond.
#ifndef QUIRE_SERVER_OUTPUT_PROCESSOR_H_
#define QUIRE_SERVER_OUTPUT_PROCESSOR_H_

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/time/time.h"
#include "engine/base/other_core.h"
#include "engine/engine_loop.h"
#include "engine/request.h"
#include "server/call.h"
#include "server/http/write_burst.h"
#include "server/server_metrics.h"

namespace quire {

// One engine request of a call: its choices are first_choice .. + n.
struct CallPart {
  RequestId request_id = 0;
  int32_t first_choice = 0;
  int32_t n = 1;
  int32_t max_tokens = 0;
  int64_t num_prompt_tokens = 0;
  absl::Time arrival_time;
};

// Thread-safe. The order of a call: Register, then EngineLoop::Submit for each
// part, then Accept or Reject.
class OutputProcessor : public OutputSink {
 public:
  // `metrics` must outlive this.
  explicit OutputProcessor(ServerMetrics* metrics);
  ~OutputProcessor() override;  // Stops.

  // `engine` must outlive the thread this starts. Call once, before any
  // Register.
  void Start(EngineLoop* engine);

  void Register(std::shared_ptr<Call> call, std::vector<CallPart> parts);
  // All parts were submitted: a stream's head may go out.
  void Accept(std::shared_ptr<Call> call);
  // The parts from `first_rejected` on were not submitted: the call ends with
  // `error`, and the parts before are aborted.
  void Reject(std::shared_ptr<Call> call, size_t first_rejected,
              std::vector<CallPart> parts, absl::Status error);

  // By one thread, the engine's.
  void Push(std::vector<OutputEvent> events) override;

  // Ends every call with `error` and aborts its requests.
  void FailAll(absl::Status error);
  // Ends the thread: from here on the engine is not called, and what is pushed
  // or not complete is dropped. Idempotent.
  void Stop();

  // Waits until every registered call is complete; false on timeout.
  bool WaitUntilIdle(absl::Duration timeout);

 private:
  struct Registered {
    std::shared_ptr<Call> call;
    std::vector<CallPart> parts;
  };
  struct Accepted {
    std::shared_ptr<Call> call;
  };
  struct Rejected {
    std::shared_ptr<Call> call;
    std::vector<CallPart> not_submitted;
    absl::Status error;
  };
  struct AllFailed {
    absl::Status error;
  };
  using Item = std::variant<Registered, Accepted, Rejected, AllFailed,
                            std::vector<OutputEvent>>;
  // An engine request in flight.
  struct Part {
    std::shared_ptr<Call> call;
    CallPart info;
    FinishedRequest figures;
    std::vector<absl::Time> last_token_times;  // Per choice.
  };

  void Enqueue(Item item, bool is_urgent);
  // Something in it is not to wait for the time at which streams are written.
  // Requires: mu_.
  bool IsUrgent(const std::vector<OutputEvent>& events) const;
  // Waits until it is time to handle what is in the inbox, and takes it; false
  // at the end of the thread.
  bool TakeItems(std::vector<Item>* items);
  void Run();
  void Handle(Registered& item);
  void Handle(Accepted& item);
  void Handle(Rejected& item);
  void Handle(AllFailed& item);
  void Handle(std::vector<OutputEvent>& events);
  void HandleDeferred();
  void HandleEvent(const OutputEvent& event);
  // Whatever the engine still has of the call.
  void AbortParts(const std::shared_ptr<Call>& call);
  void ObserveTokens(Part& part, const OutputEvent& event);
  // One write per stream, whatever arrived for it; first those whose readers
  // keep up.
  void FlushCalls();
  // Plain streams before costly ones.
  void FlushTouched(WriteBurst* burst);
  void FlushUnlessBehind(std::shared_ptr<Call> call);
  void StartCalls();
  // Requires: mu_.
  bool IsIdle() const { return num_parts_ == 0 && num_unwritten_ == 0; }

  ServerMetrics* const metrics_;
  EngineLoop* engine_ = nullptr;
  // A std::mutex, not absl's: race detectors see through it without a rebuilt
  // abseil.
  std::mutex mu_;
  // The engine's thread goes on with the next step while this one writes.
  OtherCore other_core_;
  std::condition_variable has_work_;
  std::condition_variable is_idle_;
  std::vector<Item> inbox_;  // Guarded by mu_, as the next six.
  bool is_stopping_ = false;
  bool is_urgent_ = false;    // Something in the inbox is.
  bool is_resting_ = false;   // The thread waits for what is urgent only.
  int num_parts_ = 0;         // Registered and not ended.
  size_t num_unwritten_ = 0;  // In the queues of calls, at the end of a round.
  // Registered, and no token or end of it was handled yet: its first is urgent.
  absl::flat_hash_set<RequestId> not_begun_;
  // Of the output thread alone.
  absl::flat_hash_map<RequestId, Part> parts_;
  std::vector<RequestId> begun_;                // To leave not_begun_.
  std::vector<std::shared_ptr<Call>> touched_;  // Since all were flushed.
  std::deque<std::shared_ptr<Call>> urgent_;    // To be flushed now.
  // Of calls whose readers are behind: handled when all others are flushed.
  std::vector<OutputEvent> deferred_;
  // Touched, but their readers are behind: flushed in time that is left.
  std::deque<std::shared_ptr<Call>> behind_;
  std::deque<std::shared_ptr<Call>> accepted_;  // To be started.
  std::chrono::steady_clock::time_point next_flush_;
  std::thread thread_;
};

}  // namespace quire

#endif  // QUIRE_SERVER_OUTPUT_PROCESSOR_H_
