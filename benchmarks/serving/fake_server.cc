#include "benchmarks/serving/fake_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace quire {
namespace {

int Listen(int* port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(fd, 1024) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    abort();
  }
  *port = ntohs(address.sin_port);
  return fd;
}

// The first whole request of `received`, taken out of it; empty if there is
// none yet.
std::string TakeRequest(std::string* received) {
  const size_t head_end = received->find("\r\n\r\n");
  if (head_end == std::string::npos) return "";
  size_t size = head_end + 4;
  // Only of the head: AddressSanitizer lets atoll look at all that follows,
  // each time.
  const absl::string_view head(received->data(), head_end);
  const size_t length = head.find("Content-Length: ");
  if (length != absl::string_view::npos) {
    const absl::string_view value = head.substr(length + 16);
    size_t body_size = 0;
    if (absl::SimpleAtoi(value.substr(0, value.find('\r')), &body_size)) {
      size += body_size;
    }
  }
  if (received->size() < size) return "";
  std::string request = received->substr(0, size);
  received->erase(0, size);
  return request;
}

}  // namespace

std::string SizedAnswer(int status, const std::string& body) {
  return absl::StrCat("HTTP/1.1 ", status,
                      " Status\r\nContent-Length: ", body.size(), "\r\n\r\n",
                      body);
}

std::string StreamAnswer(const std::vector<std::string>& events, bool ends) {
  std::string bytes =
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
      "Transfer-Encoding: chunked\r\n\r\n";
  for (const std::string& event : events) {
    const std::string chunk = absl::StrCat("data: ", event, "\n\n");
    absl::StrAppend(&bytes, absl::Hex(chunk.size()), "\r\n", chunk, "\r\n");
  }
  if (ends) bytes += "0\r\n\r\n";
  return bytes;
}

FakeServer::FakeServer(
    std::function<FakeAnswer(int, const std::string&)> answer)
    : answer_(std::move(answer)), listen_fd_(Listen(&port_)) {
  thread_ = std::thread([this] { Accept(); });
}

FakeServer::~FakeServer() {
  shutdown(listen_fd_, SHUT_RDWR);
  thread_.join();
  close(listen_fd_);
  {
    std::lock_guard<std::mutex> lock(mu_);
    for (int fd : fds_) shutdown(fd, SHUT_RDWR);
  }
  for (std::thread& connection : connections_) connection.join();
  for (int fd : fds_) close(fd);
}

std::vector<std::string> FakeServer::requests() {
  std::lock_guard<std::mutex> lock(mu_);
  return requests_;
}

void FakeServer::Accept() {
  for (;;) {
    const int fd = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) return;
    {
      std::lock_guard<std::mutex> lock(mu_);
      fds_.push_back(fd);
    }
    connections_.emplace_back([this, fd] { Serve(fd); });
  }
}

void FakeServer::Serve(int fd) {
  std::string received;
  bool is_counted = false;
  for (;;) {
    const std::string request = TakeRequest(&received);
    if (request.empty()) {
      char bytes[4096];
      const ssize_t size = recv(fd, bytes, sizeof(bytes), 0);
      if (size <= 0) break;
      received.append(bytes, size);
      continue;
    }
    // Connections that only try the port do not count.
    num_connections_ += !std::exchange(is_counted, true);
    int number = 0;
    {
      std::lock_guard<std::mutex> lock(mu_);
      number = static_cast<int>(requests_.size());
      requests_.push_back(request);
    }
    const FakeAnswer answer = answer_(number, request);
    if (answer.is_silent) continue;
    for (size_t sent = 0; sent < answer.bytes.size();) {
      const ssize_t size = send(fd, answer.bytes.data() + sent,
                                answer.bytes.size() - sent, MSG_NOSIGNAL);
      if (size <= 0) break;
      sent += size;
    }
    if (answer.closes) break;
  }
  shutdown(fd, SHUT_RDWR);
}

int UnusedPort() {
  int port = 0;
  close(Listen(&port));
  return port;
}

}  // namespace quire
