// Sockets to listen on.
#ifndef QUIRE_SERVER_HTTP_LISTENER_H_
#define QUIRE_SERVER_HTTP_LISTENER_H_

#include <string>

#include "absl/status/statusor.h"

namespace quire {

// A listening socket, non-blocking. Move-only; closes it, and removes the file
// of a Unix socket.
class Listener {
 public:
  // host: an address or a name; empty: all addresses. port 0: any free one. A
  // second listener on the same port is an error, not a share of its
  // connections. UNAVAILABLE with address and reason.
  static absl::StatusOr<Listener> OpenTcp(const std::string& host, int port,
                                          int backlog);

  // A socket that owner and group may use. What a process that has ended left
  // at `path` is replaced; UNAVAILABLE if somebody still answers there, or if
  // something else than a socket is in the place.
  static absl::StatusOr<Listener> OpenUnix(const std::string& path,
                                           int backlog);

  Listener(Listener&& other) noexcept { *this = std::move(other); }
  Listener& operator=(Listener&& other) noexcept;
  ~Listener() { Close(); }

  int fd() const { return fd_; }
  int port() const { return port_; }  // 0 for a Unix socket.
  bool is_tcp() const { return path_.empty(); }
  void Close();

 private:
  Listener(int fd, int port, std::string path)
      : fd_(fd), port_(port), path_(std::move(path)) {}

  int fd_ = -1;
  int port_ = 0;
  std::string path_;  // Of a Unix socket.
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_LISTENER_H_
