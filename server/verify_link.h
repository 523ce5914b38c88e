// The cloud's end of the links of edges: requests come in and tokens go out as
// frames on a connection that was upgraded (engine/speculative/link), and
// drafts for them come in between. Beside that these are requests like all
// others: the same queue, the same limits of their key, the same drain.
#ifndef QUIRE_SERVER_VERIFY_LINK_H_
#define QUIRE_SERVER_VERIFY_LINK_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/engine_loop.h"
#include "engine/speculative/link/link_drafter.h"
#include "engine/speculative/link/link_messages.h"
#include "engine/speculative/link/vocabulary.h"
#include "server/http_server.h"
#include "server/key_limiter.h"
#include "server/output_processor.h"
#include "server/request_gate.h"

namespace quire {

struct VerifyLinkOptions {
  int max_links = 256;
  int max_requests_per_link = 1024;  // At a time.
  // Frames of a link are counted by a bucket that holds a second's worth; an
  // edge that sends more is cut off.
  double max_frames_per_second = 50000;
  int64_t max_buffered_bytes = 32 << 20;  // To an edge that reads too slowly.
  // Edges ask every second.
  absl::Duration silence_timeout = absl::Seconds(5);
  // A line for the log. Must not block.
  std::function<void(const std::string& line)> on_notice;
};

// What answers; all pointers outlive the server.
struct VerifyLinkModel {
  EngineLoop* engine = nullptr;
  OutputProcessor* output = nullptr;
  LinkDrafter* drafter = nullptr;  // Null: drafts are ignored.
  KeyLimiter* limiter = nullptr;   // Null: keys have no limits.
  RequestGate* gate = nullptr;     // Null: no load is shed, and no deadlines.
  LinkPeer peer;                   // What Welcome says.
  TokenText token_text;            // Null: refusals name no token.
  bool has_priorities = false;     // SchedulingPolicy::kPriority.
};

// Counters only grow.
struct VerifyLinkStats {
  int num_links = 0;
  int64_t num_opened = 0;   // Links that were welcomed,
  int64_t num_refused = 0;  // were refused for their vocabulary or size,
  int64_t num_cut_off = 0;  // or did not keep to the protocol.
  int64_t num_requests = 0;
  int64_t num_draft_tokens = 0;  // That came, of use or not.
};

// INVALID_ARGUMENT naming the parameter, for what no client of the API could
// have asked for (an edge may be anybody's program). What ValidateRequest finds
// is left to it.
absl::Status CheckLinkRequest(const Request& request, int vocab_size);

// Thread-safe. 503 until Serve.
class VerifyLink {
 public:
  // Adds the route; `http` must not be started yet and must outlive this.
  VerifyLink(HttpServer* http, const VerifyLinkOptions& options);
  ~VerifyLink();

  void Serve(const VerifyLinkModel& model);
  int num_links() const { return Stats().num_links; }
  VerifyLinkStats Stats() const;

 private:
  class Session;
  class LinkCall;
  struct Counters;

  void Handle(const HttpRequest& request,
              const std::shared_ptr<HttpResponder>& responder);

  HttpServer* const http_;
  const VerifyLinkOptions options_;
  // Sessions hold them, and may outlive this.
  const std::shared_ptr<Counters> counters_;
  std::atomic<bool> is_serving_{false};
  VerifyLinkModel model_;  // Written once, before is_serving_.
};

}  // namespace quire

#endif  // QUIRE_SERVER_VERIFY_LINK_H_
