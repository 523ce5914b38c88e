#include "cli/generate.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <iostream>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "cli/exit_codes.h"
#include "cli/session.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"
#include "server/api_call.h"
#include "server/json_text.h"
#include "server/prompt.h"
#include "tokenizer/incremental_detokenizer.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

// Hands the engine's events to the thread that waits for them.
class EventQueue : public OutputSink {
 public:
  void Push(std::vector<OutputEvent> events) override {
    std::lock_guard<std::mutex> lock(mu_);
    for (OutputEvent& event : events) events_.push_back(std::move(event));
    has_events_.notify_one();
  }

  std::vector<OutputEvent> Wait() {
    std::unique_lock<std::mutex> lock(mu_);
    has_events_.wait(lock, [this] { return !events_.empty(); });
    return std::exchange(events_, {});
  }

 private:
  std::mutex mu_;
  std::condition_variable has_events_;
  std::vector<OutputEvent> events_;  // Guarded by mu_.
};

absl::StatusOr<Request> MakeRequest(const GenerateOptions& options,
                                    const Session& session) {
  Json body;
  if (options.is_chat) {
    Json messages = Json::array();
    if (!options.system.empty()) {
      messages.push_back({{"role", "system"}, {"content", options.system}});
    }
    messages.push_back({{"role", "user"}, {"content", options.prompt}});
    body["messages"] = std::move(messages);
  } else {
    body["prompt"] = options.prompt;
  }
  const ApiKind kind = options.is_chat ? ApiKind::kChat : ApiKind::kCompletion;
  const SamplingOptions& sampling = options.sampling;
  if (sampling.temperature >= 0) body["temperature"] = sampling.temperature;
  if (sampling.top_p > 0) body["top_p"] = sampling.top_p;
  if (sampling.top_k >= 0) body["top_k"] = sampling.top_k;
  if (sampling.seed >= 0) body["seed"] = sampling.seed;
  QUIRE_ASSIGN_OR_RETURN(ApiRequest parsed,
                         ParseApiRequest(kind, body, session.defaults));
  QUIRE_ASSIGN_OR_RETURN(
      std::vector<std::vector<int32_t>> prompts,
      EncodePrompts(parsed, *session.tokenizer, session.chat_template.get(),
                    MakePromptLimits(*session.tokenizer,
                                     session.engine_options.max_model_len,
                                     session.engine_options.vocab_size)));
  Request request;
  request.prompt_token_ids = std::move(prompts.front());
  request.sampling = parsed.sampling;
  const int32_t room = session.engine_options.max_model_len -
                       static_cast<int32_t>(request.prompt_token_ids.size());
  request.sampling.max_tokens =
      sampling.max_tokens > 0 ? std::min(sampling.max_tokens, room) : room;
  if (options.json) request.sampling.num_logprobs = options.num_logprobs;
  request.arrival_time = Clock::Monotonic()->Now();
  return request;
}

struct Generated {
  std::string text;
  std::vector<TokenOutput> tokens;
  FinishReason finish_reason = FinishReason::kError;
  absl::Status error;
};

// Waits for the whole answer; prints its text meanwhile if `prints`.
Generated Collect(const Session& session, bool prints, EventQueue* queue) {
  IncrementalDetokenizer detokenizer(session.tokenizer.get(),
                                     /*skip_special_tokens=*/true);
  Generated result;
  const auto give = [&](const std::string& text) {
    result.text += text;
    if (prints) std::cout << text << std::flush;
  };
  for (bool is_last = false; !is_last;) {
    for (OutputEvent& event : queue->Wait()) {
      for (TokenOutput& token : event.tokens) {
        give(detokenizer.Append(token.token_id));
        result.tokens.push_back(std::move(token));
      }
      if (event.finish_reason.has_value()) {
        result.finish_reason = *event.finish_reason;
        result.error = event.error;
      }
      is_last = event.is_last;
    }
  }
  give(detokenizer.Finish());
  return result;
}

void PrintJson(const Session& session, const std::vector<int32_t>& prompt,
               const Generated& generated) {
  Json tokens = Json::array(), logprobs = Json::array(), tops = Json::array();
  for (const TokenOutput& token : generated.tokens) {
    tokens.push_back(token.token_id);
    logprobs.push_back(token.logprob);
    Json top = Json::array();
    for (const TopLogprob& entry : token.top_logprobs) {
      top.push_back({{"token_id", entry.token_id},
                     {"token", session.tokenizer->IdToToken(entry.token_id)},
                     {"logprob", entry.logprob}});
    }
    tops.push_back(std::move(top));
  }
  const Json answer = {
      {"model", session.model_name},
      {"prompt_token_ids", prompt},
      {"token_ids", tokens},
      {"logprobs", logprobs},
      {"top_logprobs", tops},
      {"text", generated.text},
      {"finish_reason", FinishReasonName(generated.finish_reason)}};
  std::cout << DumpJson(answer) << std::endl;
}

}  // namespace

int RunGenerate(const GenerateOptions& options) {
  CommandError error;
  const std::unique_ptr<Session> session = LoadSession(options.model, &error);
  const auto fail = [](const absl::Status& status, int exit_code) {
    absl::FPrintF(stderr, "quire: %s\n", status.message());
    return exit_code;
  };
  if (session == nullptr) return fail(error.status, error.exit_code);
  absl::StatusOr<Request> request = MakeRequest(options, *session);
  if (!request.ok()) return fail(request.status(), kExitUsage);
  EventQueue queue;
  auto engine =
      EngineLoop::Create(session->engine_options, session->runner,
                         Clock::Monotonic(), &queue, session->drafter.get());
  if (!engine.ok()) return fail(engine.status(), kExitUsage);
  const std::vector<int32_t> prompt = request->prompt_token_ids;
  request->id = (*engine)->NewRequestId();
  const absl::Status status = (*engine)->Submit(*std::move(request));
  if (!status.ok()) return fail(status, kExitUsage);
  const Generated generated = Collect(*session, !options.json, &queue);
  if (generated.finish_reason == FinishReason::kError) {
    return fail(generated.error, kExitEngine);
  }
  if (options.json) {
    PrintJson(*session, prompt, generated);
  } else {
    std::cout << std::endl;
  }
  return kExitOk;
}

}  // namespace quire
