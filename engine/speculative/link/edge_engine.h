// The engine of an edge: to its server it is an EngineLoop like any other, but
// the tokens are drawn by a cloud at the other end of a link. A draft model
// here drafts ahead of the answers while they are under way.
//
// Each choice that the cloud draws for has at most one request in the local
// engine: a chunk of drafts, continuing all that is known. The prefix cache
// makes the next chunk, or a new beginning after a correction, cheap. The local
// draws use the cloud's draw key (D8), so that also sampled drafts agree as
// often as the models do.
//
// Deadlines are held here, whatever the link does; the cloud has them, too.
#ifndef QUIRE_ENGINE_SPECULATIVE_LINK_EDGE_ENGINE_H_
#define QUIRE_ENGINE_SPECULATIVE_LINK_EDGE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/clock.h"
#include "engine/engine_loop.h"
#include "engine/engine_options.h"
#include "engine/speculative/link/edge_link.h"

namespace quire {

// What becomes of requests while there is no link.
enum class OfflinePolicy : uint8_t {
  kError,  // They fail: UNAVAILABLE.
  kDraft,  // The draft model answers, or goes on; their events say so.
};

struct EdgeEngineOptions {
  EdgeLinkOptions link;
  OfflinePolicy offline = OfflinePolicy::kError;
  // Requests in flight at once; beyond it RESOURCE_EXHAUSTED.
  int max_requests = 1024;
  // Seeds requests that bring none, so that both models draw alike.
  uint64_t random_seed = 0;
};

// Figures of the link, for the log, probes and metrics. Counters only grow.
struct EdgeLinkStats {
  bool is_up = false;
  std::string state;  // Of a link that is down: why.
  absl::Duration round_trip;
  double acceptance = 0;
  int64_t num_draft_tokens_sent = 0;
  int64_t num_breaks = 0;            // Times that a link that was up broke.
  int64_t num_offline_requests = 0;  // That the draft model answered or ended.
};

class EdgeEngine : public EngineLoop {
 public:
  // `runner` computes the draft model; all pointers must outlive the engine.
  // `engine_options` are the draft model's. Errors as EngineLoop::Create's and
  // EdgeLink::Create's.
  static absl::StatusOr<std::unique_ptr<EdgeEngine>> Create(
      const EdgeEngineOptions& options, const EngineOptions& engine_options,
      ModelRunner* runner, Clock* clock, OutputSink* sink);

  // As EdgeLink's.
  virtual absl::Status WaitForCloud(absl::Duration timeout) = 0;
  // What the cloud holds requests to; as of the last link, or the draft model's
  // limits before the first one.
  virtual LinkPeer Cloud() const = 0;
  virtual EdgeLinkStats LinkStats() const = 0;
  // OK if new requests are served now: the link is up, or the draft model
  // answers in its place.
  virtual absl::Status Readiness() const = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_LINK_EDGE_ENGINE_H_
