// A raw-socket HTTP client for tests: sends exactly the bytes it is given.
#ifndef QUIRE_SERVER_HTTP_TEST_CLIENT_H_
#define QUIRE_SERVER_HTTP_TEST_CLIENT_H_

#include <openssl/ssl.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace quire {

// Waits until `condition` holds; false if it does not within 20 s, which is for
// broken servers only and leaves room for sanitizers on a busy machine.
bool WaitUntil(const std::function<bool()>& condition);

struct TestResponse {
  int status = 0;  // 0: no complete response came.
  std::string head;
  std::string body;  // Without chunk framing.
  std::vector<std::string> chunks;
  bool is_complete = false;  // Else the connection ended within it.

  // Value of a field of the head, `name` in any case; empty if absent.
  std::string Field(absl::string_view name) const;
};

// PEM files of what a TLS client trusts and, if asked, shows.
struct TestTlsFiles {
  std::string authorities;
  std::string certificate, private_key;  // Empty: it shows none.
};

// Blocking; every wait is bounded as that of WaitUntil.
class TestClient {
 public:
  // A socket that is not connected yet.
  explicit TestClient(int receive_buffer_bytes = 0);
  ~TestClient();
  TestClient(TestClient&& other) noexcept;
  TestClient& operator=(TestClient&&) = delete;

  bool Connect(int port);
  static TestClient ConnectUnix(const std::string& path);
  // The handshake on a connected socket; false if it fails. With TLS 1.3 a
  // server that wants a certificate says so only with the first answer.
  bool StartTls(const TestTlsFiles& files);
  // Of the server's certificate; empty without TLS.
  std::string PeerCommonName() const;
  int fd() const { return fd_; }
  // False if the connection is gone.
  bool Send(absl::string_view data);
  // Reads one response. `has_no_body`: it answers HEAD.
  TestResponse Receive(bool has_no_body = false);
  TestResponse Ask(absl::string_view request) {
    Send(request);
    return Receive();
  }
  // Reads until what was received and not returned yet ends with or contains
  // `text`; returns it all.
  std::string ReceiveUntil(absl::string_view text);
  // Reads the rest until the peer closes; false if it does not.
  bool ReceiveEof(std::string* rest = nullptr);
  void ShutdownWrite();
  void Close();

 private:
  bool Fill();  // One receive; false at the end, on errors and on timeouts.
  std::string TakeLine();

  int fd_ = -1;
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl_{nullptr, &SSL_free};
  std::string buffer_;
  bool is_eof_ = false;
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_TEST_CLIENT_H_
