#include "engine/parallel/tcp.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"

namespace quire {
namespace {

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

// Empty host: all addresses of this machine.
absl::StatusOr<AddressList> Resolve(const HostPort& at) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (at.host.empty() ? AI_PASSIVE : 0);
  addrinfo* found = nullptr;
  const int error = getaddrinfo(at.host.empty() ? nullptr : at.host.c_str(),
                                absl::StrCat(at.port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat(at.ToString(), ": ", gai_strerror(error)));
  }
  return AddressList(found, &freeaddrinfo);
}

// 0, or errno.
int ListenOn(const addrinfo& address, OwnedFd* listener) {
  OwnedFd fd(
      socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return errno;
  const int on = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(fd.get(), address.ai_addr, address.ai_addrlen) != 0 ||
      listen(fd.get(), 128) != 0) {
    return errno;
  }
  *listener = std::move(fd);
  return 0;
}

HostPort ToHostPort(const sockaddr_storage& address, socklen_t size) {
  char host[INET6_ADDRSTRLEN + 32] = "", port[16] = "0";
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, host,
                  sizeof(host), port, sizeof(port),
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return {};
  }
  return {host, atoi(port)};
}

// 0, or errno; blocks until `deadline` at most.
int ConnectTo(const addrinfo& address, absl::Time deadline, OwnedFd* out) {
  OwnedFd fd(
      socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return errno;
  if (connect(fd.get(), address.ai_addr, address.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return errno;
    pollfd poll_fd = {fd.get(), POLLOUT, 0};
    const int64_t left =
        absl::ToInt64Milliseconds(deadline - Clock::Monotonic()->Now());
    if (poll(&poll_fd, 1, static_cast<int>(std::max<int64_t>(left, 0))) <= 0) {
      return ETIMEDOUT;
    }
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return error;
  }
  *out = std::move(fd);
  return 0;
}

}  // namespace

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) close(fd_);
}

std::string HostPort::ToString() const {
  if (absl::StrContains(host, ':')) return absl::StrCat("[", host, "]:", port);
  return absl::StrCat(host.empty() ? "*" : host, ":", port);
}

absl::StatusOr<OwnedFd> ListenTcp(const HostPort& at) {
  OwnedFd listener;
  int error = EADDRNOTAVAIL;
  if (auto addresses = Resolve(at); addresses.ok()) {
    error = ListenOn(**addresses, &listener);
  }
  if (error == EADDRNOTAVAIL && !at.host.empty()) {
    if (auto addresses = Resolve({"", at.port}); addresses.ok()) {
      error = ListenOn(**addresses, &listener);
    }
  }
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", at.ToString(), ": ", strerror(error)));
  }
  return listener;
}

absl::StatusOr<OwnedFd> ConnectTcp(const HostPort& to, absl::Time deadline) {
  // So that a host that comes up is found soon, and one that does not costs
  // nothing.
  absl::Duration pause = absl::Milliseconds(5);
  for (;;) {
    std::string reason;
    if (auto addresses = Resolve(to); addresses.ok()) {
      for (const addrinfo* a = addresses->get(); a != nullptr; a = a->ai_next) {
        OwnedFd fd;
        const int error = ConnectTo(
            *a,
            std::min(deadline, Clock::Monotonic()->Now() + absl::Seconds(5)),
            &fd);
        if (error == 0) return fd;
        reason = strerror(error);
      }
    } else {
      reason = std::string(addresses.status().message());
    }
    if (Clock::Monotonic()->Now() + pause >= deadline) {
      return absl::UnavailableError(
          absl::StrCat("cannot reach ", to.ToString(), ": ", reason));
    }
    absl::SleepFor(pause);
    pause = std::min(pause * 2, absl::Seconds(1));
  }
}

absl::StatusOr<OwnedFd> AcceptTcp(int listener, absl::Time deadline) {
  for (;;) {
    OwnedFd fd(
        accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd.get() >= 0) return fd;
    const int64_t left =
        absl::ToInt64Milliseconds(deadline - Clock::Monotonic()->Now());
    if (left < 0 || (left == 0 && deadline <= Clock::Monotonic()->Now())) {
      return absl::UnavailableError("nobody has connected in time");
    }
    pollfd poll_fd = {listener, POLLIN, 0};
    poll(&poll_fd, 1, static_cast<int>(std::min<int64_t>(left, 1 << 20)) + 1);
  }
}

std::string OwnHostName() {
  char host[256] = "localhost";
  gethostname(host, sizeof(host) - 1);
  return host;
}

HostPort LocalAddress(int fd) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return ToHostPort(address, size);
}

HostPort PeerAddress(int fd) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return ToHostPort(address, size);
}

void SetTcpOptions(int fd, absl::Duration timeout) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  const unsigned milliseconds =
      static_cast<unsigned>(absl::ToInt64Milliseconds(timeout));
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds,
             sizeof(milliseconds));
  // A connection that nobody writes to is probed.
  const int seconds = std::max<int>(1, milliseconds / 2000);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof(seconds));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &seconds, sizeof(seconds));
}

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text,
                                       int default_port) {
  HostPort result = {std::string(text), default_port};
  const size_t colon = text.rfind(':');
  const bool is_bracketed = absl::StartsWith(text, "[");
  // Several colons and no brackets: an IPv6 address without a port.
  const bool has_port =
      colon != absl::string_view::npos &&
      (is_bracketed ? colon > text.find(']') : text.find(':') == colon);
  if (has_port) {
    result.host = std::string(text.substr(0, colon));
    if (!absl::SimpleAtoi(text.substr(colon + 1), &result.port)) {
      result.port = -1;
    }
  }
  if (is_bracketed && result.host.size() >= 2 && result.host.back() == ']') {
    result.host = result.host.substr(1, result.host.size() - 2);
  }
  if (result.port < 0 || result.port > 65535 || result.host.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is no host:port"));
  }
  return result;
}

}  // namespace quire
