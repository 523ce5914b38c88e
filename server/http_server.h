// Sockets, HTTP/1.1 and event streams. Knows nothing of models or JSON.
//
// cpp-httplib parses requests and routes them; accepting, the head guard, body
// limits, deadlines, keep-alive and all writing of responses that take time are
// ours (reasons and measurements: engine/DESIGN.md).
#ifndef QUIRE_SERVER_HTTP_SERVER_H_
#define QUIRE_SERVER_HTTP_SERVER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace quire {

class RequestObserver;  // server/telemetry/request_record.h
struct RequestRecord;

// What the requests of one key may take. 0: no bound.
struct ApiKeyLimits {
  int64_t max_concurrent_requests = 0;
  int64_t requests_per_minute = 0;
  int64_t tokens_per_minute = 0;  // Of prompts and answers together.

  friend bool operator==(const ApiKeyLimits&, const ApiKeyLimits&) = default;
};

struct ApiKeyOwner {
  std::string name;  // Empty: nobody had to say who they are.
  ApiKeyLimits limits;
  // Of the engine and the cache, among owners; [1, 1000].
  int32_t share_weight = 1;
  bool is_only_one = false;  // There is nobody to share with.
};

struct HttpRequest {
  std::string method;  // "GET", "POST", ...
  std::string path;    // Without the query.
  // What stands in `path` for the "{...}" of the route, percent-encoded as it
  // came.
  std::string path_tail;
  std::string body;
  std::vector<std::pair<std::string, std::string>>
      headers;  // Names lower case.
  absl::Time
      arrival_time;  // Clock of the process when the first byte was read.
  // Of a route with kApi; null for others.
  std::shared_ptr<const ApiKeyOwner> owner;
  // What will be told of the request; whoever answers it holds it until it has,
  // and writes the API's part. Null in tests only.
  std::shared_ptr<RequestRecord> record;

  // The first value of `name` (lower case); empty if absent.
  absl::string_view Header(absl::string_view name) const;
  // The protocol that the peer offers to go on in; empty if it offers none.
  std::string upgrade;
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// A connection that goes on in another protocol (RFC 9110 7.8).
struct HttpUpgrade {
  std::string protocol;  // As the answer names it.
  // Takes what the peer sends, from its first byte on, in order; false cuts the
  // connection off. On a thread of the server: must not block.
  std::function<bool(absl::string_view bytes)> on_bytes;
  int64_t max_buffered_bytes = 256 << 10;  // As HttpServerOptions'.
  // A peer that is silent for longer is cut off.
  absl::Duration idle_timeout = absl::InfiniteDuration();
};

// The answer to one request: either one Send, or StartStream or Upgrade, then
// any number of Write, then Finish. All methods are thread-safe, never block
// and may be called from any thread, at once or long after the handler
// returned; after the peer has gone they do nothing. Dropping the last
// reference unanswered sends 500.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;

  // A whole response with Content-Length.
  virtual void Send(int status, absl::string_view content_type,
                    std::string body, const HttpHeaders& headers = {}) = 0;

  // Begins a chunked text/event-stream response with status 200.
  virtual void StartStream(const HttpHeaders& headers = {}) = 0;
  // Answers 101; what is written goes out as it is. Only for a request that
  // offers it (HttpRequest::upgrade). The server's Stop does not wait for it.
  virtual void Upgrade(HttpUpgrade /*upgrade*/) {}
  // Queues bytes of the stream as one chunk; pieces are coalesced. If the peer
  // reads too slowly (HttpServerOptions::max_buffered_bytes) it is
  // disconnected.
  virtual void Write(std::string data) = 0;
  // The peer has not taken all that was written: what is written now waits,
  // too. As seen a moment ago.
  virtual bool is_behind() const { return false; }
  // The last chunk; the connection may then serve another request.
  virtual void Finish() = 0;

  // `callback` runs once, on a thread of the server, as soon as the peer has
  // closed the connection or was disconnected before the answer was complete
  // (at once if it already has); never after Send or Finish was flushed. It
  // must not block.
  virtual void OnDisconnect(std::function<void()> callback) = 0;
};

// Runs on a worker thread; may answer later through the responder.
using HttpHandler =
    std::function<void(const HttpRequest&, std::shared_ptr<HttpResponder>)>;

enum class RouteAccess : uint8_t {
  kPublic,
  kApi,  // Asks for a key.
  // Public; for who watches the server. The operations listener has these
  // routes only, and threads of their own run them, so that they never wait
  // behind requests. Must not block.
  kOperations,
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 8080;  // 0: any free port; see HttpServer::port().
  // Not empty: listens on this Unix socket; host and port have no effect.
  std::string unix_socket_path;
  // A second listener, always plain HTTP, for the routes with kOperations. 0:
  // any free port; none: no such listener (the routes are on the first one,
  // too).
  std::optional<int> ops_port;
  std::string ops_host = "127.0.0.1";
  // PEM files. With a certificate the first listener speaks TLS 1.2 or later
  // only; a file that changes is read again within a second or two, and what
  // cannot be used is reported to on_notice and leaves the old one in force.
  std::string tls_certificate_file;
  std::string tls_private_key_file;
  std::string tls_client_ca_file;  // Clients need a certificate from these.
  int num_workers = 8;
  int listen_backlog = 4096;
  int max_connections = 8192;
  int64_t max_head_bytes = 32 << 10;
  int max_header_fields = 100;
  int64_t max_target_bytes = 1 << 10;
  int64_t max_body_bytes = 8 << 20;
  absl::Duration head_timeout = absl::Seconds(5);
  absl::Duration body_timeout = absl::Seconds(30);
  // Within body_timeout a body must keep up this rate, once body_grace is over.
  absl::Duration body_grace = absl::Seconds(5);
  int64_t min_body_bytes_per_second = 1 << 10;
  absl::Duration keep_alive_timeout = absl::Seconds(15);
  absl::Duration write_stall_timeout = absl::Seconds(30);
  // ": ping" comments while a stream has nothing to say; proxies cut idle ones.
  absl::Duration stream_ping_interval = absl::Seconds(15);
  // Per stream, beside the kernel's and beside the largest single write; up to
  // 4 MiB where 16 such writes are more.
  int64_t max_buffered_bytes = 256 << 10;
  // Of all answers that their readers have not taken: beyond it, those are cut
  // off that have held most for longest.
  int64_t max_unsent_bytes = 512 << 20;
  // Both empty: no authentication. The file: see ApiKeys.
  std::vector<std::string> api_keys;
  std::string api_keys_file;
  // A line for the log: of what is wrong, and of what is as it should be. Runs
  // on the socket thread: must not block or throw.
  std::function<void(const std::string& line)> on_notice;
  std::function<void(const std::string& line)> on_info;
  // Is told of every request. May be null.
  std::shared_ptr<RequestObserver> observer;
  // Renders an error of the transport itself (404, 405, 400, 401, 408, 413,
  // 415, 431, 503) as a JSON body.
  std::function<std::string(int status, absl::string_view message)> error_body;
  // Runs once per response, on the socket thread, when its head is written:
  // must not block or throw. `route`: the path of the route, empty if the
  // request hit none. `method`: as the client sent it, empty if its head was
  // not readable.
  std::function<void(absl::string_view method, absl::string_view route,
                     int status)>
      on_response;
};

struct HttpRoute {
  std::string method, path;
  RouteAccess access = RouteAccess::kApi;
};

class HttpServer {
 public:
  static absl::StatusOr<std::unique_ptr<HttpServer>> Create(
      const HttpServerOptions& options);
  virtual ~HttpServer() = default;  // Stops, see Stop.

  // Paths are literal, but the last segment may be "{a name}": it stands for
  // one character or more, slashes included. A literal path comes first. Call
  // before Start. HEAD is answered for GET routes.
  virtual void AddRoute(absl::string_view method, absl::string_view path,
                        RouteAccess access, HttpHandler handler) = 0;

  // All that were added. Not before Start.
  virtual std::vector<HttpRoute> routes() const = 0;

  // Binds and serves in the background. UNAVAILABLE with address and reason.
  virtual absl::Status Start() = 0;
  virtual int port() const = 0;      // After Start; 0 for a Unix socket.
  virtual int ops_port() const = 0;  // After Start; 0 without one.

  // Reads the file of keys again if it has changed; true if it did. With an
  // error the keys in force stay. Not on a thread that must not block; one at a
  // time.
  virtual absl::StatusOr<bool> ReloadKeys() = 0;
  // Whose key the value of an Authorization field holds now. Null: nobody's.
  // For connections that outlive the request that opened them.
  virtual std::shared_ptr<const ApiKeyOwner> Authenticate(
      absl::string_view authorization) const = 0;

  // HttpServerOptions::observer's.
  virtual int64_t max_recorded_body_bytes() const = 0;

  // Requests being handled or answered now, probes included.
  virtual int num_open_requests() const = 0;

  // Every further response closes its connection (while draining).
  virtual void SetCloseConnections() = 0;
  // Stops accepting, waits up to `grace` for open responses to be flushed, then
  // closes everything. Blocks. Idempotent.
  virtual void Stop(absl::Duration grace) = 0;
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_SERVER_H_
