// POST /v1/embeddings: JSON in, token ids out. A wrong request becomes
// INVALID_ARGUMENT with the parameter's name here and nowhere later.
#ifndef QUIRE_SERVER_EMBEDDINGS_API_H_
#define QUIRE_SERVER_EMBEDDINGS_API_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "server/prompt.h"
#include "tokenizer/tokenizer.h"

namespace quire {

inline constexpr int kMaxEmbeddingInputs = 2048;  // OpenAI's limit.

struct EmbeddingsRequest {
  std::string model;  // Empty: the served one.
  // 1 to kMaxEmbeddingInputs.
  std::vector<std::variant<std::string, std::vector<int32_t>>> inputs;
  bool is_base64 = false;
  int dimensions = 0;             // 0: all.
  std::optional<bool> normalize;  // None: as the model does.
  bool add_special_tokens = true;
  // Keeps so many tokens of an input, special ones included; -1: as many as the
  // model takes. None: a longer input is an error.
  std::optional<int32_t> truncate_prompt_tokens;
  // Which ones: as vLLM for embedding models, the first.
  bool truncates_left = false;
  std::string cache_salt;
  std::string request_id;         // Of the caller; empty if it gave none.
  int32_t priority = 0;           // See Request::priority.
  std::optional<double> timeout;  // Seconds from the request's arrival.
  // Unknown names: ignored, and listed in a response header.
  std::vector<std::string> ignored_fields;
};

// INVALID_ARGUMENT naming the parameter for wrong types and ranges.
//   hidden_size: of the model, the most that `dimensions` can be.
absl::StatusOr<EmbeddingsRequest> ParseEmbeddingsRequest(
    const nlohmann::ordered_json& body, int hidden_size);

// The tokens of each input, 1 to limits.max_model_len with ids below
// limits.vocab_size; special tokens as the tokenizer's post-processor adds
// them. INVALID_ARGUMENT naming the parameter otherwise.
absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeInputs(
    const EmbeddingsRequest& request, const Tokenizer& tokenizer,
    const PromptLimits& limits);

}  // namespace quire

#endif  // QUIRE_SERVER_EMBEDDINGS_API_H_
