// What is told of one HTTP request after its end: a line of the log, a span.
#ifndef QUIRE_SERVER_TELEMETRY_REQUEST_RECORD_H_
#define QUIRE_SERVER_TELEMETRY_REQUEST_RECORD_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/telemetry/trace_context.h"

namespace quire {

// Not synchronized: the transport's fields are written by the socket thread,
// the API's by the handler and, once it has handed the request on, by the
// output thread. Read when nobody can write any more, after the last of them
// has let go. Durations are differences of the process's monotonic clock.
struct RequestRecord {
  // The transport's.
  std::string request_id;  // As in the field X-Request-Id of the answer.
  TraceContext trace;
  std::string method;     // Empty if the head was not readable.
  std::string route;      // Empty if the request hit none; then
  std::string path;       // the beginning of what it asked for.
  bool is_probe = false;  // Of RouteAccess::kOperations.
  bool is_api = false;    // Of RouteAccess::kApi, and admitted.
  std::string owner;      // Of the key; empty: none was needed.
  absl::Time arrival_time = absl::InfinitePast();
  absl::Time end_time = absl::InfinitePast();  // Last byte out, or cut off.
  absl::Time wall_arrival;                     // Wall clock.
  int status = 0;                              // 0: no answer was begun.
  bool is_cut_off = false;  // The peer went before the answer was complete.
  // Why the transport refused it; our own words. Null: it did not.
  const char* refusal = nullptr;

  // The API's; of a request that reached the engine only.
  const char* operation = nullptr;  // "chat", "text_completion", "embeddings".
  std::string model;
  bool is_stream = false;
  double temperature = -1;  // Negative: does not apply.
  double top_p = -1;
  int32_t max_tokens = 0;
  int32_t n = 1;
  std::string body;  // The beginning of the request, if that may be told.
  int64_t num_prompt_tokens = 0;
  int64_t num_cached_tokens = 0;
  int64_t num_completion_tokens = 0;
  absl::Time scheduled_time = absl::InfinitePast();
  absl::Time first_token_time = absl::InfinitePast();
  absl::Time last_token_time = absl::InfinitePast();
  const char* finish_reason = nullptr;  // Of the first choice.
};

// Thread-safe.
class RequestObserver {
 public:
  virtual ~RequestObserver() = default;
  // On the socket thread, before the request is handled: may begin a trace
  // (`record->trace`), or decide on sampling one.
  virtual void OnBegin(RequestRecord* record) {}
  // On any thread, once per record, after everything that it tells: must not
  // block.
  virtual void OnEnd(const RequestRecord& record) = 0;
  // How many bytes of a request's body may be kept in its record.
  virtual int64_t max_body_bytes() const { return 0; }
};

// A record that `observer` (may be null) is told of when its last owner lets
// go; keeps the observer alive until then.
std::shared_ptr<RequestRecord> NewRequestRecord(
    std::shared_ptr<RequestObserver> observer);

// All of them as one.
std::shared_ptr<RequestObserver> CombineObservers(
    std::vector<std::shared_ptr<RequestObserver>> observers);

inline constexpr size_t kMaxRequestIdLength = 64;
// True for 1 to kMaxRequestIdLength letters, digits, '.', '_' and '-': what may
// stand in a header and in a log as it is.
bool IsHarmlessRequestId(absl::string_view id);

}  // namespace quire

#endif  // QUIRE_SERVER_TELEMETRY_REQUEST_RECORD_H_
