// The routes of the server: OpenAI's API, tokenizing, health and metrics.
#ifndef QUIRE_SERVER_API_SERVER_H_
#define QUIRE_SERVER_API_SERVER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/engine_loop.h"
#include "nlohmann/json.hpp"
#include "server/answer_scores.h"
#include "server/http_server.h"
#include "server/key_limiter.h"
#include "server/openai_api.h"
#include "server/output_processor.h"
#include "server/prompt.h"
#include "server/request_gate.h"
#include "server/sampling_strings.h"
#include "server/server_metrics.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace quire {

// Of a model that makes embeddings.
struct ServedEmbedding {
  int hidden_size = 0;
  bool normalize = true;
  int max_inputs_in_flight = 128;  // Of one call; see EmbeddingCallOptions.
};

// A loaded model and what serves it; all pointers outlive the server.
struct ServedModel {
  std::vector<std::string> names;  // The first is the one answers carry.
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // Null: no chat.
  EngineLoop* engine = nullptr;
  OutputProcessor* output = nullptr;
  ServerMetrics* metrics = nullptr;
  PromptLimits limits;
  SamplingDefaults defaults;
  std::vector<int32_t> eos_token_ids;        // The engine's.
  std::optional<ServedEmbedding> embedding;  // None: the model generates text.
  int64_t created = 0;                       // Unix seconds.
  bool has_priorities = false;               // SchedulingPolicy::kPriority.
  int block_size = 16;                       // Of the KV cache, in tokens.
  bool has_request_metrics = false;          // ApiCallOptions::has_metrics.
  bool has_drafts = false;                   // ApiCallOptions::has_drafts.
  // Of an edge: what its cloud takes now, in place of `limits`. Null: these.
  std::function<PromptLimits()> current_limits;
  // Of an edge: what ready says, or why new requests are refused. Null: "ok".
  std::function<absl::StatusOr<std::string>()> readiness;
  // Appended to the metrics. Null: nothing.
  std::function<std::string()> more_metrics;

  PromptLimits Limits() const {
    return current_limits ? current_limits() : limits;
  }
};

// Thread-safe. Probes and 503 until Serve; then everything.
class ApiServer {
 public:
  // Adds the routes; `http` must not be started yet and must outlive this.
  ApiServer(HttpServer* http, std::string version,
            const RequestGateOptions& gate_options = {});

  // What probes report until Serve: so many of the bytes to load are there.
  void SetLoadProgress(int64_t num_done, int64_t num_total);
  // Before anything is loaded: `waiting` ("waiting for 1 of 2 nodes") for other
  // hosts, which a LeaderWorkerSet starts when this one is ready. Ready is 200
  // meanwhile, API requests are refused. Empty: no longer.
  void SetWaiting(const std::string& waiting);
  // This process computes a part of the model for another one, which serves:
  // ready is 200, API requests are refused with `reason`.
  void ServeAsWorker(const std::string& reason);
  void Serve(const ServedModel& model);
  // Of keys, for other ways in than the routes here.
  KeyLimiter* limiter() const { return limiter_.get(); }
  RequestGate* gate() const { return gate_.get(); }
  // Ready turns 503 at once, and new API requests are refused.
  void StartDraining();

 private:
  enum class State : uint8_t {
    kLoading,
    kWaiting,
    kWorker,
    kServing,
    kDraining
  };
  using Responder = std::shared_ptr<HttpResponder>;

  // Why API requests are refused now; OK: they are not.
  absl::Status Refusal() const;
  // 503 while loading or draining: for probes that decide on traffic.
  void HandleReady(const Responder& responder) const;
  // 503 only if the engine can serve no more.
  void HandleLive(const Responder& responder) const;
  void HandleMetrics(const Responder& responder) const;
  // In vLLM's and SGLang's words, and in our own.
  void HandleLoad(const Responder& responder) const;
  // What the API tells of one of the served names.
  nlohmann::ordered_json DescribeModel(const std::string& name) const;
  void HandleModels(const Responder& responder) const;
  // `encoded_name`: as the path has it. NOT_FOUND.
  absl::Status HandleModel(absl::string_view encoded_name,
                           const Responder& responder) const;
  absl::Status HandleTokenize(const ServedModel& model,
                              const HttpRequest& request,
                              const Responder& responder) const;
  absl::Status HandleDetokenize(const ServedModel& model,
                                const HttpRequest& request,
                                const Responder& responder) const;
  absl::Status HandleGenerate(ApiKind kind, const ServedModel& model,
                              const HttpRequest& request,
                              const Responder& responder) const;
  absl::Status HandleEmbeddings(const ServedModel& model,
                                const HttpRequest& request,
                                const Responder& responder) const;
  void SubmitCall(const ServedModel& model, ApiRequest api_request,
                  std::vector<std::vector<int32_t>> prompts,
                  const HttpRequest& http_request, absl::Time deadline,
                  std::shared_ptr<KeyTicket> ticket,
                  std::shared_ptr<AnswerScores> scores,
                  const Responder& responder) const;
  // One request more of the key, if it has any. RESOURCE_EXHAUSTED.
  absl::StatusOr<std::shared_ptr<KeyTicket>> AdmitKey(
      const HttpRequest& request) const;
  // Keeps what may be told of the body.
  void RecordBody(const HttpRequest& request) const;
  void AddApiRoute(
      const char* method, const char* path,
      std::function<absl::Status(const ServedModel&, const HttpRequest&,
                                 const Responder&)>
          handler);

  HttpServer* const http_;
  const std::string version_;
  // Written once, before state_ leaves kLoading.
  ServedModel model_;
  std::unique_ptr<SamplingStrings> sampling_strings_;
  // Outlives the calls, which the output processor of `model_` holds.
  const std::unique_ptr<KeyLimiter> limiter_;
  const std::unique_ptr<RequestGate> gate_;
  // For log-probabilities of answers; as limiter_.
  const std::unique_ptr<ScoreBudget> answer_scores_;
  std::atomic<State> state_{State::kLoading};
  mutable std::mutex reason_mu_;
  std::string reason_;  // Of kWaiting and kWorker; guarded by reason_mu_.
  std::atomic<int> load_percent_{0};
};

}  // namespace quire

#endif  // QUIRE_SERVER_API_SERVER_H_
