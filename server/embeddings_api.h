// The inputs of POST /v1/embeddings as token ids.
#ifndef QUIRE_SERVER_EMBEDDINGS_API_H_
#define QUIRE_SERVER_EMBEDDINGS_API_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "server/openai_api.h"
#include "server/prompt.h"
#include "tokenizer/tokenizer.h"

namespace quire {

// The tokens of each of request.prompts, 1 to limits.max_model_len with ids
// below limits.vocab_size; special tokens as the tokenizer's post-processor
// adds them. INVALID_ARGUMENT naming the parameter otherwise.
absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeInputs(
    const ApiRequest& request, const Tokenizer& tokenizer,
    const PromptLimits& limits);

}  // namespace quire

#endif  // QUIRE_SERVER_EMBEDDINGS_API_H_
