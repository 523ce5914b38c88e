#include "benchmarks/serving/serving_metrics.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "benchmarks/statistics.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

struct MetricNames {
  LatencyMetric metric;
  const char* key;     // In options and in JSON.
  const char* label;   // In the report.
  const char* header;  // Its section of the report.
  LatencySummary ServingMetrics::*summary;
};

constexpr MetricNames kMetrics[] = {
    {LatencyMetric::kTtft, "ttft", "TTFT", "Time to First Token",
     &ServingMetrics::ttft},
    {LatencyMetric::kTpot, "tpot", "TPOT",
     "Time per Output Token (excl. 1st token)", &ServingMetrics::tpot},
    {LatencyMetric::kItl, "itl", "ITL", "Inter-token Latency",
     &ServingMetrics::itl},
    {LatencyMetric::kE2el, "e2el", "E2EL", "End-to-end Latency",
     &ServingMetrics::e2el}};

LatencySummary Summarize(std::vector<double> seconds,
                         const std::vector<double>& percentiles) {
  LatencySummary summary;
  for (double& value : seconds) value *= 1e3;
  std::sort(seconds.begin(), seconds.end());
  summary.mean = Mean(seconds);
  summary.median = PercentileOfSorted(seconds, 50);
  summary.deviation = PopulationDeviation(seconds);
  for (double percent : percentiles) {
    summary.percentiles.push_back(PercentileOfSorted(seconds, percent));
  }
  return summary;
}

// 0 for requests of one token, which then meet any limit.
double TimePerOutputToken(const RequestResult& record) {
  if (record.output_tokens <= 1) return 0;
  return (record.latency - record.ttft) / (record.output_tokens - 1);
}

bool IsGood(const RequestResult& record, const GoodputLimits& limits) {
  return record.ttft <= limits.ttft.value_or(INFINITY) &&
         TimePerOutputToken(record) <= limits.tpot.value_or(INFINITY) &&
         record.latency <= limits.e2el.value_or(INFINITY);
}

// The most tokens in a second from the first start.
double PeakOutput(const std::vector<RequestResult>& records) {
  double first = INFINITY, last = 0;
  for (const RequestResult& record : records) {
    if (!record.success) continue;
    first = std::min(first, record.start_time);
    last = std::max(last, record.start_time + record.latency);
  }
  if (first > last) return 0;
  std::vector<double> tokens(static_cast<size_t>(std::ceil(last - first)) + 1);
  for (const RequestResult& record : records) {
    if (!record.success) continue;
    double time = record.start_time + record.ttft;
    for (size_t i = 0; i <= record.itls.size(); ++i) {
      if (i > 0) time += record.itls[i - 1];
      const auto second = static_cast<size_t>(time - first);
      tokens[std::min(second, tokens.size() - 1)] += record.TokensOfChunk(i);
    }
  }
  return *std::max_element(tokens.begin(), tokens.end());
}

int PeakConcurrency(const std::vector<RequestResult>& records) {
  // An end comes before a start of the same time.
  std::vector<std::pair<double, int>> changes;
  for (const RequestResult& record : records) {
    if (!record.success) continue;
    changes.emplace_back(record.start_time, 1);
    changes.emplace_back(record.start_time + record.latency, -1);
  }
  std::sort(changes.begin(), changes.end());
  int num_open = 0, most = 0;
  for (const auto& [time, change] : changes) {
    most = std::max(most, num_open += change);
  }
  return most;
}

// In percent and tokens; 0 where nothing was drafted. A step of a sequence
// yields what was accepted and one token more.
double AcceptanceRate(const ServerCounters& counters) {
  if (counters.num_draft_tokens <= 0) return 0;
  return 100 * counters.num_accepted_tokens / counters.num_draft_tokens;
}
double AcceptanceLength(const ServerCounters& counters) {
  if (counters.num_drafts <= 0) return 0;
  return 1 + counters.num_accepted_tokens / counters.num_drafts;
}

// The part of the drafts that were accepted up to each position.
std::vector<double> AcceptanceByPosition(const ServerCounters& counters) {
  std::vector<double> rates;
  if (counters.num_drafts <= 0) return rates;
  for (const auto& [position, count] : counters.num_accepted_by_position) {
    rates.resize(position + 1);
    rates[position] = count / counters.num_drafts;
  }
  return rates;
}

bool HasDrafted(const ServerCounters& counters) {
  return counters.has_speculation && counters.num_drafts > 0;
}

void AddSpeculationJson(const ServerCounters& counters, Json* json) {
  if (!HasDrafted(counters)) return;
  (*json)["spec_decode_acceptance_rate"] = AcceptanceRate(counters);
  (*json)["spec_decode_acceptance_length"] = AcceptanceLength(counters);
  (*json)["spec_decode_num_drafts"] = static_cast<int64_t>(counters.num_drafts);
  (*json)["spec_decode_draft_tokens"] =
      static_cast<int64_t>(counters.num_draft_tokens);
  (*json)["spec_decode_accepted_tokens"] =
      static_cast<int64_t>(counters.num_accepted_tokens);
  (*json)["spec_decode_per_position_acceptance_rates"] =
      AcceptanceByPosition(counters);
}

bool IsReported(LatencyMetric metric, const ReportOptions& options) {
  const bool is_there =
      options.task == LoadTask::kGeneration || metric == LatencyMetric::kE2el;
  return is_there &&
         std::count(options.metrics.begin(), options.metrics.end(), metric) > 0;
}

// The block for the terminal, line by line.
class ReportText {
 public:
  void AddTitle(const std::string& title, char fill) {
    const size_t left =
        title.size() < kWidth ? (kWidth - title.size()) / 2 : size_t{0};
    std::string line = std::string(left, fill) + title;
    line.resize(std::max(kWidth, line.size()), fill);
    absl::StrAppend(&text_, line, "\n");
  }
  void AddCount(const char* name, int64_t value) {
    absl::StrAppendFormat(&text_, "%-40s %-10d\n", name, value);
  }
  void AddNumber(const std::string& name, double value) {
    absl::StrAppendFormat(&text_, "%-40s %-10.2f\n", name, value);
  }
  void AddLatency(const MetricNames& names, const LatencySummary& summary,
                  const std::vector<double>& percentiles) {
    AddTitle(names.header, '-');
    AddNumber(absl::StrCat("Mean ", names.label, " (ms):"), summary.mean);
    AddNumber(absl::StrCat("Median ", names.label, " (ms):"), summary.median);
    for (size_t i = 0; i < percentiles.size(); ++i) {
      AddNumber(absl::StrCat("P", PercentileName(percentiles[i]), " ",
                             names.label, " (ms):"),
                summary.percentiles[i]);
    }
  }
  void AddSpeculation(const ServerCounters& counters) {
    AddTitle("Speculative Decoding", '-');
    AddNumber("Acceptance rate (%):", AcceptanceRate(counters));
    AddNumber("Acceptance length:", AcceptanceLength(counters));
    AddCount("Drafts:", static_cast<int64_t>(counters.num_drafts));
    AddCount("Draft tokens:", static_cast<int64_t>(counters.num_draft_tokens));
    AddCount("Accepted tokens:",
             static_cast<int64_t>(counters.num_accepted_tokens));
    const std::vector<double> rates = AcceptanceByPosition(counters);
    if (!rates.empty()) text_ += "Per-position acceptance (%):\n";
    for (size_t i = 0; i < rates.size(); ++i) {
      AddNumber(absl::StrCat("  Position ", i, ":"), 100 * rates[i]);
    }
  }
  std::string Finish() {
    absl::StrAppend(&text_, std::string(kWidth, '='), "\n");
    return std::move(text_);
  }

 private:
  static constexpr size_t kWidth = 50;
  std::string text_;
};

// A list over the requests for each of their figures.
void AddDetails(const std::vector<RequestResult>& records, LoadTask task,
                Json* json) {
  const auto add = [&](const char* name, const auto& value_of) {
    Json list = Json::array();
    for (const RequestResult& record : records) {
      list.push_back(value_of(record));
    }
    (*json)[name] = std::move(list);
  };
  const bool is_generation = task == LoadTask::kGeneration;
  add("input_lens", [](const RequestResult& r) { return r.prompt_len; });
  if (is_generation) {
    add("output_lens",
        [](const RequestResult& r) { return r.success ? r.output_tokens : 0; });
    add("ttfts", [](const RequestResult& r) { return r.ttft; });
    add("itls", [](const RequestResult& r) { return r.itls; });
  }
  add("latencies", [](const RequestResult& r) { return r.latency; });
  add("start_times", [](const RequestResult& r) { return r.start_time; });
  if (!is_generation) return;
  add("generated_texts",
      [](const RequestResult& r) { return r.generated_text; });
  const bool has_queue_times = std::any_of(
      records.begin(), records.end(),
      [](const RequestResult& r) { return r.queue_seconds.has_value(); });
  if (has_queue_times) {
    add("queue_times",
        [](const RequestResult& r) { return r.queue_seconds.value_or(0); });
  }
}

void AddLatencyJson(const ServingMetrics& metrics, const ReportOptions& options,
                    Json* json) {
  for (const MetricNames& names : kMetrics) {
    if (!IsReported(names.metric, options)) continue;
    const LatencySummary& summary = metrics.*names.summary;
    const std::string suffix = absl::StrCat("_", names.key, "_ms");
    (*json)["mean" + suffix] = summary.mean;
    (*json)["median" + suffix] = summary.median;
    (*json)["std" + suffix] = summary.deviation;
    for (size_t i = 0; i < options.percentiles.size(); ++i) {
      (*json)[absl::StrCat("p", PercentileName(options.percentiles[i]),
                           suffix)] = summary.percentiles[i];
    }
  }
}

}  // namespace

absl::StatusOr<std::vector<LatencyMetric>> ParseMetricNames(
    absl::string_view text) {
  std::vector<LatencyMetric> metrics;
  for (absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    part = absl::StripAsciiWhitespace(part);
    const auto* const found =
        std::find_if(std::begin(kMetrics), std::end(kMetrics),
                     [&](const MetricNames& m) { return part == m.key; });
    if (found == std::end(kMetrics)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", part, "' is not ttft, tpot, itl or e2el"));
    }
    metrics.push_back(found->metric);
  }
  return metrics;
}

absl::StatusOr<std::vector<double>> ParsePercentiles(absl::string_view text) {
  std::vector<double> percentiles;
  for (absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    double value = 0;
    if (!absl::SimpleAtod(absl::StripAsciiWhitespace(part), &value) ||
        !(value >= 0 && value <= 100)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", part, "' is not a percentile (0 to 100)"));
    }
    percentiles.push_back(value);
  }
  return percentiles;
}

absl::StatusOr<GoodputLimits> ParseGoodput(
    const std::vector<std::string>& texts) {
  GoodputLimits limits;
  for (const std::string& text : texts) {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(text, absl::MaxSplits(':', 1));
    double milliseconds = 0;
    std::optional<double>* const limit = parts.first == "ttft"   ? &limits.ttft
                                         : parts.first == "tpot" ? &limits.tpot
                                         : parts.first == "e2el" ? &limits.e2el
                                                                 : nullptr;
    if (limit == nullptr || !absl::SimpleAtod(parts.second, &milliseconds) ||
        !(milliseconds >= 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", text,
                       "' is not ttft, tpot or e2el with milliseconds "
                       "(ttft:200)"));
    }
    *limit = milliseconds / 1e3;
  }
  return limits;
}

ServingMetrics ComputeServingMetrics(const std::vector<RequestResult>& records,
                                     double duration,
                                     const ReportOptions& options) {
  ServingMetrics metrics;
  metrics.duration = duration;
  std::vector<double> ttfts, tpots, itls, e2els;
  int num_good = 0;
  for (const RequestResult& record : records) {
    if (!record.success) {
      ++(record.was_started ? metrics.failed : metrics.not_started);
      continue;
    }
    ++metrics.completed;
    metrics.total_input_tokens += record.prompt_len;
    metrics.total_input_sequences += record.num_inputs;
    metrics.total_output_tokens += record.output_tokens;
    ttfts.push_back(record.ttft);
    e2els.push_back(record.latency);
    itls.insert(itls.end(), record.itls.begin(), record.itls.end());
    if (record.output_tokens > 1) tpots.push_back(TimePerOutputToken(record));
    num_good += IsGood(record, options.goodput);
  }
  if (duration > 0) {
    metrics.request_throughput = metrics.completed / duration;
    metrics.input_sequence_throughput =
        metrics.total_input_sequences / duration;
    metrics.output_throughput = metrics.total_output_tokens / duration;
    metrics.total_token_throughput =
        (metrics.total_input_tokens + metrics.total_output_tokens) / duration;
    if (options.goodput.has_any()) {
      metrics.request_goodput = num_good / duration;
    }
  }
  metrics.ttft = Summarize(std::move(ttfts), options.percentiles);
  metrics.tpot = Summarize(std::move(tpots), options.percentiles);
  metrics.itl = Summarize(std::move(itls), options.percentiles);
  metrics.e2el = Summarize(std::move(e2els), options.percentiles);
  metrics.max_output_tokens_per_s = PeakOutput(records);
  metrics.max_concurrent_requests = PeakConcurrency(records);
  return metrics;
}

std::string ServingReport(const ServingMetrics& metrics,
                          const ReportOptions& options) {
  const bool is_pooling = options.task == LoadTask::kPooling;
  ReportText report;
  report.AddTitle(" Serving Benchmark Result ", '=');
  report.AddCount("Successful requests:", metrics.completed);
  report.AddCount("Failed requests:", metrics.failed);
  if (metrics.not_started > 0) {
    report.AddCount("Requests not started:", metrics.not_started);
  }
  if (options.max_concurrency > 0) {
    report.AddCount("Maximum request concurrency:", options.max_concurrency);
  }
  if (std::isfinite(options.request_rate)) {
    report.AddNumber("Request rate configured (RPS):", options.request_rate);
  }
  report.AddNumber("Benchmark duration (s):", metrics.duration);
  report.AddCount("Total input tokens:", metrics.total_input_tokens);
  if (!is_pooling) {
    report.AddCount("Total generated tokens:", metrics.total_output_tokens);
  }
  report.AddNumber("Request throughput (req/s):", metrics.request_throughput);
  if (is_pooling) {
    report.AddNumber("Input throughput (inputs/s):",
                     metrics.input_sequence_throughput);
  }
  if (metrics.request_goodput.has_value()) {
    report.AddNumber("Request goodput (req/s):", *metrics.request_goodput);
  }
  if (!is_pooling) {
    report.AddNumber("Output token throughput (tok/s):",
                     metrics.output_throughput);
    report.AddNumber("Peak output token throughput (tok/s):",
                     metrics.max_output_tokens_per_s);
    report.AddNumber("Peak concurrent requests:",
                     metrics.max_concurrent_requests);
  }
  report.AddNumber("Total token throughput (tok/s):",
                   metrics.total_token_throughput);
  for (const MetricNames& names : kMetrics) {
    if (IsReported(names.metric, options)) {
      report.AddLatency(names, metrics.*names.summary, options.percentiles);
    }
  }
  if (HasDrafted(metrics.counters)) report.AddSpeculation(metrics.counters);
  return report.Finish();
}

Json ProbeJson(const std::vector<RequestResult>& probes) {
  std::vector<double> latencies;
  for (const RequestResult& probe : probes) {
    if (probe.success) latencies.push_back(probe.latency * 1e3);
  }
  Json json;
  json["probe_completed"] = latencies.size();
  json["probe_failed"] = probes.size() - latencies.size();
  if (latencies.empty()) return json;
  json["probe_median_e2el_ms"] = Percentile(latencies, 50);
  json["probe_p99_e2el_ms"] = Percentile(latencies, 99);
  json["probe_max_e2el_ms"] = Percentile(latencies, 100);
  return json;
}

std::string ProbeReport(const std::vector<RequestResult>& probes) {
  const Json json = ProbeJson(probes);
  std::string text = absl::StrCat(std::string(18, '-'), "Probe Requests",
                                  std::string(18, '-'), "\n");
  absl::StrAppendFormat(&text, "%-40s %-10d\n", "Probe requests completed:",
                        json["probe_completed"].get<int64_t>());
  absl::StrAppendFormat(&text, "%-40s %-10d\n", "Probe requests failed:",
                        json["probe_failed"].get<int64_t>());
  for (const auto& [label, key] :
       {std::pair("Median probe E2EL (ms):", "probe_median_e2el_ms"),
        std::pair("P99 probe E2EL (ms):", "probe_p99_e2el_ms"),
        std::pair("Max probe E2EL (ms):", "probe_max_e2el_ms")}) {
    if (!json.contains(key)) continue;
    absl::StrAppendFormat(&text, "%-40s %-10.2f\n", label,
                          json[key].get<double>());
  }
  absl::StrAppend(&text, std::string(50, '='), "\n");
  return text;
}

Json ServingJson(const ServingMetrics& metrics,
                 const std::vector<RequestResult>& records,
                 const ReportOptions& options, bool detailed) {
  const bool is_generation = options.task == LoadTask::kGeneration;
  Json json;
  json["duration"] = metrics.duration;
  json["completed"] = metrics.completed;
  json["failed"] = metrics.failed;
  if (metrics.not_started > 0) json["not_started"] = metrics.not_started;
  json["total_input_tokens"] = metrics.total_input_tokens;
  if (is_generation) {
    json["total_output_tokens"] = metrics.total_output_tokens;
  } else {
    json["total_input_sequences"] = metrics.total_input_sequences;
  }
  json["request_throughput"] = metrics.request_throughput;
  if (!is_generation) {
    json["input_sequence_throughput"] = metrics.input_sequence_throughput;
  }
  if (is_generation || metrics.request_goodput.has_value()) {
    json["request_goodput"] = metrics.request_goodput.has_value()
                                  ? Json(*metrics.request_goodput)
                                  : Json();
  }
  if (is_generation) json["output_throughput"] = metrics.output_throughput;
  json["total_token_throughput"] = metrics.total_token_throughput;
  if (is_generation) {
    json["max_output_tokens_per_s"] = metrics.max_output_tokens_per_s;
    json["max_concurrent_requests"] = metrics.max_concurrent_requests;
  }
  AddSpeculationJson(metrics.counters, &json);
  if (metrics.counters.has_queue_time && metrics.counters.num_queued > 0) {
    json["mean_queue_time_ms"] =
        1e3 * metrics.counters.queue_seconds / metrics.counters.num_queued;
  }
  if (detailed) AddDetails(records, options.task, &json);
  if (detailed || metrics.failed + metrics.not_started > 0) {
    json["errors"] = Json::array();
    for (const RequestResult& record : records) {
      json["errors"].push_back(record.error);
    }
  }
  AddLatencyJson(metrics, options, &json);
  return json;
}

}  // namespace quire
