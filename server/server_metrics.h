// What /metrics shows: vLLM's names, so that dashboards, autoscalers and
// gateways work unchanged, and quire's own for what vLLM has no name for.
#ifndef QUIRE_SERVER_SERVER_METRICS_H_
#define QUIRE_SERVER_SERVER_METRICS_H_

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "engine/engine_loop.h"
#include "engine/request.h"
#include "server/http_request_counts.h"
#include "server/request_gate.h"
#include "server/telemetry/telemetry_counts.h"

namespace quire {

struct ServerMetricsOptions {
  std::string model_name;
  std::string version;
  int block_size = 16;
  int num_blocks = 0;
  int max_model_len = 0;
  std::string cache_dtype;
  bool enable_prefix_caching = true;
  // 0: nothing is drafted. More positions are shown once they are counted.
  int num_speculative_tokens = 0;
  // Shown, too, unless null; must outlive the metrics.
  const HttpRequestCounts* http_requests = nullptr;
  std::shared_ptr<const TelemetryCounts> telemetry;  // The same.
};

// One request of the engine, when it has ended.
struct FinishedRequest {
  FinishReason reason = FinishReason::kStop;
  absl::Time arrival_time;
  absl::Time scheduled_time;    // InfinitePast if it never was.
  absl::Time first_token_time;  // InfinitePast if there was none.
  absl::Time end_time;
  int64_t num_prompt_tokens = 0;
  int64_t num_cached_tokens = 0;
  int64_t num_generation_tokens = 0;  // Of all choices.
  int32_t max_tokens = 0;
  int32_t n = 1;
};

// Thread-safe. Every figure is recorded once, where the event happens.
class ServerMetrics {
 public:
  explicit ServerMetrics(const ServerMetricsOptions& options);
  ~ServerMetrics();

  void ObserveTimeToFirstToken(absl::Duration duration);
  void ObserveInterTokenLatency(absl::Duration duration);
  void ObserveFinished(const FinishedRequest& request);

  // Prometheus' text format, version 0.0.4.
  std::string Render(const EngineStats& stats, const GateFigures& gate = {});

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

}  // namespace quire

#endif  // QUIRE_SERVER_SERVER_METRICS_H_
