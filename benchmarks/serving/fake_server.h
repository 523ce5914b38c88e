// A server for tests that answers with bytes of the test's choice, well-formed
// or not.
#ifndef QUIRE_BENCHMARKS_SERVING_FAKE_SERVER_H_
#define QUIRE_BENCHMARKS_SERVING_FAKE_SERVER_H_

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace quire {

// What the server does with one request.
struct FakeAnswer {
  std::string bytes;    // Sent as they are.
  bool closes = false;  // Then closes the connection, else takes another one.
  bool is_silent = false;  // Says nothing until the client closes.
};

// A whole response with Content-Length.
std::string SizedAnswer(int status, const std::string& body);
// A chunked event stream with these events' data, each a chunk of its own, and
// the end of it if `ends`.
std::string StreamAnswer(const std::vector<std::string>& events,
                         bool ends = true);

// Listens on a free port of 127.0.0.1. A thread for each connection.
class FakeServer {
 public:
  // `answer` gets the request's head and body; called on the connections'
  // threads. `number`: of the request, from 0, over all connections.
  explicit FakeServer(
      std::function<FakeAnswer(int number, const std::string& request)> answer);
  ~FakeServer();

  int port() const { return port_; }
  int num_connections() const { return num_connections_; }
  std::vector<std::string> requests();

 private:
  void Accept();
  void Serve(int fd);

  const std::function<FakeAnswer(int, const std::string&)> answer_;
  int port_ = 0;
  int listen_fd_ = -1;
  std::atomic<int> num_connections_{0};
  std::mutex mu_;
  std::vector<std::string> requests_;  // Guarded by mu_.
  std::vector<int> fds_;               // Guarded by mu_.
  std::vector<std::thread> connections_;
  std::thread thread_;
};

// A port of 127.0.0.1 on which nothing listens.
int UnusedPort();

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_SERVING_FAKE_SERVER_H_
