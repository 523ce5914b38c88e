// The strings among the sampling parameters as token sequences: bad words, and
// the sequence breakers of DRY.
#ifndef QUIRE_SERVER_SAMPLING_STRINGS_H_
#define QUIRE_SERVER_SAMPLING_STRINGS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/token_sequence_set.h"
#include "server/openai_api.h"
#include "tokenizer/tokenizer.h"

namespace quire {

// The token sequences of each bad word: as it is, less spaces in front, and
// with one space in front. As vllm-project/vllm, vllm/sampling_params.py,
// SamplingParams.update_from_tokenizer, which however drops the second form
// unless both have as many tokens: " ago" would then stay allowed where "ago"
// alone is two tokens. INVALID_ARGUMENT naming bad_words for a word without
// tokens, or with tokens that the model does not have.
absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeBadWords(
    const std::vector<std::string>& words, const Tokenizer& tokenizer,
    int32_t vocab_size);

// All ways in which the breakers come about in tokens (ggml-org/llama.cpp,
// src/llama-sampling.cpp, get_overlapping_token_sequences): every token that
// contains a breaker; and every token whose end begins one, followed by the
// tokens of its rest, of which the first 20 count.
absl::StatusOr<TokenSequenceSet> EncodeDryBreakers(
    const std::vector<std::string>& breakers, const Tokenizer& tokenizer,
    int32_t vocab_size);

// Thread-safe. `tokenizer` must outlive it.
class SamplingStrings {
 public:
  SamplingStrings(const Tokenizer* tokenizer, int32_t vocab_size)
      : tokenizer_(tokenizer), vocab_size_(vocab_size) {}

  // Sets bad_words and dry_breakers of request->sampling. The breakers of
  // recent requests are kept: finding them looks at the whole vocabulary.
  absl::Status Resolve(ApiRequest* request);

 private:
  using Breakers = std::shared_ptr<const TokenSequenceSet>;

  absl::StatusOr<Breakers> FindBreakers(
      const std::vector<std::string>& breakers);

  const Tokenizer* const tokenizer_;
  const int32_t vocab_size_;
  std::mutex mu_;
  std::map<std::vector<std::string>, Breakers> breakers_;  // Guarded by mu_.
};

}  // namespace quire

#endif  // QUIRE_SERVER_SAMPLING_STRINGS_H_
