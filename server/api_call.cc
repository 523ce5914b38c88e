#include "server/api_call.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "server/api_error.h"
#include "server/json_text.h"

namespace quire {
namespace {

// OpenAI's field for what computed an answer: an edge without its cloud.
constexpr char kDraftModelFingerprint[] =
    R"(,"system_fingerprint":"draft-model-offline")";

// "65", and so on: a list without brackets.
std::string JoinIds(absl::Span<const int32_t> ids) {
  return absl::StrJoin(ids, ",");
}

// When some of `count` parts have been appended since `begin`: room for all. A
// large text that grows by doubling takes three times its size for a moment.
void ReserveForRest(size_t begin, size_t num_done, size_t count,
                    std::string* out) {
  constexpr size_t kSome = 64;
  if (num_done != kSome) return;
  const size_t size = (out->size() - begin) / kSome * count;
  out->reserve(begin + size + size / 16);
}

}  // namespace

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kError:
      return "error";
  }
  return "error";
}

ApiCall::ApiCall(ApiCallOptions options, const Tokenizer* tokenizer,
                 std::shared_ptr<HttpResponder> responder)
    : options_(std::move(options)),
      tokenizer_(tokenizer),
      responder_(std::move(responder)),
      num_open_choices_(options_.num_choices) {
  choices_.reserve(options_.num_choices);
  for (int i = 0; i < options_.num_choices; ++i) {
    choices_.push_back(
        {IncrementalDetokenizer(tokenizer_, options_.skip_special_tokens),
         StopStringMatcher(options_.stop_strings,
                           options_.include_stop_str_in_output)});
  }
  for (const ApiCallPrompt& prompt : options_.prompts) {
    prompts_.push_back({&prompt, {}});
  }
}

void ApiCall::Start() {
  if (!options_.stream || is_started_ || is_complete_) return;
  is_started_ = true;
  responder_->StartStream(options_.headers);
}

bool ApiCall::Append(int choice_idx, const OutputEvent& event) {
  Choice& choice = choices_[choice_idx];
  if (options_.ticket != nullptr) {
    options_.ticket->CountTokens(event.tokens.size());
  }
  if (is_complete_) return false;
  ObserveTimes(event);
  if (!event.prompt_tokens.empty() && !prompts_.empty()) {
    std::vector<TokenOutput>& scored = PromptOf(choice_idx).scored;
    scored.insert(scored.end(), event.prompt_tokens.begin(),
                  event.prompt_tokens.end());
  }
  if (choice.finish_reason.has_value()) return false;
  has_draft_model_tokens_ |= event.is_from_draft_model;
  if (!event.tokens.empty() && !choice.is_begun) BeginChoice(choice_idx);
  num_draft_tokens_ += event.num_draft_tokens;
  for (size_t i = 0; i < event.tokens.size(); ++i) {
    // Those behind a stop string do not count.
    num_accepted_tokens_ += i < static_cast<size_t>(event.num_accepted_tokens);
    const bool is_end = i + 1 == event.tokens.size() &&
                        event.finish_reason == FinishReason::kStop;
    const absl::Status status = AppendToken(choice, event.tokens[i], is_end);
    if (!status.ok()) {
      Fail(status);
      return false;
    }
    if (choice.stops.stopped().has_value()) {
      FinishByStopString(choice);
      return !event.finish_reason.has_value();
    }
  }
  if (!event.finish_reason.has_value()) return false;
  Give(choice,
       choice.stops.Append(choice.detokenizer.Finish(), MayStop(choice)));
  if (choice.stops.stopped().has_value()) {
    FinishByStopString(choice);
    return false;
  }
  Give(choice, choice.stops.Finish());
  if (event.stop_token_id.has_value()) {
    choice.stop_reason_json = absl::StrCat(*event.stop_token_id);
  }
  FinishChoice(choice, *event.finish_reason);
  return false;
}

void ApiCall::BeginChoice(int choice_idx) {
  Choice& choice = choices_[choice_idx];
  choice.is_begun = true;
  if (!options_.echo || prompts_.empty()) return;
  const Prompt& prompt = PromptOf(choice_idx);
  choice.num_text_chars = CountCharacters(prompt.info->echo.text);
  choice.num_text_bytes = prompt.info->echo.text.size();
  Give(choice, prompt.info->echo.text);
  if (!options_.wants_logprobs || options_.kind == ApiKind::kChat) return;
  for (size_t i = 0; i < prompt.info->token_ids.size(); ++i) {
    Logprob entry{
        prompt.info->token_ids[i], 0.0f, {}, -1, prompt.info->echo.offsets[i]};
    if (i == 0 || i > prompt.scored.size()) {
      entry.is_known = false;
    } else {
      const TokenOutput& scored = prompt.scored[i - 1];
      entry.logprob = scored.logprob;
      entry.top = scored.top_logprobs;
      if (entry.top.size() > static_cast<size_t>(options_.num_echo_logprobs)) {
        entry.top.resize(options_.num_echo_logprobs);
      }
    }
    choice.logprobs.push_back(std::move(entry));
  }
}

void ApiCall::Give(Choice& choice, std::string text) {
  choice.num_given_bytes += text.size();
  choice.text += text;
}

// `is_end`: an end or stop token, which is not part of the text unless asked.
absl::Status ApiCall::AppendToken(Choice& choice, const TokenOutput& token,
                                  bool is_end) {
  if (options_.generates_nothing) return absl::OkStatus();
  ++choice.num_tokens;
  choice.sum_logprobs += token.logprob;
  if (options_.return_token_ids) choice.token_ids.push_back(token.token_id);
  const bool is_shown = !is_end || options_.include_stop_str_in_output;
  // Evaluation harnesses cut the drawn tokens off an echo by their number: the
  // end token, too, needs its entry there.
  const bool is_echo = options_.echo && options_.kind == ApiKind::kCompletion;
  std::string piece;
  if (is_shown) piece = choice.detokenizer.Append(token.token_id);
  if (options_.wants_logprobs && (is_shown || is_echo)) {
    if (options_.scores != nullptr && !options_.stream) {
      QUIRE_RETURN_IF_ERROR(
          options_.scores->Add(1 + int64_t(token.top_logprobs.size())));
    }
    choice.logprobs.push_back({token.token_id, token.logprob,
                               token.top_logprobs, choice.num_text_bytes,
                               choice.num_text_chars});
  }
  choice.num_text_bytes += piece.size();
  choice.num_text_chars += CountCharacters(piece);
  Give(choice, choice.stops.Append(piece, MayStop(choice)));
  return absl::OkStatus();
}

void ApiCall::FinishChoice(Choice& choice, FinishReason reason) {
  if (options_.generates_nothing && reason == FinishReason::kStop) {
    // The token that was dropped was an end token.
    reason = FinishReason::kLength;
    choice.stop_reason_json = "null";
  }
  choice.finish_reason = reason;
  --num_open_choices_;
}

void ApiCall::FinishByStopString(Choice& choice) {
  choice.stop_reason_json.clear();
  AppendJsonString(*choice.stops.stopped(), &choice.stop_reason_json);
  // Tokens of the stop string are not part of the answer.
  while (!choice.logprobs.empty() &&
         choice.logprobs.back().text_offset >= choice.num_given_bytes) {
    choice.logprobs.pop_back();
  }
  FinishChoice(choice, FinishReason::kStop);
}

void ApiCall::Flush() {
  if (is_complete_) return;
  if (options_.stream) {
    // Until all parts are accepted the answer may still be an error's status.
    if (!is_started_) return;
    std::string out;
    for (size_t i = 0; i < choices_.size(); ++i) WriteChunks(i, &out);
    if (!out.empty()) responder_->Write(std::move(out));
  }
  if (num_open_choices_ == 0) Complete();
}

// The role comes first, the finish reason in a chunk of its own.
void ApiCall::WriteChunks(int choice_idx, std::string* out) {
  Choice& choice = choices_[choice_idx];
  if (choice.is_finish_written) return;
  const bool is_chat = options_.kind == ApiKind::kChat;
  const bool has_news =
      choice.num_tokens > 0 || choice.finish_reason.has_value();
  if (is_chat && !choice.has_first_chunk && has_news) {
    choice.has_first_chunk = true;
    Chunk chunk;
    chunk.delta = R"({"role":"assistant","content":""})";
    chunk.is_first = true;
    AppendChunk(choice_idx, chunk, out);
  }
  // A token is reported with its text; at the end, with or without.
  size_t num_due = choice.logprobs.size();
  if (!choice.finish_reason.has_value()) {
    while (num_due > 0 &&
           choice.logprobs[num_due - 1].text_offset >= choice.num_given_bytes) {
      --num_due;
    }
  }
  if (!choice.text.empty() || num_due > 0 || !choice.token_ids.empty()) {
    std::string delta;
    if (is_chat) delta = R"({"content":)";
    AppendJsonString(choice.text, &delta);
    if (is_chat) delta += '}';
    Chunk chunk;
    chunk.delta = delta;
    chunk.logprobs = absl::MakeConstSpan(choice.logprobs).first(num_due);
    chunk.token_ids = choice.token_ids;
    chunk.is_first = !choice.has_first_chunk;
    AppendChunk(choice_idx, chunk, out);
    choice.has_first_chunk = true;
    choice.text.clear();
    choice.token_ids.clear();
    choice.logprobs.erase(choice.logprobs.begin(),
                          choice.logprobs.begin() + num_due);
  }
  if (choice.finish_reason.has_value()) {
    choice.is_finish_written = true;
    Chunk chunk;
    chunk.delta = is_chat ? "{}" : R"("")";
    chunk.is_first = !choice.has_first_chunk;
    chunk.is_finish = true;
    AppendChunk(choice_idx, chunk, out);
  }
}

void ApiCall::BeginChunk(std::string* out) const {
  absl::StrAppend(out, R"(data: {"id":")", options_.id, R"(","object":")",
                  options_.kind == ApiKind::kChat ? "chat.completion.chunk"
                                                  : "text_completion",
                  R"(","created":)", options_.created, R"(,"model":)");
  AppendJsonString(options_.model, out);
  if (has_draft_model_tokens_) *out += kDraftModelFingerprint;
}

void ApiCall::AppendChunk(int choice_idx, const Chunk& chunk,
                          std::string* out) const {
  const bool is_chat = options_.kind == ApiKind::kChat;
  const Choice& choice = choices_[choice_idx];
  const bool has_prompt_fields = chunk.is_first && !prompts_.empty();
  BeginChunk(out);
  if (is_chat && has_prompt_fields) {
    AppendPromptFields(PromptOf(choice_idx), out);
  }
  absl::StrAppend(out, R"(,"choices":[{"index":)", choice_idx,
                  is_chat ? R"(,"delta":)" : R"(,"text":)", chunk.delta,
                  R"(,"logprobs":)");
  if (chunk.logprobs.empty()) {
    *out += "null";
  } else {
    AppendLogprobs(chunk.logprobs, out);
  }
  *out += R"(,"finish_reason":)";
  if (chunk.is_finish) {
    absl::StrAppend(out, "\"", FinishReasonName(*choice.finish_reason),
                    R"(","stop_reason":)", choice.stop_reason_json);
  } else {
    *out += "null";
  }
  AppendTokenIds(chunk.token_ids, out);
  if (!is_chat && has_prompt_fields) {
    AppendPromptFields(PromptOf(choice_idx), out);
  }
  *out += "}]";
  if (options_.continuous_usage_stats) {
    *out += R"(,"usage":)";
    AppendUsage(out);
  } else if (options_.include_usage) {
    *out += R"(,"usage":null)";
  }
  *out += "}\n\n";
}

void ApiCall::AppendTokenIds(absl::Span<const int32_t> token_ids,
                             std::string* out) const {
  if (!options_.return_token_ids) return;
  absl::StrAppend(out, R"(,"token_ids":[)", JoinIds(token_ids), "]");
}

// As vLLM: null for the first token, then a map from ids to entries, the
// prompt's token first and the most likely ones after it.
void ApiCall::AppendPromptFields(const Prompt& prompt, std::string* out) const {
  if (options_.num_prompt_logprobs >= 0) {
    *out += R"(,"prompt_logprobs":[null)";
    for (const TokenOutput& token : prompt.scored) {
      const auto append_entry = [&](int32_t id, float logprob, int rank) {
        absl::StrAppend(out, "\"", id, R"(":{"logprob":)");
        AppendJsonNumber(logprob, out);
        absl::StrAppend(out, R"(,"rank":)", rank, R"(,"decoded_token":)");
        AppendJsonString(tokenizer_->TokenBytes(id), out);
        *out += '}';
      };
      *out += ",{";
      append_entry(token.token_id, token.logprob, token.rank);
      const size_t num_top =
          std::min(token.top_logprobs.size(),
                   static_cast<size_t>(options_.num_prompt_logprobs));
      for (size_t i = 0; i < num_top; ++i) {
        const TopLogprob& top = token.top_logprobs[i];
        if (top.token_id == token.token_id) continue;
        *out += ',';
        append_entry(top.token_id, top.logprob, static_cast<int>(i) + 1);
      }
      *out += '}';
    }
    *out += ']';
  }
  if (options_.return_token_ids) {
    absl::StrAppend(out, R"(,"prompt_token_ids":[)",
                    JoinIds(prompt.info->token_ids), "]");
  }
}

std::string ApiCall::TokenText(int32_t token_id) const {
  if (options_.return_tokens_as_token_ids) {
    return absl::StrCat("token_id:", token_id);
  }
  return tokenizer_->TokenBytes(token_id);
}

void ApiCall::AppendLogprobs(absl::Span<const Logprob> logprobs,
                             std::string* out) const {
  if (!options_.wants_logprobs) {
    *out += "null";
  } else if (options_.kind == ApiKind::kChat) {
    AppendChatLogprobs(logprobs, out);
  } else {
    AppendCompletionLogprobs(logprobs, out);
  }
}

void ApiCall::AppendChatLogprobs(absl::Span<const Logprob> logprobs,
                                 std::string* out) const {
  const auto append_entry = [&](int32_t token_id, float logprob) {
    *out += R"({"token":)";
    AppendJsonString(TokenText(token_id), out);
    *out += R"(,"logprob":)";
    AppendJsonNumber(logprob, out);
    *out += R"(,"bytes":[)";
    const std::string bytes = tokenizer_->TokenBytes(token_id);
    for (size_t i = 0; i < bytes.size(); ++i) {
      absl::StrAppend(out, i == 0 ? "" : ",", static_cast<uint8_t>(bytes[i]));
    }
    *out += ']';
  };
  const size_t begin = out->size();
  *out += R"({"content":[)";
  for (size_t i = 0; i < logprobs.size(); ++i) {
    ReserveForRest(begin, i, logprobs.size(), out);
    const Logprob& entry = logprobs[i];
    if (i > 0) *out += ',';
    append_entry(entry.token_id, entry.logprob);
    *out += R"(,"top_logprobs":[)";
    for (size_t j = 0; j < entry.top.size(); ++j) {
      if (j > 0) *out += ',';
      append_entry(entry.top[j].token_id, entry.top[j].logprob);
      *out += '}';
    }
    *out += "]}";
  }
  *out += R"(],"refusal":null})";
}

// {"a":-1.5,…}
void ApiCall::AppendTopLogprobs(const Logprob& entry, std::string* out) const {
  absl::flat_hash_set<std::string> keys;
  // Tokens that read alike (pieces of characters do) share a key; the most
  // likely of them counts.
  const auto append = [&](int32_t token_id, float logprob) {
    std::string key;
    AppendJsonString(TokenText(token_id), &key);
    if (keys.contains(key)) return;
    absl::StrAppend(out, keys.empty() ? "" : ",", key, ":");
    AppendJsonNumber(logprob, out);
    keys.insert(std::move(key));
  };
  *out += '{';
  for (const TopLogprob& top : entry.top) append(top.token_id, top.logprob);
  // OpenAI always reports the token itself, so that there may be one more.
  append(entry.token_id, entry.logprob);
  *out += '}';
}

void ApiCall::AppendCompletionLogprobs(absl::Span<const Logprob> logprobs,
                                       std::string* out) const {
  // List after list: beside the answer's text there is no other one.
  const auto append_list = [&](const char* name, auto append_value) {
    *out += name;
    const size_t begin = out->size();
    for (size_t i = 0; i < logprobs.size(); ++i) {
      ReserveForRest(begin, i, logprobs.size(), out);
      if (i > 0) *out += ',';
      append_value(logprobs[i]);
    }
    *out += ']';
  };
  append_list(R"({"tokens":[)", [&](const Logprob& entry) {
    AppendJsonString(TokenText(entry.token_id), out);
  });
  append_list(R"(,"token_logprobs":[)", [&](const Logprob& entry) {
    if (!entry.is_known) {
      *out += "null";
    } else {
      AppendJsonNumber(entry.logprob, out);
    }
  });
  append_list(R"(,"top_logprobs":[)", [&](const Logprob& entry) {
    if (!entry.is_known) {
      *out += "null";
    } else {
      AppendTopLogprobs(entry, out);
    }
  });
  append_list(R"(,"text_offset":[)", [&](const Logprob& entry) {
    absl::StrAppend(out, entry.text_offset_chars);
  });
  *out += '}';
}

std::vector<int> ApiCall::ReturnedChoices() const {
  const auto mean = [this](int choice_idx) {
    const Choice& choice = choices_[choice_idx];
    return choice.sum_logprobs / std::max<int64_t>(choice.num_tokens, 1);
  };
  std::vector<int> returned;
  const int num_choices = static_cast<int>(choices_.size());
  for (int first = 0; first < num_choices; first += options_.best_of) {
    std::vector<int> candidates(options_.best_of);
    std::iota(candidates.begin(), candidates.end(), first);
    if (options_.best_of > options_.n) {
      std::stable_sort(candidates.begin(), candidates.end(),
                       [&](int a, int b) { return mean(a) > mean(b); });
    }
    returned.insert(returned.end(), candidates.begin(),
                    candidates.begin() + options_.n);
  }
  return returned;
}

int64_t ApiCall::CountCompletionTokens() const {
  int64_t num_tokens = 0;
  for (const Choice& choice : choices_) num_tokens += choice.num_tokens;
  return num_tokens;
}

void ApiCall::ObserveTimes(const OutputEvent& event) {
  if (event.scheduled_time != absl::Time() &&
      scheduled_time_ == absl::InfinitePast()) {
    scheduled_time_ = event.scheduled_time;
  }
  if (event.tokens.empty()) return;
  if (first_token_time_ == absl::InfinitePast()) first_token_time_ = event.time;
  last_token_time_ = event.time;
}

void ApiCall::FillRecord() {
  if (options_.record == nullptr) return;
  RequestRecord& record = *options_.record;
  record.num_prompt_tokens = options_.num_prompt_tokens;
  record.num_cached_tokens = num_cached_tokens_;
  record.num_completion_tokens = CountCompletionTokens();
  record.scheduled_time = scheduled_time_;
  record.first_token_time = first_token_time_;
  record.last_token_time = last_token_time_;
  if (choices_.front().finish_reason.has_value()) {
    record.finish_reason = FinishReasonName(*choices_.front().finish_reason);
  }
}

// As vLLM's --enable-per-request-metrics (docs/features/
// per_request_metrics.md): the times of one generation, so null for several.
void ApiCall::AppendMetrics(std::string* out) const {
  if (!options_.has_metrics) return;
  *out += R"(,"metrics":)";
  if (choices_.size() != 1) {
    *out += "null";
    return;
  }
  const auto is_known = [](absl::Time time) {
    return time != absl::InfinitePast();
  };
  char separator = '{';
  const auto append = [&](absl::string_view name, double value) {
    absl::StrAppend(out, std::string(1, separator), "\"", name, "\":");
    separator = ',';
    // Microseconds are what the clock is good for.
    if (std::isfinite(value)) {
      AppendJsonNumber(std::round(value * 1000) / 1000, out);
    } else {
      *out += "null";
    }
  };
  const auto append_interval = [&](absl::string_view name, absl::Time from,
                                   absl::Time to) {
    append(name, is_known(from) && is_known(to)
                     ? absl::ToDoubleMilliseconds(to - from)
                     : NAN);
  };
  append_interval("time_to_first_token_ms", scheduled_time_, first_token_time_);
  append_interval("generation_time_ms", first_token_time_, last_token_time_);
  append_interval("queue_time_ms", options_.arrival_time, scheduled_time_);
  const double num_tokens = static_cast<double>(CountCompletionTokens());
  append("mean_itl_ms", num_tokens > 1
                            ? absl::ToDoubleMilliseconds(last_token_time_ -
                                                         first_token_time_) /
                                  (num_tokens - 1)
                            : NAN);
  const bool has_interval =
      is_known(scheduled_time_) && last_token_time_ > scheduled_time_;
  append("tokens_per_second",
         has_interval ? num_tokens / absl::ToDoubleSeconds(last_token_time_ -
                                                           scheduled_time_)
                      : NAN);
  *out += '}';
}

void ApiCall::AppendUsage(std::string* out) const {
  const int64_t num_completion_tokens = CountCompletionTokens();
  absl::StrAppend(
      out, R"({"prompt_tokens":)", options_.num_prompt_tokens,
      R"(,"completion_tokens":)", num_completion_tokens, R"(,"total_tokens":)",
      options_.num_prompt_tokens + num_completion_tokens,
      R"(,"prompt_tokens_details":{"cached_tokens":)", num_cached_tokens_, "}");
  if (options_.has_drafts || num_draft_tokens_ > 0) {
    absl::StrAppend(
        out, R"(,"completion_tokens_details":{"accepted_prediction_tokens":)",
        num_accepted_tokens_, R"(,"rejected_prediction_tokens":)",
        num_draft_tokens_ - num_accepted_tokens_, "}");
  }
  *out += '}';
}

void ApiCall::Complete() {
  is_complete_ = true;
  if (options_.ticket != nullptr) options_.ticket->Release();
  FillRecord();
  std::string out;
  if (options_.stream) {
    if (options_.include_usage) {
      BeginChunk(&out);
      out += R"(,"choices":[],"usage":)";
      AppendUsage(&out);
      AppendMetrics(&out);
      out += "}\n\n";
    }
    out += "data: [DONE]\n\n";
    responder_->Write(std::move(out));
    responder_->Finish();
    return;
  }
  const bool is_chat = options_.kind == ApiKind::kChat;
  absl::StrAppend(&out, R"({"id":")", options_.id, R"(","object":")",
                  is_chat ? "chat.completion" : "text_completion",
                  R"(","created":)", options_.created, R"(,"model":)");
  AppendJsonString(options_.model, &out);
  out += R"(,"choices":[)";
  const std::vector<int> returned = ReturnedChoices();
  for (size_t i = 0; i < returned.size(); ++i) {
    Choice& choice = choices_[returned[i]];
    absl::StrAppend(&out, i == 0 ? "" : ",", R"({"index":)", i);
    if (is_chat) {
      out += R"(,"message":{"role":"assistant","content":)";
      AppendJsonString(choice.text, &out);
      out += R"(,"refusal":null},"logprobs":)";
    } else {
      out += R"(,"text":)";
      AppendJsonString(choice.text, &out);
      out += R"(,"logprobs":)";
    }
    AppendLogprobs(choice.logprobs, &out);
    std::vector<Logprob>().swap(choice.logprobs);
    absl::StrAppend(&out, R"(,"finish_reason":")",
                    FinishReasonName(*choice.finish_reason),
                    R"(","stop_reason":)", choice.stop_reason_json);
    AppendTokenIds(choice.token_ids, &out);
    if (!is_chat && !prompts_.empty()) {
      AppendPromptFields(PromptOf(returned[i]), &out);
    }
    out += '}';
    // The others are about as large.
    if (i == 0) out.reserve(out.size() * returned.size());
  }
  out += R"(],"usage":)";
  AppendUsage(&out);
  AppendMetrics(&out);
  if (is_chat && !prompts_.empty()) AppendPromptFields(prompts_.front(), &out);
  out += has_draft_model_tokens_ ? kDraftModelFingerprint
                                 : R"(,"system_fingerprint":null)";
  out += '}';
  responder_->Send(200, "application/json", std::move(out), options_.headers);
}

void ApiCall::Fail(const absl::Status& error) {
  if (is_complete_) return;
  is_complete_ = true;
  if (options_.ticket != nullptr) options_.ticket->Release();
  // Others may want the room before the engine has heard of it.
  for (Choice& choice : choices_) std::vector<Logprob>().swap(choice.logprobs);
  for (Prompt& prompt : prompts_)
    std::vector<TokenOutput>().swap(prompt.scored);
  if (options_.scores != nullptr) options_.scores->Release();
  FillRecord();
  if (options_.record != nullptr) options_.record->finish_reason = "error";
  if (!is_started_) {
    HttpHeaders headers = options_.headers;
    const int http_status = HttpStatus(error);
    if (const std::string wait = RetryAfter(error); !wait.empty()) {
      headers.emplace_back("Retry-After", wait);
    }
    responder_->Send(http_status, "application/json", ErrorBody(error),
                     headers);
    return;
  }
  responder_->Write(
      absl::StrCat("data: ", ErrorBody(error), "\n\n", "data: [DONE]\n\n"));
  responder_->Finish();
}

}  // namespace quire
