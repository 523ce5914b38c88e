#include "benchmarks/serving/load_client.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <optional>
#include <unordered_map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"

namespace quire {
namespace {

struct Address {
  sockaddr_storage storage;
  socklen_t size = 0;
  int family = 0;
};

absl::StatusOr<std::vector<Address>> Resolve(const ServerUrl& url) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(
      url.host.c_str(), std::to_string(url.port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat(url.Origin(), ": ", gai_strerror(error)));
  }
  std::vector<Address> addresses;
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    Address address;
    std::memcpy(&address.storage, info->ai_addr, info->ai_addrlen);
    address.size = info->ai_addrlen;
    address.family = info->ai_family;
    addresses.push_back(address);
  }
  freeaddrinfo(found);
  return addresses;
}

// Of a connection begun on `address`, or -1 with errno.
int BeginConnect(const Address& address) {
  const int fd =
      socket(address.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address.storage),
              address.size) != 0 &&
      errno != EINPROGRESS) {
    const int error = errno;
    close(fd);
    errno = error;
    return -1;
  }
  return fd;
}

int SocketError(int fd) {
  int error = 0;
  socklen_t size = sizeof(error);
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
  return error;
}

// 0, or the errno of the failure.
int TryConnect(const Address& address, double timeout_seconds) {
  const int fd = BeginConnect(address);
  if (fd < 0) return errno;
  pollfd waited = {fd, POLLOUT, 0};
  const int count = poll(&waited, 1, static_cast<int>(timeout_seconds * 1e3));
  const int error = count == 1 ? SocketError(fd) : ETIMEDOUT;
  close(fd);
  return error;
}

bool IsCancelled(const LoadClientOptions& options) {
  return options.is_cancelled != nullptr && *options.is_cancelled;
}

std::string Render(const ServerUrl& url, const HttpMessage& message,
                   bool keeps) {
  std::string host = url.Origin();
  host.erase(0, host.find("//") + 2);
  std::string text = absl::StrCat(message.method, " ", url.prefix, message.path,
                                  " HTTP/1.1\r\nHost: ", host, "\r\n");
  for (const auto& [name, value] : message.headers) {
    absl::StrAppend(&text, name, ": ", value, "\r\n");
  }
  if (!keeps) absl::StrAppend(&text, "Connection: close\r\n");
  if (message.method != "GET") {
    absl::StrAppend(&text, "Content-Length: ", message.body.size(), "\r\n");
  }
  absl::StrAppend(&text, "\r\n", message.body);
  return text;
}

std::string TlsError() {
  char text[256] = "";
  const unsigned long error = ERR_get_error();
  ERR_clear_error();
  if (error == 0) return "the connection broke";
  ERR_error_string_n(error, text, sizeof(text));
  return text;
}

class EpollLoadClient : public LoadClient {
 public:
  EpollLoadClient(const ServerUrl& url, const LoadClientOptions& options,
                  const Address& address)
      : url_(url), options_(options), address_(address) {}
  ~EpollLoadClient() override;

  absl::Status Init();
  // One handshake, waited for; UNAVAILABLE with the reason.
  absl::Status TryTls() const;
  void Start(const HttpMessage& message, ResponseHandler* handler) override;
  void Poll(double seconds) override;
  void CancelAll() override;
  int num_open() const override { return num_open_; }

 private:
  enum class State : uint8_t { kConnecting, kHandshake, kOpen };

  struct Connection {
    int fd = -1;
    SSL* tls = nullptr;
    State state = State::kConnecting;
    uint32_t interest = 0;  // As epoll has it.
    // Of the current request; handler is null while none is open.
    ResponseHandler* handler = nullptr;
    std::optional<ResponseReader> reader;
    std::string request;
    size_t num_sent = 0;
    bool is_reused = false;  // Served a request before this one.
    double last_activity = 0;
  };

  SSL* NewTls(int fd) const;
  absl::Status TlsFailure(const SSL* tls) const;
  void Begin(std::string request, ResponseHandler* handler);
  void BeginOn(Connection* connection, std::string request,
               ResponseHandler* handler);
  void OnReady(Connection* connection);
  void ContinueHandshake(Connection* connection);
  void SendMore(Connection* connection);
  void Receive(Connection* connection);
  // As send and recv: -1 with errno EAGAIN if it would block (interest is then
  // set), EIO for an error of TLS.
  ssize_t Write(Connection* connection, const char* bytes, size_t size);
  ssize_t Read(Connection* connection, char* bytes, size_t size);
  ssize_t TlsResult(Connection* connection, int result);
  void Watch(Connection* connection, uint32_t interest);
  // The end of its request: with OK the connection may be kept.
  void End(Connection* connection, const absl::Status& status);
  // Ends with `status`, but tries again if a kept connection turned out dead.
  void Fail(Connection* connection, const absl::Status& status);
  void Drop(Connection* connection);
  void EndOverdue(double now);
  void EndFailedStarts();

  const ServerUrl url_;
  const LoadClientOptions options_;
  const Address address_;
  int epoll_fd_ = -1;
  SSL_CTX* tls_context_ = nullptr;
  std::unordered_map<Connection*, std::unique_ptr<Connection>> connections_;
  std::vector<Connection*> idle_;
  // Connections whose memory a running loop may still look at.
  std::vector<std::unique_ptr<Connection>> dropped_;
  std::vector<std::pair<ResponseHandler*, absl::Status>> failed_starts_;
  int num_open_ = 0;
  double next_overdue_check_ = 0;
};

EpollLoadClient::~EpollLoadClient() {
  while (!connections_.empty()) Drop(connections_.begin()->first);
  if (tls_context_ != nullptr) SSL_CTX_free(tls_context_);
  if (epoll_fd_ >= 0) close(epoll_fd_);
}

absl::Status EpollLoadClient::Init() {
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd_ < 0) return absl::UnavailableError("no epoll");
  if (!url_.is_tls) return absl::OkStatus();
  tls_context_ = SSL_CTX_new(TLS_client_method());
  if (tls_context_ == nullptr) return absl::UnavailableError(TlsError());
  SSL_CTX_set_min_proto_version(tls_context_, TLS1_2_VERSION);
  SSL_CTX_set_mode(tls_context_, SSL_MODE_ENABLE_PARTIAL_WRITE |
                                     SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                     SSL_MODE_RELEASE_BUFFERS);
  if (options_.verify_certificate) {
    SSL_CTX_set_default_verify_paths(tls_context_);
    SSL_CTX_set_verify(tls_context_, SSL_VERIFY_PEER, nullptr);
  }
  return absl::OkStatus();
}

SSL* EpollLoadClient::NewTls(int fd) const {
  SSL* const tls = SSL_new(tls_context_);
  SSL_set_fd(tls, fd);
  SSL_set_tlsext_host_name(tls, url_.host.c_str());
  if (options_.verify_certificate) SSL_set1_host(tls, url_.host.c_str());
  return tls;
}

absl::Status EpollLoadClient::TlsFailure(const SSL* tls) const {
  const long verify = SSL_get_verify_result(tls);
  return absl::UnavailableError(
      absl::StrCat(url_.Origin(), ": TLS: ",
                   verify != X509_V_OK ? X509_verify_cert_error_string(verify)
                                       : TlsError()));
}

absl::Status EpollLoadClient::TryTls() const {
  if (tls_context_ == nullptr) return absl::OkStatus();
  const int fd = BeginConnect(address_);
  if (fd < 0) {
    return absl::UnavailableError(
        absl::StrCat(url_.Origin(), ": ", std::strerror(errno)));
  }
  SSL* const tls = NewTls(fd);
  const double deadline = MonotonicSeconds() + options_.connect_timeout_seconds;
  absl::Status status;
  int events = POLLOUT;  // Until it is connected.
  for (;;) {
    pollfd waited = {fd, static_cast<short>(events), 0};
    const double left = std::max(0.0, deadline - MonotonicSeconds());
    const int count = poll(&waited, 1, static_cast<int>(std::ceil(left * 1e3)));
    if (count < 0 && errno == EINTR) {
      if (!IsCancelled(options_)) continue;
      status = absl::CancelledError("cancelled");
      break;
    }
    if (count < 1) {
      status = absl::UnavailableError(
          absl::StrCat(url_.Origin(), ": TLS: no handshake within ",
                       options_.connect_timeout_seconds, " s"));
      break;
    }
    ERR_clear_error();
    const int result = SSL_connect(tls);
    if (result == 1) break;
    const int error = SSL_get_error(tls, result);
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) {
      status = TlsFailure(tls);
      break;
    }
    events = error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
  }
  SSL_free(tls);
  close(fd);
  return status;
}

void EpollLoadClient::Watch(Connection* connection, uint32_t interest) {
  if (connection->interest == interest) return;
  epoll_event event = {};
  event.events = interest;
  event.data.ptr = connection;
  epoll_ctl(epoll_fd_,
            connection->interest == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD,
            connection->fd, &event);
  connection->interest = interest;
}

void EpollLoadClient::Drop(Connection* connection) {
  if (connection->tls != nullptr) SSL_free(connection->tls);
  close(connection->fd);
  connection->fd = -1;
  std::erase(idle_, connection);
  const auto it = connections_.find(connection);
  dropped_.push_back(std::move(it->second));
  connections_.erase(it);
}

void EpollLoadClient::Start(const HttpMessage& message,
                            ResponseHandler* handler) {
  ++num_open_;
  Begin(Render(url_, message, options_.reuse_connections), handler);
}

void EpollLoadClient::Begin(std::string request, ResponseHandler* handler) {
  if (!idle_.empty()) {
    Connection* const connection = idle_.back();
    idle_.pop_back();
    BeginOn(connection, std::move(request), handler);
    return;
  }
  auto owned = std::make_unique<Connection>();
  Connection* const connection = owned.get();
  connection->fd = BeginConnect(address_);
  if (connection->fd < 0) {
    failed_starts_.emplace_back(
        handler, absl::UnavailableError(
                     absl::StrCat(url_.Origin(), ": ", std::strerror(errno))));
    return;
  }
  if (tls_context_ != nullptr) connection->tls = NewTls(connection->fd);
  connections_.emplace(connection, std::move(owned));
  connection->handler = handler;
  connection->reader.emplace(options_.limits);
  connection->request = std::move(request);
  connection->last_activity = MonotonicSeconds();
  Watch(connection, EPOLLOUT);
}

void EpollLoadClient::BeginOn(Connection* connection, std::string request,
                              ResponseHandler* handler) {
  connection->is_reused = true;
  connection->handler = handler;
  connection->reader.emplace(options_.limits);
  connection->request = std::move(request);
  connection->num_sent = 0;
  connection->last_activity = MonotonicSeconds();
  // From Poll only: a failure must not call the handler back here.
  Watch(connection, EPOLLIN | EPOLLOUT);
}

ssize_t EpollLoadClient::TlsResult(Connection* connection, int result) {
  if (result > 0) return result;
  switch (SSL_get_error(connection->tls, result)) {
    case SSL_ERROR_WANT_READ:
      Watch(connection, EPOLLIN);
      errno = EAGAIN;
      return -1;
    case SSL_ERROR_WANT_WRITE:
      Watch(connection, EPOLLIN | EPOLLOUT);
      errno = EAGAIN;
      return -1;
    case SSL_ERROR_ZERO_RETURN:
      return 0;
    case SSL_ERROR_SYSCALL:
      return 0;  // Closed without TLS's own goodbye, as many servers do.
    default:
      errno = EIO;
      return -1;
  }
}

ssize_t EpollLoadClient::Write(Connection* connection, const char* bytes,
                               size_t size) {
  if (connection->tls == nullptr) {
    return send(connection->fd, bytes, size, MSG_NOSIGNAL);
  }
  ERR_clear_error();
  return TlsResult(connection, SSL_write(connection->tls, bytes,
                                         std::min<size_t>(size, 1 << 20)));
}

ssize_t EpollLoadClient::Read(Connection* connection, char* bytes,
                              size_t size) {
  if (connection->tls == nullptr) return recv(connection->fd, bytes, size, 0);
  ERR_clear_error();
  return TlsResult(connection, SSL_read(connection->tls, bytes, size));
}

void EpollLoadClient::ContinueHandshake(Connection* connection) {
  ERR_clear_error();
  const int result = SSL_connect(connection->tls);
  if (result == 1) {
    connection->state = State::kOpen;
    return SendMore(connection);
  }
  const int error = SSL_get_error(connection->tls, result);
  if (error == SSL_ERROR_WANT_READ) return Watch(connection, EPOLLIN);
  if (error == SSL_ERROR_WANT_WRITE) return Watch(connection, EPOLLOUT);
  Fail(connection, TlsFailure(connection->tls));
}

void EpollLoadClient::SendMore(Connection* connection) {
  while (connection->num_sent < connection->request.size()) {
    const ssize_t size =
        Write(connection, connection->request.data() + connection->num_sent,
              connection->request.size() - connection->num_sent);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && errno == EAGAIN) {
      if (connection->tls == nullptr) Watch(connection, EPOLLIN | EPOLLOUT);
      return;
    }
    if (size <= 0) {
      return Fail(connection,
                  absl::DataLossError(
                      "the server closed the connection without an answer"));
    }
    connection->num_sent += size;
  }
  Watch(connection, EPOLLIN);
}

void EpollLoadClient::Receive(Connection* connection) {
  char bytes[32 << 10];
  for (;;) {
    const ssize_t size = Read(connection, bytes, sizeof(bytes));
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && errno == EAGAIN) return;
    const double now = MonotonicSeconds();
    connection->last_activity = now;
    if (connection->handler == nullptr) return Drop(connection);
    const auto on_event = [&](absl::string_view data) {
      connection->handler->OnEvent(data, now);
    };
    if (size <= 0) {
      const absl::Status status = connection->reader->Close(on_event);
      return status.ok() ? End(connection, status) : Fail(connection, status);
    }
    const absl::Status status =
        connection->reader->Append(absl::string_view(bytes, size), on_event);
    if (!status.ok() || connection->reader->is_done()) {
      return End(connection, status);
    }
    // Plain sockets are level-triggered; TLS may hold bytes back.
    if (connection->tls == nullptr && size < ssize_t{sizeof(bytes)}) return;
  }
}

void EpollLoadClient::End(Connection* connection, const absl::Status& status) {
  ResponseHandler* const handler = connection->handler;
  ResponseEnd end;
  end.status = status;
  end.http_status = connection->reader->http_status();
  end.is_event_stream = connection->reader->is_event_stream();
  end.body = connection->reader->body();
  const bool keeps = status.ok() && options_.reuse_connections &&
                     connection->reader->is_done() &&
                     connection->reader->is_reusable() &&
                     connection->num_sent == connection->request.size();
  connection->handler = nullptr;
  if (keeps) {
    Watch(connection, EPOLLIN);
    idle_.push_back(connection);
  } else {
    Drop(connection);
  }
  --num_open_;
  handler->OnEnd(end, MonotonicSeconds());
}

void EpollLoadClient::Fail(Connection* connection, const absl::Status& status) {
  if (connection->handler == nullptr) return Drop(connection);
  // The server may close a kept connection just when the next request is sent
  // (RFC 9112, 9.3.1): that is no failure of the request.
  if (connection->is_reused && !connection->reader->has_bytes()) {
    std::string request = std::move(connection->request);
    ResponseHandler* const handler = connection->handler;
    Drop(connection);
    // A fresh connection: others that are kept may be as dead.
    while (!idle_.empty()) Drop(idle_.back());
    return Begin(std::move(request), handler);
  }
  End(connection, status);
}

void EpollLoadClient::OnReady(Connection* connection) {
  connection->last_activity = MonotonicSeconds();
  if (connection->state == State::kConnecting) {
    if (const int error = SocketError(connection->fd); error != 0) {
      return Fail(connection, absl::UnavailableError(absl::StrCat(
                                  url_.Origin(), ": ", std::strerror(error))));
    }
    connection->state =
        connection->tls == nullptr ? State::kOpen : State::kHandshake;
  }
  if (connection->state == State::kHandshake) {
    return ContinueHandshake(connection);
  }
  if (connection->handler != nullptr &&
      connection->num_sent < connection->request.size()) {
    SendMore(connection);
    if (connection->fd < 0 || connection->handler == nullptr) return;
    if (connection->num_sent < connection->request.size()) {
      // An early refusal (413) would otherwise never be read.
      return Receive(connection);
    }
  }
  Receive(connection);
}

void EpollLoadClient::EndOverdue(double now) {
  if (now < next_overdue_check_) return;
  next_overdue_check_ = now + 0.5;
  std::vector<Connection*> overdue;
  for (const auto& [connection, owned] : connections_) {
    if (connection->handler == nullptr) continue;
    const double limit = connection->state == State::kOpen
                             ? options_.idle_timeout_seconds
                             : options_.connect_timeout_seconds;
    if (now - connection->last_activity > limit) overdue.push_back(connection);
  }
  for (Connection* connection : overdue) {
    const bool is_open = connection->state == State::kOpen;
    End(connection, absl::DeadlineExceededError(absl::StrCat(
                        is_open ? "nothing came from the server for "
                                : "no connection within ",
                        is_open ? options_.idle_timeout_seconds
                                : options_.connect_timeout_seconds,
                        " s")));
  }
}

void EpollLoadClient::EndFailedStarts() {
  // Handlers may start further requests, which may fail, too: next time.
  std::vector<std::pair<ResponseHandler*, absl::Status>> failed;
  failed.swap(failed_starts_);
  for (const auto& [handler, status] : failed) {
    --num_open_;
    ResponseEnd end;
    end.status = status;
    handler->OnEnd(end, MonotonicSeconds());
  }
}

void EpollLoadClient::Poll(double seconds) {
  EndFailedStarts();
  if (!failed_starts_.empty()) seconds = 0;
  epoll_event events[512];
  // Half a second: EndOverdue.
  const int timeout = static_cast<int>(
      std::ceil(std::clamp(seconds, 0.0, num_open_ > 0 ? 0.5 : 1e6) * 1e3));
  const int count = epoll_wait(epoll_fd_, events, 512, timeout);
  for (int i = 0; i < count; ++i) {
    auto* const connection = static_cast<Connection*>(events[i].data.ptr);
    if (connection->fd >= 0) OnReady(connection);  // Else: dropped meanwhile.
  }
  EndOverdue(MonotonicSeconds());
  dropped_.clear();
}

void EpollLoadClient::CancelAll() {
  std::vector<Connection*> open;
  for (const auto& [connection, owned] : connections_) {
    if (connection->handler != nullptr) open.push_back(connection);
  }
  for (Connection* connection : open) {
    End(connection, absl::CancelledError("cancelled"));
  }
  EndFailedStarts();
  dropped_.clear();
}

// For Fetch.
class OneResponse : public ResponseHandler {
 public:
  void OnEvent(absl::string_view, double) override {}
  void OnEnd(const ResponseEnd& end, double) override { end_ = end; }
  std::optional<ResponseEnd> end_;
};

}  // namespace

double MonotonicSeconds() {
  return absl::ToDoubleSeconds(Clock::Monotonic()->Now() - absl::UnixEpoch());
}

absl::StatusOr<std::unique_ptr<LoadClient>> LoadClient::Create(
    const ServerUrl& url, const LoadClientOptions& options) {
  auto addresses = Resolve(url);
  if (!addresses.ok()) return addresses.status();
  int error = 0;
  for (const Address& address : *addresses) {
    // What waits for a connection returns when a signal comes.
    if (IsCancelled(options)) return absl::CancelledError("cancelled");
    error = TryConnect(address, options.connect_timeout_seconds);
    if (error != 0) continue;
    auto client = std::make_unique<EpollLoadClient>(url, options, address);
    absl::Status status = client->Init();
    if (status.ok()) status = client->TryTls();
    if (!status.ok()) return status;
    return client;
  }
  return absl::UnavailableError(
      absl::StrCat(url.Origin(), ": cannot connect: ", std::strerror(error)));
}

ResponseEnd LoadClient::Fetch(const HttpMessage& message,
                              double timeout_seconds,
                              const std::atomic<bool>* is_cancelled) {
  OneResponse response;
  Start(message, &response);
  const double deadline = MonotonicSeconds() + timeout_seconds;
  while (!response.end_.has_value()) {
    const double left = deadline - MonotonicSeconds();
    if (is_cancelled != nullptr && *is_cancelled) {
      CancelAll();
      break;
    }
    if (left <= 0) {
      CancelAll();
      response.end_->status = absl::DeadlineExceededError(absl::StrCat(
          message.path, ": no answer within ", timeout_seconds, " s"));
      break;
    }
    // A signal ends the wait, unless it comes just before.
    Poll(std::min(left, 0.1));
  }
  return *response.end_;
}

void RaiseOpenFileLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

}  // namespace quire
