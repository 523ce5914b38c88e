#include "server/server_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "engine/base/process_start.h"

namespace quire {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using Labels = std::map<std::string, std::string>;
using Buckets = Histogram::BucketBoundaries;

// vLLM's buckets (vllm/v1/metrics/loggers.py).
const Buckets kFirstTokenBuckets = {.001, .005, .01, .02, .04, .06, .08, .1,
                                    .25,  .5,   .75, 1,   2.5, 5,   7.5, 10,
                                    20,   40,   80,  160, 640, 2560};
const Buckets kTokenBuckets = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                               .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
const Buckets kRequestBuckets = {.3, .5,  .8,  1,   1.5, 2,    2.5,
                                 5,  10,  15,  20,  30,  40,   50,
                                 60, 120, 240, 480, 960, 1920, 7680};
const Buckets kChoicesBuckets = {1, 2, 5, 10, 20};

// 1, 2, 5, 10, ... up to `max`.
Buckets OneTwoFive(int max) {
  Buckets buckets;
  for (double power = 1;; power *= 10) {
    for (const double digit : {1.0, 2.0, 5.0}) {
      if (digit * power > max) return buckets;
      buckets.push_back(digit * power);
    }
  }
}

struct ProcessFigures {
  double cpu_seconds = 0;
  double resident_bytes = 0;
  double virtual_bytes = 0;
};

ProcessFigures ReadProcessFigures() {
  ProcessFigures figures;
  rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) == 0) {
    figures.cpu_seconds =
        usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
        (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
  }
  std::ifstream statm("/proc/self/statm");
  double pages_virtual = 0, pages_resident = 0;
  if (statm >> pages_virtual >> pages_resident) {
    const double page = static_cast<double>(sysconf(_SC_PAGESIZE));
    figures.virtual_bytes = pages_virtual * page;
    figures.resident_bytes = pages_resident * page;
  }
  return figures;
}

// A label's value as the text format wants it; prometheus-cpp escapes its own.
std::string EscapeLabel(absl::string_view value) {
  return absl::StrReplaceAll(value,
                             {{"\\", "\\\\"}, {"\"", "\\\""}, {"\n", "\\n"}});
}

}  // namespace

struct ServerMetrics::Families {
  // A counter whose value is known elsewhere.
  struct Mirrored {
    Counter* counter;
    double last = 0;
    void Set(double value) {
      if (value > last) counter->Increment(value - last);
      last = std::max(last, value);
    }
  };

  explicit Families(const ServerMetricsOptions& options)
      : labels{{"model_name", options.model_name}, {"engine", "0"}},
        http_requests(options.http_requests),
        telemetry(options.telemetry) {
    AddCounters();
    AddLoad();
    if (options.num_speculative_tokens > 0) AddDrafts(options);
    AddHistograms(options.max_model_len);
    AddFinished();
    AddInfo(options);
    AddProcess();
  }

  // Gauges and counters that mirror the engine's statistics.
  void AddCounters() {
    running = NewGauge("vllm:num_requests_running",
                       "Sequences in the execution batch.");
    waiting = NewGauge("vllm:num_requests_waiting", "Requests in the queue.");
    kv_usage = NewGauge("vllm:kv_cache_usage_perc",
                        "Fraction of KV blocks in use; cached blocks that "
                        "nobody uses count as free.");
    old_kv_usage = NewGauge("vllm:gpu_cache_usage_perc",
                            "Older name of vllm:kv_cache_usage_perc.");
    waiting_tokens = NewGauge("quire:num_waiting_prompt_tokens",
                              "Prompt tokens in the queue.");
    prompt_tokens =
        NewCounter("vllm:prompt_tokens_total", "Prompt tokens processed.");
    generation_tokens =
        NewCounter("vllm:generation_tokens_total", "Tokens generated.");
    cached_tokens = NewCounter("vllm:prompt_tokens_cached_total",
                               "Prompt tokens served by the prefix cache.");
    preemptions = NewCounter("vllm:num_preemptions_total",
                             "Sequences preempted to free KV blocks.");
    cache_queries = NewCounter("vllm:prefix_cache_queries_total",
                               "Prompt tokens looked up in the prefix cache.");
    cache_hits = NewCounter("vllm:prefix_cache_hits_total",
                            "Prompt tokens found in the prefix cache.");
    steps = NewCounter("quire:steps_total", "Steps of the engine.");
    if (telemetry == nullptr) return;
    log_lines_dropped =
        NewCounter("quire:log_lines_dropped_total",
                   "Lines of the log that nobody took in time.");
    spans_exported = NewCounter("quire:trace_spans_exported_total",
                                "Spans that the collector has taken.");
    spans_dropped = NewCounter("quire:trace_spans_dropped_total",
                               "Spans that the collector did not take.");
  }

  // What is refused or given up, and why.
  void AddLoad() {
    saturation = NewGauge("quire:saturation",
                          "Load from 0 to 1, to scale by: the largest of "
                          "step use, KV use and predicted queue delay over "
                          "its target, averaged over some seconds.");
    step_use = NewGauge("quire:step_use", "Steps' part in quire:saturation.");
    mean_kv_use = NewGauge("quire:kv_use", "KV's part in quire:saturation.");
    delay_use =
        NewGauge("quire:queue_delay_use", "The queue's part in saturation.");
    predicted_delay =
        NewGauge("quire:predicted_queue_delay_seconds",
                 "Wait of a request that would come now, at the queue's end.");
    queue_use = NewGauge("quire:queue_use",
                         "Part of the queue's bounds in use, the largest.");
    shed_stage = NewGauge("quire:shed_stage",
                          "0: none, 1: extras are refused, 2: low priority, "
                          "3: everything new.");
    auto& refusals = BuildCounter()
                         .Name("quire:requests_refused_total")
                         .Help("Requests refused for load, by reason.")
                         .Register(registry);
    for (const char* reason :
         {"queue_full", "share_full", "deadline", "memory", "logprobs_memory",
          "stage_extras", "stage_low_priority", "stage_everything"}) {
      Labels with_reason = labels;
      with_reason["reason"] = reason;
      refused.push_back({&refusals.Add(with_reason)});
    }
    auto& overdue_family = BuildCounter()
                               .Name("quire:requests_overdue_total")
                               .Help("Requests ended by their deadline.")
                               .Register(registry);
    for (const char* state : {"waiting", "running"}) {
      Labels with_state = labels;
      with_state["state"] = state;
      overdue.push_back({&overdue_family.Add(with_state)});
    }
  }

  void SetLoad(const EngineStats& stats, const GateFigures& gate) {
    saturation->Set(stats.saturation);
    step_use->Set(stats.step_use);
    mean_kv_use->Set(stats.kv_use);
    delay_use->Set(stats.delay_use);
    predicted_delay->Set(absl::ToDoubleSeconds(stats.predicted_delay));
    queue_use->Set(stats.queue_use);
    shed_stage->Set(static_cast<double>(gate.stage));
    const int64_t counts[] = {
        stats.refusals.num_queue_full, stats.refusals.num_share_full,
        stats.refusals.num_too_late,   gate.num_refused_memory,
        gate.num_refused_scores,       gate.num_refused[1],
        gate.num_refused[2],           gate.num_refused[3]};
    for (size_t i = 0; i < refused.size(); ++i) {
      refused[i].Set(static_cast<double>(counts[i]));
    }
    overdue[0].Set(static_cast<double>(stats.num_overdue_waiting));
    overdue[1].Set(static_cast<double>(stats.num_overdue_running));
  }

  void AddDrafts(const ServerMetricsOptions& options) {
    drafts = NewCounter("vllm:spec_decode_num_drafts_total",
                        "Times that drafts were verified.");
    draft_tokens = NewCounter("vllm:spec_decode_num_draft_tokens_total",
                              "Drafts verified.");
    accepted_tokens = NewCounter("vllm:spec_decode_num_accepted_tokens_total",
                                 "Drafts that became tokens.");
    drafter_failures =
        NewCounter("quire:drafter_failures_total",
                   "Drafters that failed; nothing is drafted after that.");
    accepted_by_position =
        &BuildCounter()
             .Name("vllm:spec_decode_num_accepted_tokens_per_pos_total")
             .Help("Drafts that became tokens, by their place.")
             .Register(registry);
    AddDraftPositions(options.num_speculative_tokens);
  }
  // An edge learns from its cloud how many there are.
  void AddDraftPositions(size_t count) {
    while (accepted_at.size() < count) {
      Labels with_position = labels;
      with_position["position"] = absl::StrCat(accepted_at.size());
      accepted_at.push_back({&accepted_by_position->Add(with_position)});
    }
  }

  void AddHistograms(int max_model_len) {
    first_token = NewHistogram("vllm:time_to_first_token_seconds",
                               "Arrival to first token.", kFirstTokenBuckets);
    inter_token = NewHistogram("vllm:inter_token_latency_seconds",
                               "Gap between tokens.", kTokenBuckets);
    old_inter_token = NewHistogram(
        "vllm:time_per_output_token_seconds",
        "Older name of vllm:inter_token_latency_seconds.", kTokenBuckets);
    per_request_token =
        NewHistogram("vllm:request_time_per_output_token_seconds",
                     "Mean gap between tokens of a request.", kTokenBuckets);
    end_to_end = NewHistogram("vllm:e2e_request_latency_seconds",
                              "Arrival to last token.", kRequestBuckets);
    queue_time = NewHistogram("vllm:request_queue_time_seconds",
                              "Arrival to first step.", kRequestBuckets);
    prefill_time = NewHistogram("vllm:request_prefill_time_seconds",
                                "First step to first token.", kRequestBuckets);
    decode_time = NewHistogram("vllm:request_decode_time_seconds",
                               "First to last token.", kRequestBuckets);
    inference_time = NewHistogram("vllm:request_inference_time_seconds",
                                  "First step to last token.", kRequestBuckets);
    const Buckets lengths = OneTwoFive(max_model_len);
    request_prompt = NewHistogram("vllm:request_prompt_tokens",
                                  "Prompt tokens of a request.", lengths);
    request_generation =
        NewHistogram("vllm:request_generation_tokens",
                     "Generated tokens of a request.", lengths);
    request_max_tokens = NewHistogram("vllm:request_params_max_tokens",
                                      "max_tokens of a request.", lengths);
    request_n = NewHistogram("vllm:request_params_n", "n of a request.",
                             kChoicesBuckets);
  }

  void AddFinished() {
    auto& success = BuildCounter()
                        .Name("vllm:request_success_total")
                        .Help("Finished requests by reason.")
                        .Register(registry);
    for (const auto& [reason, name] :
         {std::pair{FinishReason::kStop, "stop"},
          std::pair{FinishReason::kLength, "length"},
          std::pair{FinishReason::kAbort, "abort"},
          std::pair{FinishReason::kError, "error"}}) {
      Labels with_reason = labels;
      with_reason["finished_reason"] = name;
      finished[static_cast<size_t>(reason)] = &success.Add(with_reason);
    }
  }

  // What does not change: shown as labels of a gauge of 1.
  void AddInfo(const ServerMetricsOptions& options) {
    BuildGauge()
        .Name("vllm:cache_config_info")
        .Help("Configuration of the KV cache.")
        .Register(registry)
        .Add({{"block_size", absl::StrCat(options.block_size)},
              {"num_gpu_blocks", absl::StrCat(options.num_blocks)},
              {"cache_dtype", options.cache_dtype},
              {"enable_prefix_caching",
               options.enable_prefix_caching ? "True" : "False"},
              {"engine", "0"}})
        .Set(1);
    BuildGauge()
        .Name("quire:build_info")
        .Help("Version of the program.")
        .Register(registry)
        .Add({{"version", options.version}})
        .Set(1);
  }

  void AddProcess() {
    cpu_seconds = {&BuildCounter()
                        .Name("process_cpu_seconds_total")
                        .Help("User and system CPU time.")
                        .Register(registry)
                        .Add({})};
    resident =
        NewProcessGauge("process_resident_memory_bytes", "Resident memory.");
    virtual_memory =
        NewProcessGauge("process_virtual_memory_bytes", "Virtual memory.");
    NewProcessGauge("process_start_time_seconds",
                    "Start of the process, Unix time.")
        ->Set(absl::ToDoubleSeconds(absl::Now() - TimeSinceProcessStart() -
                                    absl::UnixEpoch()));
  }

  Gauge* NewGauge(const char* name, const char* help) {
    return &BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
  }
  Gauge* NewProcessGauge(const char* name, const char* help) {
    return &BuildGauge().Name(name).Help(help).Register(registry).Add({});
  }
  Mirrored NewCounter(const char* name, const char* help) {
    return {
        &BuildCounter().Name(name).Help(help).Register(registry).Add(labels)};
  }
  Histogram* NewHistogram(const char* name, const char* help,
                          const Buckets& buckets) {
    return &BuildHistogram().Name(name).Help(help).Register(registry).Add(
        labels, buckets);
  }

  prometheus::Registry registry;
  const Labels labels;
  const HttpRequestCounts* const http_requests;
  const std::shared_ptr<const TelemetryCounts> telemetry;
  Gauge *running, *waiting, *kv_usage, *old_kv_usage, *waiting_tokens;
  Gauge *resident, *virtual_memory;
  Histogram *first_token, *inter_token, *old_inter_token, *per_request_token;
  Histogram *end_to_end, *queue_time, *prefill_time, *decode_time;
  Histogram *inference_time, *request_prompt, *request_generation;
  Histogram *request_max_tokens, *request_n;
  std::array<Counter*, 4> finished;
  std::mutex mu;  // Guards the mirrored counters: one rendering at a time.
  Mirrored prompt_tokens, generation_tokens, cached_tokens, preemptions;
  Mirrored cache_queries, cache_hits, steps, cpu_seconds;
  // Not there without telemetry.
  Mirrored log_lines_dropped = {nullptr}, spans_exported = {nullptr};
  Mirrored spans_dropped = {nullptr};
  // Not there without speculation.
  Mirrored drafts = {nullptr}, draft_tokens = {nullptr};
  Mirrored accepted_tokens = {nullptr}, drafter_failures = {nullptr};
  prometheus::Family<Counter>* accepted_by_position = nullptr;
  std::vector<Mirrored> accepted_at;
  Gauge *saturation, *step_use, *mean_kv_use, *delay_use, *predicted_delay;
  Gauge *queue_use, *shed_stage;
  std::vector<Mirrored> refused, overdue;
};

ServerMetrics::ServerMetrics(const ServerMetricsOptions& options)
    : families_(std::make_unique<Families>(options)) {}
ServerMetrics::~ServerMetrics() = default;

void ServerMetrics::ObserveTimeToFirstToken(absl::Duration duration) {
  families_->first_token->Observe(absl::ToDoubleSeconds(duration));
}

void ServerMetrics::ObserveInterTokenLatency(absl::Duration duration) {
  families_->inter_token->Observe(absl::ToDoubleSeconds(duration));
  families_->old_inter_token->Observe(absl::ToDoubleSeconds(duration));
}

void ServerMetrics::ObserveFinished(const FinishedRequest& request) {
  Families& f = *families_;
  f.finished[static_cast<size_t>(request.reason)]->Increment();
  const auto seconds = [](absl::Time from, absl::Time to) {
    return absl::ToDoubleSeconds(to - from);
  };
  f.end_to_end->Observe(seconds(request.arrival_time, request.end_time));
  f.request_prompt->Observe(request.num_prompt_tokens);
  f.request_generation->Observe(request.num_generation_tokens);
  // Embeddings have none.
  if (request.max_tokens > 0) f.request_max_tokens->Observe(request.max_tokens);
  f.request_n->Observe(request.n);
  if (request.scheduled_time == absl::InfinitePast()) return;
  f.queue_time->Observe(seconds(request.arrival_time, request.scheduled_time));
  f.inference_time->Observe(seconds(request.scheduled_time, request.end_time));
  if (request.first_token_time == absl::InfinitePast()) return;
  f.prefill_time->Observe(
      seconds(request.scheduled_time, request.first_token_time));
  const double decode = seconds(request.first_token_time, request.end_time);
  f.decode_time->Observe(decode);
  const double gaps =
      static_cast<double>(request.num_generation_tokens) / request.n - 1;
  if (gaps > 0) f.per_request_token->Observe(decode / gaps);
}

std::string ServerMetrics::Render(const EngineStats& stats,
                                  const GateFigures& gate) {
  Families& f = *families_;
  std::lock_guard<std::mutex> lock(f.mu);
  f.SetLoad(stats, gate);
  f.running->Set(stats.num_running);
  f.waiting->Set(stats.num_waiting);
  f.waiting_tokens->Set(static_cast<double>(stats.num_waiting_tokens));
  const double usage =
      stats.num_blocks == 0
          ? 0
          : 1.0 - static_cast<double>(stats.num_free_blocks) / stats.num_blocks;
  f.kv_usage->Set(usage);
  f.old_kv_usage->Set(usage);
  f.prompt_tokens.Set(static_cast<double>(stats.num_prompt_tokens));
  f.generation_tokens.Set(static_cast<double>(stats.num_generation_tokens));
  f.cached_tokens.Set(static_cast<double>(stats.prefix_cache_hits));
  f.preemptions.Set(static_cast<double>(stats.num_preemptions));
  f.cache_queries.Set(static_cast<double>(stats.prefix_cache_queries));
  f.cache_hits.Set(static_cast<double>(stats.prefix_cache_hits));
  f.steps.Set(static_cast<double>(stats.num_steps));
  if (f.telemetry != nullptr) {
    const TelemetryCounts& counts = *f.telemetry;
    f.log_lines_dropped.Set(static_cast<double>(counts.num_log_lines_dropped));
    f.spans_exported.Set(static_cast<double>(counts.num_spans_exported));
    f.spans_dropped.Set(static_cast<double>(counts.num_spans_dropped));
  }
  if (f.drafts.counter != nullptr) {
    f.drafts.Set(static_cast<double>(stats.num_drafts));
    f.draft_tokens.Set(static_cast<double>(stats.num_draft_tokens));
    f.accepted_tokens.Set(static_cast<double>(stats.num_accepted_tokens));
    f.drafter_failures.Set(static_cast<double>(stats.num_drafter_failures));
    f.AddDraftPositions(stats.num_accepted_at.size());
    for (size_t i = 0; i < stats.num_accepted_at.size(); ++i) {
      f.accepted_at[i].Set(static_cast<double>(stats.num_accepted_at[i]));
    }
  }
  const ProcessFigures process = ReadProcessFigures();
  f.cpu_seconds.Set(process.cpu_seconds);
  f.resident->Set(process.resident_bytes);
  f.virtual_memory->Set(process.virtual_bytes);
  std::string text =
      prometheus::TextSerializer().Serialize(f.registry.Collect());
  // vLLM's histogram of tokens per step; the engine keeps the buckets.
  text +=
      "# HELP vllm:iteration_tokens_total Tokens of a step.\n"
      "# TYPE vllm:iteration_tokens_total histogram\n";
  const std::string step_labels =
      absl::StrCat("engine=\"0\",model_name=\"",
                   EscapeLabel(f.labels.at("model_name")), "\"");
  int64_t cumulative = 0;
  for (size_t i = 0; i < stats.step_token_histogram.size(); ++i) {
    cumulative += stats.step_token_histogram[i];
    const std::string bound = i < std::size(kStepTokenBuckets)
                                  ? absl::StrCat(kStepTokenBuckets[i])
                                  : "+Inf";
    absl::StrAppend(&text, "vllm:iteration_tokens_total_bucket{", step_labels,
                    ",le=\"", bound, "\"} ", cumulative, "\n");
  }
  absl::StrAppend(&text, "vllm:iteration_tokens_total_count{", step_labels,
                  "} ", stats.num_steps, "\n",
                  "vllm:iteration_tokens_total_sum{", step_labels, "} ",
                  stats.num_prompt_tokens - stats.prefix_cache_hits +
                      stats.num_generation_tokens,
                  "\n");
  if (f.http_requests != nullptr) text += f.http_requests->Render();
  return text;
}

}  // namespace quire
