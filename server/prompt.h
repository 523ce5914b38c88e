// From validated requests to the token ids the engine computes.
#ifndef QUIRE_SERVER_PROMPT_H_
#define QUIRE_SERVER_PROMPT_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"
#include "server/openai_api.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace quire {

// What a prompt may be.
struct PromptLimits {
  int32_t max_model_len = 0;
  int32_t vocab_size = 0;  // Of the logits.
  // Text that is longer cannot fit the context: refused before the work of
  // encoding it.
  int64_t max_text_bytes = 0;
};

// Computes max_text_bytes from the tokenizer's longest token.
PromptLimits MakePromptLimits(const Tokenizer& tokenizer, int32_t max_model_len,
                              int32_t vocab_size);

// The same for another context.
PromptLimits WithMaxModelLen(const PromptLimits& limits, int32_t max_model_len);

// The prompts of a request, one for a chat; each has 1 to max_model_len - 1
// tokens with ids below vocab_size. INVALID_ARGUMENT naming the parameter
// otherwise. `chat_template` may be null: chats are then refused.
absl::StatusOr<std::vector<std::vector<int32_t>>> EncodePrompts(
    const ApiRequest& request, const Tokenizer& tokenizer,
    const ChatTemplate* chat_template, const PromptLimits& limits);

// The chat's messages through the template; special tokens in message text stay
// text.
absl::StatusOr<std::vector<int32_t>> EncodeChat(
    const ApiRequest& request, const Tokenizer& tokenizer,
    const ChatTemplate* chat_template, const PromptLimits& limits);

// INVALID_ARGUMENT naming `parameter` if a text, though it is to be cut or only
// to be tokenized, has more bytes than are tokenized at once: the context's, or
// 2 MiB if that is more. A token takes some 15 bytes of memory for each of
// text.
absl::Status CheckTokenizedLength(absl::string_view parameter, size_t num_bytes,
                                  const PromptLimits& limits);

// INVALID_ARGUMENT if an id in the sampling parameters is not below vocab_size.
absl::Status CheckSamplingIds(const SamplingParams& sampling,
                              int32_t vocab_size);

// INVALID_ARGUMENT naming allowed_token_ids if none of these may be drawn: each
// ends the text before min_tokens, or is a bad word. Requires: bad_words are
// resolved.
absl::Status CheckSomeTokenIsAllowed(const SamplingParams& sampling,
                                     absl::Span<const int32_t> eos_token_ids);

}  // namespace quire

#endif  // QUIRE_SERVER_PROMPT_H_
