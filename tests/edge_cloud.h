// A cloud and what lies between it and an edge, for tests of the link.
#ifndef QUIRE_TESTS_EDGE_CLOUD_H_
#define QUIRE_TESTS_EDGE_CLOUD_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/engine_loop.h"
#include "engine/engine_options.h"
#include "engine/model_runner.h"
#include "engine/speculative/link/edge_engine.h"
#include "engine/speculative/link/link_drafter.h"
#include "server/http_server.h"
#include "server/key_limiter.h"
#include "server/output_processor.h"
#include "server/server_metrics.h"
#include "server/verify_link.h"

namespace quire {

// A vocabulary that both sides have.
LinkPeer TestPeer(const EngineOptions& options, const std::string& name);

// An engine behind a server with the route of links, and nothing else.
class TestCloud {
 public:
  struct Options {
    EngineOptions engine;  // num_speculative_tokens > 0: with drafts.
    ModelRunner* runner = nullptr;
    LinkPeer peer;
    TokenText token_text;
    HttpServerOptions http;
    VerifyLinkOptions link;
    Drafter* inner_drafter = nullptr;
  };
  explicit TestCloud(const Options& options);
  ~TestCloud();

  int port() const { return http_->port(); }
  EngineLoop& engine() { return *engine_; }
  OutputProcessor& output() { return output_; }
  VerifyLink& link() { return *link_; }
  HttpServer& http() { return *http_; }
  // Nothing of any request is left; false if that does not come about.
  bool BecomesIdle();

 private:
  const Options options_;
  ServerMetrics metrics_{{.model_name = "m"}};
  KeyLimiter limiter_;
  std::unique_ptr<LinkDrafter> drafter_;
  std::unique_ptr<HttpServer> http_;
  OutputProcessor output_{&metrics_};
  std::unique_ptr<EngineLoop> engine_;
  std::unique_ptr<VerifyLink> link_;
};

// Forwards TCP connections of loopback, each byte `delay` after it came: so a
// round trip takes twice that. One thread; the order of what it does depends on
// the sockets only.
class LinkProxy {
 public:
  LinkProxy(int target_port, absl::Duration delay);
  ~LinkProxy();

  int port() const { return port_; }
  // Ends all connections, as a link that breaks.
  void Cut();
  // While muted nothing is forwarded and nothing ends, as on a dead link.
  void SetMuted(bool is_muted) { is_muted_ = is_muted; }
  // While closed new connections are refused at once.
  void SetClosed(bool is_closed) { is_closed_ = is_closed; }
  // Cuts by itself once so many bytes came from the target; 0: never.
  void CutAfter(int64_t num_bytes) { cut_after_ = num_bytes; }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  struct Piece {
    absl::Time due;
    std::string bytes;
  };
  struct Connection;
  void Run();
  void Accept();
  // False if the connection has ended.
  bool Move(Connection* connection);

  const int target_port_;
  const absl::Duration delay_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> is_stopping_{false}, is_cut_{false}, is_muted_{false},
      is_closed_{false};
  std::atomic<int64_t> cut_after_{0}, num_bytes_{0};
  std::vector<std::unique_ptr<Connection>> connections_;
  std::thread thread_;
};

// All that was said of a request.
struct TestAnswer {
  struct Choice {
    std::vector<TokenOutput> tokens;
    std::optional<FinishReason> finish_reason;
    std::optional<int32_t> stop_token_id;
    absl::Status error;
    int num_from_draft_model = 0;  // Of its tokens.
  };
  std::vector<Choice> choices;
  std::vector<TokenOutput> prompt_tokens;
  int num_ends = 0;  // Events with is_last.
  int num_events_after_end = 0;
  int64_t num_draft_tokens = 0, num_accepted_tokens = 0;
};

// Collects events. Thread-safe.
class TestSink : public OutputSink {
 public:
  void Push(std::vector<OutputEvent> events) override;
  // Waits for the end of the request (for at most a minute).
  TestAnswer Wait(RequestId id);
  // Waits until the request has so many tokens, over all choices, or has ended.
  void WaitForTokens(RequestId id, size_t num_tokens);
  std::map<RequestId, TestAnswer> answers() const;

 private:
  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::map<RequestId, TestAnswer> answers_;
};

}  // namespace quire

#endif  // QUIRE_TESTS_EDGE_CLOUD_H_
