#include "engine/parallel/step_result_codec.h"

#include "absl/strings/str_cat.h"
#include "engine/parallel/wire.h"

namespace quire {

// Not in the unnamed namespace: wire.h finds these by their arguments.

template <typename Wire>
void Visit(Wire& wire, TopLogprob& top) {
  auto& [token_id, logprob] = top;
  wire(token_id);
  wire(logprob);
}

template <typename Wire>
void Visit(Wire& wire, TokenOutput& token) {
  auto& [token_id, logprob, top_logprobs, rank] = token;
  wire(token_id);
  wire(logprob);
  wire(top_logprobs);
  wire(rank);
}

template <typename Wire>
void Visit(Wire& wire, SampledRow& row) {
  auto& [slot, tokens, scored, embedding, non_finite, all_masked] = row;
  wire(slot);
  uint32_t num_tokens = static_cast<uint32_t>(tokens.size());
  wire(num_tokens);
  if constexpr (Wire::kIsReader) {
    tokens.clear();
    // A number that is too large ends with the bytes.
    for (uint32_t i = 0; i < num_tokens && wire.ok(); ++i) {
      wire(tokens.emplace_back());
    }
  } else {
    for (TokenOutput& token : tokens) wire(token);
  }
  wire(scored);
  wire(embedding);
  wire(non_finite);
  wire(all_masked);
}

template <typename Wire>
void Visit(Wire& wire, StepResult& result) {
  auto& [step_id, rows] = result;
  wire(step_id);
  wire(rows);
}

void EncodeStepResult(const StepResult& result, std::string* out) {
  WireWriter wire(out);
  wire(result);
}

absl::StatusOr<StepResult> DecodeStepResult(absl::string_view bytes) {
  StepResult result;
  WireReader wire(bytes);
  wire(result);
  if (wire.AtEnd()) return result;
  return absl::InvalidArgumentError(
      absl::StrCat("step result: ", bytes.size(), " bytes are no result"));
}

}  // namespace quire
