#include "server/telemetry/http_post.h"

#include <netdb.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"

namespace quire {
namespace {

constexpr size_t kMaxAnswerHead = 16 << 10;
// How often a wait looks whether it is to end.
constexpr absl::Duration kPoll = absl::Milliseconds(50);

absl::Status Unavailable(absl::string_view what) {
  return absl::UnavailableError(what);
}

// One connection with a deadline for all of its life.
class Connection {
 public:
  Connection(absl::Time deadline, const std::atomic<bool>& is_stopping)
      : deadline_(deadline), is_stopping_(is_stopping) {}
  ~Connection() {
    ssl_.reset();
    if (fd_ >= 0) close(fd_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  absl::Status Connect(const PostTarget& target, SSL_CTX* tls) {
    addrinfo hints = {};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (getaddrinfo(target.host.c_str(), target.port.c_str(), &hints, &found) !=
        0) {
      return Unavailable("the host is not known");
    }
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(
        found, &freeaddrinfo);
    absl::Status status = Unavailable("no address");
    for (const addrinfo* address = found; address != nullptr;
         address = address->ai_next) {
      status = ConnectTo(*address);
      if (status.ok()) break;
    }
    if (!status.ok() || tls == nullptr) return status;
    return Handshake(target, tls);
  }

  absl::Status SendAll(absl::string_view data) {
    while (!data.empty()) {
      ssize_t size = 0;
      short events = POLLOUT;
      if (ssl_ != nullptr) {
        size =
            SSL_write(ssl_.get(), data.data(), static_cast<int>(data.size()));
        if (size <= 0) QUIRE_RETURN_IF_ERROR(TlsEvents(size, &events));
      } else {
        size = send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
        if (size < 0 && errno != EAGAIN && errno != EINTR) {
          return Unavailable("the connection was closed");
        }
      }
      if (size > 0) {
        data.remove_prefix(size);
      } else {
        QUIRE_RETURN_IF_ERROR(WaitFor(events));
      }
    }
    return absl::OkStatus();
  }

  // Until the blank line of an answer's head, which `head` then holds.
  absl::Status ReceiveHead(std::string* head) {
    char buffer[2048];
    while (!absl::StrContains(*head, "\r\n\r\n")) {
      if (head->size() > kMaxAnswerHead) return Unavailable("too long a head");
      ssize_t size = 0;
      short events = POLLIN;
      if (ssl_ != nullptr) {
        size = SSL_read(ssl_.get(), buffer, sizeof(buffer));
        if (size <= 0) QUIRE_RETURN_IF_ERROR(TlsEvents(size, &events));
      } else {
        size = recv(fd_, buffer, sizeof(buffer), 0);
        if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR)) {
          return Unavailable("the connection was closed");
        }
      }
      if (size > 0) {
        head->append(buffer, size);
      } else {
        QUIRE_RETURN_IF_ERROR(WaitFor(events));
      }
    }
    head->resize(head->find("\r\n\r\n"));
    return absl::OkStatus();
  }

 private:
  absl::Status ConnectTo(const addrinfo& address) {
    if (fd_ >= 0) close(fd_);
    fd_ = socket(address.ai_family,
                 address.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC,
                 address.ai_protocol);
    if (fd_ < 0) return Unavailable("no socket");
    if (connect(fd_, address.ai_addr, address.ai_addrlen) == 0) {
      return absl::OkStatus();
    }
    if (errno != EINPROGRESS) return Unavailable("cannot connect");
    QUIRE_RETURN_IF_ERROR(WaitFor(POLLOUT));
    int error = 0;
    socklen_t size = sizeof(error);
    if (getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size) != 0 ||
        error != 0) {
      return Unavailable("cannot connect");
    }
    return absl::OkStatus();
  }

  absl::Status Handshake(const PostTarget& target, SSL_CTX* tls) {
    ssl_.reset(SSL_new(tls));
    if (ssl_ == nullptr || SSL_set_fd(ssl_.get(), fd_) != 1) {
      return Unavailable("TLS: no memory");
    }
    X509_VERIFY_PARAM* const check = SSL_get0_param(ssl_.get());
    // An address is checked as one, a name as one.
    if (X509_VERIFY_PARAM_set1_ip_asc(check, target.host.c_str()) != 1 &&
        (SSL_set1_host(ssl_.get(), target.host.c_str()) != 1 ||
         SSL_set_tlsext_host_name(ssl_.get(), target.host.c_str()) != 1)) {
      return Unavailable("TLS: not a name");
    }
    for (;;) {
      const int result = SSL_connect(ssl_.get());
      if (result == 1) return absl::OkStatus();
      short events = 0;
      QUIRE_RETURN_IF_ERROR(TlsEvents(result, &events));
      QUIRE_RETURN_IF_ERROR(WaitFor(events));
    }
  }

  // What a TLS call that returned `result` waits for.
  absl::Status TlsEvents(int result, short* events) {
    const int error = SSL_get_error(ssl_.get(), result);
    ERR_clear_error();
    if (error == SSL_ERROR_WANT_READ) {
      *events = POLLIN;
    } else if (error == SSL_ERROR_WANT_WRITE) {
      *events = POLLOUT;
    } else {
      return Unavailable("TLS: refused or closed");
    }
    return absl::OkStatus();
  }

  absl::Status WaitFor(short events) {
    for (;;) {
      const absl::Duration left = deadline_ - Clock::Monotonic()->Now();
      if (left <= absl::ZeroDuration()) return Unavailable("no answer in time");
      if (is_stopping_) return Unavailable("stopping");
      pollfd waiting = {fd_, events, 0};
      const int ready =
          poll(&waiting, 1,
               static_cast<int>(absl::ToInt64Milliseconds(
                   std::min(left, kPoll) + absl::Milliseconds(1))));
      if (ready > 0) return absl::OkStatus();
    }
  }

  const absl::Time deadline_;
  const std::atomic<bool>& is_stopping_;
  int fd_ = -1;
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl_{nullptr, &SSL_free};
};

bool IsVisible(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isgraph(c); });
}

absl::StatusOr<PostAnswer> ParseAnswer(absl::string_view head) {
  PostAnswer answer;
  bool is_first = true;
  for (const absl::string_view line : absl::StrSplit(head, "\r\n")) {
    if (is_first) {
      is_first = false;
      if (!absl::StartsWith(line, "HTTP/1.") || line.size() < 12 ||
          !absl::SimpleAtoi(line.substr(9, 3), &answer.status)) {
        return Unavailable("not an HTTP answer");
      }
      continue;
    }
    const size_t colon = line.find(':');
    if (colon == absl::string_view::npos ||
        !absl::EqualsIgnoreCase(line.substr(0, colon), "retry-after")) {
      continue;
    }
    int64_t seconds = 0;
    // The other form, a date, is as if nothing was said.
    if (absl::SimpleAtoi(line.substr(colon + 1), &seconds) && seconds > 0) {
      answer.retry_after = absl::Seconds(seconds);
    }
  }
  return answer;
}

}  // namespace

absl::StatusOr<PostTarget> ParsePostTarget(absl::string_view url) {
  const auto error = [url](absl::string_view what) {
    // Not with the credentials that it may hold.
    return absl::InvalidArgumentError(absl::StrCat(
        absl::StrContains(url, "@") ? "the URL" : absl::StrCat("'", url, "'"),
        " is no address of a collector: ", what));
  };
  PostTarget target;
  absl::string_view rest = url;
  if (absl::StartsWith(rest, "https://")) {
    target.is_tls = true;
    rest.remove_prefix(8);
  } else if (absl::StartsWith(rest, "http://")) {
    rest.remove_prefix(7);
  } else {
    return error("it must begin with http:// or https://");
  }
  if (!IsVisible(rest)) return error("it holds spaces or worse");
  const size_t slash = std::min(rest.find_first_of("/?"), rest.size());
  absl::string_view authority = rest.substr(0, slash);
  if (slash < rest.size()) {
    target.path = std::string(rest.substr(slash));
    if (target.path[0] == '?') target.path.insert(0, "/");
  }
  if (absl::StrContains(authority, "@")) {
    return error("credentials go into OTEL_EXPORTER_OTLP_HEADERS");
  }
  absl::string_view port;
  if (absl::StartsWith(authority, "[")) {
    const size_t end = authority.find(']');
    if (end == absl::string_view::npos) return error("']' is missing");
    target.host = std::string(authority.substr(1, end - 1));
    authority.remove_prefix(end + 1);
    if (!authority.empty() && authority[0] != ':') return error("a port?");
    port = authority.empty() ? authority : authority.substr(1);
  } else {
    const size_t colon = std::min(authority.find(':'), authority.size());
    target.host = std::string(authority.substr(0, colon));
    port = colon < authority.size() ? authority.substr(colon + 1)
                                    : absl::string_view();
  }
  int number = target.is_tls ? 443 : 80;
  if (!port.empty() &&
      (!absl::SimpleAtoi(port, &number) || number < 1 || number > 65535)) {
    return error("the port must be 1 to 65535");
  }
  if (target.host.empty()) return error("there is no host");
  target.port = absl::StrCat(number);
  return target;
}

absl::StatusOr<std::unique_ptr<HttpPoster>> HttpPoster::Create(
    const PostTarget& target, const std::string& authorities_file,
    std::vector<std::pair<std::string, std::string>> fields) {
  auto poster =
      std::unique_ptr<HttpPoster>(new HttpPoster(target, std::move(fields)));
  if (!target.is_tls) return poster;
  poster->tls_.reset(SSL_CTX_new(TLS_client_method()));
  SSL_CTX* const tls = poster->tls_.get();
  const bool is_ok = tls != nullptr &&
                     SSL_CTX_set_min_proto_version(tls, TLS1_2_VERSION) == 1 &&
                     (authorities_file.empty()
                          ? SSL_CTX_set_default_verify_paths(tls)
                          : SSL_CTX_load_verify_locations(
                                tls, authorities_file.c_str(), nullptr)) == 1;
  ERR_clear_error();
  if (!is_ok) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot read the certificates of authorities",
                     authorities_file.empty() ? "" : " in ", authorities_file));
  }
  SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_mode(
      tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  return poster;
}

absl::StatusOr<PostAnswer> HttpPoster::Post(
    absl::string_view content_type, absl::string_view body,
    absl::Duration timeout, const std::atomic<bool>& is_stopping) const {
  Connection connection(Clock::Monotonic()->Now() + timeout, is_stopping);
  QUIRE_RETURN_IF_ERROR(connection.Connect(target_, tls_.get()));
  const bool is_ipv6 = absl::StrContains(target_.host, ':');
  std::string request = absl::StrCat(
      "POST ", target_.path, " HTTP/1.1\r\nHost: ", is_ipv6 ? "[" : "",
      target_.host, is_ipv6 ? "]" : "", ":", target_.port,
      "\r\nUser-Agent: quire\r\nConnection: close\r\nContent-Type: ",
      content_type, "\r\nContent-Length: ", body.size(), "\r\n");
  for (const auto& [name, value] : fields_) {
    absl::StrAppend(&request, name, ": ", value, "\r\n");
  }
  request += "\r\n";
  request.append(body.data(), body.size());
  QUIRE_RETURN_IF_ERROR(connection.SendAll(request));
  std::string head;
  QUIRE_RETURN_IF_ERROR(connection.ReceiveHead(&head));
  return ParseAnswer(head);
}

}  // namespace quire
