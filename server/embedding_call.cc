#include "server/embedding_call.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/api_error.h"
#include "server/embedding.h"
#include "server/json_text.h"
#include "server/request_gate.h"

namespace quire {
namespace {

// The shortest decimals that read back as the same f32: half the bytes of a
// double's.
void AppendFloats(absl::Span<const float> values, std::string* out) {
  char separator = '[';
  for (const float value : values) {
    *out += separator;
    char text[32];
    const auto end = std::to_chars(text, text + sizeof(text), value);
    out->append(text, end.ptr);
    separator = ',';
  }
  *out += values.empty() ? "[]" : "]";
}

}  // namespace

EmbeddingCall::EmbeddingCall(EmbeddingCallOptions options,
                             std::vector<Request> requests, EngineLoop* engine,
                             OutputProcessor* output,
                             std::shared_ptr<HttpResponder> responder)
    : options_(std::move(options)),
      engine_(engine),
      output_(output),
      responder_(std::move(responder)),
      num_inputs_(static_cast<int>(requests.size())),
      vectors_(requests.size()),
      num_open_inputs_(num_inputs_),
      requests_(std::move(requests)) {
  for (const Request& request : requests_) {
    num_prompt_tokens_ += request.prompt_token_ids.size();
  }
}

CallPart EmbeddingCall::PartOf(int input_idx) const {
  const Request& request = requests_[input_idx];
  CallPart part;
  part.request_id = request.id;
  part.first_choice = input_idx;
  part.num_prompt_tokens =
      static_cast<int64_t>(request.prompt_token_ids.size());
  part.arrival_time = request.arrival_time;
  return part;
}

void EmbeddingCall::Submit() {
  std::lock_guard<std::mutex> lock(mu_);
  const int num_first = std::min(num_inputs_, options_.max_in_flight);
  std::vector<CallPart> parts;
  for (int i = 0; i < num_first; ++i) parts.push_back(PartOf(i));
  output_->Register(shared_from_this(), parts);
  for (int i = 0; i < num_first; ++i) {
    requests_[i].continues_call = i > 0;
    Request request = std::move(requests_[i]);
    requests_[i].id = request.id;  // For Cancel.
    const absl::Status status = engine_->Submit(std::move(request));
    if (status.ok()) continue;
    output_->Reject(shared_from_this(), i, parts, SubmitRefusal(status));
    is_cancelled_ = true;
    return;
  }
  next_input_ = num_first;
  output_->Accept(shared_from_this());
}

void EmbeddingCall::SubmitNext() {
  std::lock_guard<std::mutex> lock(mu_);
  if (is_cancelled_ || next_input_ == num_inputs_) return;
  const CallPart part = PartOf(next_input_);
  Request request = std::move(requests_[next_input_++]);
  requests_[next_input_ - 1].id = part.request_id;
  request.continues_call = true;
  output_->Register(shared_from_this(), {part});
  const absl::Status status = engine_->Submit(std::move(request));
  if (status.ok()) return;
  is_cancelled_ = true;
  output_->Reject(shared_from_this(), 0, {part}, SubmitRefusal(status));
}

void EmbeddingCall::Cancel() {
  std::lock_guard<std::mutex> lock(mu_);
  is_cancelled_ = true;
  // Those that have ended are ignored.
  for (int i = 0; i < next_input_; ++i) engine_->Abort(requests_[i].id);
}

void EmbeddingCall::FillRecord(const char* finish_reason) {
  if (options_.record == nullptr) return;
  RequestRecord& record = *options_.record;
  record.num_prompt_tokens = num_prompt_tokens_;
  record.num_cached_tokens = num_cached_tokens_;
  record.scheduled_time = scheduled_time_;
  record.finish_reason = finish_reason;
}

bool EmbeddingCall::Append(int input_idx, const OutputEvent& event) {
  if (event.scheduled_time != absl::Time() &&
      scheduled_time_ == absl::InfinitePast()) {
    scheduled_time_ = event.scheduled_time;
  }
  if (is_complete_ || !event.finish_reason.has_value()) return false;
  if (event.embedding.empty()) {
    Fail(absl::UnavailableError("the request was aborted"));
    return false;
  }
  std::string& vector = vectors_[input_idx];
  const std::vector<float> values =
      FinishEmbedding(event.embedding, options_.dimensions, options_.normalize);
  if (options_.is_base64) {
    vector = "\"";
    AppendBase64Floats(values, &vector);
    vector += '"';
  } else {
    AppendFloats(values, &vector);
  }
  --num_open_inputs_;
  SubmitNext();
  return false;
}

std::optional<FinishReason> EmbeddingCall::finish_reason(int input_idx) const {
  if (vectors_[input_idx].empty()) return std::nullopt;
  return FinishReason::kStop;
}

void EmbeddingCall::Flush() {
  if (!is_complete_ && num_open_inputs_ == 0) Complete();
}

void EmbeddingCall::Complete() {
  is_complete_ = true;
  if (options_.ticket != nullptr) options_.ticket->Release();
  FillRecord("stop");
  std::string out =
      absl::StrCat(R"({"id":")", options_.id, R"(","object":"list","created":)",
                   options_.created, R"(,"model":)");
  AppendJsonString(options_.model, &out);
  out += R"(,"data":[)";
  for (int i = 0; i < num_inputs_; ++i) {
    absl::StrAppend(&out, i == 0 ? "" : ",",
                    R"({"object":"embedding","index":)", i, R"(,"embedding":)",
                    vectors_[i], "}");
  }
  absl::StrAppend(&out, R"(],"usage":{"prompt_tokens":)", num_prompt_tokens_,
                  R"(,"total_tokens":)", num_prompt_tokens_,
                  R"(,"prompt_tokens_details":{"cached_tokens":)",
                  num_cached_tokens_, "}}}");
  vectors_.clear();
  vectors_.resize(num_inputs_);
  responder_->Send(200, "application/json", std::move(out), options_.headers);
}

void EmbeddingCall::Fail(const absl::Status& error) {
  if (is_complete_) return;
  is_complete_ = true;
  if (options_.ticket != nullptr) options_.ticket->Release();
  FillRecord("error");
  {
    std::lock_guard<std::mutex> lock(mu_);
    is_cancelled_ = true;
    for (int i = 0; i < next_input_; ++i) engine_->Abort(requests_[i].id);
  }
  HttpHeaders headers = options_.headers;
  const int http_status = HttpStatus(error);
  if (const std::string wait = RetryAfter(error); !wait.empty()) {
    headers.emplace_back("Retry-After", wait);
  }
  responder_->Send(http_status, "application/json", ErrorBody(error), headers);
}

}  // namespace quire
