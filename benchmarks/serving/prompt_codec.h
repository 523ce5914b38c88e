// Counting a prompt's tokens before it is sent: by a tokenizer of this process,
// or by the server's own.
#ifndef QUIRE_BENCHMARKS_SERVING_PROMPT_CODEC_H_
#define QUIRE_BENCHMARKS_SERVING_PROMPT_CODEC_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "benchmarks/serving/load_client.h"
#include "tokenizer/tokenizer.h"

namespace quire {

class PromptCodec {
 public:
  virtual ~PromptCodec() = default;
  // Ids of a prompt, with the special tokens that the server adds.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text) = 0;
  // Ids that make ordinary text, for drawing prompts; empty if not known: then
  // prompts are made of words.
  virtual absl::Span<const int32_t> PlainIds() const { return {}; }
  // Requires: PlainIds() is not empty.
  virtual std::string Decode(absl::Span<const int32_t> ids) = 0;
};

// `tokenizer` must outlive the codec.
std::unique_ptr<PromptCodec> NewLocalCodec(const Tokenizer* tokenizer);

// Of a server with POST /tokenize as vLLM's ({"model", "prompt"} -> {"tokens"})
// or llama.cpp's ({"content"} -> {"tokens"}). Tries it: an error says what is
// wrong. `client` and `is_cancelled`, if it is given, must outlive the codec;
// once that is set, encoding is CANCELLED.
absl::StatusOr<std::unique_ptr<PromptCodec>> NewServerCodec(
    LoadClient* client, const std::string& model,
    std::vector<std::pair<std::string, std::string>> headers,
    const std::atomic<bool>* is_cancelled = nullptr);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_SERVING_PROMPT_CODEC_H_
