// Connections between hosts.
#ifndef QUIRE_ENGINE_PARALLEL_TCP_H_
#define QUIRE_ENGINE_PARALLEL_TCP_H_

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace quire {

// A file descriptor that is closed with it.
class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~OwnedFd();

  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

struct HostPort {
  std::string host;
  int port = 0;
  // "10.0.0.1:29500", "[::1]:29500".
  std::string ToString() const;
};

// Listens on `at`; port 0: any free one. An address that is not of this host,
// or a name that is not known yet (in a new pod), is replaced by all addresses.
// UNAVAILABLE with address and reason.
absl::StatusOr<OwnedFd> ListenTcp(const HostPort& at);

// Tries until `deadline`: the other side may not listen yet, or its name not be
// known. UNAVAILABLE with address and the last reason.
absl::StatusOr<OwnedFd> ConnectTcp(const HostPort& to, absl::Time deadline);

// UNAVAILABLE after the deadline.
absl::StatusOr<OwnedFd> AcceptTcp(int listener, absl::Time deadline);

// This host's name, for people.
std::string OwnHostName();

HostPort LocalAddress(int fd);
HostPort PeerAddress(int fd);

// Sends at once; the connection fails if the peer's host acknowledges nothing
// for so long.
void SetTcpOptions(int fd, absl::Duration timeout);

// "host[:port]" with `default_port`. INVALID_ARGUMENT for a port out of range.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text,
                                       int default_port);

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_TCP_H_
