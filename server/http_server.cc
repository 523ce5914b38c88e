#include "server/http_server.h"

#include <fcntl.h>
#include <httplib.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/http/api_keys.h"
#include "server/http/event_loop.h"
#include "server/http/worker_pool.h"
#include "server/telemetry/request_record.h"

// The library is a compiled shared object: another version may move a virtual
// function, and without the macros it was built with its classes have another
// size.
static_assert(absl::string_view(CPPHTTPLIB_VERSION) == "0.11.4");
#if !defined(CPPHTTPLIB_OPENSSL_SUPPORT) || \
    !defined(CPPHTTPLIB_ZLIB_SUPPORT) || !defined(CPPHTTPLIB_BROTLI_SUPPORT)
#error "Compile with the macros of `pkg-config --cflags cpp-httplib`."
#endif

namespace quire {
namespace {

// Requests that wait, for each worker. A handler takes about a millisecond, so
// a full queue is half a second of work: more would be answered too late
// anyway.
constexpr int kMaxQueuedPerWorker = 512;
// Descriptors of the process beside the connections: model files, logs, ...
constexpr rlim_t kOtherDescriptors = 256;
constexpr int kNumOpsWorkers = 1;
constexpr absl::string_view kMethods[] = {"GET",   "POST",   "PUT",
                                          "PATCH", "DELETE", "OPTIONS"};

// What cpp-httplib reads a request from: the clean head, in memory. Whatever it
// answers is swallowed: responses are written by the event loop.
class MemoryStream : public httplib::Stream {
 public:
  explicit MemoryStream(std::string data) : data_(std::move(data)) {}

  bool is_readable() const override { return position_ < data_.size(); }
  bool is_writable() const override { return true; }
  ssize_t read(char* out, size_t size) override {
    size = std::min(size, data_.size() - position_);
    std::memcpy(out, data_.data() + position_, size);
    position_ += size;
    return size;
  }
  ssize_t write(const char*, size_t size) override { return size; }
  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return INVALID_SOCKET; }

 private:
  std::string data_;
  size_t position_ = 0;
};

// `path` as a pattern that matches only itself: the library takes patterns.
std::string LiteralPattern(absl::string_view path) {
  std::string pattern;
  for (const char c : path) {
    if (absl::StrContains("^$\\.*+?()[]{}|", c)) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

void RaiseDescriptorLimit(int max_connections) {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t wanted =
      std::min<rlim_t>(limit.rlim_max, max_connections + kOtherDescriptors);
  if (limit.rlim_cur >= wanted) return;
  limit.rlim_cur = wanted;
  setrlimit(RLIMIT_NOFILE, &limit);  // Best effort: EMFILE is handled.
}

// Signals belong to the thread that the program chose for them. In force for
// threads started while it lives.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t set;
    sigfillset(&set);
    // Raised by the thread itself, or by profilers.
    for (int signal :
         {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, SIGPROF}) {
      sigdelset(&set, signal);
    }
    pthread_sigmask(SIG_BLOCK, &set, &previous_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &previous_, nullptr); }

 private:
  sigset_t previous_;
};

struct Route {
  RouteAccess access = RouteAccess::kApi;
  HttpHandler handler;
};

// The part of a route's path before its "{...}"; all of it if it has none.
absl::string_view LiteralPart(absl::string_view route_path) {
  return route_path.substr(0, route_path.find('{'));
}

// cpp-httplib parses and routes; sockets are the event loop's.
//
// Threads: AddRoute and Start on one thread; Admit, Dispatch and ErrorBody on
// the socket thread; Handle on the workers; the rest on any.
class QuireHttpServer : public HttpServer,
                        private httplib::Server,
                        private RequestSink {
 public:
  QuireHttpServer(const HttpServerOptions& options,
                  std::unique_ptr<ApiKeys> api_keys)
      : options_(options),
        api_keys_(std::move(api_keys)),
        loop_(options_, this),
        workers_(
            options.num_workers * kMaxQueuedPerWorker,
            [this](PendingRequest request) { Handle(std::move(request)); }),
        ops_workers_(
            kNumOpsWorkers * kMaxQueuedPerWorker,
            [this](PendingRequest request) { Handle(std::move(request)); }) {}
  ~QuireHttpServer() override { Stop(absl::ZeroDuration()); }

  void AddRoute(absl::string_view method, absl::string_view path,
                RouteAccess access, HttpHandler handler) override;
  std::vector<HttpRoute> routes() const override;
  absl::Status Start() override;
  int port() const override { return port_; }
  int ops_port() const override { return ops_port_; }
  int num_open_requests() const override { return loop_.num_open_requests(); }
  int64_t max_recorded_body_bytes() const override {
    return options_.observer == nullptr ? 0
                                        : options_.observer->max_body_bytes();
  }
  absl::StatusOr<bool> ReloadKeys() override {
    QUIRE_ASSIGN_OR_RETURN(const bool is_changed, api_keys_->ReloadIfChanged());
    if (is_changed) NoticeIfNobodyMayAsk();
    return is_changed;
  }
  std::shared_ptr<const ApiKeyOwner> Authenticate(
      absl::string_view authorization) const override {
    return api_keys_->Authenticate(authorization);
  }
  void SetCloseConnections() override { loop_.SetCloseConnections(); }
  void Stop(absl::Duration grace) override;

 private:
  // A server that refuses everybody looks like one whose clients are wrong.
  void NoticeIfNobodyMayAsk() const {
    if (!options_.on_notice || !api_keys_->LetsNobodyIn()) return;
    options_.on_notice(absl::StrCat(
        "no API key is known (keys file ", options_.api_keys_file,
        "): every request that needs one gets 401 until the file lists some"));
  }

  // The request that this worker thread runs through the library.
  struct Current {
    PendingRequest request;
    std::string path;
    size_t tail_begin = 0;  // Of `path`.
    std::shared_ptr<HttpResponder> responder;
  };

  // RequestSink.
  Verdict Admit(const RequestHead& head, ListenerKind listener) override;
  bool Dispatch(PendingRequest request) override;
  std::string ErrorBody(int status, absl::string_view message) override;
  void OnResponse(const RequestHead& head, int status) override {
    if (!options_.on_response) return;
    const auto path = FindPath(head.path);
    options_.on_response(
        head.method, path == routes_.end() ? absl::string_view() : path->first,
        status);
  }
  void OnNotice(const std::string& line) override {
    if (options_.on_notice) options_.on_notice(line);
  }
  void OnInfo(const std::string& line) override {
    if (options_.on_info) options_.on_info(line);
  }
  // By path, then method.
  using Routes =
      std::map<std::string, std::map<std::string, Route>, std::less<>>;

  // The end if there is no such path.
  Routes::const_iterator FindPath(absl::string_view path) const;
  // Null if the path has none for the method.
  const Route* FindRoute(const RequestHead& head) const;

  // httplib::Server. The library's own accept loop is not used; should anything
  // start it, its sockets come under the guard too.
  bool process_and_close_socket(socket_t socket) override {
    fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK);
    loop_.Adopt(socket);
    return true;
  }

  void Handle(PendingRequest request);
  void RunHandler(const HttpHandler& handler, const httplib::Request& parsed);

  static thread_local Current* current_;

  const HttpServerOptions options_;
  const std::unique_ptr<ApiKeys> api_keys_;
  Routes routes_;  // Immutable after Start.
  EventLoop loop_;
  WorkerPool workers_;
  WorkerPool ops_workers_;  // Of RouteAccess::kOperations.
  std::mutex stop_mu_;      // Held by Stop for its whole duration.
  // Of the 500 for a dropped responder, which may outlive this object.
  std::string unanswered_body_;
  bool is_started_ = false;
  std::atomic<int> port_{0};
  std::atomic<int> ops_port_{0};
};

thread_local QuireHttpServer::Current* QuireHttpServer::current_ = nullptr;

void QuireHttpServer::AddRoute(absl::string_view method, absl::string_view path,
                               RouteAccess access, HttpHandler handler) {
  QUIRE_CHECK(!is_started_);
  QUIRE_CHECK(absl::StartsWith(path, "/"));
  const absl::string_view literal = LiteralPart(path);
  QUIRE_CHECK(literal.size() == path.size() ||
              (absl::EndsWith(literal, "/") && absl::EndsWith(path, "}")));
  QUIRE_CHECK(std::find(std::begin(kMethods), std::end(kMethods), method) !=
              std::end(kMethods));
  Route& route = routes_[std::string(path)][std::string(method)];
  QUIRE_CHECK(route.handler == nullptr);  // Each route once.
  route.access = access;
  route.handler = std::move(handler);
  // Map nodes do not move.
  const auto run = [this, &route](const httplib::Request& request,
                                  httplib::Response&) {
    RunHandler(route.handler, request);
  };
  const std::string pattern = LiteralPattern(path);
  if (method == "GET") Get(pattern, run);
  if (method == "POST") Post(pattern, httplib::Server::Handler(run));
  if (method == "PUT") Put(pattern, httplib::Server::Handler(run));
  if (method == "PATCH") Patch(pattern, httplib::Server::Handler(run));
  if (method == "DELETE") Delete(pattern, httplib::Server::Handler(run));
  if (method == "OPTIONS") Options(pattern, run);
}

absl::Status QuireHttpServer::Start() {
  if (is_started_) return absl::FailedPreconditionError("started already");
  is_started_ = true;
  unanswered_body_ = ErrorBody(500, "the request was not answered");
  signal(SIGPIPE, SIG_IGN);
  RaiseDescriptorLimit(options_.max_connections);
  NoticeIfNobodyMayAsk();

  std::unique_ptr<TlsContext> tls;
  if (!options_.tls_certificate_file.empty()) {
    QUIRE_ASSIGN_OR_RETURN(tls,
                           TlsContext::Create({options_.tls_certificate_file,
                                               options_.tls_private_key_file,
                                               options_.tls_client_ca_file}));
  }
  QUIRE_ASSIGN_OR_RETURN(Listener main,
                         options_.unix_socket_path.empty()
                             ? Listener::OpenTcp(options_.host, options_.port,
                                                 options_.listen_backlog)
                             : Listener::OpenUnix(options_.unix_socket_path,
                                                  options_.listen_backlog));
  std::optional<Listener> operations;
  if (options_.ops_port.has_value()) {
    QUIRE_ASSIGN_OR_RETURN(
        operations, Listener::OpenTcp(options_.ops_host, *options_.ops_port,
                                      options_.listen_backlog));
    ops_port_ = operations->port();
  }
  port_ = main.port();
  SignalsBlocked blocked;
  QUIRE_RETURN_IF_ERROR(workers_.Start(options_.num_workers));
  QUIRE_RETURN_IF_ERROR(ops_workers_.Start(kNumOpsWorkers));
  return loop_.Start(std::move(main), std::move(tls), std::move(operations));
}

std::vector<HttpRoute> QuireHttpServer::routes() const {
  std::vector<HttpRoute> routes;
  for (const auto& [path, methods] : routes_) {
    for (const auto& [method, route] : methods) {
      routes.push_back({method, path, route.access});
    }
  }
  return routes;
}

void QuireHttpServer::Stop(absl::Duration grace) {
  std::lock_guard<std::mutex> lock(stop_mu_);
  loop_.Stop(grace);
  // After the connections, so that a handler that waits for its client's
  // disconnect gets to see it.
  workers_.Stop();
  ops_workers_.Stop();
}

QuireHttpServer::Routes::const_iterator QuireHttpServer::FindPath(
    absl::string_view path) const {
  const auto same = routes_.find(path);
  if (same != routes_.end()) return same;
  return std::find_if(routes_.begin(), routes_.end(), [&](const auto& entry) {
    const absl::string_view literal = LiteralPart(entry.first);
    return literal.size() < entry.first.size() &&
           literal.size() < path.size() && absl::StartsWith(path, literal);
  });
}

const Route* QuireHttpServer::FindRoute(const RequestHead& head) const {
  const auto path = FindPath(head.path);
  if (path == routes_.end()) return nullptr;
  auto method = path->second.find(head.method);
  if (method == path->second.end() && head.method == "HEAD") {
    method = path->second.find("GET");
  }
  return method == path->second.end() ? nullptr : &method->second;
}

RequestSink::Verdict QuireHttpServer::Admit(const RequestHead& head,
                                            ListenerKind listener) {
  Verdict verdict;
  const auto path = FindPath(head.path);
  const bool is_known =
      path != routes_.end() &&
      (listener == ListenerKind::kMain ||
       std::any_of(path->second.begin(), path->second.end(), [](const auto& r) {
         return r.second.access == RouteAccess::kOperations;
       }));
  if (!is_known) {
    verdict.status = 404;
    verdict.message = "no such path";
    return verdict;
  }
  verdict.route = path->first;
  const Route* const route = FindRoute(head);
  if (route == nullptr) {
    std::string allowed;
    for (const auto& [name, other] : path->second) {
      absl::StrAppend(&allowed, allowed.empty() ? "" : ", ", name,
                      name == "GET" ? ", HEAD" : "");
    }
    verdict.status = 405;
    verdict.message = "method not allowed for this path";
    verdict.headers = {{"Allow", allowed}};
    return verdict;
  }
  verdict.access = route->access;
  if (route->access != RouteAccess::kApi) return verdict;
  verdict.owner = api_keys_->Authenticate(head.Field("authorization"));
  if (verdict.owner == nullptr) {
    verdict.status = 401;
    verdict.message = "missing or invalid API key";
    verdict.headers = {{"WWW-Authenticate", "Bearer"}};
  }
  return verdict;
}

bool QuireHttpServer::Dispatch(PendingRequest request) {
  const Route* const route = FindRoute(request.head);
  WorkerPool& workers =
      route != nullptr && route->access == RouteAccess::kOperations
          ? ops_workers_
          : workers_;
  return workers.Submit(std::move(request));
}

std::string QuireHttpServer::ErrorBody(int status, absl::string_view message) {
  if (options_.error_body) {
    try {
      return options_.error_body(status, message);
    } catch (...) {
      // The default below says enough.
    }
  }
  return DefaultErrorBody(status, message);
}

void QuireHttpServer::Handle(PendingRequest request) {
  const int64_t num_body_bytes = request.body.size();
  Current current;
  current.responder = MakeResponder(request.exchange, unanswered_body_);
  current.request = std::move(request);
  RequestHead& head = current.request.head;
  current.path = head.path;
  current.tail_begin = current.path.size();
  // The library decodes and matches paths in its own way: it gets the route's
  // own path, whatever stands for its "{...}".
  if (const auto path = FindPath(head.path); path != routes_.end()) {
    const absl::string_view literal = LiteralPart(path->first);
    if (literal.size() < path->first.size()) {
      current.tail_begin = literal.size();
      head.path = path->first;
    }
  }
  MemoryStream stream(CleanHead(head));
  current_ = &current;
  bool is_closed = false;
  try {
    process_request(stream, /*close_connection=*/true, is_closed,
                    [](httplib::Request&) {});
  } catch (...) {
    // bad_alloc while parsing. The responder, dropped here, answers 500.
  }
  current_ = nullptr;
  loop_.ReleaseBodyBytes(num_body_bytes);
}

void QuireHttpServer::RunHandler(const HttpHandler& handler,
                                 const httplib::Request& parsed) {
  QUIRE_CHECK(current_ != nullptr);
  const std::shared_ptr<Exchange> exchange = current_->request.exchange;
  try {
    HttpRequest request;
    request.method = parsed.method;
    request.path = std::move(current_->path);
    request.path_tail = request.path.substr(current_->tail_begin);
    request.body = std::move(current_->request.body);
    request.arrival_time = current_->request.arrival_time;
    request.owner = std::move(current_->request.owner);
    request.record = std::move(current_->request.record);
    for (const auto& [name, value] : parsed.headers) {
      // Added by the library; the body's length is that of `body`.
      if (name == "REMOTE_ADDR" || name == "REMOTE_PORT" ||
          name == "LOCAL_ADDR" || name == "LOCAL_PORT" ||
          name == "content-length" || name == "Content-Length") {
        continue;
      }
      request.headers.emplace_back(name, value);
    }
    // Withheld from the library, see CleanHead.
    if (absl::string_view type = current_->request.head.Field("content-type");
        !type.empty()) {
      request.headers.emplace_back("content-type", std::string(type));
    }
    if (current_->request.head.offers_upgrade) {
      request.upgrade = std::string(current_->request.head.Field("upgrade"));
    }
    handler(request, std::move(current_->responder));
  } catch (...) {
    exchange->Fail(500, ErrorBody(500, "internal error"));
  }
}

}  // namespace

absl::string_view HttpRequest::Header(absl::string_view name) const {
  for (const auto& header : headers) {
    if (header.first == name) return header.second;
  }
  return {};
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Create(
    const HttpServerOptions& options) {
  const auto check = [](bool is_ok, absl::string_view what) {
    return is_ok ? absl::OkStatus()
                 : absl::InvalidArgumentError(
                       absl::StrCat("HTTP server options: ", what));
  };
  QUIRE_RETURN_IF_ERROR(check(options.port >= 0 && options.port <= 65535,
                              "port must be 0..65535"));
  QUIRE_RETURN_IF_ERROR(check(options.ops_port.value_or(0) >= 0 &&
                                  options.ops_port.value_or(0) <= 65535,
                              "port of operations must be 0..65535"));
  QUIRE_RETURN_IF_ERROR(
      check(options.tls_certificate_file.empty() ==
                    options.tls_private_key_file.empty() &&
                (options.tls_client_ca_file.empty() ||
                 !options.tls_certificate_file.empty()),
            "TLS needs both a certificate and its private key"));
  QUIRE_RETURN_IF_ERROR(check(options.num_workers > 0 &&
                                  options.listen_backlog > 0 &&
                                  options.max_connections > 0,
                              "numbers of workers, backlog and connections "
                              "must be positive"));
  QUIRE_RETURN_IF_ERROR(
      check(options.max_head_bytes > 0 && options.max_header_fields > 0 &&
                options.max_target_bytes > 0 && options.max_body_bytes >= 0 &&
                options.max_buffered_bytes > 0 &&
                options.min_body_bytes_per_second > 0,
            "size limits and rates must be positive"));
  for (absl::Duration timeout :
       {options.head_timeout, options.body_timeout, options.body_grace,
        options.keep_alive_timeout, options.write_stall_timeout,
        options.stream_ping_interval}) {
    QUIRE_RETURN_IF_ERROR(
        check(timeout > absl::ZeroDuration(), "timeouts must be positive"));
  }
  QUIRE_ASSIGN_OR_RETURN(
      std::unique_ptr<ApiKeys> api_keys,
      ApiKeys::Create(options.api_keys, options.api_keys_file));
  return std::unique_ptr<HttpServer>(
      new QuireHttpServer(options, std::move(api_keys)));
}

}  // namespace quire
