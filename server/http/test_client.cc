#include "server/http/test_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/time/clock.h"

namespace quire {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(20);

}  // namespace

bool WaitUntil(const std::function<bool()>& condition) {
  const absl::Time deadline = absl::Now() + kTimeout;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Microseconds(500));
  }
  return true;
}

std::string TestResponse::Field(absl::string_view name) const {
  size_t position = head.find("\r\n");
  while (position != std::string::npos && position + 2 < head.size()) {
    const size_t start = position + 2;
    position = head.find("\r\n", start);
    const absl::string_view line =
        absl::string_view(head).substr(start, position - start);
    const size_t colon = line.find(':');
    if (colon != absl::string_view::npos &&
        absl::EqualsIgnoreCase(line.substr(0, colon), name)) {
      return std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
    }
  }
  return "";
}

TestClient::TestClient(int receive_buffer_bytes) {
  fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd_ < 0) return;
  if (receive_buffer_bytes > 0) {
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes,
               sizeof(receive_buffer_bytes));
  }
  // Else a request in two pieces waits 40 ms for the acknowledgement.
  const int yes = 1;
  setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  const timeval timeout = absl::ToTimeval(kTimeout);
  setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
}

bool TestClient::Connect(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) ==
         0;
}

TestClient TestClient::ConnectUnix(const std::string& path) {
  TestClient client;
  client.Close();
  client.fd_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval timeout = absl::ToTimeval(kTimeout);
  setsockopt(client.fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(),
              std::min(path.size(), sizeof(address.sun_path) - 1));
  if (connect(client.fd_, reinterpret_cast<sockaddr*>(&address),
              sizeof(address)) != 0) {
    client.Close();
  }
  return client;
}

bool TestClient::StartTls(const TestTlsFiles& files) {
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(
      SSL_CTX_new(TLS_client_method()), &SSL_CTX_free);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  bool is_ok =
      SSL_CTX_load_verify_file(context.get(), files.authorities.c_str()) == 1;
  if (!files.certificate.empty()) {
    is_ok =
        is_ok &&
        SSL_CTX_use_certificate_chain_file(context.get(),
                                           files.certificate.c_str()) == 1 &&
        SSL_CTX_use_PrivateKey_file(context.get(), files.private_key.c_str(),
                                    SSL_FILETYPE_PEM) == 1;
  }
  ssl_.reset(SSL_new(context.get()));
  return is_ok && SSL_set_fd(ssl_.get(), fd_) == 1 &&
         SSL_connect(ssl_.get()) == 1;
}

std::string TestClient::PeerCommonName() const {
  if (ssl_ == nullptr) return "";
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(
      SSL_get1_peer_certificate(ssl_.get()), &X509_free);
  char name[256] = "";
  if (certificate != nullptr) {
    X509_NAME_get_text_by_NID(X509_get_subject_name(certificate.get()),
                              NID_commonName, name, sizeof(name));
  }
  return name;
}

TestClient::TestClient(TestClient&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      ssl_(std::move(other.ssl_)),
      buffer_(std::move(other.buffer_)),
      is_eof_(other.is_eof_) {}

TestClient::~TestClient() { Close(); }

void TestClient::Close() {
  ssl_.reset();
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void TestClient::ShutdownWrite() { shutdown(fd_, SHUT_WR); }

bool TestClient::Send(absl::string_view data) {
  while (!data.empty()) {
    const ssize_t size =
        ssl_ != nullptr ? SSL_write(ssl_.get(), data.data(), data.size())
                        : send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
    if (size <= 0) return false;
    data.remove_prefix(size);
  }
  return true;
}

bool TestClient::Fill() {
  char bytes[16 << 10];
  if (ssl_ != nullptr) {
    const int size = SSL_read(ssl_.get(), bytes, sizeof(bytes));
    if (size <= 0) {
      is_eof_ |= SSL_get_error(ssl_.get(), size) == SSL_ERROR_ZERO_RETURN;
      return false;
    }
    buffer_.append(bytes, size);
    return true;
  }
  const ssize_t size = recv(fd_, bytes, sizeof(bytes), 0);
  // A reset is an end too, but a timeout is not.
  if (size == 0 || (size < 0 && errno == ECONNRESET)) is_eof_ = true;
  if (size <= 0) return false;
  buffer_.append(bytes, size);
  return true;
}

std::string TestClient::TakeLine() {
  size_t end;
  while ((end = buffer_.find("\r\n")) == std::string::npos) {
    if (!Fill()) return "";
  }
  std::string line = buffer_.substr(0, end);
  buffer_.erase(0, end + 2);
  return line;
}

TestResponse TestClient::Receive(bool has_no_body) {
  TestResponse response;
  size_t end;
  while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
    if (!Fill()) return response;
  }
  response.head = buffer_.substr(0, end + 2);
  buffer_.erase(0, end + 4);
  response.status = std::atoi(response.head.c_str() + 9);
  if (has_no_body || response.status == 100 || response.status == 204) {
    response.is_complete = true;
    return response;
  }
  if (response.Field("transfer-encoding") == "chunked") {
    while (true) {
      const size_t size = std::strtoul(TakeLine().c_str(), nullptr, 16);
      while (buffer_.size() < size + 2) {
        if (!Fill()) return response;
      }
      if (size > 0) response.chunks.push_back(buffer_.substr(0, size));
      response.body += buffer_.substr(0, size);
      buffer_.erase(0, size + 2);
      if (size == 0) break;
    }
    response.is_complete = true;
    return response;
  }
  int64_t length = -1;
  if (!absl::SimpleAtoi(response.Field("content-length"), &length)) length = -1;
  while (length < 0 || static_cast<int64_t>(buffer_.size()) < length) {
    if (!Fill()) break;
  }
  if (length < 0) length = buffer_.size();  // Up to the end of the connection.
  response.body = buffer_.substr(0, length);
  response.is_complete = static_cast<int64_t>(buffer_.size()) >= length;
  buffer_.erase(0, length);
  return response;
}

std::string TestClient::ReceiveUntil(absl::string_view text) {
  while (!absl::StrContains(buffer_, text) && Fill()) {
  }
  return std::exchange(buffer_, "");
}

bool TestClient::ReceiveEof(std::string* rest) {
  while (Fill()) {
  }
  if (rest != nullptr) *rest = std::exchange(buffer_, "");
  return is_eof_;
}

}  // namespace quire
