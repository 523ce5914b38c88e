// `quire bench throughput` and `quire bench latency`.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/serving/dataset.h"
#include "benchmarks/serving/load_client.h"
#include "benchmarks/serving/prompt_codec.h"
#include "benchmarks/statistics.h"
#include "benchmarks/step_timer.h"
#include "cli/bench.h"
#include "cli/bench_output.h"
#include "cli/exit_codes.h"
#include "cli/session.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"
#include "nlohmann/json.hpp"
#include "server/json_text.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

// Counts what the engine gives.
class TokenCounter : public OutputSink {
 public:
  void Push(std::vector<OutputEvent> events) override {
    std::lock_guard<std::mutex> lock(mu_);
    for (const OutputEvent& event : events) {
      num_tokens_ += event.tokens.size();
      if (!event.error.ok()) error_ = event.error;
      num_ended_ += event.is_last;
    }
    has_ended_.notify_all();
  }
  // Waits until `count` requests have ended, or `seconds`.
  bool WaitForEnds(int64_t count, double seconds) {
    std::unique_lock<std::mutex> lock(mu_);
    return has_ended_.wait_for(lock, std::chrono::duration<double>(seconds),
                               [&] { return num_ended_ >= count; });
  }
  int64_t num_ended() {
    std::lock_guard<std::mutex> lock(mu_);
    return num_ended_;
  }
  int64_t num_tokens() {
    std::lock_guard<std::mutex> lock(mu_);
    return num_tokens_;
  }
  absl::Status error() {
    std::lock_guard<std::mutex> lock(mu_);
    return error_;
  }

 private:
  std::mutex mu_;
  std::condition_variable has_ended_;
  int64_t num_tokens_ = 0;  // Guarded by mu_, as the next two.
  int64_t num_ended_ = 0;
  absl::Status error_;
};

class OfflineEngine {
 public:
  // Null with `error` set.
  static std::unique_ptr<OfflineEngine> Create(SessionOptions options,
                                               CommandError* error) {
    // Everything is submitted at once.
    options.max_num_queued_reqs = 1 << 20;
    options.max_num_queued_tokens = int64_t{1} << 40;
    options.max_num_queued_bytes = "1024GiB";
    auto engine = std::make_unique<OfflineEngine>();
    engine->session_ = LoadSession(options, error);
    if (engine->session_ == nullptr) return nullptr;
    engine->timer_ = std::make_unique<StepTimer>(engine->session_->runner,
                                                 &MonotonicSeconds);
    auto loop = EngineLoop::Create(
        engine->session_->engine_options, engine->timer_.get(),
        Clock::Monotonic(), &engine->counter_, engine->session_->drafter.get());
    if (!loop.ok()) {
      *error = {loop.status(), kExitUsage};
      return nullptr;
    }
    engine->loop_ = std::move(*loop);
    return engine;
  }

  const Session& session() const { return *session_; }

  // Exactly `output_len` tokens, or, with stop_at_eos, at most; by default
  // sampled, as vLLM's benchmark does.
  absl::Status Submit(std::vector<int32_t> prompt, int64_t output_len,
                      double temperature = 1, bool stop_at_eos = false) {
    Request request;
    request.id = loop_->NewRequestId();
    request.prompt_token_ids = std::move(prompt);
    request.sampling.max_tokens = static_cast<int32_t>(output_len);
    request.sampling.ignore_eos = !stop_at_eos;
    request.sampling.temperature = static_cast<float>(temperature);
    request.sampling.seed = request.id;
    request.arrival_time = Clock::Monotonic()->Now();
    return loop_->Submit(std::move(request));
  }

  TokenCounter& counter() { return counter_; }
  EngineStats Stats() const { return loop_->Stats(); }
  // Ends the engine.
  StepTimes Times() {
    loop_.reset();
    return timer_->Times();
  }

 private:
  // In order of use: the loop ends first.
  std::unique_ptr<Session> session_;
  std::unique_ptr<StepTimer> timer_;
  TokenCounter counter_;
  std::unique_ptr<EngineLoop> loop_;
};

absl::StatusOr<std::vector<LoadPrompt>> MakeOfflinePrompts(
    const BenchOfflineOptions& options, const Tokenizer& tokenizer,
    const std::atomic<bool>& is_interrupted) {
  DatasetOptions dataset;
  dataset.kind =
      options.dataset_name == "sharegpt" ? DatasetOptions::Kind::kShareGpt
      : options.dataset_name == "custom" ? DatasetOptions::Kind::kCustom
                                         : DatasetOptions::Kind::kRandom;
  dataset.path = options.dataset_path;
  dataset.num_prompts = options.num_prompts;
  if (options.input_len > 0) dataset.random_input_len = options.input_len;
  dataset.random_output_len = options.output_len;
  dataset.custom_output_len = options.output_len > 0 ? options.output_len : -1;
  dataset.random_range_ratio = options.random_range_ratio;
  dataset.random_prefix_len = options.random_prefix_len;
  const std::unique_ptr<PromptCodec> codec = NewLocalCodec(&tokenizer);
  SimulationRandom random(options.model.seed);
  ProgressLine line(true);
  QUIRE_ASSIGN_OR_RETURN(
      std::vector<LoadPrompt> prompts,
      MakePrompts(dataset, CompletionApi::kCompletions, codec.get(), &random,
                  [&](int64_t num_made, int64_t count) {
                    line.Show("prompts", num_made, count, "");
                    return !is_interrupted;
                  }));
  for (LoadPrompt& prompt : prompts) {
    if (!prompt.error.empty()) continue;
    QUIRE_ASSIGN_OR_RETURN(prompt.token_ids, codec->Encode(prompt.text));
  }
  return prompts;
}

// Writes `json` to `path` if there is one, and returns the exit code.
int SaveJson(const std::string& path, const Json& json, int exit_code) {
  if (path.empty()) return exit_code;
  const absl::Status status = WriteTextFile(
      path, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  return status.ok() ? exit_code : FailBench(status, kExitDevice);
}

// What a run of the throughput benchmark came to.
struct ThroughputFigures {
  double elapsed = 0;  // Seconds.
  int64_t num_ended = 0;
  int64_t num_prompt_tokens = 0;
  int64_t num_output_tokens = 0;
};

Json ReportThroughput(const ThroughputFigures& figures) {
  const double elapsed = figures.elapsed;
  const int64_t num_tokens =
      figures.num_prompt_tokens + figures.num_output_tokens;
  absl::PrintF(
      "Throughput: %.2f requests/s, %.2f total tokens/s, %.2f output "
      "tokens/s\nTotal num prompt tokens:  %d\nTotal num output tokens:  %d\n",
      figures.num_ended / elapsed, num_tokens / elapsed,
      figures.num_output_tokens / elapsed, figures.num_prompt_tokens,
      figures.num_output_tokens);
  return {{"elapsed_time", elapsed},
          {"num_requests", figures.num_ended},
          {"total_num_tokens", num_tokens},
          {"requests_per_second", figures.num_ended / elapsed},
          {"tokens_per_second", num_tokens / elapsed}};
}

void ReportDrafts(const EngineStats& stats, Json* json) {
  if (stats.num_drafts == 0) return;
  const double drafted = static_cast<double>(stats.num_draft_tokens);
  const double accepted = static_cast<double>(stats.num_accepted_tokens);
  const double length = 1 + accepted / static_cast<double>(stats.num_drafts);
  absl::PrintF(
      "Drafts: %d tokens, %.1f %% accepted; acceptance length %.2f; %d "
      "steps\n",
      stats.num_draft_tokens, 100 * accepted / drafted, length,
      stats.num_steps);
  (*json)["spec_decode_num_draft_tokens"] = stats.num_draft_tokens;
  (*json)["spec_decode_acceptance_rate"] = accepted / drafted;
  (*json)["spec_decode_acceptance_length"] = length;
}

// Of a GPU: a CPU is the host and the device. Ends the engine.
void ReportHostTime(OfflineEngine* engine, Json* json) {
  const Backend& backend = *engine->session().loaded.backend;
  if (!backend.OwnsMemory()) return;
  const StepTimes times = engine->Times();
  absl::PrintF("%s\n", backend.StepsSummary());
  if (times.num_steps == 0) return;
  absl::PrintF(
      "Host per step: %.1f us, at most %.1f us of it with an idle device "
      "(medians of %d steps; %.0f %% began with one)\n",
      times.host, times.exposed, times.num_steps, times.exposed_steps);
  (*json)["host_us_per_step"] = times.host;
  (*json)["exposed_host_us_per_step"] = times.exposed;
}

}  // namespace

int RunBenchThroughput(const BenchOfflineOptions& options) {
  const std::atomic<bool>& is_interrupted = InterruptFlag();
  CommandError error;
  if (options.output_len < 1 && options.dataset_name != "custom") {
    return FailBench(absl::InvalidArgumentError(
                         "--output-len 0 needs --dataset-name custom"),
                     kExitUsage);
  }
  const auto engine = OfflineEngine::Create(options.model, &error);
  if (engine == nullptr) return FailBench(error.status, error.exit_code);
  auto prompts =
      MakeOfflinePrompts(options, *engine->session().tokenizer, is_interrupted);
  if (absl::IsCancelled(prompts.status())) return kExitInterrupted;
  if (!prompts.ok()) return FailBench(prompts.status(), kExitUsage);
  ThroughputFigures figures;
  std::vector<std::string> errors;  // Of malformed lines.
  const double start = MonotonicSeconds();
  for (LoadPrompt& prompt : *prompts) {
    if (!prompt.error.empty()) {
      errors.push_back(std::move(prompt.error));
      continue;
    }
    figures.num_prompt_tokens += prompt.token_ids.size();
    const absl::Status status =
        engine->Submit(std::move(prompt.token_ids), prompt.output_len,
                       options.temperature, options.stop_at_eos);
    if (!status.ok()) return FailBench(status, kExitUsage);
  }
  ProgressLine line(true);
  TokenCounter& counter = engine->counter();
  const auto num_requests =
      static_cast<int64_t>(prompts->size() - errors.size());
  while (!counter.WaitForEnds(num_requests, 0.1) && !is_interrupted) {
    line.Show("requests", counter.num_ended(), num_requests,
              absl::StrFormat("%.0f tok/s", counter.num_tokens() /
                                                (MonotonicSeconds() - start)));
  }
  figures.elapsed = MonotonicSeconds() - start;
  line.Clear();
  if (!counter.error().ok()) return FailBench(counter.error(), kExitEngine);
  // Interrupted: of what has ended, with the prompts' mean length.
  figures.num_ended = counter.num_ended();
  figures.num_prompt_tokens =
      figures.num_prompt_tokens * figures.num_ended / num_requests;
  figures.num_output_tokens = counter.num_tokens();
  Json json = ReportThroughput(figures);
  ReportDrafts(engine->Stats(), &json);
  ReportHostTime(engine.get(), &json);
  if (!errors.empty()) {
    json["failed"] = errors.size();
    json["errors"] = errors;
    PrintRequestErrors(errors);
  }
  return SaveJson(options.output_json, json,
                  is_interrupted   ? kExitInterrupted
                  : errors.empty() ? kExitOk
                                   : kExitRequestsFailed);
}

int RunBenchLatency(const BenchOfflineOptions& options) {
  const std::atomic<bool>& is_interrupted = InterruptFlag();
  CommandError error;
  SessionOptions model = options.model;
  model.max_num_seqs = std::max(model.max_num_seqs, options.batch_size);
  const auto engine = OfflineEngine::Create(model, &error);
  if (engine == nullptr) return FailBench(error.status, error.exit_code);
  const int64_t input_len = options.input_len > 0 ? options.input_len : 32;
  SimulationRandom random(options.model.seed);
  const std::unique_ptr<PromptCodec> codec =
      NewLocalCodec(engine->session().tokenizer.get());
  const absl::Span<const int32_t> ids = codec->PlainIds();
  if (ids.empty()) {
    return FailBench(absl::InvalidArgumentError("the tokenizer has no tokens"),
                     kExitModel);
  }
  std::vector<double> seconds;
  int64_t num_submitted = 0;
  ProgressLine line(true);
  const int num_iters = options.num_iters_warmup + options.num_iters;
  for (int i = 0; i < num_iters && !is_interrupted; ++i) {
    line.Show("iterations", i, num_iters, "");
    const double start = MonotonicSeconds();
    for (int b = 0; b < options.batch_size; ++b) {
      std::vector<int32_t> prompt(input_len);
      for (int32_t& id : prompt) id = ids[random.Below(ids.size())];
      const absl::Status status =
          engine->Submit(std::move(prompt), options.output_len);
      if (!status.ok()) return FailBench(status, kExitUsage);
      ++num_submitted;
    }
    while (!engine->counter().WaitForEnds(num_submitted, 0.5)) {
      if (is_interrupted) break;
    }
    if (!engine->counter().error().ok()) {
      return FailBench(engine->counter().error(), kExitEngine);
    }
    if (i >= options.num_iters_warmup && !is_interrupted) {
      seconds.push_back(MonotonicSeconds() - start);
    }
  }
  line.Clear();
  if (seconds.empty()) return kExitInterrupted;
  Json percentiles = Json::object();
  absl::PrintF("Avg latency: %.6f seconds\n", Mean(seconds));
  for (int percent : {10, 25, 50, 75, 90, 99}) {
    const double value = Percentile(seconds, percent);
    percentiles[absl::StrCat(percent)] = value;
    absl::PrintF("%d%% percentile latency: %.6f seconds\n", percent, value);
  }
  const Json json = {{"avg_latency", Mean(seconds)},
                     {"latencies", seconds},
                     {"percentiles", percentiles}};
  return SaveJson(options.output_json, json,
                  is_interrupted ? kExitInterrupted : kExitOk);
}

}  // namespace quire
