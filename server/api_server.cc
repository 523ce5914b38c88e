#include "server/api_server.h"

#include <time.h>

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/clock.h"
#include "engine/base/memory_reserve.h"
#include "engine/base/percent_encoding.h"
#include "engine/base/status.h"
#include "server/answer_scores.h"
#include "server/api_call.h"
#include "server/api_error.h"
#include "server/embedding_call.h"
#include "server/embeddings_api.h"
#include "server/json_text.h"
#include "server/prompt.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kJsonType[] = "application/json";
// A tree of JSON takes up to 27 times its text (JsonLimits).
constexpr size_t kMemoryPerBodyByte = 32;
constexpr size_t kSmallBodyBytes = 64 << 10;  // Taken from the reserve, if any.
constexpr size_t kMaxChoicesOfCall = 128;
// Of a text for which the tokens are to be spelled out: 44 times as much.
constexpr size_t kMaxSpelledBytes = 1 << 20;

// `request_id`: the caller's own, harmless; it finds it again in the answer.
void SendError(const absl::Status& error,
               const std::shared_ptr<HttpResponder>& responder,
               const std::string& request_id = "") {
  const int http_status = HttpStatus(error);
  HttpHeaders headers;
  if (const std::string wait = RetryAfter(error); !wait.empty()) {
    headers.emplace_back("Retry-After", wait);
  }
  if (!request_id.empty()) headers.emplace_back("X-Request-Id", request_id);
  responder->Send(http_status, kJsonType, ErrorBody(error), headers);
}

std::string RandomId(absl::string_view prefix) {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return absl::StrCat(prefix,
                      absl::StrFormat("%016x%016x", generator(), generator()));
}

// The caller's own id, from a header or the body, if it is harmless; else
// empty.
std::string GivenRequestId(const HttpRequest& request,
                           const std::string& id_in_body) {
  const absl::string_view given = request.Header("x-request-id");
  if (IsHarmlessRequestId(given)) return std::string(given);
  return id_in_body;
}

// Equal prompts of different owners or salts must not share cached blocks: a
// hit shows in the latency.
std::string CacheNamespace(const HttpRequest& request,
                           const std::string& cache_salt) {
  const std::string owner = request.owner == nullptr ? "" : request.owner->name;
  return absl::StrCat(owner, "\n", cache_salt);
}

// What is begun may take from the reserve; while some of it is taken nothing
// else is begun.
absl::Status CheckMemory(const HttpRequest& request) {
  const size_t body_bytes = request.body.size();
  if (RefillMemoryReserve() &&
      (body_bytes < kSmallBodyBytes ||
       HasMemoryFor(kMemoryPerBodyByte * body_bytes))) {
    return absl::OkStatus();
  }
  return absl::UnavailableError("the server is short of memory");
}

absl::Status CheckPriority(const ServedModel& model, int32_t priority) {
  if (priority == 0 || model.has_priorities) return absl::OkStatus();
  return ParameterError("priority",
                        "'priority' needs a server that was started with "
                        "--scheduling-policy priority");
}

// Tells which of its fields nobody knows; nothing if none. Names as the caller
// sent them: only the harmless ones may enter a header.
HttpHeaders IgnoredFieldsHeaders(const ApiRequest& request) {
  const std::vector<std::string>& names = request.ignored_fields;
  if (names.empty()) return {};
  std::string list;
  for (const std::string& name : names) {
    const bool is_harmless = std::all_of(name.begin(), name.end(), [](char c) {
      return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-';
    });
    if (!is_harmless || list.size() + name.size() > 256) continue;
    absl::StrAppend(&list, list.empty() ? "" : ",", name);
  }
  return {{"X-Quire-Ignored-Fields", list.empty() ? "unnamed" : list}};
}

absl::Status CheckModelName(const ServedModel& model, const std::string& name) {
  if (name.empty()) return absl::OkStatus();
  for (const std::string& served : model.names) {
    if (name == served) return absl::OkStatus();
  }
  return absl::NotFoundError(
      absl::StrCat("The model `", name, "` does not exist."));
}

// What a chat with `echo` repeats: the final message, if its role is the one
// that goes on.
std::string EchoedMessage(const ApiRequest& request) {
  const Json& message = request.messages.back();
  const bool is_continued =
      request.add_generation_prompt ? message["role"] == "assistant" : true;
  return is_continued ? message["content"].get<std::string>() : "";
}

// What the answer repeats of its prompts.
std::vector<ApiCallPrompt> MakeCallPrompts(
    const ServedModel& model, const ApiRequest& request,
    const std::vector<std::vector<int32_t>>& prompts) {
  std::vector<ApiCallPrompt> call_prompts;
  const bool is_chat = request.kind == ApiKind::kChat;
  for (size_t i = 0; i < prompts.size(); ++i) {
    ApiCallPrompt& call_prompt = call_prompts.emplace_back();
    call_prompt.token_ids = prompts[i];
    if (!request.echo) continue;
    if (is_chat) {
      call_prompt.echo.text = EchoedMessage(request);
      continue;
    }
    std::optional<std::string> given;
    const auto* text = std::get_if<std::string>(&request.prompts[i]);
    if (text != nullptr && !request.truncate_prompt_tokens.has_value()) {
      given = *text;
    }
    call_prompt.echo = MakePromptText(*model.tokenizer, prompts[i], given,
                                      request.skip_special_tokens);
  }
  return call_prompts;
}

// What is known before the engine has the request.
void RecordCall(const char* operation, const std::string& model,
                const std::shared_ptr<RequestRecord>& record) {
  if (record == nullptr) return;
  record->operation = operation;
  record->model = model;
}

// All but the id and the headers.
ApiCallOptions MakeCallOptions(
    const ServedModel& model, ApiRequest& request,
    const std::vector<std::vector<int32_t>>& prompts) {
  ApiCallOptions options;
  options.kind = request.kind;
  options.model = request.model.empty() ? model.names.front() : request.model;
  options.created = time(nullptr);
  options.stream = request.stream;
  options.include_usage = request.include_usage;
  options.continuous_usage_stats = request.continuous_usage_stats;
  options.wants_logprobs = request.wants_logprobs;
  options.num_prompt_logprobs = request.prompt_logprobs.value_or(-1);
  options.num_echo_logprobs = request.top_logprobs.value_or(0);
  options.echo = request.echo;
  options.generates_nothing = request.generates_nothing;
  options.return_token_ids = request.return_token_ids;
  options.skip_special_tokens = request.skip_special_tokens;
  options.include_stop_str_in_output = request.include_stop_str_in_output;
  options.return_tokens_as_token_ids = request.return_tokens_as_token_ids;
  options.stop_strings = std::move(request.stop_strings);
  options.min_tokens = request.sampling.min_tokens;
  options.num_choices = static_cast<int>(prompts.size()) * request.best_of;
  options.best_of = request.best_of;
  options.n = request.n;
  for (const auto& prompt : prompts) options.num_prompt_tokens += prompt.size();
  if (request.echo || request.return_token_ids ||
      request.prompt_logprobs.has_value()) {
    options.prompts = MakeCallPrompts(model, request, prompts);
  }
  return options;
}

}  // namespace

ApiServer::ApiServer(HttpServer* http, std::string version,
                     const RequestGateOptions& gate_options)
    : http_(http),
      version_(std::move(version)),
      limiter_(std::make_unique<KeyLimiter>(Clock::Monotonic())),
      gate_(std::make_unique<RequestGate>(gate_options, Clock::Monotonic())),
      answer_scores_(std::make_unique<ScoreBudget>(kMaxScoreBytes)) {
  const auto probe = [this](const char* path,
                            void (ApiServer::*handle)(const Responder&) const) {
    http_->AddRoute("GET", path, RouteAccess::kOperations,
                    [this, handle](const HttpRequest&, Responder responder) {
                      (this->*handle)(responder);
                    });
  };
  probe("/health", &ApiServer::HandleReady);
  probe("/health/ready", &ApiServer::HandleReady);
  probe("/health/live", &ApiServer::HandleLive);
  probe("/metrics", &ApiServer::HandleMetrics);
  probe("/load", &ApiServer::HandleLoad);
  http_->AddRoute(
      "GET", "/version", RouteAccess::kOperations,
      [this](const HttpRequest&, Responder responder) {
        responder->Send(200, kJsonType, DumpJson({{"version", version_}}));
      });
  AddApiRoute("GET", "/v1/models",
              [this](const ServedModel&, const HttpRequest&,
                     const Responder& responder) {
                HandleModels(responder);
                return absl::OkStatus();
              });
  // Names may have slashes.
  AddApiRoute("GET", "/v1/models/{model}",
              [this](const ServedModel&, const HttpRequest& request,
                     const Responder& responder) {
                return HandleModel(request.path_tail, responder);
              });
  AddApiRoute("POST", "/tokenize",
              [this](const ServedModel& model, const HttpRequest& request,
                     const Responder& responder) {
                return HandleTokenize(model, request, responder);
              });
  AddApiRoute("POST", "/detokenize",
              [this](const ServedModel& model, const HttpRequest& request,
                     const Responder& responder) {
                return HandleDetokenize(model, request, responder);
              });
  for (const auto& [path, kind] :
       {std::pair{"/v1/chat/completions", ApiKind::kChat},
        std::pair{"/v1/completions", ApiKind::kCompletion},
        std::pair{"/completions", ApiKind::kCompletion}}) {
    AddApiRoute(
        "POST", path,
        [this, kind](const ServedModel& model, const HttpRequest& request,
                     const Responder& responder) {
          return HandleGenerate(kind, model, request, responder);
        });
  }
  for (const char* path : {"/v1/embeddings", "/embeddings"}) {
    AddApiRoute("POST", path,
                [this](const ServedModel& model, const HttpRequest& request,
                       const Responder& responder) {
                  return HandleEmbeddings(model, request, responder);
                });
  }
}

// Answers with the handler's error, if it returns one.
void ApiServer::AddApiRoute(
    const char* method, const char* path,
    std::function<absl::Status(const ServedModel&, const HttpRequest&,
                               const Responder&)>
        handler) {
  http_->AddRoute(method, path, RouteAccess::kApi,
                  [this, handler = std::move(handler)](
                      const HttpRequest& request, Responder responder) {
                    RecordBody(request);
                    absl::Status status = Refusal();
                    if (status.ok()) status = CheckMemory(request);
                    if (status.ok()) {
                      // Held while the body is parsed: to the handler's end.
                      const auto memory = gate_->Enter(request, *model_.engine);
                      status = memory.ok() ? handler(model_, request, responder)
                                           : memory.status();
                    }
                    if (!status.ok()) {
                      SendError(status, responder, GivenRequestId(request, ""));
                    }
                  });
}

void ApiServer::RecordBody(const HttpRequest& request) const {
  if (request.record == nullptr) return;
  const int64_t size = http_->max_recorded_body_bytes();
  if (size > 0) request.record->body = request.body.substr(0, size);
}

absl::Status ApiServer::Refusal() const {
  switch (state_.load(std::memory_order_acquire)) {
    case State::kServing:
      return absl::OkStatus();
    case State::kLoading:
      return absl::UnavailableError("the model is being loaded");
    case State::kDraining:
      return absl::UnavailableError("the server is shutting down");
    case State::kWaiting:
    case State::kWorker:
      break;
  }
  std::lock_guard<std::mutex> lock(reason_mu_);
  return absl::UnavailableError(reason_);
}

void ApiServer::SetWaiting(const std::string& waiting) {
  {
    std::lock_guard<std::mutex> lock(reason_mu_);
    reason_ = waiting;
  }
  state_.store(waiting.empty() ? State::kLoading : State::kWaiting,
               std::memory_order_release);
}

void ApiServer::ServeAsWorker(const std::string& reason) {
  {
    std::lock_guard<std::mutex> lock(reason_mu_);
    reason_ = reason;
  }
  state_.store(State::kWorker, std::memory_order_release);
}

void ApiServer::SetLoadProgress(int64_t num_done, int64_t num_total) {
  // In double: 100 times a size may pass int64.
  load_percent_ =
      num_total > 0
          ? static_cast<int>(100.0 * std::min(num_done, num_total) / num_total)
          : 0;
}

void ApiServer::Serve(const ServedModel& model) {
  model_ = model;
  sampling_strings_ = std::make_unique<SamplingStrings>(
      model.tokenizer, model.limits.vocab_size);
  state_.store(State::kServing, std::memory_order_release);
}

void ApiServer::StartDraining() {
  State expected = State::kServing;
  // While loading there is nothing to drain and nothing to serve either.
  if (!state_.compare_exchange_strong(expected, State::kDraining)) return;
  model_.engine->StartDraining();
}

void ApiServer::HandleReady(const Responder& responder) const {
  const State state = state_.load(std::memory_order_acquire);
  absl::Status status;
  if (state == State::kLoading) {
    status = absl::UnavailableError(
        absl::StrCat("loading: ", load_percent_.load(), " %"));
  } else if (state == State::kDraining) {
    status = absl::UnavailableError("draining");
  } else if (state == State::kServing && !model_.engine->Health().ok()) {
    status = absl::UnavailableError("the engine has failed");
  }
  std::string text = "ok";
  if (state == State::kServing && status.ok() && model_.readiness) {
    absl::StatusOr<std::string> readiness = model_.readiness();
    if (readiness.ok()) {
      text = *std::move(readiness);
    } else {
      status = readiness.status();
    }
  }
  if (!status.ok()) return SendError(status, responder);
  if (state == State::kWaiting) {
    responder->Send(200, kJsonType,
                    DumpJson({{"status", std::string(Refusal().message())}}));
    return;
  }
  responder->Send(200, kJsonType, DumpJson({{"status", text}}));
}

void ApiServer::HandleLive(const Responder& responder) const {
  const State state = state_.load(std::memory_order_acquire);
  const bool has_engine = state == State::kServing || state == State::kDraining;
  if (has_engine && !model_.engine->Health().ok()) {
    return SendError(absl::UnavailableError("the engine has failed"),
                     responder);
  }
  responder->Send(200, kJsonType, R"({"status":"ok"})");
}

void ApiServer::HandleMetrics(const Responder& responder) const {
  const State state = state_.load(std::memory_order_acquire);
  if (state == State::kLoading || state == State::kWaiting) {
    return SendError(absl::UnavailableError("loading"), responder);
  }
  // What a group of processes does is told by the one that serves.
  if (state == State::kWorker) {
    responder->Send(200, "text/plain; version=0.0.4; charset=utf-8", "");
    return;
  }
  const EngineStats stats = model_.engine->Stats();
  GateFigures figures = gate_->Figures(stats);
  figures.num_refused_scores = answer_scores_->num_refused();
  responder->Send(200, "text/plain; version=0.0.4; charset=utf-8",
                  model_.metrics->Render(stats, figures) +
                      (model_.more_metrics ? model_.more_metrics() : ""));
}

void ApiServer::HandleLoad(const Responder& responder) const {
  const State state = state_.load(std::memory_order_acquire);
  if (state != State::kServing && state != State::kDraining) {
    return SendError(absl::UnavailableError("the model is not served here"),
                     responder);
  }
  const EngineStats stats = model_.engine->Stats();
  const double kv_use =
      stats.num_blocks == 0
          ? 0
          : 1.0 - double(stats.num_free_blocks) / stats.num_blocks;
  const int num_requests = stats.num_running + stats.num_waiting;
  responder->Send(
      200, kJsonType,
      DumpJson(
          {{"server_load", num_requests},  // vLLM
           {"dp_rank", 0},                 // SGLang, to num_tokens
           {"num_reqs", num_requests},
           {"num_waiting_reqs", stats.num_waiting},
           {"num_tokens", int64_t{stats.num_blocks - stats.num_free_blocks} *
                              model_.block_size},
           {"num_running_reqs", stats.num_running},
           {"num_waiting_tokens", stats.num_waiting_tokens},
           {"kv_cache_usage", kv_use},
           {"predicted_queue_delay_seconds",
            absl::ToDoubleSeconds(stats.predicted_delay)},
           {"saturation", stats.saturation},
           {"shed_stage", ShedStageName(gate_->Figures(stats).stage)}}));
}

Json ApiServer::DescribeModel(const std::string& name) const {
  return {{"id", name},
          {"object", "model"},
          {"created", model_.created},
          {"owned_by", "quire"},
          // Not where it lies: paths are the server's own.
          {"root", name},
          {"parent", nullptr},
          {"max_model_len", model_.Limits().max_model_len}};
}

void ApiServer::HandleModels(const Responder& responder) const {
  Json list = Json::array();
  for (const std::string& name : model_.names) {
    list.push_back(DescribeModel(name));
  }
  responder->Send(200, kJsonType,
                  DumpJson({{"object", "list"}, {"data", list}}));
}

absl::Status ApiServer::HandleModel(absl::string_view encoded_name,
                                    const Responder& responder) const {
  const std::string name = PercentDecoded(encoded_name);
  QUIRE_RETURN_IF_ERROR(CheckModelName(model_, name));
  responder->Send(200, kJsonType, DumpJson(DescribeModel(name)));
  return absl::OkStatus();
}

absl::Status ApiServer::HandleTokenize(const ServedModel& model,
                                       const HttpRequest& request,
                                       const Responder& responder) const {
  // Released when the answer is there.
  QUIRE_ASSIGN_OR_RETURN(const std::shared_ptr<KeyTicket> ticket,
                         AdmitKey(request));
  QUIRE_ASSIGN_OR_RETURN(const Json body, ParseJson(request.body));
  const ApiKind kind = body.is_object() && body.contains("messages")
                           ? ApiKind::kChat
                           : ApiKind::kCompletion;
  QUIRE_ASSIGN_OR_RETURN(
      ApiRequest api_request,
      ParseApiRequest(kind, body, model.defaults, /*is_tokenize=*/true));
  QUIRE_RETURN_IF_ERROR(CheckModelName(model, api_request.model));
  std::vector<int32_t> ids;
  if (kind == ApiKind::kChat) {
    QUIRE_ASSIGN_OR_RETURN(
        ids, EncodeChat(api_request, *model.tokenizer, model.chat_template,
                        model.Limits()));
  } else {
    const auto* text = std::get_if<std::string>(&api_request.prompts.front());
    if (api_request.prompts.size() != 1 || text == nullptr) {
      return ParameterError("prompt", "'prompt' must be a string");
    }
    QUIRE_RETURN_IF_ERROR(
        CheckTokenizedLength("prompt", text->size(), model.Limits()));
    if (api_request.return_token_strs && text->size() > kMaxSpelledBytes) {
      return ParameterError(
          "return_token_strs",
          absl::StrCat("'return_token_strs' takes texts of up to ",
                       kMaxSpelledBytes, " bytes"));
    }
    EncodeOptions options;
    options.add_special_tokens = api_request.add_special_tokens;
    options.parse_special_tokens = true;
    QUIRE_ASSIGN_OR_RETURN(ids, model.tokenizer->Encode(*text, options));
  }
  // Written without a tree: a body of megabytes has millions of tokens.
  std::string answer =
      absl::StrCat(R"({"count":)", ids.size(), R"(,"max_model_len":)",
                   model.Limits().max_model_len, R"(,"tokens":[)",
                   absl::StrJoin(ids, ","), R"(],"token_strs":)");
  if (api_request.return_token_strs) {
    char separator = '[';
    for (const int32_t id : ids) {
      answer += separator;
      AppendJsonString(model.tokenizer->IdToToken(id), &answer);
      separator = ',';
    }
    answer += ids.empty() ? "[]" : "]";
  } else {
    answer += "null";
  }
  answer += '}';
  responder->Send(200, kJsonType, std::move(answer),
                  IgnoredFieldsHeaders(api_request));
  return absl::OkStatus();
}

absl::Status ApiServer::HandleDetokenize(const ServedModel& model,
                                         const HttpRequest& request,
                                         const Responder& responder) const {
  // Released when the answer is there.
  QUIRE_ASSIGN_OR_RETURN(const std::shared_ptr<KeyTicket> ticket,
                         AdmitKey(request));
  QUIRE_ASSIGN_OR_RETURN(const Json body, ParseJson(request.body));
  QUIRE_ASSIGN_OR_RETURN(const ApiRequest parsed, ParseDetokenizeRequest(body));
  QUIRE_RETURN_IF_ERROR(CheckModelName(model, parsed.model));
  const auto& ids = std::get<std::vector<int32_t>>(parsed.prompts.front());
  const int32_t vocab_size = model.Limits().vocab_size;
  for (const int32_t id : ids) {
    if (id >= vocab_size) {
      return ParameterError(
          "tokens", absl::StrCat("token ids must be integers from 0 to ",
                                 vocab_size - 1));
    }
  }
  const std::string text =
      model.tokenizer->Decode(ids, /*skip_special_tokens=*/false);
  responder->Send(200, kJsonType, DumpJson({{"prompt", text}}),
                  IgnoredFieldsHeaders(parsed));
  return absl::OkStatus();
}

absl::Status ApiServer::HandleGenerate(ApiKind kind, const ServedModel& model,
                                       const HttpRequest& request,
                                       const Responder& responder) const {
  // Before anything that takes time.
  QUIRE_ASSIGN_OR_RETURN(std::shared_ptr<KeyTicket> ticket, AdmitKey(request));
  QUIRE_ASSIGN_OR_RETURN(const Json body,
                         ParseJson(request.body, kGenerateJsonLimits));
  QUIRE_ASSIGN_OR_RETURN(ApiRequest api_request,
                         ParseApiRequest(kind, body, model.defaults));
  QUIRE_RETURN_IF_ERROR(CheckModelName(model, api_request.model));
  if (model.embedding.has_value()) {
    return ParameterError(
        "model",
        absl::StrCat(
            "The model `", model.names.front(),
            "` makes embeddings: it does not support the ",
            kind == ApiKind::kChat ? "Chat Completions" : "Completions",
            " API. Use /v1/embeddings."),
        "unsupported_model");
  }
  QUIRE_RETURN_IF_ERROR(
      CheckSamplingIds(api_request.sampling, model.Limits().vocab_size));
  QUIRE_RETURN_IF_ERROR(sampling_strings_->Resolve(&api_request));
  QUIRE_RETURN_IF_ERROR(
      CheckSomeTokenIsAllowed(api_request.sampling, model.eos_token_ids));
  QUIRE_ASSIGN_OR_RETURN(std::vector<std::vector<int32_t>> prompts,
                         EncodePrompts(api_request, *model.tokenizer,
                                       model.chat_template, model.Limits()));
  if (prompts.size() * api_request.best_of > kMaxChoicesOfCall) {
    return ParameterError(
        api_request.best_of > api_request.n ? "best_of" : "n",
        absl::StrCat("the choices of all prompts together must not exceed ",
                     kMaxChoicesOfCall));
  }
  QUIRE_RETURN_IF_ERROR(CheckPriority(model, api_request.priority));
  QUIRE_ASSIGN_OR_RETURN(
      const int64_t num_scores,
      LimitScores(prompts, model.Limits().max_model_len, &api_request));
  RequestTraits traits;
  traits.has_extras = prompts.size() * api_request.best_of > 1 ||
                      api_request.sampling.num_prompt_logprobs >= 0;
  traits.priority = api_request.priority;
  QUIRE_RETURN_IF_ERROR(gate_->Check(traits, *model.engine));
  QUIRE_ASSIGN_OR_RETURN(const absl::Time deadline,
                         gate_->Deadline(request, api_request.timeout));
  std::shared_ptr<AnswerScores> scores;
  if (num_scores > 0 || (api_request.wants_logprobs && !api_request.stream)) {
    QUIRE_ASSIGN_OR_RETURN(
        scores, AnswerScores::Admit(num_scores, answer_scores_.get()));
  }
  SubmitCall(model, std::move(api_request), std::move(prompts), request,
             deadline, std::move(ticket), std::move(scores), responder);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<KeyTicket>> ApiServer::AdmitKey(
    const HttpRequest& request) const {
  if (request.owner == nullptr) return nullptr;
  return limiter_->Admit(*request.owner);
}

absl::Status ApiServer::HandleEmbeddings(const ServedModel& model,
                                         const HttpRequest& request,
                                         const Responder& responder) const {
  if (!model.embedding.has_value()) {
    return ParameterError(
        "model",
        absl::StrCat("The model `", model.names.front(),
                     "` generates text: it does not support the Embeddings "
                     "API. A server started with --runner pooling embeds with "
                     "it."),
        "unsupported_model");
  }
  QUIRE_ASSIGN_OR_RETURN(std::shared_ptr<KeyTicket> ticket, AdmitKey(request));
  QUIRE_ASSIGN_OR_RETURN(const Json body, ParseJson(request.body));
  QUIRE_ASSIGN_OR_RETURN(
      const ApiRequest parsed,
      ParseEmbeddingsRequest(body, model.embedding->hidden_size));
  QUIRE_RETURN_IF_ERROR(CheckModelName(model, parsed.model));
  QUIRE_RETURN_IF_ERROR(CheckPriority(model, parsed.priority));
  QUIRE_ASSIGN_OR_RETURN(
      std::vector<std::vector<int32_t>> inputs,
      EncodeInputs(parsed, *model.tokenizer, model.Limits()));
  RequestTraits traits;
  traits.has_extras = inputs.size() > 1;
  traits.priority = parsed.priority;
  QUIRE_RETURN_IF_ERROR(gate_->Check(traits, *model.engine));
  QUIRE_ASSIGN_OR_RETURN(const absl::Time deadline,
                         gate_->Deadline(request, parsed.timeout));
  EmbeddingCallOptions options;
  if (ticket != nullptr) {
    for (const auto& input : inputs) ticket->CountTokens(input.size());
  }
  options.ticket = std::move(ticket);
  const std::string given_id = GivenRequestId(request, parsed.request_id);
  options.id =
      given_id.empty() ? RandomId("embd-") : absl::StrCat("embd-", given_id);
  options.model = parsed.model.empty() ? model.names.front() : parsed.model;
  options.created = time(nullptr);
  options.is_base64 = parsed.is_base64;
  options.dimensions = parsed.dimensions;
  options.normalize = parsed.normalize.value_or(model.embedding->normalize);
  options.max_in_flight = model.embedding->max_inputs_in_flight;
  options.headers.emplace_back("X-Request-Id",
                               given_id.empty() ? options.id : given_id);
  for (auto& header : IgnoredFieldsHeaders(parsed)) {
    options.headers.push_back(std::move(header));
  }
  options.record = request.record;
  RecordCall("embeddings", options.model, options.record);
  std::vector<Request> requests;
  for (std::vector<int32_t>& input : inputs) {
    Request engine_request;
    engine_request.id = model.engine->NewRequestId();
    engine_request.kind = RequestKind::kEmbed;
    engine_request.prompt_token_ids = std::move(input);
    // As for completions: a hit shows in the latency.
    engine_request.cache_namespace = CacheNamespace(request, parsed.cache_salt);
    engine_request.arrival_time = request.arrival_time;
    engine_request.deadline = deadline;
    engine_request.priority = parsed.priority;
    SetShare(request.owner.get(), &engine_request);
    requests.push_back(std::move(engine_request));
  }
  const auto call =
      std::make_shared<EmbeddingCall>(std::move(options), std::move(requests),
                                      model.engine, model.output, responder);
  call->Submit();
  // Weak: the call holds the responder, which holds this.
  responder->OnDisconnect([weak = std::weak_ptr<EmbeddingCall>(call)] {
    if (const auto call = weak.lock()) call->Cancel();
  });
  return absl::OkStatus();
}

// From here on the call answers, whatever happens.
void ApiServer::SubmitCall(const ServedModel& model, ApiRequest api_request,
                           std::vector<std::vector<int32_t>> prompts,
                           const HttpRequest& http_request, absl::Time deadline,
                           std::shared_ptr<KeyTicket> ticket,
                           std::shared_ptr<AnswerScores> scores,
                           const Responder& responder) const {
  ApiCallOptions options = MakeCallOptions(model, api_request, prompts);
  options.ticket = ticket;
  options.scores = std::move(scores);
  options.record = http_request.record;
  options.arrival_time = http_request.arrival_time;
  options.has_metrics = model.has_request_metrics;
  options.has_drafts = model.has_drafts;
  RecordCall(api_request.kind == ApiKind::kChat ? "chat" : "text_completion",
             options.model, options.record);
  if (RequestRecord* const record = options.record.get()) {
    record->is_stream = options.stream;
    record->temperature = api_request.sampling.temperature;
    record->top_p = api_request.sampling.top_p;
    record->max_tokens = api_request.sampling.max_tokens;
    record->n = api_request.n;
    record->num_prompt_tokens = options.num_prompt_tokens;
  }
  const absl::string_view prefix =
      api_request.kind == ApiKind::kChat ? "chatcmpl-" : "cmpl-";
  const std::string given_id =
      GivenRequestId(http_request, api_request.request_id);
  options.id =
      given_id.empty() ? RandomId(prefix) : absl::StrCat(prefix, given_id);
  options.headers.emplace_back("X-Request-Id",
                               given_id.empty() ? options.id : given_id);
  for (auto& header : IgnoredFieldsHeaders(api_request)) {
    options.headers.push_back(std::move(header));
  }
  const std::string cache_namespace =
      CacheNamespace(http_request, api_request.cache_salt);

  std::vector<Request> requests;
  std::vector<CallPart> parts;
  int64_t num_prompt_tokens = 0;
  for (std::vector<int32_t>& prompt : prompts) {
    Request request;
    request.id = model.engine->NewRequestId();
    request.sampling = api_request.sampling;
    const int32_t room =
        model.Limits().max_model_len - static_cast<int32_t>(prompt.size());
    int32_t& max_tokens = request.sampling.max_tokens;
    max_tokens = max_tokens > 0 ? std::min(max_tokens, room) : room;
    request.n = api_request.best_of;
    request.priority = api_request.priority;
    request.cache_namespace = cache_namespace;
    request.arrival_time = http_request.arrival_time;
    request.deadline = deadline;
    SetShare(http_request.owner.get(), &request);
    parts.push_back(
        {request.id, static_cast<int32_t>(parts.size()) * api_request.best_of,
         api_request.best_of, max_tokens, static_cast<int64_t>(prompt.size()),
         http_request.arrival_time});
    num_prompt_tokens += prompt.size();
    request.prompt_token_ids = std::move(prompt);
    requests.push_back(std::move(request));
  }
  auto call =
      std::make_shared<ApiCall>(std::move(options), model.tokenizer, responder);
  model.output->Register(call, parts);
  for (size_t i = 0; i < requests.size(); ++i) {
    const absl::Status status = model.engine->Submit(std::move(requests[i]));
    if (status.ok()) continue;
    model.output->Reject(call, i, parts, SubmitRefusal(status));
    return;
  }
  // What a full queue refuses is not counted.
  if (ticket != nullptr) ticket->CountTokens(num_prompt_tokens);
  model.output->Accept(call);
  responder->OnDisconnect([engine = model.engine, parts] {
    for (const CallPart& part : parts) engine->Abort(part.request_id);
  });
}

}  // namespace quire
