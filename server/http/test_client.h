// A raw-socket HTTP client for tests: sends exactly the bytes it is given.
#ifndef QUIRE_SERVER_HTTP_TEST_CLIENT_H_
#define QUIRE_SERVER_HTTP_TEST_CLIENT_H_

#include <functional>
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

// Blocking; every wait is bounded as that of WaitUntil.
class TestClient {
 public:
  // A socket that is not connected yet.
  explicit TestClient(int receive_buffer_bytes = 0);
  ~TestClient();
  TestClient(TestClient&& other) noexcept;
  TestClient& operator=(TestClient&&) = delete;

  bool Connect(int port);
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
  std::string buffer_;
  bool is_eof_ = false;
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_TEST_CLIENT_H_
