// An HTTP client for many responses at once on one thread: connections are
// non-blocking behind one epoll, and kept for the next request where the server
// allows.
#ifndef QUIRE_BENCHMARKS_SERVING_LOAD_CLIENT_H_
#define QUIRE_BENCHMARKS_SERVING_LOAD_CLIENT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "benchmarks/serving/response_reader.h"

namespace quire {

// "http://host:port/prefix": where a server is.
struct ServerUrl {
  bool is_tls = false;
  std::string host;  // Name or address, without brackets.
  int port = 80;
  std::string prefix;  // Of every path: empty or "/...", without a last '/'.

  // "http://host:port".
  std::string Origin() const;
};

// INVALID_ARGUMENT unless `url` is http:// or https:// with a host.
absl::StatusOr<ServerUrl> ParseServerUrl(absl::string_view url);

struct HttpMessage {
  std::string method = "POST";
  std::string path;  // Below the URL's prefix.
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
};

// What became of a request.
struct ResponseEnd {
  // UNAVAILABLE: no connection; DEADLINE_EXCEEDED: nothing came for long;
  // CANCELLED; DATA_LOSS, RESOURCE_EXHAUSTED: from ResponseReader. OK with an
  // error of HTTP.
  absl::Status status;
  int http_status = 0;
  bool is_event_stream = false;
  std::string body;  // Of a response that is no event stream.
};

// Times are seconds of Clock::Monotonic.
class ResponseHandler {
 public:
  virtual ~ResponseHandler() = default;
  // An event of the stream; `data` is valid for the call only.
  virtual void OnEvent(absl::string_view data, double now) = 0;
  // Once for every Start, and last.
  virtual void OnEnd(const ResponseEnd& end, double now) = 0;
};

struct LoadClientOptions {
  ResponseLimits limits;
  double connect_timeout_seconds = 10;
  double idle_timeout_seconds = 600;  // Between two bytes of a response.
  bool verify_certificate = true;     // Of an https server.
  bool reuse_connections = true;
  // Once set, Create gives up; null: it does not.
  const std::atomic<bool>* is_cancelled = nullptr;
};

double MonotonicSeconds();

// Thread-compatible.
class LoadClient {
 public:
  // Resolves the host, connects once and, for https, shakes hands. UNAVAILABLE
  // with address and reason; CANCELLED if a signal came meanwhile.
  static absl::StatusOr<std::unique_ptr<LoadClient>> Create(
      const ServerUrl& url, const LoadClientOptions& options);
  virtual ~LoadClient() = default;  // Drops what is open without a word.

  // Never blocks. `handler` must live until its OnEnd, which comes from Poll,
  // or from CancelAll; it may call Start.
  virtual void Start(const HttpMessage& message, ResponseHandler* handler) = 0;
  // Waits up to `seconds` for something to happen and tells the handlers.
  virtual void Poll(double seconds) = 0;
  // Ends all open requests with CANCELLED.
  virtual void CancelAll() = 0;
  virtual int num_open() const = 0;

  // One request, waited for. CANCELLED as soon as *is_cancelled, if it is
  // given. Requires: no other request is open.
  ResponseEnd Fetch(const HttpMessage& message, double timeout_seconds,
                    const std::atomic<bool>* is_cancelled = nullptr);
};

// Lets the process have as many open files as it may.
void RaiseOpenFileLimit();

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_SERVING_LOAD_CLIENT_H_
