#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "benchmarks/serving/arrivals.h"
#include "benchmarks/serving/dataset.h"
#include "benchmarks/serving/latency_plot.h"
#include "benchmarks/serving/load_client.h"
#include "benchmarks/serving/prompt_codec.h"
#include "benchmarks/serving/server_counters.h"
#include "benchmarks/serving/serving_load.h"
#include "benchmarks/serving/serving_metrics.h"
#include "benchmarks/serving/timeline_plot.h"
#include "cli/bench.h"
#include "cli/bench_output.h"
#include "cli/exit_codes.h"
#include "cli/model_tokenizer.h"
#include "engine/base/short_slice.h"
#include "engine/base/status.h"
#include "server/json_text.h"
#include "tokenizer/tokenizer.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;
using HeaderList = std::vector<std::pair<std::string, std::string>>;

// What the options ask for, checked before anything is sent.
struct Plan {
  ServerUrl url;
  ServingLoadOptions load;
  DatasetOptions dataset;
  ArrivalOptions arrivals;
  ReportOptions report;
  TimelineThresholds timeline;
  Json metadata = Json::object();
  std::unique_ptr<Tokenizer> tokenizer;
  std::string model;  // In the API; empty: the server's first.
};

absl::StatusOr<std::pair<std::string, std::string>> ParsePair(
    const char* option, const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(option, ": '", text, "' is not NAME=VALUE"));
  }
  return std::pair(text.substr(0, equals), text.substr(equals + 1));
}

absl::StatusOr<HeaderList> MakeHeaders(const BenchServeOptions& options) {
  HeaderList headers = {{"Content-Type", "application/json"}};
  bool has_key = false;
  for (const std::string& text : options.headers) {
    QUIRE_ASSIGN_OR_RETURN(auto pair, ParsePair("--header", text));
    for (char c : pair.first + pair.second) {
      if (c == '\r' || c == '\n') {
        return absl::InvalidArgumentError("--header: a line break");
      }
    }
    has_key |= absl::EqualsIgnoreCase(pair.first, "Authorization");
    headers.push_back(std::move(pair));
  }
  const char* const key = getenv("OPENAI_API_KEY");
  if (!has_key && key != nullptr && *key != '\0' &&
      std::string(key).find_first_of("\r\n") == std::string::npos) {
    headers.emplace_back("Authorization", absl::StrCat("Bearer ", key));
  }
  return headers;
}

absl::StatusOr<Json> MakeExtraBody(const BenchServeOptions& options) {
  Json extra = Json::object();
  if (options.temperature >= 0) extra["temperature"] = options.temperature;
  if (options.top_p >= 0) extra["top_p"] = options.top_p;
  if (options.top_k >= -1) extra["top_k"] = options.top_k;
  if (options.min_p >= 0) extra["min_p"] = options.min_p;
  if (options.extra_body.empty()) return extra;
  const auto given = ParseJson(options.extra_body);
  if (!given.ok() || !given->is_object()) {
    return absl::InvalidArgumentError("--extra-body is not a JSON object");
  }
  for (const auto& [name, value] : given->items()) extra[name] = value;
  return extra;
}

DatasetOptions MakeDataset(const BenchServeOptions& options) {
  using Kind = DatasetOptions::Kind;
  DatasetOptions dataset;
  dataset.kind = options.dataset_name == "random"     ? Kind::kRandom
                 : options.dataset_name == "sharegpt" ? Kind::kShareGpt
                 : options.dataset_name == "custom"   ? Kind::kCustom
                                                      : Kind::kPrefixRepetition;
  const auto either = [](int64_t general, int64_t own) {
    return general > 0 ? general : own;
  };
  dataset.path = options.dataset_path;
  dataset.num_prompts = options.num_prompts;
  dataset.random_input_len =
      either(options.input_len, options.random_input_len);
  dataset.random_output_len =
      either(options.output_len, options.random_output_len);
  dataset.random_range_ratio = options.random_range_ratio;
  dataset.random_prefix_len = options.random_prefix_len;
  dataset.random_batch_size = options.random_batch_size;
  dataset.sharegpt_output_len =
      either(options.output_len, options.sharegpt_output_len);
  dataset.custom_output_len =
      either(options.output_len, options.custom_output_len);
  dataset.prefix_len = options.prefix_repetition_prefix_len;
  dataset.suffix_len =
      either(options.input_len, options.prefix_repetition_suffix_len);
  dataset.num_prefixes = options.prefix_repetition_num_prefixes;
  dataset.prefix_output_len =
      either(options.output_len, options.prefix_repetition_output_len);
  return dataset;
}

absl::StatusOr<ArrivalOptions> MakeArrivals(const BenchServeOptions& options) {
  ArrivalOptions arrivals;
  if (options.request_rate > 0) arrivals.request_rate = options.request_rate;
  arrivals.burstiness = options.burstiness;
  if (options.ramp_up_strategy.empty()) return arrivals;
  if (options.ramp_up_start_rps <= 0 || options.ramp_up_end_rps <= 0) {
    return absl::InvalidArgumentError(
        "--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps");
  }
  if (std::isfinite(arrivals.request_rate)) {
    return absl::InvalidArgumentError(
        "--request-rate contradicts --ramp-up-strategy");
  }
  arrivals.ramp_up = options.ramp_up_strategy == "linear"
                         ? ArrivalOptions::RampUp::kLinear
                         : ArrivalOptions::RampUp::kExponential;
  arrivals.ramp_up_start_rps = options.ramp_up_start_rps;
  arrivals.ramp_up_end_rps = options.ramp_up_end_rps;
  return arrivals;
}

CompletionApi ApiOf(const std::string& backend) {
  if (backend == "openai-chat") return CompletionApi::kChat;
  if (backend == "openai-embeddings") return CompletionApi::kEmbeddings;
  return CompletionApi::kCompletions;
}

const char* DefaultEndpoint(CompletionApi api) {
  switch (api) {
    case CompletionApi::kCompletions:
      return "/v1/completions";
    case CompletionApi::kChat:
      return "/v1/chat/completions";
    case CompletionApi::kEmbeddings:
      return "/v1/embeddings";
  }
  return "";
}

// What a backend cannot do is said, not ignored.
absl::Status CheckBackend(const BenchServeOptions& options) {
  const bool is_embeddings =
      ApiOf(options.backend) == CompletionApi::kEmbeddings;
  if (!is_embeddings && options.random_batch_size > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--random-batch-size ", options.random_batch_size,
                     " needs --backend openai-embeddings"));
  }
  if (options.random_batch_size > 1 && options.dataset_name != "random") {
    return absl::InvalidArgumentError(
        absl::StrCat("--random-batch-size ", options.random_batch_size,
                     " needs --dataset-name random"));
  }
  if (!is_embeddings) return absl::OkStatus();
  const BenchServeOptions defaults;
  const std::pair<const char*, bool> given[] = {
      {"--temperature", options.temperature != defaults.temperature},
      {"--top-p", options.top_p != defaults.top_p},
      {"--top-k", options.top_k != defaults.top_k},
      {"--min-p", options.min_p != defaults.min_p},
      {"--logprobs", options.num_logprobs != defaults.num_logprobs}};
  for (const auto& [name, is_given] : given) {
    if (!is_given) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": embeddings are not sampled"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ReportOptions> MakeReport(const BenchServeOptions& options) {
  ReportOptions report;
  QUIRE_ASSIGN_OR_RETURN(report.goodput, ParseGoodput(options.goodput));
  if (ApiOf(options.backend) == CompletionApi::kEmbeddings) {
    report.task = LoadTask::kPooling;
    if (report.goodput.ttft.has_value() || report.goodput.tpot.has_value()) {
      return absl::InvalidArgumentError(
          "--goodput: embeddings have no tokens of their own, and only e2el");
    }
    report.metrics = {LatencyMetric::kE2el};
  } else if (!options.percentile_metrics.empty()) {
    QUIRE_ASSIGN_OR_RETURN(report.metrics,
                           ParseMetricNames(options.percentile_metrics));
  } else if (report.goodput.e2el.has_value()) {
    report.metrics.push_back(LatencyMetric::kE2el);
  }
  QUIRE_ASSIGN_OR_RETURN(report.percentiles,
                         ParsePercentiles(options.metric_percentiles));
  report.max_concurrency = options.max_concurrency;
  if (options.request_rate > 0) report.request_rate = options.request_rate;
  return report;
}

// A model's directory or file on this machine, not its name in the API.
bool IsLocalModel(const std::string& path) {
  std::error_code error;
  return !path.empty() && std::filesystem::exists(path, error);
}

absl::StatusOr<Plan> MakePlan(const BenchServeOptions& options) {
  Plan plan;
  const std::string base =
      options.base_url.empty()
          ? absl::StrCat("http://",
                         absl::StrContains(options.host, ":")
                             ? absl::StrCat("[", options.host, "]")
                             : options.host,
                         ":", options.port)
          : options.base_url;
  QUIRE_ASSIGN_OR_RETURN(plan.url, ParseServerUrl(base));
  QUIRE_RETURN_IF_ERROR(CheckBackend(options));
  plan.load.params.api = ApiOf(options.backend);
  plan.load.endpoint = !options.endpoint.empty()
                           ? options.endpoint
                           : DefaultEndpoint(plan.load.params.api);
  if (!absl::StartsWith(plan.load.endpoint, "/") ||
      plan.load.endpoint.find_first_of(" \r\n") != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("--endpoint '",
                                                   options.endpoint,
                                                   "' is not a path like "
                                                   "/v1/completions"));
  }
  // A base with the "/v1" that clients of the API are given.
  if (absl::EndsWith(plan.url.prefix, "/v1") &&
      absl::StartsWith(plan.load.endpoint, "/v1/")) {
    plan.url.prefix.resize(plan.url.prefix.size() - 3);
  }
  QUIRE_ASSIGN_OR_RETURN(plan.load.headers, MakeHeaders(options));
  QUIRE_ASSIGN_OR_RETURN(plan.load.params.extra, MakeExtraBody(options));
  plan.load.params.ignore_eos = options.ignore_eos;
  plan.load.params.num_logprobs = options.num_logprobs;
  if (options.probe_request_rate > 0) {
    plan.load.probe_interval = 1 / options.probe_request_rate;
  }
  QUIRE_ASSIGN_OR_RETURN(
      plan.timeline, ParseTimelineThresholds(options.timeline_itl_thresholds));
  plan.load.max_concurrency = options.max_concurrency;
  plan.load.keeps_text = options.save_detailed;
  plan.dataset = MakeDataset(options);
  QUIRE_ASSIGN_OR_RETURN(plan.arrivals, MakeArrivals(options));
  QUIRE_ASSIGN_OR_RETURN(plan.report, MakeReport(options));
  for (const std::string& text : options.metadata) {
    QUIRE_ASSIGN_OR_RETURN(auto pair, ParsePair("--metadata", text));
    plan.metadata[pair.first] = pair.second;
  }
  const bool is_local = IsLocalModel(options.model);
  plan.model = !options.served_model_name.empty() ? options.served_model_name
               : is_local                         ? ""
                                                  : options.model;
  const std::string path = !options.tokenizer.empty() ? options.tokenizer
                           : is_local                 ? options.model
                                                      : "";
  if (!path.empty() && !options.skip_tokenizer) {
    std::vector<std::string> warnings;
    QUIRE_ASSIGN_OR_RETURN(plan.tokenizer, OpenModelTokenizer(path, &warnings));
  }
  return plan;
}

// The first model that the server lists; empty if it lists none.
std::string FirstModel(LoadClient* client, const HeaderList& headers,
                       const std::atomic<bool>* is_cancelled) {
  HttpMessage message;
  message.method = "GET";
  message.path = "/v1/models";
  message.headers = headers;
  const ResponseEnd end =
      client->Fetch(message, /*timeout_seconds=*/30, is_cancelled);
  if (!end.status.ok() || end.http_status != 200) return "";
  const auto json = ParseJson(end.body);
  if (!json.ok() || !json->is_object()) return "";
  const auto data = json->find("data");
  if (data == json->end() || !data->is_array() || data->empty() ||
      !data->front().is_object()) {
    return "";
  }
  const auto id = data->front().find("id");
  return id != data->front().end() && id->is_string() ? id->get<std::string>()
                                                      : "";
}

// Tells the server to begin or end its profile; it may not be able to.
void Profile(LoadClient* client, const HeaderList& headers, const char* path) {
  HttpMessage message;
  message.path = path;
  message.headers = headers;
  const ResponseEnd end = client->Fetch(message, /*timeout_seconds=*/600);
  if (end.status.ok() && end.http_status == 200) return;
  absl::FPrintF(stderr, "quire: --profile: POST %s: %s\n", path,
                end.status.ok() ? ErrorText(end.http_status, end.body)
                                : std::string(end.status.message()));
}

// What the server counts itself; nothing if it does not tell.
ServerCounters FetchCounters(LoadClient* client, const HeaderList& headers,
                             double timeout_seconds) {
  HttpMessage message;
  message.method = "GET";
  message.path = "/metrics";
  message.headers = headers;
  const ResponseEnd end = client->Fetch(message, timeout_seconds);
  if (!end.status.ok() || end.http_status != 200) return {};
  return ReadServerCounters(end.body);
}

class ServeBench {
 public:
  ServeBench(const BenchServeOptions& options, Plan plan)
      : options_(options),
        plan_(std::move(plan)),
        is_interrupted_(InterruptFlag()),
        random_(options.seed) {}

  int Run();

 private:
  absl::Status Connect();
  // CANCELLED by a signal.
  absl::Status MakeLoad();
  absl::Status MakeCodec();
  // Requests before the measurement, of the load's own prompts.
  absl::Status WarmUp();
  void Measure();
  // Why none of the requests was sent.
  void FailAll(absl::string_view error, bool were_started = true);
  bool SavesResult() const {
    return options_.save_result || options_.save_detailed ||
           options_.append_result;
  }
  // Makes the directory of the results; that all of them can be written there.
  absl::Status CheckFiles() const;
  absl::Status Save(const ServingMetrics& metrics);
  Json Result(const ServingMetrics& metrics) const;
  std::string ResultPath() const;
  int ExitCode(const ServingMetrics& metrics) const;

  const BenchServeOptions& options_;
  Plan plan_;
  const std::atomic<bool>& is_interrupted_;
  SimulationRandom random_;
  const absl::Time date_ = absl::Now();
  std::unique_ptr<LoadClient> client_;
  absl::Status connection_;  // OK, or why there is no client_.
  std::unique_ptr<PromptCodec> codec_;
  std::vector<LoadPrompt> prompts_;
  ServingLoadResult result_;
  ServerCounters counters_;  // Of the measurement.
};

absl::Status ServeBench::Connect() {
  LoadClientOptions client_options;
  client_options.verify_certificate = !options_.insecure;
  client_options.idle_timeout_seconds = options_.request_timeout_seconds;
  client_options.is_cancelled = &is_interrupted_;
  if (plan_.report.task == LoadTask::kPooling) {
    // Every answer is a whole body.
    client_options.limits.max_kept_bytes = client_options.limits.max_body_bytes;
  }
  const double deadline =
      MonotonicSeconds() + options_.ready_check_timeout_seconds;
  for (;;) {
    auto client = LoadClient::Create(plan_.url, client_options);
    if (client.ok()) {
      client_ = std::move(*client);
      return absl::OkStatus();
    }
    if (MonotonicSeconds() >= deadline || is_interrupted_) {
      return client.status();
    }
    absl::SleepFor(absl::Milliseconds(250));
  }
}

absl::Status ServeBench::MakeCodec() {
  if (plan_.tokenizer != nullptr) {
    codec_ = NewLocalCodec(plan_.tokenizer.get());
    return absl::OkStatus();
  }
  if (client_ == nullptr || options_.skip_tokenizer) return absl::OkStatus();
  auto codec = NewServerCodec(client_.get(), plan_.model, plan_.load.headers,
                              &is_interrupted_);
  if (absl::IsCancelled(codec.status())) return codec.status();
  if (codec.ok()) {
    codec_ = std::move(*codec);
    return absl::OkStatus();
  }
  absl::FPrintF(stderr,
                "quire: the server does not count tokens (%s), and there is no "
                "--tokenizer: prompts are %s\n",
                codec.status().message().substr(0, 120),
                plan_.load.params.api == CompletionApi::kChat
                    ? "words"
                    : "random token ids");
  return absl::OkStatus();
}

absl::Status ServeBench::MakeLoad() {
  if (plan_.model.empty() && client_ != nullptr) {
    plan_.model =
        FirstModel(client_.get(), plan_.load.headers, &is_interrupted_);
  }
  plan_.load.params.model = plan_.model;
  QUIRE_RETURN_IF_ERROR(MakeCodec());
  ProgressLine line(!options_.disable_tqdm);
  QUIRE_ASSIGN_OR_RETURN(
      prompts_, MakePrompts(plan_.dataset, plan_.load.params.api, codec_.get(),
                            &random_, [&](int64_t num_made, int64_t count) {
                              line.Show("prompts", num_made, count, "");
                              return !is_interrupted_;
                            }));
  const std::vector<std::string>& modules = options_.lora_modules;
  for (size_t i = 0; i < prompts_.size() && !modules.empty(); ++i) {
    const bool is_random = options_.lora_assignment == "random";
    const size_t idx = is_random
                           ? random_.Below(static_cast<int>(modules.size()))
                           : i % modules.size();
    prompts_[i].model = modules[idx];
  }
  plan_.load.arrival_times =
      ArrivalTimes(plan_.arrivals, static_cast<int>(prompts_.size()), &random_);
  plan_.load.is_cancelled = &is_interrupted_;
  return absl::OkStatus();
}

absl::Status ServeBench::WarmUp() {
  std::vector<const LoadPrompt*> usable;  // There is one: MakePrompts.
  for (const LoadPrompt& prompt : prompts_) {
    if (prompt.error.empty()) usable.push_back(&prompt);
  }
  ServingLoadOptions load = plan_.load;
  load.probe_interval = 0;
  ProgressLine line(!options_.disable_tqdm);
  // Ready is who answers a short request.
  const double deadline =
      MonotonicSeconds() + options_.ready_check_timeout_seconds;
  while (options_.ready_check_timeout_seconds > 0 && !is_interrupted_) {
    line.Show("waiting for the server", 0, 0, "");
    load.arrival_times = {0};
    LoadPrompt prompt = *usable.front();
    prompt.output_len = std::min<int64_t>(prompt.output_len, 2);
    const ServingLoadResult ready =
        RunServingLoad(client_.get(), {prompt}, load);
    if (ready.records[0].success) break;
    if (MonotonicSeconds() >= deadline) {
      return absl::UnavailableError(absl::StrCat(
          plan_.url.Origin(), " is not ready: ", ready.records[0].error));
    }
    absl::SleepFor(absl::Milliseconds(250));
  }
  if (options_.num_warmups == 0) return absl::OkStatus();
  std::vector<LoadPrompt> prompts;
  for (int i = 0; i < options_.num_warmups; ++i) {
    prompts.push_back(*usable[i % usable.size()]);
  }
  load.arrival_times.assign(prompts.size(), 0);
  load.on_progress = [&line](const LoadProgress& progress) {
    line.Show("warm-up", progress.num_done, progress.num_requests, "");
  };
  RunServingLoad(client_.get(), prompts, load);
  return absl::OkStatus();
}

void ServeBench::Measure() {
  ProgressLine line(!options_.disable_tqdm);
  plan_.load.on_progress = [&line](const LoadProgress& progress) {
    line.Show(
        "requests", progress.num_done, progress.num_requests,
        absl::StrFormat("%.0fs %.0f tok/s, %d open%s", progress.seconds,
                        progress.num_tokens / std::max(progress.seconds, 1e-3),
                        progress.num_open,
                        progress.num_failed > 0
                            ? absl::StrCat(", ", progress.num_failed, " failed")
                            : ""));
  };
  const bool has_profile = options_.profile && !is_interrupted_;
  if (has_profile) {
    Profile(client_.get(), plan_.load.headers, "/start_profile");
  }
  const auto counters_now = [this] {
    return FetchCounters(client_.get(), plan_.load.headers,
                         is_interrupted_ ? 0.5 : 5);
  };
  const ServerCounters before = counters_now();
  result_ = RunServingLoad(client_.get(), prompts_, plan_.load);
  counters_ = counters_now().Since(before);
  if (has_profile) {
    Profile(client_.get(), plan_.load.headers, "/stop_profile");
  }
}

Json ServeBench::Result(const ServingMetrics& metrics) const {
  Json json;
  json["date"] =
      absl::FormatTime("%Y%m%d-%H%M%S", date_, absl::LocalTimeZone());
  json["endpoint_type"] = options_.backend;
  json["backend"] = options_.backend;
  json["label"] = options_.label.empty() ? Json() : Json(options_.label);
  json["model_id"] = plan_.model;
  json["tokenizer_id"] =
      options_.tokenizer.empty() ? options_.model : options_.tokenizer;
  json["num_prompts"] = options_.num_prompts;
  for (const auto& [name, value] : plan_.metadata.items()) json[name] = value;
  json["request_rate"] = std::isfinite(plan_.report.request_rate)
                             ? Json(plan_.report.request_rate)
                             : Json("inf");
  json["burstiness"] = options_.burstiness;
  json["max_concurrency"] =
      options_.max_concurrency > 0 ? Json(options_.max_concurrency) : Json();
  if (!options_.ramp_up_strategy.empty()) {
    json["ramp_up_strategy"] = options_.ramp_up_strategy;
    json["ramp_up_start_rps"] = options_.ramp_up_start_rps;
    json["ramp_up_end_rps"] = options_.ramp_up_end_rps;
  }
  json["interrupted"] = result_.was_cancelled;
  const Json figures = ServingJson(metrics, result_.records, plan_.report,
                                   options_.save_detailed);
  for (const auto& [name, value] : figures.items()) json[name] = value;
  if (plan_.load.probe_interval > 0) json.update(ProbeJson(result_.probes));
  return json;
}

std::string ServeBench::ResultPath() const {
  std::string name = options_.result_filename;
  if (name.empty()) {
    std::string model = plan_.model.substr(plan_.model.rfind('/') + 1);
    std::string rate = std::isfinite(plan_.report.request_rate)
                           ? absl::StrCat(plan_.report.request_rate)
                           : "inf";
    name = absl::StrCat(
        options_.label.empty() ? options_.backend : options_.label, "-", rate,
        "qps",
        options_.max_concurrency > 0
            ? absl::StrCat("-concurrency", options_.max_concurrency)
            : "",
        "-", model, "-",
        absl::FormatTime("%Y%m%d-%H%M%S", date_, absl::LocalTimeZone()),
        ".json");
  }
  if (options_.result_dir.empty()) return name;
  return (std::filesystem::path(options_.result_dir) / name).string();
}

absl::Status ServeBench::CheckFiles() const {
  QUIRE_RETURN_IF_ERROR(CheckWritable(options_.plot));
  if (!SavesResult() && !options_.plot_timeline) return absl::OkStatus();
  if (!options_.result_dir.empty()) {
    std::error_code error;
    std::filesystem::create_directories(options_.result_dir, error);
  }
  // The model's name, which may become a part of the file's, is not known yet.
  return CheckWritable(ResultPath(), options_.append_result);
}

// The result first, and whatever else can be written: a run is not lost for a
// picture of it. Returns the first error.
absl::Status ServeBench::Save(const ServingMetrics& metrics) {
  const std::string path = ResultPath();
  absl::Status status;
  if (SavesResult()) {
    status = WriteTextFile(path, DumpJson(Result(metrics)) + "\n",
                           options_.append_result);
    if (status.ok()) {
      absl::FPrintF(stderr, "quire: the result is in %s\n", path);
    }
  }
  if (options_.plot_timeline) {
    const std::string page_path = std::filesystem::path(path)
                                      .replace_extension(".timeline.html")
                                      .string();
    const absl::Status page_status = WriteTextFile(
        page_path,
        TimelinePage(result_.records, metrics.duration, plan_.timeline,
                     absl::StrCat(plan_.model, " at ", plan_.url.Origin())));
    if (page_status.ok()) {
      absl::FPrintF(stderr, "quire: the timeline is in %s\n", page_path);
    }
    status.Update(page_status);
  }
  if (!options_.plot.empty()) {
    status.Update(WriteTextFile(
        options_.plot,
        LatencyPlot(result_.records, metrics.duration,
                    absl::StrCat(plan_.model, " at ", plan_.url.Origin(), ", ",
                                 metrics.completed, " requests"),
                    plan_.report.task)));
  }
  return status;
}

void ServeBench::FailAll(absl::string_view error, bool were_started) {
  const int size = plan_.dataset.random_batch_size;
  result_.records.resize(prompts_.empty()
                             ? (options_.num_prompts + size - 1) / size
                             : prompts_.size());
  for (size_t i = 0; i < result_.records.size(); ++i) {
    const bool is_malformed = !prompts_.empty() && !prompts_[i].error.empty();
    result_.records[i].error =
        is_malformed ? prompts_[i].error : std::string(error);
    result_.records[i].was_started = is_malformed || were_started;
  }
}

int ServeBench::ExitCode(const ServingMetrics& metrics) const {
  if (result_.was_cancelled) return kExitInterrupted;
  if (!connection_.ok()) return kExitDevice;
  return metrics.failed > 0 ? kExitRequestsFailed : kExitOk;
}

int ServeBench::Run() {
  RaiseOpenFileLimit();
  TakeShortSlices();  // A late reader would see late tokens.
  if (const absl::Status status = CheckFiles(); !status.ok()) {
    return FailBench(status, kExitDevice);
  }
  connection_ = Connect();
  const absl::Status made = MakeLoad();
  if (!made.ok() && !is_interrupted_) {
    // Else it is the server that did not count tokens.
    const bool is_usage =
        absl::IsInvalidArgument(made) || absl::IsNotFound(made);
    return FailBench(made, is_usage ? kExitUsage : kExitDevice);
  }
  if (made.ok() && connection_.ok()) connection_ = WarmUp();
  if (is_interrupted_) {
    result_.was_cancelled = true;
    FailAll("cancelled before it started", /*were_started=*/false);
  } else if (connection_.ok()) {
    Measure();
  } else {
    FailAll(connection_.message());
  }
  ServingMetrics metrics =
      ComputeServingMetrics(result_.records, result_.duration, plan_.report);
  metrics.counters = counters_;
  std::fputs(ServingReport(metrics, plan_.report).c_str(), stdout);
  if (plan_.load.probe_interval > 0 && connection_.ok()) {
    std::fputs(ProbeReport(result_.probes).c_str(), stdout);
  }
  std::fflush(stdout);
  std::vector<std::string> errors;
  for (const RequestResult& record : result_.records) {
    errors.push_back(record.was_started ? record.error : "");
  }
  PrintRequestErrors(errors);
  if (metrics.not_started > 0) {
    absl::FPrintF(stderr, "quire: interrupted: %d request%s not started\n",
                  metrics.not_started,
                  metrics.not_started == 1 ? " was" : "s were");
  }
  if (const absl::Status status = Save(metrics); !status.ok()) {
    return FailBench(status, kExitDevice);
  }
  return ExitCode(metrics);
}

}  // namespace

int RunBenchServe(const BenchServeOptions& options) {
  auto plan = MakePlan(options);
  if (!plan.ok()) return FailBench(plan.status(), kExitUsage);
  return ServeBench(options, *std::move(plan)).Run();
}

}  // namespace quire
