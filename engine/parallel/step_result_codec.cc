#include "engine/parallel/step_result_codec.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
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

namespace {

absl::Status CheckToken(const TokenOutput& token, int vocab_size) {
  const auto check = [vocab_size](int32_t id) -> absl::Status {
    if (id >= 0 && id < vocab_size) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "step result: token ", id, " is not in [0, ", vocab_size, ")"));
  };
  QUIRE_RETURN_IF_ERROR(check(token.token_id));
  for (const TopLogprob& top : token.top_logprobs) {
    QUIRE_RETURN_IF_ERROR(check(top.token_id));
  }
  return absl::OkStatus();
}

}  // namespace

void EncodeStepResult(const StepResult& result, std::string* out) {
  WireWriter wire(out);
  wire(result);
}

absl::StatusOr<StepResult> DecodeStepResult(absl::string_view bytes,
                                            int vocab_size) {
  StepResult result;
  WireReader wire(bytes);
  wire(result);
  if (!wire.AtEnd()) {
    return absl::InvalidArgumentError(
        absl::StrCat("step result: ", bytes.size(), " bytes are no result"));
  }
  for (const SampledRow& row : result.rows) {
    for (const TokenOutput& token : row.tokens) {
      QUIRE_RETURN_IF_ERROR(CheckToken(token, vocab_size));
    }
    for (const TokenOutput& token : row.scored) {
      QUIRE_RETURN_IF_ERROR(CheckToken(token, vocab_size));
    }
  }
  return result;
}

}  // namespace quire
