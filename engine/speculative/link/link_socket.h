// A client's non-blocking connection, plain or TLS, whose waits can be cut
// short.
#ifndef QUIRE_ENGINE_SPECULATIVE_LINK_LINK_SOCKET_H_
#define QUIRE_ENGINE_SPECULATIVE_LINK_LINK_SOCKET_H_

#include <openssl/ssl.h>

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace quire {

struct SslContextDeleter {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
using SslContext = std::unique_ptr<SSL_CTX, SslContextDeleter>;

// For clients: TLS 1.2 or later, the server's certificate is checked against
// `ca_file` (PEM) or the system's authorities. INVALID_ARGUMENT naming the
// file.
absl::StatusOr<SslContext> MakeClientTls(const std::string& ca_file);

// Thread-compatible. Times are the monotonic clock's.
class LinkSocket {
 public:
  // Resolves, connects, and with `tls` (which must outlive it; null: plain)
  // shakes hands; the certificate must be for `host`. Gives up at `deadline`,
  // or once `cancel_fd` is readable. UNAVAILABLE with the address and the
  // reason, UNAUTHENTICATED if it is the certificate.
  static absl::StatusOr<std::unique_ptr<LinkSocket>> Connect(
      const std::string& host, int port, SSL_CTX* tls, int cancel_fd,
      absl::Time deadline);
  ~LinkSocket();

  // Bytes that are there; 0: none now. UNAVAILABLE at the end or if it broke.
  absl::StatusOr<size_t> Read(char* out, size_t size);
  absl::StatusOr<size_t> Write(absl::string_view bytes);

  // Waits until there may be something to read, or (wants_write) room to write,
  // or `cancel_fd` is readable, or `deadline`. True if cancel_fd is readable.
  bool Wait(bool wants_write, int cancel_fd, absl::Time deadline) const;

 private:
  LinkSocket() = default;
  absl::Status ShakeHands(const std::string& host, SSL_CTX* tls, int cancel_fd,
                          absl::Time deadline);
  // Of an SSL call that did not succeed: OK if it is to be tried again.
  absl::Status TlsError(int result);

  int fd_ = -1;
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl_{nullptr, &SSL_free};
  bool tls_wants_write_ = false;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_LINK_LINK_SOCKET_H_
