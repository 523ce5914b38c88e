// TLS of accepted connections, by OpenSSL.
#ifndef QUIRE_SERVER_HTTP_TLS_H_
#define QUIRE_SERVER_HTTP_TLS_H_

#include <openssl/ssl.h>
#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quire {

struct TlsFiles {
  std::string certificate;  // PEM: the server's, then what leads to its root.
  std::string private_key;  // PEM.
  // PEM. Not empty: clients need a certificate of one of these authorities.
  std::string client_authorities;
};

// One connection's side of TLS; the handshake is part of its first calls. The
// socket stays the caller's, non-blocking. One thread.
class TlsSession {
 public:
  explicit TlsSession(SSL* ssl) : ssl_(ssl, &SSL_free) {}

  // As recv and send on a non-blocking socket: bytes, 0 at the end (Receive),
  // or -1 with errno: EAGAIN, or EPROTO if the peer does not speak TLS as it
  // should.
  ssize_t Receive(char* out, size_t size);
  ssize_t Send(const char* data, size_t size);

  bool is_established() const { return SSL_is_init_finished(ssl_.get()); }
  // Of the last Receive: it waits for the socket to take bytes.
  bool receive_needs_write() const { return receive_needs_write_; }
  // Bytes were received that no event of the socket will tell of.
  bool has_pending() const { return SSL_has_pending(ssl_.get()) == 1; }
  // Tells the peer that nothing follows. Best effort.
  void SendClose();

 private:
  ssize_t ToErrno(int result);

  std::unique_ptr<SSL, decltype(&SSL_free)> ssl_;
  bool receive_needs_write_ = false;
};

// One thread.
class TlsContext {
 public:
  // INVALID_ARGUMENT naming the file, if one cannot be read, or key and
  // certificate do not belong together.
  static absl::StatusOr<std::unique_ptr<TlsContext>> Create(
      const TlsFiles& files);

  // For an accepted socket; null if there is no memory.
  std::unique_ptr<TlsSession> NewSession(int fd);

  // Reads the files again if one of them is not the one that was read last;
  // connections that exist keep what they have. True if it did. With an error,
  // as Create's, what was in force stays, and the same files are not tried
  // again.
  absl::StatusOr<bool> ReloadIfChanged();

 private:
  // What tells one version of a file from another.
  struct FileVersion {
    int64_t inode = 0, size = 0, seconds = 0, nanoseconds = 0;
    friend bool operator==(const FileVersion&, const FileVersion&) = default;
  };
  using Context = std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)>;

  explicit TlsContext(const TlsFiles& files)
      : files_(files), context_(nullptr, &SSL_CTX_free) {}
  std::vector<FileVersion> Versions() const;
  absl::StatusOr<Context> Load() const;

  const TlsFiles files_;
  Context context_;
  std::vector<FileVersion> versions_;
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_TLS_H_
