#include "kernels/engine_shape.h"

#include "absl/strings/str_cat.h"

namespace quire {

absl::Status ValidateEngineShape(const EngineShape& shape) {
  if (shape.max_num_seqs >= 1 && shape.max_num_tokens >= 1 &&
      shape.max_logit_rows >= 1 && shape.max_model_len >= 1 &&
      shape.vocab_size >= 1 && shape.block_size >= 1 &&
      shape.steps_in_flight >= 1 && shape.kv_bytes >= 0 &&
      shape.pooled_cols >= 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "engine shape: max_num_seqs ", shape.max_num_seqs, ", max_num_tokens ",
      shape.max_num_tokens, ", max_logit_rows ", shape.max_logit_rows,
      ", max_model_len ", shape.max_model_len, ", vocab_size ",
      shape.vocab_size, ", block_size ", shape.block_size, ", steps_in_flight ",
      shape.steps_in_flight, ", kv_bytes ", shape.kv_bytes, ", pooled_cols ",
      shape.pooled_cols));
}

}  // namespace quire
