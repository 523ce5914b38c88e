#include "engine/speculative/link/link_socket.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"

namespace quire {
namespace {

std::string TlsReason() {
  const unsigned long error = ERR_get_error();
  ERR_clear_error();
  if (error == 0) return "the connection was closed";
  const char* const reason = ERR_reason_error_string(error);
  return reason == nullptr ? absl::StrCat("error ", error) : reason;
}

bool IsAddress(const std::string& host) {
  unsigned char buffer[sizeof(in6_addr)];
  return inet_pton(AF_INET, host.c_str(), buffer) == 1 ||
         inet_pton(AF_INET6, host.c_str(), buffer) == 1;
}

int MillisUntil(absl::Time deadline) {
  // Rounded up, or the caller would spin for the last fraction.
  const absl::Duration rest =
      std::min(deadline - Clock::Monotonic()->Now() + absl::Microseconds(999),
               absl::Hours(1));
  return static_cast<int>(
      std::max<int64_t>(0, absl::ToInt64Milliseconds(rest)));
}

// 0: the deadline; 1: events; -1: cancelled.
int Poll(int fd, short events, int cancel_fd, absl::Time deadline) {
  pollfd fds[2] = {{fd, events, 0}, {cancel_fd, POLLIN, 0}};
  for (;;) {
    const int count = poll(fds, 2, MillisUntil(deadline));
    if (count < 0 && errno == EINTR) continue;
    if (fds[1].revents != 0) return -1;
    return count > 0 ? 1 : 0;
  }
}

}  // namespace

absl::StatusOr<SslContext> MakeClientTls(const std::string& ca_file) {
  SslContext context(SSL_CTX_new(TLS_client_method()));
  if (context == nullptr) return absl::ResourceExhaustedError("no memory");
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE |
                                      SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  const bool is_loaded =
      ca_file.empty()
          ? SSL_CTX_set_default_verify_paths(context.get()) == 1
          : SSL_CTX_load_verify_file(context.get(), ca_file.c_str()) == 1;
  if (!is_loaded) {
    return absl::InvalidArgumentError(
        absl::StrCat(ca_file.empty() ? "the system's certificates" : ca_file,
                     ": no certificates of authorities: ", TlsReason()));
  }
  return context;
}

absl::StatusOr<std::unique_ptr<LinkSocket>> LinkSocket::Connect(
    const std::string& host, int port, SSL_CTX* tls, int cancel_fd,
    absl::Time deadline) {
  const std::string address = absl::StrCat(host, ":", port);
  const auto fail = [&address](absl::string_view reason) {
    return absl::UnavailableError(absl::StrCat(address, ": ", reason));
  };
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (error != 0) return fail(gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(
      found, &freeaddrinfo);
  std::string reason = "no address";
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    std::unique_ptr<LinkSocket> result(new LinkSocket);
    result->fd_ =
        socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (result->fd_ < 0) {
      reason = std::strerror(errno);
      continue;
    }
    if (connect(result->fd_, a->ai_addr, a->ai_addrlen) != 0 &&
        errno != EINPROGRESS) {
      reason = std::strerror(errno);
      continue;
    }
    const int ready = Poll(result->fd_, POLLOUT, cancel_fd, deadline);
    if (ready < 0) return fail("cancelled");
    int problem = ETIMEDOUT;
    socklen_t size = sizeof(problem);
    if (ready > 0)
      getsockopt(result->fd_, SOL_SOCKET, SO_ERROR, &problem, &size);
    if (problem != 0) {
      reason = std::strerror(problem);
      continue;
    }
    // Drafts are small and late ones are of no use.
    const int one = 1;
    setsockopt(result->fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (tls != nullptr) {
      const absl::Status status =
          result->ShakeHands(host, tls, cancel_fd, deadline);
      if (!status.ok()) {
        return absl::Status(status.code(),
                            absl::StrCat(address, ": TLS: ", status.message()));
      }
    }
    return result;
  }
  return fail(reason);
}

LinkSocket::~LinkSocket() {
  ssl_.reset();
  if (fd_ >= 0) close(fd_);
}

absl::Status LinkSocket::ShakeHands(const std::string& host, SSL_CTX* tls,
                                    int cancel_fd, absl::Time deadline) {
  ERR_clear_error();
  ssl_.reset(SSL_new(tls));
  bool is_set = ssl_ != nullptr && SSL_set_fd(ssl_.get(), fd_) == 1;
  if (is_set && IsAddress(host)) {
    is_set = X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl_.get()),
                                           host.c_str()) == 1;
  } else if (is_set) {
    SSL_set_hostflags(ssl_.get(), X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    is_set = SSL_set1_host(ssl_.get(), host.c_str()) == 1 &&
             SSL_set_tlsext_host_name(ssl_.get(), host.c_str()) == 1;
  }
  if (!is_set) return absl::UnavailableError(TlsReason());
  for (;;) {
    ERR_clear_error();
    const int result = SSL_connect(ssl_.get());
    if (result == 1) return absl::OkStatus();
    const absl::Status status = TlsError(result);
    if (!status.ok()) {
      if (absl::StrContains(status.message(), "wrong version number")) {
        return absl::UnavailableError(
            "the answer is no TLS; where the cloud has no certificate, the URL "
            "begins with http://");
      }
      const long verdict = SSL_get_verify_result(ssl_.get());
      return verdict == X509_V_OK
                 ? status
                 : absl::UnauthenticatedError(
                       absl::StrCat("the certificate is not trusted: ",
                                    X509_verify_cert_error_string(verdict)));
    }
    const int ready =
        Poll(fd_, tls_wants_write_ ? POLLOUT : POLLIN, cancel_fd, deadline);
    if (ready < 0) return absl::UnavailableError("cancelled");
    if (ready == 0)
      return absl::UnavailableError("the handshake took too long");
  }
}

absl::Status LinkSocket::TlsError(int result) {
  const int saved_errno = errno;
  switch (SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      tls_wants_write_ = false;
      return absl::OkStatus();
    case SSL_ERROR_WANT_WRITE:
      tls_wants_write_ = true;
      return absl::OkStatus();
    case SSL_ERROR_SYSCALL:
      if (saved_errno == EAGAIN || saved_errno == EINTR) {
        return absl::OkStatus();
      }
      return absl::UnavailableError(saved_errno == 0
                                        ? "the connection was closed"
                                        : std::strerror(saved_errno));
    case SSL_ERROR_ZERO_RETURN:
      return absl::UnavailableError("the connection was closed");
    default:
      return absl::UnavailableError(TlsReason());
  }
}

absl::StatusOr<size_t> LinkSocket::Read(char* out, size_t size) {
  if (ssl_ != nullptr) {
    ERR_clear_error();
    tls_wants_write_ = false;
    size_t num_read = 0;
    const int result = SSL_read_ex(ssl_.get(), out, size, &num_read);
    if (result == 1) return num_read;
    QUIRE_RETURN_IF_ERROR(TlsError(result));
    return 0;
  }
  const ssize_t num_read = recv(fd_, out, size, MSG_DONTWAIT);
  if (num_read > 0) return num_read;
  if (num_read == 0) return absl::UnavailableError("the connection was closed");
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return 0;
  return absl::UnavailableError(std::strerror(errno));
}

absl::StatusOr<size_t> LinkSocket::Write(absl::string_view bytes) {
  if (bytes.empty()) return 0;
  if (ssl_ != nullptr) {
    ERR_clear_error();
    size_t num_written = 0;
    const int result =
        SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &num_written);
    if (result == 1) return num_written;
    QUIRE_RETURN_IF_ERROR(TlsError(result));
    return 0;
  }
  const ssize_t num_written =
      send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (num_written >= 0) return num_written;
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return 0;
  return absl::UnavailableError(std::strerror(errno));
}

bool LinkSocket::Wait(bool wants_write, int cancel_fd,
                      absl::Time deadline) const {
  // What TLS holds already no event will tell of.
  if (ssl_ != nullptr && SSL_pending(ssl_.get()) > 0) return false;
  const short events = POLLIN | (wants_write || tls_wants_write_ ? POLLOUT : 0);
  return Poll(fd_, events, cancel_fd, deadline) < 0;
}

}  // namespace quire
