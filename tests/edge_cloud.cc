#include "tests/edge_cloud.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>

#include "engine/base/clock.h"
#include "engine/base/status.h"
#include "server/api_error.h"
#include "server/http/test_client.h"

namespace quire {
namespace {

constexpr absl::Duration kHangTimeout = absl::Seconds(60);

int ConnectTo(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) !=
      0) {
    close(fd);
    return -1;
  }
  return fd;
}

}  // namespace

LinkPeer TestPeer(const EngineOptions& options, const std::string& name) {
  LinkPeer peer;
  peer.software_version = "test";
  peer.model_name = name;
  peer.vocabulary = {options.vocab_size, 1, 2};
  peer.max_model_len = options.max_model_len;
  peer.vocab_size = options.vocab_size;
  peer.max_drafts = options.num_speculative_tokens;
  return peer;
}

TestCloud::TestCloud(const Options& options)
    : options_(options), limiter_(Clock::Monotonic()) {
  HttpServerOptions http_options = options_.http;
  http_options.port = 0;
  http_options.error_body = [](int status, absl::string_view message) {
    return ErrorBody(status, message);
  };
  auto http = HttpServer::Create(http_options);
  QUIRE_CHECK(http.ok());
  http_ = *std::move(http);
  link_ = std::make_unique<VerifyLink>(http_.get(), options_.link);
  QUIRE_CHECK(http_->Start().ok());
  if (options_.engine.num_speculative_tokens > 0) {
    drafter_ = std::make_unique<LinkDrafter>(options_.engine.vocab_size,
                                             options_.inner_drafter);
  }
  auto engine =
      EngineLoop::Create(options_.engine, options_.runner, Clock::Monotonic(),
                         &output_, drafter_.get());
  QUIRE_CHECK(engine.ok());
  engine_ = *std::move(engine);
  output_.Start(engine_.get());
  VerifyLinkModel model;
  model.engine = engine_.get();
  model.output = &output_;
  model.drafter = drafter_.get();
  model.limiter = &limiter_;
  model.peer = options_.peer;
  model.token_text = options_.token_text;
  link_->Serve(model);
}

// As the program does it.
TestCloud::~TestCloud() {
  http_->Stop(absl::ZeroDuration());
  output_.Stop();
  engine_.reset();
}

bool TestCloud::BecomesIdle() {
  if (!engine_->WaitUntilIdle(kHangTimeout) ||
      !output_.WaitUntilIdle(kHangTimeout)) {
    return false;
  }
  const EngineStats stats = engine_->Stats();
  return stats.num_running == 0 && stats.num_waiting == 0 &&
         stats.num_free_blocks == stats.num_blocks;
}

// -------------------------------------------------------------------- Proxy

struct LinkProxy::Connection {
  // [0] is the client's, [1] the target's.
  int fds[2] = {-1, -1};
  std::deque<Piece> pieces[2];  // From fds[i] to the other one.
  ~Connection() {
    for (const int fd : fds) {
      if (fd >= 0) close(fd);
    }
  }
};

LinkProxy::LinkProxy(int target_port, absl::Duration delay)
    : target_port_(target_port), delay_(delay) {
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  QUIRE_CHECK(bind(listener_, reinterpret_cast<sockaddr*>(&address),
                   sizeof(address)) == 0 &&
              listen(listener_, 16) == 0);
  socklen_t size = sizeof(address);
  getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] { Run(); });
}

LinkProxy::~LinkProxy() {
  is_stopping_ = true;
  thread_.join();
  close(listener_);
}

void LinkProxy::Cut() {
  is_cut_ = true;
  while (is_cut_) absl::SleepFor(absl::Microseconds(100));
}

void LinkProxy::Accept() {
  const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
  if (client < 0) return;
  auto connection = std::make_unique<Connection>();
  connection->fds[0] = client;
  if (is_closed_) return;
  connection->fds[1] = ConnectTo(target_port_);
  if (connection->fds[1] < 0) return;
  const int one = 1;
  for (const int fd : connection->fds) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  }
  connections_.push_back(std::move(connection));
}

bool LinkProxy::Move(Connection* connection) {
  const absl::Time now = Clock::Monotonic()->Now();
  for (int i = 0; i < 2; ++i) {
    char buffer[16 << 10];
    const ssize_t size =
        recv(connection->fds[i], buffer, sizeof(buffer), MSG_DONTWAIT);
    if (size == 0 || (size < 0 && errno != EAGAIN && errno != EWOULDBLOCK)) {
      return false;
    }
    std::deque<Piece>& pieces = connection->pieces[i];
    if (size > 0) {
      pieces.push_back({now + delay_, std::string(buffer, size)});
      if (i == 1) {
        num_bytes_ += size;
        if (cut_after_ > 0 && num_bytes_ >= cut_after_) {
          cut_after_ = 0;
          return false;
        }
      }
    }
    while (!pieces.empty() && pieces.front().due <= now) {
      const ssize_t sent =
          send(connection->fds[1 - i], pieces.front().bytes.data(),
               pieces.front().bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK) return false;
      if (sent < 0) break;
      pieces.front().bytes.erase(0, sent);
      if (!pieces.front().bytes.empty()) break;
      pieces.pop_front();
    }
  }
  return true;
}

void LinkProxy::Run() {
  while (!is_stopping_) {
    std::vector<pollfd> fds = {{listener_, POLLIN, 0}};
    absl::Time due = Clock::Monotonic()->Now() + absl::Milliseconds(5);
    for (const auto& connection : connections_) {
      for (int i = 0; i < 2; ++i) {
        fds.push_back({connection->fds[i], POLLIN, 0});
        if (!connection->pieces[i].empty()) {
          due = std::min(due, connection->pieces[i].front().due);
        }
      }
    }
    timespec wait = absl::ToTimespec(
        std::max(absl::ZeroDuration(), due - Clock::Monotonic()->Now()));
    if (is_muted_) {
      absl::SleepFor(absl::Milliseconds(1));
    } else {
      ppoll(fds.data(), fds.size(), &wait, nullptr);
      Accept();
    }
    if (is_cut_) {
      connections_.clear();
      is_cut_ = false;
    }
    if (is_muted_) continue;
    for (auto& connection : connections_) {
      if (!Move(connection.get())) connection.reset();
    }
    connections_.erase(
        std::remove(connections_.begin(), connections_.end(), nullptr),
        connections_.end());
  }
}

// --------------------------------------------------------------------- Sink

void TestSink::Push(std::vector<OutputEvent> events) {
  std::lock_guard<std::mutex> lock(mu_);
  for (OutputEvent& event : events) {
    TestAnswer& answer = answers_[event.request_id];
    answer.num_events_after_end += answer.num_ends > 0;
    answer.num_ends += event.is_last;
    if (static_cast<int>(answer.choices.size()) <= event.choice_idx) {
      answer.choices.resize(event.choice_idx + 1);
    }
    TestAnswer::Choice& choice = answer.choices[event.choice_idx];
    answer.num_events_after_end += choice.finish_reason.has_value();
    if (event.is_from_draft_model) {
      choice.num_from_draft_model += static_cast<int>(event.tokens.size());
    }
    for (TokenOutput& token : event.tokens) {
      choice.tokens.push_back(std::move(token));
    }
    for (TokenOutput& token : event.prompt_tokens) {
      answer.prompt_tokens.push_back(std::move(token));
    }
    answer.num_draft_tokens += event.num_draft_tokens;
    answer.num_accepted_tokens += event.num_accepted_tokens;
    if (!event.finish_reason.has_value()) continue;
    choice.finish_reason = event.finish_reason;
    choice.stop_token_id = event.stop_token_id;
    choice.error = event.error;
  }
  changed_.notify_all();
}

TestAnswer TestSink::Wait(RequestId id) {
  std::unique_lock<std::mutex> lock(mu_);
  changed_.wait_for(lock, absl::ToChronoMilliseconds(kHangTimeout),
                    [&] { return answers_[id].num_ends > 0; });
  return answers_[id];
}

void TestSink::WaitForTokens(RequestId id, size_t num_tokens) {
  std::unique_lock<std::mutex> lock(mu_);
  changed_.wait_for(lock, absl::ToChronoMilliseconds(kHangTimeout), [&] {
    size_t count = 0;
    for (const auto& choice : answers_[id].choices) {
      count += choice.tokens.size();
    }
    return count >= num_tokens || answers_[id].num_ends > 0;
  });
}

std::map<RequestId, TestAnswer> TestSink::answers() const {
  std::lock_guard<std::mutex> lock(mu_);
  return answers_;
}

}  // namespace quire
