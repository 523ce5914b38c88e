#include "benchmarks/serving/serving_load.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace quire {
namespace {

class Load;

// As vLLM's: the shortest request there is.
LoadPrompt ProbePrompt() {
  LoadPrompt prompt;
  prompt.text = "Hi";
  prompt.num_tokens = 1;
  prompt.output_len = 1;
  return prompt;
}

// One request; outlives its response.
class LoadRequest : public ResponseHandler {
 public:
  LoadRequest(Load* load, const LoadPrompt* prompt, RequestResult* record,
              bool is_probe = false)
      : load_(load), prompt_(prompt), record_(record), is_probe_(is_probe) {
    record->prompt_len = prompt->num_tokens;
    record->num_inputs = 1 + static_cast<int>(prompt->further_inputs.size());
  }
  void OnEvent(absl::string_view data, double now) override;
  void OnEnd(const ResponseEnd& end, double now) override;
  void Start(double now);

 private:
  bool is_pooling() const;
  void AddChunk(const CompletionChunk& chunk, double now);
  // The answer of an embeddings API, which is no stream.
  void ReadEmbeddings(const ResponseEnd& end, double now);
  // Sets the record's output_tokens, unless the server did, and chunk_tokens.
  void CountTokens();

  Load* const load_;
  const LoadPrompt* const prompt_;
  RequestResult* const record_;
  const bool is_probe_;
  double started_at_ = 0;
  double last_chunk_at_ = 0;
  int64_t num_chunks_ = 0;
  bool is_ended_ = false;  // The stream has said that it ends.
  bool has_usage_ = false;
  // Of each chunk: bytes of text, and the tokens up to its end as far as the
  // server has said so with it (continuous_usage_stats).
  std::vector<double> chunk_bytes_;
  std::vector<int64_t> usage_at_chunk_;
};

class Load {
 public:
  Load(LoadClient* client, const std::vector<LoadPrompt>& prompts,
       const ServingLoadOptions& options)
      : client_(client), options_(options) {
    result_.records.resize(prompts.size());
    requests_.reserve(prompts.size());
    for (size_t i = 0; i < prompts.size(); ++i) {
      requests_.emplace_back(this, &prompts[i], &result_.records[i]);
    }
    progress_.num_requests = static_cast<int>(prompts.size());
  }

  ServingLoadResult Run();

 private:
  friend class LoadRequest;

  bool IsCancelled() const {
    return options_.is_cancelled != nullptr && *options_.is_cancelled;
  }
  // Without probes.
  int NumOpen() const { return client_->num_open() - num_open_probes_; }
  bool HasPlace() const {
    return options_.max_concurrency == 0 ||
           NumOpen() < options_.max_concurrency;
  }
  void StartDue(double now);
  void StartProbe(double now);
  void Report(double now);

  LoadClient* const client_;
  const ServingLoadOptions& options_;
  std::vector<LoadRequest> requests_;
  ServingLoadResult result_;
  size_t num_started_ = 0;
  const LoadPrompt probe_prompt_ = ProbePrompt();
  std::deque<RequestResult> probe_records_;  // Requests point to them.
  std::deque<LoadRequest> probes_;
  int num_open_probes_ = 0;
  double next_probe_ = 0;
  double start_ = 0;
  double next_report_ = 0;
  LoadProgress progress_;
};

bool LoadRequest::is_pooling() const {
  return load_->options_.params.api == CompletionApi::kEmbeddings;
}

void LoadRequest::Start(double now) {
  record_->start_time = now - load_->start_;
  if (!prompt_->error.empty()) {
    record_->error = prompt_->error;
    ++load_->progress_.num_done;
    ++load_->progress_.num_failed;
    return;
  }
  HttpMessage message;
  message.path = load_->options_.endpoint;
  message.headers = load_->options_.headers;
  message.body = CompletionBody(load_->options_.params, *prompt_);
  // What rendering took is not the server's.
  started_at_ = MonotonicSeconds();
  load_->client_->Start(message, this);
}

void LoadRequest::AddChunk(const CompletionChunk& chunk, double now) {
  if (!chunk.error.empty() && record_->error.empty()) {
    record_->error = chunk.error.substr(0, 1000);
  }
  if (chunk.prompt_tokens.has_value()) {
    record_->prompt_len = *chunk.prompt_tokens;
  }
  if (chunk.completion_tokens.has_value()) {
    record_->output_tokens = *chunk.completion_tokens;
    has_usage_ = true;
  }
  if (chunk.queue_seconds.has_value()) {
    record_->queue_seconds = chunk.queue_seconds;
  }
  if (!chunk.has_choice) return;
  if (num_chunks_++ == 0) {
    record_->ttft = now - started_at_;
  } else {
    record_->itls.push_back(now - last_chunk_at_);
  }
  last_chunk_at_ = now;
  record_->latency = now - started_at_;
  chunk_bytes_.push_back(static_cast<double>(chunk.text.size()));
  if (chunk.completion_tokens.has_value()) {
    usage_at_chunk_.push_back(*chunk.completion_tokens);
  }
  if (load_->options_.keeps_text) record_->generated_text += chunk.text;
  if (!is_probe_) ++load_->progress_.num_tokens;
}

void LoadRequest::CountTokens() {
  if (!has_usage_) record_->output_tokens = num_chunks_;
  const auto num_tokens = static_cast<double>(record_->output_tokens);
  // One token in each chunk, as servers mostly send them.
  if (record_->output_tokens == num_chunks_ || num_chunks_ == 0) return;
  std::vector<double>& tokens = record_->chunk_tokens;
  if (static_cast<int64_t>(usage_at_chunk_.size()) == num_chunks_) {
    // What is told after the last chunk came with it.
    usage_at_chunk_.back() = record_->output_tokens;
    int64_t before = 0;
    for (const int64_t count : usage_at_chunk_) {
      tokens.push_back(
          static_cast<double>(std::max<int64_t>(0, count - before)));
      before = count;
    }
    return;
  }
  const auto num_with_text = std::count_if(
      chunk_bytes_.begin(), chunk_bytes_.end(), [](double n) { return n > 0; });
  const double num_bytes =
      std::accumulate(chunk_bytes_.begin(), chunk_bytes_.end(), 0.0);
  for (const double bytes : chunk_bytes_) {
    if (num_with_text == record_->output_tokens) {
      tokens.push_back(bytes > 0 ? 1 : 0);  // A chat's role has no token.
    } else {
      tokens.push_back(num_tokens *
                       (num_bytes > 0 ? bytes / num_bytes : 1.0 / num_chunks_));
    }
  }
}

void LoadRequest::OnEvent(absl::string_view data, double now) {
  if (data == "[DONE]") {
    is_ended_ = true;
    return;
  }
  CompletionChunk chunk;
  const absl::Status status = ReadCompletionChunk(data, &chunk);
  if (!status.ok()) {
    if (record_->error.empty()) record_->error = std::string(status.message());
    return;
  }
  is_ended_ |= chunk.has_finish_reason;
  AddChunk(chunk, now);
}

void LoadRequest::ReadEmbeddings(const ResponseEnd& end, double now) {
  CompletionChunk answer;
  const bool is_json =
      !end.is_event_stream && ReadCompletionChunk(end.body, &answer).ok();
  if (!is_json) {
    record_->error = absl::StrCat("the answer is not a JSON object: ",
                                  ErrorText(end.http_status, end.body));
    return;
  }
  if (!answer.error.empty()) {
    record_->error = answer.error.substr(0, 1000);
    return;
  }
  if (answer.num_embeddings != record_->num_inputs) {
    record_->error =
        absl::StrCat("the answer has ", answer.num_embeddings,
                     " embeddings of ", record_->num_inputs, " inputs");
    return;
  }
  record_->prompt_len = answer.prompt_tokens.value_or(record_->prompt_len);
  record_->ttft = record_->latency = now - started_at_;
}

void LoadRequest::OnEnd(const ResponseEnd& end, double now) {
  if (!end.status.ok()) {
    record_->error = std::string(end.status.message());
  } else if (end.http_status != 200) {
    record_->error = ErrorText(end.http_status, end.body);
  } else if (is_pooling()) {
    ReadEmbeddings(end, now);
  } else if (!end.is_event_stream && record_->error.empty()) {
    record_->error = absl::StrCat("the answer is not an event stream: ",
                                  ErrorText(end.http_status, end.body));
  } else if (num_chunks_ == 0 && record_->error.empty()) {
    record_->error = "the stream brought no token";
  } else if (!is_ended_ && record_->error.empty()) {
    // A proxy ends the answer of a server that has died like any other.
    record_->error =
        "the stream broke off: neither a finish_reason nor [DONE] came";
  }
  if (!is_pooling()) CountTokens();
  record_->success = record_->error.empty();
  if (is_probe_) {
    --load_->num_open_probes_;
    load_->next_probe_ = now + load_->options_.probe_interval;
    return;
  }
  ++load_->progress_.num_done;
  load_->progress_.num_failed += !record_->success;
  load_->progress_.num_tokens +=
      is_pooling() ? (record_->success ? record_->prompt_len : 0)
                   : record_->output_tokens - num_chunks_;
}

void Load::StartDue(double now) {
  while (num_started_ < requests_.size() && HasPlace() &&
         start_ + options_.arrival_times[num_started_] <= now) {
    requests_[num_started_++].Start(MonotonicSeconds());
  }
}

void Load::StartProbe(double now) {
  if (options_.probe_interval <= 0 || num_open_probes_ > 0 ||
      now < next_probe_) {
    return;
  }
  ++num_open_probes_;
  RequestResult& record = probe_records_.emplace_back();
  probes_.emplace_back(this, &probe_prompt_, &record, /*is_probe=*/true)
      .Start(MonotonicSeconds());
}

void Load::Report(double now) {
  if (!options_.on_progress || now < next_report_) return;
  next_report_ = now + 0.1;
  progress_.num_open = NumOpen();
  progress_.seconds = now - start_;
  options_.on_progress(progress_);
}

ServingLoadResult Load::Run() {
  start_ = MonotonicSeconds();
  while (!IsCancelled() && (num_started_ < requests_.size() || NumOpen() > 0)) {
    const double now = MonotonicSeconds();
    StartDue(now);
    StartProbe(now);
    Report(now);
    double wait = 0.1;  // For cancellation and progress.
    // Without a place, the next start waits for an end, which wakes Poll.
    if (num_started_ < requests_.size() && HasPlace()) {
      wait =
          std::min(wait, start_ + options_.arrival_times[num_started_] - now);
    }
    if (options_.probe_interval > 0 && num_open_probes_ == 0) {
      wait = std::min(wait, next_probe_ - now);
    }
    client_->Poll(std::max(wait, 0.0));
  }
  result_.duration = MonotonicSeconds() - start_;
  while (!IsCancelled() && num_open_probes_ > 0) client_->Poll(0.1);
  if (IsCancelled()) {
    result_.was_cancelled = true;
    client_->CancelAll();
    for (size_t i = num_started_; i < requests_.size(); ++i) {
      result_.records[i].error = "cancelled before it started";
      result_.records[i].was_started = false;
    }
  }
  result_.probes.assign(probe_records_.begin(), probe_records_.end());
  next_report_ = 0;
  Report(MonotonicSeconds());
  return std::move(result_);
}

}  // namespace

ServingLoadResult RunServingLoad(LoadClient* client,
                                 const std::vector<LoadPrompt>& prompts,
                                 const ServingLoadOptions& options) {
  return Load(client, prompts, options).Run();
}

}  // namespace quire
