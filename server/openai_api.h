// The requests of the OpenAI API, validated: JSON in, plain data out. A wrong
// request becomes INVALID_ARGUMENT with the parameter's name here and nowhere
// later.
#ifndef QUIRE_SERVER_OPENAI_API_H_
#define QUIRE_SERVER_OPENAI_API_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/request.h"
#include "nlohmann/json.hpp"
#include "server/json_text.h"
#include "server/telemetry/request_record.h"

namespace quire {

// A year: beyond it nobody means what they say, and times stay finite.
inline constexpr double kMaxTimeoutSeconds = 365 * 86400.0;

inline constexpr int kMaxEmbeddingInputs = 2048;  // OpenAI's limit.

enum class ApiKind : uint8_t { kChat, kCompletion, kEmbeddings, kDetokenize };

// What holds when a request says nothing: the model's generation_config.json.
struct SamplingDefaults {
  float temperature = 1.0f;
  float top_p = 1.0f;
  float min_p = 0.0f;
  int32_t top_k = 0;
  float repetition_penalty = 1.0f;
};

// `logit_bias` may name many tokens.
inline constexpr JsonLimits kGenerateJsonLimits = {.wide_member = "logit_bias"};

// A request as parsed; text is not yet tokens.
struct ApiRequest {
  ApiKind kind = ApiKind::kChat;
  std::string model;  // Empty: the served one.
  // max_tokens is 0 where the request set none.
  SamplingParams sampling;
  int32_t n = 1;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage_stats = false;
  std::vector<std::string> stop_strings;
  bool include_stop_str_in_output = false;
  // Not yet in `sampling`: SamplingStrings makes tokens of them.
  std::vector<std::string> bad_words;
  std::optional<std::vector<std::string>> dry_sequence_breakers;
  bool skip_special_tokens = true;
  bool return_tokens_as_token_ids = false;
  // Keeps so many prompt tokens; -1: as many as leave room for the answer.
  std::optional<int32_t> truncate_prompt_tokens;
  bool truncates_right = false;   // Keeps the first ones, not the last ones.
  int32_t priority = 0;           // Smaller is more urgent.
  std::optional<double> timeout;  // Seconds from the request's arrival.
  std::string request_id;         // Empty, or harmless in a header.
  // The answer begins with the prompt (chat: with the final message, if it is
  // of the role that answers).
  bool echo = false;
  // Completions with echo and max_tokens 0: one token is drawn and dropped.
  bool generates_nothing = false;
  bool return_token_ids = false;
  // Top entries of each prompt token to report; none: no report.
  std::optional<int32_t> prompt_logprobs;
  int32_t best_of = 0;  // Choices to draw, of which the n best are returned.
  std::string cache_salt;
  // Unknown names: ignored, and listed in a response header.
  std::vector<std::string> ignored_fields;

  // Chat. Message contents are strings here (text parts joined by newlines),
  // and the arguments of tool calls are objects.
  nlohmann::ordered_json messages;
  nlohmann::ordered_json documents;             // Null if none.
  nlohmann::ordered_json chat_template_kwargs;  // An object, or null.
  bool add_generation_prompt = true;
  bool continue_final_message = false;

  // Completions, and the inputs of embeddings: text or token ids. Detokenize:
  // the ids.
  std::vector<std::variant<std::string, std::vector<int32_t>>> prompts;

  // Chat: false, the template writes them. Others: true.
  bool add_special_tokens = false;

  bool return_token_strs = false;  // Of /tokenize.

  // Embeddings.
  bool is_base64 = false;
  int32_t dimensions = 0;         // 0: all.
  std::optional<bool> normalize;  // None: as the model does.

  // Scratch of the parser.
  std::optional<int32_t> max_completion_tokens;
  bool wants_logprobs = false;
  std::optional<int32_t> top_logprobs;

  bool operator==(const ApiRequest&) const = default;
};

// INVALID_ARGUMENT naming the parameter for wrong types and ranges, and for
// fields that would change the answer and are not built; see the table in
// server/request_fields.h.
//   is_tokenize: of /tokenize, which has fields of its own beside those of
//     `kind`.
// Requires: kChat or kCompletion.
absl::StatusOr<ApiRequest> ParseApiRequest(ApiKind kind,
                                           const nlohmann::ordered_json& body,
                                           const SamplingDefaults& defaults,
                                           bool is_tokenize = false);

// Likewise.
//   hidden_size: of the model, the most that `dimensions` can be.
absl::StatusOr<ApiRequest> ParseEmbeddingsRequest(
    const nlohmann::ordered_json& body, int hidden_size);

// Likewise; its prompts hold one list of token ids, which may be empty.
absl::StatusOr<ApiRequest> ParseDetokenizeRequest(
    const nlohmann::ordered_json& body);

}  // namespace quire

#endif  // QUIRE_SERVER_OPENAI_API_H_
