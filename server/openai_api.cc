#include "server/openai_api.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/api_error.h"
#include "server/request_fields.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

// What one field alone cannot tell.
absl::Status CheckTogether(ApiRequest& request) {
  SamplingParams& sampling = request.sampling;
  if (request.max_completion_tokens.has_value()) {
    sampling.max_tokens = *request.max_completion_tokens;
  }
  if (sampling.max_tokens > 0 && sampling.min_tokens > sampling.max_tokens) {
    return ParameterError("min_tokens",
                          "'min_tokens' must not exceed 'max_tokens'");
  }
  if (request.generates_nothing && !request.echo) {
    return ParameterError("max_tokens",
                          "'max_tokens' must be at least 1, or 0 with 'echo'");
  }
  if (request.best_of < request.n) {
    if (request.best_of > 0) {
      return ParameterError("best_of", "'best_of' must not be less than 'n'");
    }
    request.best_of = request.n;
  }
  if (request.best_of > request.n && request.stream) {
    return ParameterError("best_of", "'best_of' above 'n' cannot be streamed");
  }
  if (request.top_logprobs.value_or(0) > 0 && !request.wants_logprobs) {
    return ParameterError("top_logprobs",
                          "'top_logprobs' needs 'logprobs' to be true");
  }
  if (request.wants_logprobs) {
    sampling.num_logprobs = request.top_logprobs.value_or(0);
  } else if (request.best_of > request.n) {
    sampling.num_logprobs = 0;  // To choose by.
  }
  sampling.num_prompt_logprobs = request.prompt_logprobs.value_or(-1);
  if (request.echo && request.wants_logprobs &&
      request.kind == ApiKind::kCompletion) {
    sampling.num_prompt_logprobs =
        std::max(sampling.num_prompt_logprobs, sampling.num_logprobs);
  }
  if (request.kind == ApiKind::kChat && request.continue_final_message) {
    if (request.messages.back()["role"] != "assistant") {
      return ParameterError("continue_final_message",
                            "the final message must be the assistant's");
    }
    request.add_generation_prompt = false;
  }
  if ((request.include_usage || request.continuous_usage_stats) &&
      !request.stream) {
    return ParameterError("stream_options",
                          "'stream_options' needs 'stream' to be true");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ApiRequest> ParseApiRequest(ApiKind kind, const Json& body,
                                           const SamplingDefaults& defaults,
                                           bool is_tokenize) {
  ApiRequest request;
  request.kind = kind;
  request.add_special_tokens = kind == ApiKind::kCompletion;
  request.sampling.temperature = defaults.temperature;
  request.sampling.top_p = defaults.top_p;
  request.sampling.min_p = defaults.min_p;
  request.sampling.top_k = defaults.top_k;
  request.sampling.repetition_penalty = defaults.repetition_penalty;
  // OpenAI's default for completions; a chat runs to the end of the context.
  request.sampling.max_tokens = kind == ApiKind::kCompletion ? 16 : 0;
  const FieldScope scope = kind == ApiKind::kChat ? kOfChat : kOfCompletion;
  QUIRE_RETURN_IF_ERROR(ReadRequestFields(
      is_tokenize ? scope | kOfTokenize : scope, body, &request));
  QUIRE_RETURN_IF_ERROR(CheckTogether(request));
  return request;
}

absl::StatusOr<ApiRequest> ParseEmbeddingsRequest(const Json& body,
                                                  int hidden_size) {
  ApiRequest request;
  request.kind = ApiKind::kEmbeddings;
  request.add_special_tokens = true;
  request.truncates_right = true;  // As vLLM for embedding models.
  QUIRE_RETURN_IF_ERROR(ReadRequestFields(kOfEmbeddings, body, &request));
  if (request.dimensions > hidden_size) {
    return ParameterError(
        "dimensions", absl::StrCat("'dimensions' must be between 1 and ",
                                   hidden_size, ", not ", request.dimensions));
  }
  return request;
}

absl::StatusOr<ApiRequest> ParseDetokenizeRequest(const Json& body) {
  ApiRequest request;
  request.kind = ApiKind::kDetokenize;
  QUIRE_RETURN_IF_ERROR(ReadRequestFields(kOfDetokenize, body, &request));
  return request;
}

}  // namespace quire
