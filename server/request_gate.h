// What every request of the API passes before and after it is parsed: stages of
// shedding, the memory that parsing takes, and its deadline.
#ifndef QUIRE_SERVER_REQUEST_GATE_H_
#define QUIRE_SERVER_REQUEST_GATE_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "engine/engine_loop.h"
#include "server/http_server.h"
#include "server/load_shedder.h"
#include "server/memory_budget.h"

namespace quire {

struct RequestGateOptions {
  // Of requests that ask for no timeout, and of all others; zero: none.
  absl::Duration default_timeout;
  absl::Duration max_timeout;
  // A parsed body takes up to 27 times its bytes (measured: 4 MiB of `{}`).
  int64_t max_parsing_bytes = int64_t{1} << 30;
  int64_t parsing_bytes_per_body_byte = 32;
};

// What /metrics and /load say of it.
struct GateFigures {
  ShedStage stage = ShedStage::kNone;
  int64_t num_refused[kNumShedStages] = {};
  int64_t num_refused_memory = 0;  // No memory to parse them.
  int64_t num_refused_scores = 0;  // None for log-probabilities of answers.
};

// Thread-safe.
class RequestGate {
 public:
  RequestGate(const RequestGateOptions& options, Clock* clock)
      : options_(options), clock_(clock), budget_(options.max_parsing_bytes) {}

  // The memory for parsing the body, to be held until that is done. UNAVAILABLE
  // if there is none, or nothing new is accepted.
  absl::StatusOr<MemoryBudget::Reservation> Enter(const HttpRequest& request,
                                                  const EngineLoop& engine);
  // Takes the load of now into account; Enter does so, too.
  void Update(const EngineStats& stats);
  // UNAVAILABLE if a request like this one is refused now.
  absl::Status Check(const RequestTraits& traits, const EngineLoop& engine);

  // `timeout`: seconds, of the body; the field X-Request-Timeout has them, too:
  // the shorter one counts. INVALID_ARGUMENT if the field is not a number above
  // 0.
  absl::StatusOr<absl::Time> Deadline(const HttpRequest& request,
                                      std::optional<double> timeout) const;

  // The same for a request that came without HTTP, at `arrival_time`, and asks
  // for `deadline` (InfiniteFuture: for none).
  absl::Time Deadline(absl::Time arrival_time, absl::Time deadline) const;

  // As of now.
  GateFigures Figures(const EngineStats& stats);

 private:
  double RecentHostMemoryUse();

  const RequestGateOptions options_;
  Clock* const clock_;
  MemoryBudget budget_;
  LoadShedder shedder_;
  std::atomic<int64_t> num_refused_memory_{0};
  std::mutex mu_;  // Guards the two below.
  absl::Time memory_read_at_ = absl::InfinitePast();
  double host_memory_use_ = 0;
};

// Whose share of the engine the request uses. A lone owner, or none (null),
// shares with nobody.
void SetShare(const ApiKeyOwner* owner, Request* request);

// A refusal of EngineLoop::Submit as the client is told it: a limit of the
// server's is UNAVAILABLE, one of the caller's own RESOURCE_EXHAUSTED.
absl::Status SubmitRefusal(const absl::Status& status);

}  // namespace quire

#endif  // QUIRE_SERVER_REQUEST_GATE_H_
