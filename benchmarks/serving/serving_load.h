// A load on a server: starts requests when they are due, follows their streams
// and records what their readers see.
#ifndef QUIRE_BENCHMARKS_SERVING_SERVING_LOAD_H_
#define QUIRE_BENCHMARKS_SERVING_SERVING_LOAD_H_

#include <atomic>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "benchmarks/serving/completion_api.h"
#include "benchmarks/serving/load_client.h"
#include "benchmarks/serving/serving_metrics.h"

namespace quire {

struct LoadProgress {
  int num_done = 0;
  int num_failed = 0;
  int num_open = 0;
  int num_requests = 0;
  // Of ended requests as their records say (of embeddings the prompts'); of
  // open ones, chunks.
  int64_t num_tokens = 0;
  double seconds = 0;
};

struct ServingLoadOptions {
  std::string endpoint = "/v1/completions";
  std::vector<std::pair<std::string, std::string>> headers;
  CompletionParams params;
  // Seconds from the start, one for each prompt, not descending.
  std::vector<double> arrival_times;
  int max_concurrency = 0;  // 0: unlimited. Due requests wait for a place.
  bool keeps_text = false;  // RequestResult::generated_text.
  // Seconds between the end of a probe and the next one; 0: no probes. Probes
  // ask for one token and count for neither max_concurrency nor progress.
  double probe_interval = 0;
  // Ends the load: open requests are recorded as cancelled, those not started
  // as such.
  const std::atomic<bool>* is_cancelled = nullptr;
  std::function<void(const LoadProgress&)> on_progress;  // About 10 a second.
};

struct ServingLoadResult {
  std::vector<RequestResult> records;  // One for each prompt, in order.
  std::vector<RequestResult> probes;
  double duration = 0;
  bool was_cancelled = false;
};

// Blocks until all requests have ended. Prompts with an error fail when they
// are due.
ServingLoadResult RunServingLoad(LoadClient* client,
                                 const std::vector<LoadPrompt>& prompts,
                                 const ServingLoadOptions& options);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_SERVING_SERVING_LOAD_H_
