#include "engine/engine_options.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

absl::Status CheckRange(const char* name, int64_t value, int64_t low,
                        int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      name, " is ", value, ", must be in [", low, ", ", high, "]"));
}

}  // namespace

absl::Status ValidateEngineOptions(const EngineOptions& options) {
  // Upper limits keep products of two of these within int64 and positions
  // within int32; none is near what memory allows.
  constexpr int64_t kMaxCount = int64_t{1} << 30;
  QUIRE_RETURN_IF_ERROR(CheckRange("block_size", options.block_size, 1, 256));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("num_blocks", options.num_blocks, 1, kMaxCount));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("max_model_len", options.max_model_len, 2, kMaxCount));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("vocab_size", options.vocab_size, 1, kMaxCount));
  QUIRE_RETURN_IF_ERROR(CheckRange("rope_switch_length",
                                   options.rope_switch_length, 0, kMaxCount));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("max_num_seqs", options.max_num_seqs, 1, 1 << 16));
  // At least a token for each running sequence: nobody starves for the budget.
  QUIRE_RETURN_IF_ERROR(CheckRange("max_num_batched_tokens",
                                   options.max_num_batched_tokens,
                                   options.max_num_seqs, kMaxCount));
  QUIRE_RETURN_IF_ERROR(CheckRange("long_prefill_token_threshold",
                                   options.long_prefill_token_threshold, 0,
                                   kMaxCount));
  QUIRE_RETURN_IF_ERROR(CheckRange(
      "max_num_scored_tokens", options.max_num_scored_tokens, 1, kMaxCount));
  QUIRE_RETURN_IF_ERROR(CheckRange("num_speculative_tokens",
                                   options.num_speculative_tokens, 0,
                                   kMaxSpeculativeTokens));
  QUIRE_RETURN_IF_ERROR(CheckRange("max_num_queued_reqs",
                                   options.max_num_queued_reqs, 1, kMaxCount));
  QUIRE_RETURN_IF_ERROR(CheckRange("max_num_queued_tokens",
                                   options.max_num_queued_tokens, 1,
                                   int64_t{1} << 40));
  QUIRE_RETURN_IF_ERROR(CheckRange("max_num_queued_bytes",
                                   options.max_num_queued_bytes, 1,
                                   int64_t{1} << 50));
  // Written so that NaN fails.
  if (!(options.target_queue_delay_seconds > 0) ||
      !(options.watchdog_seconds >= 0) ||
      !(options.watchdog_seconds_per_token >= 0)) {
    return absl::InvalidArgumentError(
        "target_queue_delay_seconds must be positive, and the watchdog's "
        "seconds not negative");
  }
  QUIRE_RETURN_IF_ERROR(
      CheckRange("steps_in_flight", options.steps_in_flight, 1, 64));
  QUIRE_RETURN_IF_ERROR(CheckRange("num_micro_batches",
                                   options.num_micro_batches, 1,
                                   options.steps_in_flight));
  for (int32_t id : options.eos_token_ids) {
    QUIRE_RETURN_IF_ERROR(
        CheckRange("eos_token_ids", id, 0, options.vocab_size - 1));
  }
  return absl::OkStatus();
}

}  // namespace quire
