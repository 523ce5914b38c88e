// Figures of a load and their report, as vLLM's benchmark defines and names
// them (vllm/benchmarks/serve.py, calculate_metrics), so that results of both
// can be compared and scripts that read them work with both.
#ifndef QUIRE_BENCHMARKS_SERVING_SERVING_METRICS_H_
#define QUIRE_BENCHMARKS_SERVING_SERVING_METRICS_H_

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "benchmarks/serving/server_counters.h"
#include "nlohmann/json.hpp"

namespace quire {

// One request of a load. Times are seconds; start_time counts from the start of
// the load.
struct RequestResult {
  bool success = false;
  std::string error;  // Why it failed; empty if it has not.
  // False: the load was cancelled before its turn; it has not failed.
  bool was_started = true;
  int64_t prompt_len = 0;
  int64_t output_tokens = 0;  // As the server counts; else chunks.
  int num_inputs = 1;  // Embeddings that were asked for, in LoadTask::kPooling.
  double start_time = 0;
  double ttft = 0;           // To the first chunk.
  double latency = 0;        // To the last chunk.
  std::vector<double> itls;  // Gaps between chunks.
  // Tokens in each chunk; empty: one each. Where the server counts the answer
  // as a whole only, shared out by the length of the texts.
  std::vector<double> chunk_tokens;
  std::string generated_text;
  std::optional<double> queue_seconds;  // As the server says, if it does.

  double TokensOfChunk(size_t idx) const {
    return idx < chunk_tokens.size() ? chunk_tokens[idx] : 1;
  }
};

// What a load asks for: answers, or embeddings, which come all at once.
enum class LoadTask : uint8_t { kGeneration, kPooling };

enum class LatencyMetric : uint8_t { kTtft, kTpot, kItl, kE2el };

// "ttft,tpot,itl,e2el" or some of it.
absl::StatusOr<std::vector<LatencyMetric>> ParseMetricNames(
    absl::string_view text);
// "25,50,99.9": each in [0, 100].
absl::StatusOr<std::vector<double>> ParsePercentiles(absl::string_view text);

// Limits that a request must meet to count for goodput, in seconds. Zhong et
// al. 2024 (DistServe), arXiv:2401.09670.
struct GoodputLimits {
  std::optional<double> ttft, tpot, e2el;
  bool has_any() const {
    return ttft.has_value() || tpot.has_value() || e2el.has_value();
  }
};
// {"ttft:200", "e2el:5000"}, in milliseconds.
absl::StatusOr<GoodputLimits> ParseGoodput(
    const std::vector<std::string>& texts);

struct ReportOptions {
  LoadTask task = LoadTask::kGeneration;
  // In kPooling only the end-to-end latency is reported.
  std::vector<LatencyMetric> metrics = {
      LatencyMetric::kTtft, LatencyMetric::kTpot, LatencyMetric::kItl};
  std::vector<double> percentiles = {99};
  GoodputLimits goodput;
  int max_concurrency = 0;  // As configured; 0: unlimited.
  double request_rate = std::numeric_limits<double>::infinity();
};

struct LatencySummary {
  double mean = 0, median = 0, deviation = 0;  // Milliseconds.
  std::vector<double> percentiles;             // As ReportOptions has them.
};

struct ServingMetrics {
  double duration = 0;
  int completed = 0;
  int failed = 0;
  int not_started = 0;             // The load was cancelled before.
  int64_t total_input_tokens = 0;  // Of completed requests.
  int64_t total_input_sequences = 0;
  int64_t total_output_tokens = 0;
  double request_throughput = 0;
  double input_sequence_throughput = 0;
  std::optional<double> request_goodput;
  double output_throughput = 0;
  double total_token_throughput = 0;
  double max_output_tokens_per_s = 0;  // Of whole seconds from the first start.
  // Most that were open at one time. (vLLM counts all that were open at some
  // time of one second, which short requests take beyond any limit.)
  int max_concurrent_requests = 0;
  LatencySummary ttft, tpot, itl, e2el;
  // What the server counted during the load; nothing if it does not tell.
  ServerCounters counters;
};

// TPOT = (latency - ttft) / (output_tokens - 1), of requests with more than one
// token; TTFT, ITL and E2EL of all completed ones.
ServingMetrics ComputeServingMetrics(const std::vector<RequestResult>& records,
                                     double duration,
                                     const ReportOptions& options);

// The block for the terminal.
std::string ServingReport(const ServingMetrics& metrics,
                          const ReportOptions& options);

// What a load's probes saw: vLLM's block and members "probe_completed",
// "probe_failed" and, if any completed, "probe_{median,p99,max}_e2el_ms".
std::string ProbeReport(const std::vector<RequestResult>& probes);
nlohmann::ordered_json ProbeJson(const std::vector<RequestResult>& probes);

// The members of the result file that come from the measurement.
//   detailed: with a list over the requests for each of their figures. The list
//   of errors is there also if any request failed or was not started, and
//   "not_started" if any was not.
nlohmann::ordered_json ServingJson(const ServingMetrics& metrics,
                                   const std::vector<RequestResult>& records,
                                   const ReportOptions& options, bool detailed);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_SERVING_SERVING_METRICS_H_
