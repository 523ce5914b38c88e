#include "engine/speculative/link/edge_link.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"
#include "engine/speculative/link/link_socket.h"

namespace quire {
namespace {

// An edge that cannot get rid of so much has lost its cloud.
constexpr size_t kMaxUnsentBytes = 64 << 20;
constexpr size_t kReadBytes = 64 << 10;
// The answer to the upgrade, with an error's body.
constexpr size_t kMaxAnswerBytes = 64 << 10;

// What to send in place of what was read from the file: its first line.
absl::StatusOr<std::string> ReadKey(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path);
  std::string line;
  if (!file || !std::getline(file, line)) {
    return absl::UnauthenticatedError(
        absl::StrCat(path, ": no key can be read from it"));
  }
  std::string key(absl::StripAsciiWhitespace(line));
  for (const char c : key) {
    // Nothing that could become another field of the head.
    if (!absl::ascii_isgraph(c)) {
      return absl::UnauthenticatedError(
          absl::StrCat(path, ": the key has characters that no key has"));
    }
  }
  return key;
}

std::string UpgradeRequest(const LinkUrl& url, const std::string& key) {
  const bool is_v6 = absl::StrContains(url.host, ':');
  std::string head = absl::StrCat(
      "GET ", kLinkPath, " HTTP/1.1\r\nHost: ", is_v6 ? "[" : "", url.host,
      is_v6 ? "]" : "", ":", url.port,
      "\r\nConnection: Upgrade\r\nUpgrade: ", kLinkProtocol, "\r\n");
  if (!key.empty())
    absl::StrAppend(&head, "Authorization: Bearer ", key, "\r\n");
  return absl::StrCat(head, "\r\n");
}

// What an answer other than 101 means.
absl::Status StatusOfAnswer(int http_status, absl::string_view body) {
  const std::string text = absl::StrCat(
      "the cloud answers ", http_status, " to the request for a link",
      body.empty() ? "" : ": ", std::string(body.substr(0, 500)));
  switch (http_status) {
    case 401:
    case 403:
      return absl::UnauthenticatedError(text);
    case 404:
    case 405:
    case 426:
      return absl::FailedPreconditionError(
          absl::StrCat(text, " (is it a quire with --enable-verify-link?)"));
    default:
      return absl::UnavailableError(text);
  }
}

bool IsRefusal(const absl::Status& status) {
  return !status.ok() && !absl::IsUnavailable(status);
}

class EdgeLinkImpl : public EdgeLink {
 public:
  EdgeLinkImpl(const EdgeLinkOptions& options, EdgeLinkHandler* handler,
               SslContext tls, int event_fd)
      : options_(options),
        handler_(handler),
        tls_(std::move(tls)),
        event_fd_(event_fd),
        random_(std::random_device()()) {
    thread_ = std::thread([this] { Run(); });
  }

  ~EdgeLinkImpl() override {
    {
      std::lock_guard<std::mutex> lock(mu_);
      is_stopping_ = true;
    }
    Wake();
    thread_.join();
    close(event_fd_);
  }

  void Send(absl::string_view frames) override {
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (!is_connected_) return;
      const bool was_empty = unsent_.empty();
      unsent_.append(frames.data(), frames.size());
      if (!was_empty) return;  // The thread knows.
    }
    Wake();
  }

  absl::Status State() const override {
    std::lock_guard<std::mutex> lock(mu_);
    return state_;
  }

  absl::Status WaitForAnswer(absl::Duration timeout) override {
    std::unique_lock<std::mutex> lock(mu_);
    answered_.wait_for(
        lock, absl::ToChronoMilliseconds(std::min(timeout, absl::Hours(24))),
        [this] { return is_up_ || IsRefusal(state_); });
    has_waited_ = true;
    return state_;
  }

 private:
  // Of one connection.
  struct Session {
    std::unique_ptr<LinkSocket> socket;
    LinkFrameReader reader;
    std::string out;  // On its way to the socket.
    size_t num_sent = 0;
    absl::Time heard_at, pinged_at;
    uint64_t num_pings = 0;
    bool has_pong = true;  // Of the last ping.
  };

  void Wake() {
    // Cannot fail: the counter would have to reach 2^64 - 1 first.
    eventfd_write(event_fd_, 1);
  }
  // Takes the wake-up; true if the link is to end.
  bool TakeWake() {
    eventfd_t count = 0;
    eventfd_read(event_fd_, &count);
    std::lock_guard<std::mutex> lock(mu_);
    return is_stopping_;
  }
  bool is_stopping() const {
    std::lock_guard<std::mutex> lock(mu_);
    return is_stopping_;
  }

  void Run() {
    absl::Duration backoff = options_.min_backoff;
    absl::Status told;
    while (!is_stopping()) {
      Session session;
      absl::StatusOr<LinkPeer> cloud = Connect(&session);
      absl::Status reason = cloud.status();
      if (cloud.ok()) {
        backoff = options_.min_backoff;
        told = absl::OkStatus();
        {
          // Before the handler, which sends as soon as it is told.
          std::lock_guard<std::mutex> lock(mu_);
          is_connected_ = true;
        }
        handler_->OnUp(*cloud);
        {
          std::lock_guard<std::mutex> lock(mu_);
          is_up_ = was_up_ = true;
          state_ = absl::OkStatus();
        }
        answered_.notify_all();
        const auto& tell =
            options_.on_info ? options_.on_info : options_.on_notice;
        if (tell) {
          tell(absl::StrCat("the link to ", options_.url.host, ":",
                            options_.url.port, " is up: ", cloud->model_name,
                            " (quire ", cloud->software_version, ")"));
        }
        // A link that broke is no refusal, whatever broke it.
        reason = absl::UnavailableError(Serve(&session).message());
      }
      // Before whoever waits is woken.
      const bool is_for_waiter = IsRefusal(reason) && IsFirst();
      SetDown(reason);
      if (cloud.ok()) handler_->OnDown(reason);
      if (is_stopping()) break;
      // Once for each reason: an edge may be without its cloud for days.
      if (reason != told && !is_for_waiter) {
        Notice(absl::StrCat("the link is down: ", reason.message(),
                            "; it will be tried again"));
        told = reason;
      }
      Rest(backoff);
      backoff = std::min(backoff * 2, options_.max_backoff);
    }
  }

  void Notice(const std::string& line) const {
    if (options_.on_notice) options_.on_notice(line);
  }

  // Nobody has been told how the link is.
  bool IsFirst() const {
    std::lock_guard<std::mutex> lock(mu_);
    return !has_waited_ && !was_up_;
  }

  void SetDown(const absl::Status& reason) {
    {
      std::lock_guard<std::mutex> lock(mu_);
      is_connected_ = is_up_ = false;
      state_ = reason;
      std::string().swap(unsent_);
    }
    answered_.notify_all();
  }

  // Between half and all of `backoff`: a cloud that comes back is not to meet
  // all of its edges at once.
  void Rest(absl::Duration backoff) {
    const absl::Time deadline =
        Clock::Monotonic()->Now() +
        backoff * std::uniform_real_distribution<>(0.5, 1)(random_);
    while (!is_stopping() && Clock::Monotonic()->Now() < deadline) {
      pollfd fd = {event_fd_, POLLIN, 0};
      const absl::Duration rest = deadline - Clock::Monotonic()->Now();
      poll(&fd, 1,
           static_cast<int>(
               std::max<int64_t>(1, absl::ToInt64Milliseconds(rest))));
      if (fd.revents != 0) TakeWake();
    }
  }

  absl::StatusOr<LinkPeer> Connect(Session* session) {
    QUIRE_ASSIGN_OR_RETURN(const std::string key,
                           ReadKey(options_.api_key_file));
    const absl::Time deadline =
        Clock::Monotonic()->Now() + options_.connect_timeout;
    QUIRE_ASSIGN_OR_RETURN(
        session->socket,
        LinkSocket::Connect(options_.url.host, options_.url.port, tls_.get(),
                            event_fd_, deadline));
    session->out = UpgradeRequest(options_.url, key);
    std::string rest;
    QUIRE_RETURN_IF_ERROR(AwaitUpgrade(session, deadline, &rest));
    AppendHello(options_.peer, &session->out);
    session->reader.Append(rest);
    return AwaitWelcome(session, deadline);
  }

  // Moves bytes both ways until `deadline`; UNAVAILABLE if that has passed.
  absl::StatusOr<std::string> Exchange(Session* session, absl::Time deadline) {
    for (;;) {
      QUIRE_RETURN_IF_ERROR(Flush(session));
      std::string bytes(kReadBytes, '\0');
      QUIRE_ASSIGN_OR_RETURN(const size_t size,
                             session->socket->Read(bytes.data(), bytes.size()));
      bytes.resize(size);
      if (size > 0) return bytes;
      if (Clock::Monotonic()->Now() >= deadline) {
        return absl::UnavailableError("the cloud does not answer");
      }
      if (session->socket->Wait(!session->out.empty(), event_fd_, deadline) &&
          TakeWake()) {
        return absl::UnavailableError("cancelled");
      }
    }
  }

  // A server that speaks TLS answers a plain request with nothing, or with an
  // alert.
  absl::Status WithTlsHint(const absl::Status& status,
                           absl::string_view answer) const {
    const bool is_alert = absl::StartsWith(answer, "\x15\x03");
    if (options_.url.has_tls || is_stopping() ||
        !(answer.empty() || is_alert)) {
      return status;
    }
    return absl::UnavailableError(absl::StrCat(
        is_alert ? "the cloud answers with TLS" : "no answer came: ",
        is_alert ? "" : status.message(),
        "; where the cloud has a certificate, the URL begins with https://"));
  }

  absl::Status AwaitUpgrade(Session* session, absl::Time deadline,
                            std::string* rest) {
    std::string answer;
    size_t end = std::string::npos;
    while (end == std::string::npos) {
      const absl::StatusOr<std::string> bytes = Exchange(session, deadline);
      if (!bytes.ok()) return WithTlsHint(bytes.status(), answer);
      answer += *bytes;
      end = answer.find("\r\n\r\n");
      if (answer.size() > kMaxAnswerBytes) {
        return absl::UnavailableError("the answer to the request is no HTTP");
      }
    }
    int http_status = 0;
    if (!absl::StartsWith(answer, "HTTP/1.1 ") ||
        !absl::SimpleAtoi(answer.substr(9, 3), &http_status)) {
      return absl::UnavailableError("the answer to the request is no HTTP/1.1");
    }
    *rest = answer.substr(end + 4);
    if (http_status != 101) return StatusOfAnswer(http_status, *rest);
    return absl::OkStatus();
  }

  absl::StatusOr<LinkPeer> AwaitWelcome(Session* session, absl::Time deadline) {
    for (;;) {
      QUIRE_ASSIGN_OR_RETURN(const auto frame, session->reader.Next());
      if (!frame.has_value()) {
        QUIRE_ASSIGN_OR_RETURN(const std::string bytes,
                               Exchange(session, deadline));
        session->reader.Append(bytes);
        continue;
      }
      if (frame->type == LinkFrameType::kRefusal) {
        QUIRE_ASSIGN_OR_RETURN(const LinkRefusal refusal,
                               ParseRefusal(frame->payload));
        return Explain(refusal);
      }
      if (frame->type != LinkFrameType::kWelcome) {
        return absl::UnavailableError("the cloud says no Welcome");
      }
      QUIRE_ASSIGN_OR_RETURN(const LinkPeer cloud,
                             ParseWelcome(frame->payload));
      // The cloud compares, too; this side does not rely on it.
      QUIRE_RETURN_IF_ERROR(CheckPeers(options_.peer, cloud));
      return cloud;
    }
  }

  // What the cloud says, and which token differs first if it tells.
  absl::Status Explain(const LinkRefusal& refusal) const {
    const std::string difference =
        options_.token_text == nullptr
            ? ""
            : NameDifference(refusal.vocabulary, options_.token_text);
    if (difference.empty()) return refusal.reason;
    return absl::Status(
        refusal.reason.code(),
        absl::StrCat(refusal.reason.message(), "; first, ", difference));
  }

  // Until the link breaks; why it did.
  absl::Status Serve(Session* session) {
    session->heard_at = Clock::Monotonic()->Now();
    session->pinged_at = absl::InfinitePast();
    std::string buffer(kReadBytes, '\0');
    for (;;) {
      QUIRE_RETURN_IF_ERROR(HandleFrames(session));
      const absl::Time now = Clock::Monotonic()->Now();
      if (now - session->heard_at > options_.silence_timeout) {
        return absl::UnavailableError(
            absl::StrCat("the cloud said nothing for ",
                         absl::FormatDuration(options_.silence_timeout)));
      }
      if (now - session->pinged_at >= options_.ping_interval) {
        session->pinged_at = now;
        session->has_pong = false;
        AppendPing(LinkFrameType::kPing, {++session->num_pings}, &session->out);
      }
      QUIRE_RETURN_IF_ERROR(TakeUnsent(session));
      QUIRE_RETURN_IF_ERROR(Flush(session));
      QUIRE_ASSIGN_OR_RETURN(
          const size_t size,
          session->socket->Read(buffer.data(), buffer.size()));
      if (size > 0) {
        session->heard_at = Clock::Monotonic()->Now();
        session->reader.Append(absl::string_view(buffer).substr(0, size));
        continue;
      }
      const absl::Time deadline = std::min(
          session->pinged_at + options_.ping_interval,
          session->heard_at + options_.silence_timeout + absl::Milliseconds(1));
      if (session->socket->Wait(session->num_sent < session->out.size(),
                                event_fd_, deadline) &&
          TakeWake()) {
        return absl::UnavailableError("this edge is shutting down");
      }
    }
  }

  absl::Status HandleFrames(Session* session) {
    for (;;) {
      QUIRE_ASSIGN_OR_RETURN(const auto frame, session->reader.Next());
      if (!frame.has_value()) return absl::OkStatus();
      if (frame->type == LinkFrameType::kPong) {
        QUIRE_ASSIGN_OR_RETURN(const LinkPing pong, ParsePing(frame->payload));
        // Only of the last one: a late pong would tell of an older ping.
        if (pong.number == session->num_pings && !session->has_pong) {
          session->has_pong = true;
          handler_->OnRoundTrip(Clock::Monotonic()->Now() - session->pinged_at);
        }
      } else {
        QUIRE_RETURN_IF_ERROR(handler_->OnFrame(frame->type, frame->payload));
      }
    }
  }

  absl::Status TakeUnsent(Session* session) {
    std::lock_guard<std::mutex> lock(mu_);
    session->out += unsent_;
    unsent_.clear();
    if (session->out.size() - session->num_sent > kMaxUnsentBytes) {
      return absl::UnavailableError("the cloud does not read");
    }
    return absl::OkStatus();
  }

  absl::Status Flush(Session* session) {
    while (session->num_sent < session->out.size()) {
      QUIRE_ASSIGN_OR_RETURN(
          const size_t size,
          session->socket->Write(
              absl::string_view(session->out).substr(session->num_sent)));
      if (size == 0) break;
      session->num_sent += size;
    }
    if (session->num_sent == session->out.size()) {
      session->out.clear();
      session->num_sent = 0;
    } else if (session->num_sent > session->out.size() / 2) {
      session->out.erase(0, session->num_sent);
      session->num_sent = 0;
    }
    return absl::OkStatus();
  }

  const EdgeLinkOptions options_;
  EdgeLinkHandler* const handler_;
  const SslContext tls_;  // Null: plain.
  const int event_fd_;
  std::mt19937_64 random_;  // The thread's: jitter, nothing that is secret.
  mutable std::mutex mu_;   // Guards all from here to thread_.
  std::condition_variable answered_;
  bool is_stopping_ = false;
  bool is_connected_ = false;  // What is sent goes out.
  bool is_up_ = false;         // And the handler has been told.
  bool was_up_ = false;
  bool has_waited_ = false;  // WaitForAnswer has returned.
  absl::Status state_ = absl::UnavailableError("the link is being set up");
  std::string unsent_;
  std::thread thread_;  // Last: it uses all of the above.
};

}  // namespace

absl::StatusOr<LinkUrl> ParseLinkUrl(absl::string_view text) {
  const auto fail = [text](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", std::string(text), "': ", what,
                     "; expected http[s]://HOST[:PORT]"));
  };
  LinkUrl url;
  absl::string_view rest = text;
  if (absl::StartsWith(rest, "https://")) {
    url.has_tls = true;
    rest.remove_prefix(8);
  } else if (absl::StartsWith(rest, "http://")) {
    rest.remove_prefix(7);
  } else {
    return fail("no URL of a server");
  }
  if (!rest.empty() && rest.back() == '/') rest.remove_suffix(1);
  // The path is the protocol's.
  if (absl::EndsWith(rest, "/v1")) rest.remove_suffix(3);
  url.port = url.has_tls ? 443 : 80;
  absl::string_view port;
  if (!rest.empty() && rest.front() == '[') {
    const size_t end = rest.find(']');
    if (end == absl::string_view::npos) return fail("an address without ']'");
    url.host = std::string(rest.substr(1, end - 1));
    port = rest.substr(end + 1);
  } else {
    const size_t colon = std::min(rest.find(':'), rest.size());
    url.host = std::string(rest.substr(0, colon));
    port = rest.substr(colon);
  }
  if (url.host.empty()) return fail("no host");
  for (const char c : url.host) {
    if (!absl::ascii_isalnum(c) && !absl::StrContains("-._:", c)) {
      return fail("the host has characters that no name has");
    }
  }
  if (!port.empty() &&
      (port.front() != ':' || !absl::SimpleAtoi(port.substr(1), &url.port) ||
       url.port < 1 || url.port > 65535)) {
    return fail("no port");
  }
  return url;
}

absl::StatusOr<std::unique_ptr<EdgeLink>> EdgeLink::Create(
    const EdgeLinkOptions& options, EdgeLinkHandler* handler) {
  SslContext tls;
  if (options.url.has_tls) {
    QUIRE_ASSIGN_OR_RETURN(tls, MakeClientTls(options.ca_file));
  }
  const int event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (event_fd < 0) {
    return absl::ResourceExhaustedError("no descriptor for the link");
  }
  return std::unique_ptr<EdgeLink>(
      new EdgeLinkImpl(options, handler, std::move(tls), event_fd));
}

}  // namespace quire
