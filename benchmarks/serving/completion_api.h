// What a load says to an OpenAI-compatible server, and what it reads from the
// events that come back.
#ifndef QUIRE_BENCHMARKS_SERVING_COMPLETION_API_H_
#define QUIRE_BENCHMARKS_SERVING_COMPLETION_API_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace quire {

enum class CompletionApi : uint8_t { kCompletions, kChat, kEmbeddings };

// One request of a load.
struct LoadPrompt {
  std::string text;
  std::vector<int32_t> token_ids;  // Instead of text; not of kChat.
  // Further inputs of the same request, of which text and token_ids only count;
  // kEmbeddings only. All are texts, or all are ids.
  std::vector<LoadPrompt> further_inputs;
  // Of all inputs, as far as known before the server counts.
  int64_t num_tokens = 0;
  int64_t output_len = 128;
  std::string model;  // Instead of CompletionParams::model.
  // Not empty: what is wrong with the line of the dataset that this was to be.
  // Such a request is not sent, and has failed.
  std::string error;
};

struct CompletionParams {
  CompletionApi api = CompletionApi::kCompletions;
  std::string model;
  bool ignore_eos = false;
  int num_logprobs = -1;  // Of each token; -1: none are asked for.
  // Further members of the body (--temperature, --extra-body, ...).
  nlohmann::ordered_json extra = nlohmann::ordered_json::object();
};

// The body of a request: streamed, and greedy unless `extra` has a temperature;
// of kEmbeddings neither, and what is longer than the model takes is cut, as
// vLLM's benchmark has it.
std::string CompletionBody(const CompletionParams& params,
                           const LoadPrompt& prompt);

struct CompletionChunk {
  bool has_choice = false;  // A token (or several) came, perhaps without text.
  bool has_finish_reason = false;
  std::string text;
  std::optional<int64_t> prompt_tokens;  // From `usage`.
  std::optional<int64_t> completion_tokens;
  // From `metrics`, which vLLM adds with --enable-per-request-metrics.
  std::optional<double> queue_seconds;
  int num_embeddings = 0;  // Of a body of kEmbeddings, numbers or base64.
  std::string error;       // Not empty: the server failed, with this message.
};

// Reads one event (or a body that is no stream). DATA_LOSS if it is not a JSON
// object.
absl::Status ReadCompletionChunk(absl::string_view data,
                                 CompletionChunk* chunk);

// What an error's body says: its message, or its beginning; of a page of HTML
// the beginning of its text.
std::string ErrorText(int http_status, absl::string_view body);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_SERVING_COMPLETION_API_H_
