// What goes into the engine and what comes out: plain data, no behaviour. The
// engine knows token ids, not text.
#ifndef QUIRE_ENGINE_REQUEST_H_
#define QUIRE_ENGINE_REQUEST_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/base/token_sequence_set.h"

namespace quire {

// Unique for the life of the process; given by EngineLoop::NewRequestId.
using RequestId = uint64_t;

// Validated by the API before it gets here; Engine::AddRequest checks again
// what memory safety depends on (ids in the vocabulary, lengths).
struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy.
  float top_p = 1.0f;
  float min_p = 0.0f;
  int32_t top_k = 0;  // 0: all.
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float repetition_penalty = 1.0f;
  std::optional<uint64_t> seed;  // None: a random one is drawn.
  int32_t max_tokens = 16;       // Generated tokens per choice, >= 1.
  int32_t min_tokens = 0;        // No end or stop token before so many.
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;  // Beside the model's end tokens.
  // Top log-probabilities to report per token; 0: the drawn token's alone;
  // -1: none.
  int32_t num_logprobs = -1;
  // The same for the prompt's tokens, from the second one on: each is scored
  // given its predecessors. -1: none.
  int32_t num_prompt_logprobs = -1;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> allowed_token_ids;  // Empty: all.
  // Token sequences whose last token may not follow the others (of generated
  // ones); none is empty. Shared by the prompts of a call. Null: none.
  std::shared_ptr<const std::vector<std::vector<int32_t>>> bad_words;
  // Defined in kernels/sampling.h, with llama.cpp's names and defaults.
  float dry_multiplier = 0.0f;  // 0: no DRY.
  float dry_base = 1.75f;
  int32_t dry_allowed_length = 2;
  int32_t dry_penalty_last_n = -1;                       // -1: all tokens.
  std::shared_ptr<const TokenSequenceSet> dry_breakers;  // Null: none.
  float dynatemp_range = 0.0f;
  float dynatemp_exponent = 1.0f;
  float top_n_sigma = 0.0f;  // 0: off.
  float typical_p = 1.0f;
  float xtc_probability = 0.0f;
  float xtc_threshold = 0.1f;

  bool operator==(const SamplingParams&) const = default;
};

enum class RequestKind : uint8_t {
  kGenerate,  // Tokens are drawn after the prompt.
  kEmbed,     // The prompt becomes one vector; `sampling` has no effect.
};

struct Request {
  RequestId id = 0;
  RequestKind kind = RequestKind::kGenerate;
  std::vector<int32_t> prompt_token_ids;  // Not empty.
  SamplingParams sampling;
  int32_t n = 1;  // Choices; they share the prompt's blocks. kEmbed: 1.
  // Separates the prefix cache: equal prompts share blocks only under the same
  // value (API key, cache_salt).
  std::string cache_namespace;
  absl::Time arrival_time;  // Clock::Now() when the request was read.
  // Whose share of the engine and of the prefix cache it uses (API key); among
  // owners, those with more weight get more. [1, 1000]
  std::string owner;
  int32_t share_weight = 1;
  // Not ended by then (Clock::Now()), it ends with DEADLINE_EXCEEDED.
  absl::Time deadline = absl::InfiniteFuture();
  // Smaller is more urgent. Counts under SchedulingPolicy::kPriority only.
  int32_t priority = 0;
  // Held while it waits; set by EngineLoop::Submit.
  int64_t num_bytes = 0;
  // A later piece of a call that was accepted with its first request: no limit
  // of the queue and no draining refuses it.
  bool continues_call = false;
};

enum class FinishReason : uint8_t { kStop, kLength, kAbort, kError };

struct TopLogprob {
  int32_t token_id = 0;
  float logprob = 0.0f;
};

struct TokenOutput {
  int32_t token_id = 0;
  // Of the raw distribution, before penalties and temperature; meaningful if
  // the request asked for logprobs.
  float logprob = 0.0f;
  std::vector<TopLogprob> top_logprobs;  // Descending, num_logprobs entries.
  // Of prompt tokens only: 1 for the most likely token.
  int32_t rank = 0;
};

// What one step did to one choice of a request. Events of a choice come in
// order; the last one of a choice has finish_reason, and the last one of the
// request has is_last besides. Exactly one event of an accepted request has
// is_last, whatever happens (invariant I9).
struct OutputEvent {
  RequestId request_id = 0;
  int32_t choice_idx = 0;
  std::vector<TokenOutput> tokens;
  // The next prompt tokens, scored; over all events of the request, whatever
  // their choice, these are the prompt's tokens from the second one on, once
  // and in order, and all of them come before or with the first of `tokens`.
  std::vector<TokenOutput> prompt_tokens;
  // kEmbed: the pooled hidden states, not normalized; comes with kStop.
  std::vector<float> embedding;
  std::optional<FinishReason> finish_reason;
  // The stop token that ended the choice (it is the last of `tokens`), if one
  // of stop_token_ids did; end tokens of the model do not count.
  std::optional<int32_t> stop_token_id;
  bool is_last = false;
  absl::Status error;  // Not OK with kError.
  // Of an edge that has lost its cloud: the draft model's own tokens.
  bool is_from_draft_model = false;
  // Drafts that the step verified for the choice, and how many of them became
  // tokens.
  int32_t num_draft_tokens = 0;
  int32_t num_accepted_tokens = 0;
  int32_t num_cached_tokens = 0;  // Prompt tokens served by the prefix cache.
  absl::Time time;                // When the step's tokens were known.
  absl::Time scheduled_time;      // When the request was first scheduled.
};

}  // namespace quire

#endif  // QUIRE_ENGINE_REQUEST_H_
