#include "server/http/listener.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

namespace quire {
namespace {

constexpr mode_t kUnixSocketMode = 0660;

absl::Status CannotListen(const std::string& where, const char* reason) {
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ", where, ": ", reason));
}

int PortOf(int fd) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return 0;
  }
  if (address.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<sockaddr_in6*>(&address)->sin6_port);
  }
  return ntohs(reinterpret_cast<sockaddr_in*>(&address)->sin_port);
}

// -1 with errno on failure.
int ListenOn(const addrinfo& info, int backlog) {
  const int fd =
      socket(info.ai_family, info.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC,
             info.ai_protocol);
  if (fd < 0) return -1;
  const int yes = 1;
  const int no = 0;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  if (info.ai_family == AF_INET6) {
    // `::` means both families, whatever the system's default is.
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no));
  }
  if (bind(fd, info.ai_addr, info.ai_addrlen) == 0 &&
      listen(fd, backlog) == 0) {
    return fd;
  }
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

// Whether a socket is at `address` that nobody answers.
bool IsAbandoned(const sockaddr_un& address) {
  struct stat info;
  if (lstat(address.sun_path, &info) != 0 || !S_ISSOCK(info.st_mode)) {
    return false;
  }
  // A full backlog is EAGAIN, and a sign of life.
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const bool is_refused =
      connect(fd, reinterpret_cast<const sockaddr*>(&address),
              sizeof(address)) != 0 &&
      errno == ECONNREFUSED;
  close(fd);
  return is_refused;
}

}  // namespace

absl::StatusOr<Listener> Listener::OpenTcp(const std::string& host, int port,
                                           int backlog) {
  const std::string where = absl::StrCat(host, ":", port);
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.empty() ? nullptr : host.c_str(),
                                std::to_string(port).c_str(), &hints, &found);
  if (error != 0) return CannotListen(where, gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found,
                                                                 &freeaddrinfo);
  int last_error = EADDRNOTAVAIL;
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    if (const int fd = ListenOn(*info, backlog); fd >= 0) {
      return Listener(fd, PortOf(fd), "");
    }
    last_error = errno;
  }
  return CannotListen(where, std::strerror(last_error));
}

absl::StatusOr<Listener> Listener::OpenUnix(const std::string& path,
                                            int backlog) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return CannotListen(path, "the path is too long for a Unix socket");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  if (IsAbandoned(address)) unlink(address.sun_path);

  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return CannotListen(path, std::strerror(errno));
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) !=
      0) {
    const int error = errno;
    close(fd);
    struct stat info;
    if (error == EADDRINUSE && lstat(address.sun_path, &info) == 0 &&
        !S_ISSOCK(info.st_mode)) {
      return CannotListen(path, "the path exists and is no socket");
    }
    return CannotListen(path, std::strerror(error));
  }
  Listener listener(fd, 0, path);
  // Nobody can connect before it listens.
  if (chmod(address.sun_path, kUnixSocketMode) != 0 ||
      listen(fd, backlog) != 0) {
    return CannotListen(path, std::strerror(errno));
  }
  return listener;
}

Listener& Listener::operator=(Listener&& other) noexcept {
  if (this == &other) return *this;
  Close();
  fd_ = std::exchange(other.fd_, -1);
  port_ = other.port_;
  path_ = std::exchange(other.path_, "");
  return *this;
}

void Listener::Close() {
  if (fd_ < 0) return;
  close(fd_);
  fd_ = -1;
  if (!path_.empty()) unlink(path_.c_str());
}

}  // namespace quire
