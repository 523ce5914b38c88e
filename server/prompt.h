// From validated requests to the token ids the engine computes.
#ifndef QUIRE_SERVER_PROMPT_H_
#define QUIRE_SERVER_PROMPT_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "server/openai_api.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace quire {

// The prompts of a request, one for a chat; each has 1 to max_model_len - 1
// tokens with ids below vocab_size. INVALID_ARGUMENT naming the parameter
// otherwise. `chat_template` may be null: chats are then refused.
absl::StatusOr<std::vector<std::vector<int32_t>>> EncodePrompts(
    const ApiRequest& request, const Tokenizer& tokenizer,
    const ChatTemplate* chat_template, int32_t max_model_len,
    int32_t vocab_size);

// The chat's messages through the template; special tokens in message text stay
// text.
absl::StatusOr<std::vector<int32_t>> EncodeChat(
    const ApiRequest& request, const Tokenizer& tokenizer,
    const ChatTemplate* chat_template);

// INVALID_ARGUMENT if an id in the sampling parameters is not below vocab_size.
absl::Status CheckSamplingIds(const SamplingParams& sampling,
                              int32_t vocab_size);

}  // namespace quire

#endif  // QUIRE_SERVER_PROMPT_H_
