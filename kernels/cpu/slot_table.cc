#include "kernels/cpu/slot_table.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cpu/sampling.h"

namespace quire {
namespace {

absl::Status CheckIds(const char* field, absl::Span<const int32_t> ids,
                      int32_t vocab_size) {
  for (int32_t id : ids) {
    if (id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": token id ", id, " is not in [0, ", vocab_size,
                       ") of the vocabulary"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRange(const char* field, float value, float low, float high) {
  // Written so that NaN fails.
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, " is ", value, ", not within [", low, ", ", high, "]"));
}

absl::Status CheckLowest(const char* field, int32_t value, int32_t lowest) {
  if (value >= lowest) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, ", below ", lowest));
}

absl::Status ValidateBadWords(const SlotParams& params, int32_t vocab_size) {
  int64_t num_ids = 0;
  for (int32_t length : params.bad_word_lengths) {
    if (length < 1) {
      return absl::InvalidArgumentError(
          "bad_word_lengths has an entry below 1");
    }
    num_ids += length;
  }
  if (num_ids != static_cast<int64_t>(params.bad_word_ids.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("bad_word_lengths are ", num_ids, " together, for ",
                     params.bad_word_ids.size(), " ids"));
  }
  return CheckIds("bad_word_ids", params.bad_word_ids, vocab_size);
}

absl::Status ValidateDry(const SlotParams& params, float large) {
  QUIRE_RETURN_IF_ERROR(
      CheckRange("dry_multiplier", params.dry_multiplier, -large, large));
  QUIRE_RETURN_IF_ERROR(CheckRange("dry_base", params.dry_base, 0.0f, large));
  QUIRE_RETURN_IF_ERROR(
      CheckLowest("dry_allowed_length", params.dry_allowed_length, 0));
  return CheckLowest("dry_penalty_last_n", params.dry_penalty_last_n, -1);
}

bool HasPenalties(const SlotParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

}  // namespace

absl::Status ValidateSlotParams(const SlotParams& params, int32_t vocab_size) {
  constexpr float kLarge = 1e6f;  // Keeps every processed logit finite.
  QUIRE_RETURN_IF_ERROR(
      CheckRange("temperature", params.temperature, 0.0f, kLarge));
  QUIRE_RETURN_IF_ERROR(CheckRange("top_p", params.top_p, 0.0f, 1.0f));
  QUIRE_RETURN_IF_ERROR(CheckRange("min_p", params.min_p, 0.0f, 1.0f));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("presence_penalty", params.presence_penalty, -kLarge, kLarge));
  QUIRE_RETURN_IF_ERROR(CheckRange("frequency_penalty",
                                   params.frequency_penalty, -kLarge, kLarge));
  QUIRE_RETURN_IF_ERROR(CheckRange("repetition_penalty",
                                   params.repetition_penalty, 1e-6f, kLarge));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("top_n_sigma", params.top_n_sigma, 0.0f, kLarge));
  QUIRE_RETURN_IF_ERROR(CheckRange("typical_p", params.typical_p, 0.0f, 1.0f));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("xtc_probability", params.xtc_probability, 0.0f, 1.0f));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("xtc_threshold", params.xtc_threshold, 0.0f, 1.0f));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("dynatemp_range", params.dynatemp_range, 0.0f, kLarge));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("dynatemp_exponent", params.dynatemp_exponent, 0.0f, kLarge));
  QUIRE_RETURN_IF_ERROR(ValidateDry(params, kLarge));
  QUIRE_RETURN_IF_ERROR(ValidateBadWords(params, vocab_size));
  QUIRE_RETURN_IF_ERROR(CheckLowest("top_k", params.top_k, 0));
  if (params.num_logprobs > vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_logprobs is ", params.num_logprobs,
                     ", above the vocabulary of ", vocab_size));
  }
  if (params.num_prompt_logprobs > vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_prompt_logprobs is ", params.num_prompt_logprobs,
                     ", above the vocabulary of ", vocab_size));
  }
  if (params.bias.size() != params.bias_ids.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("bias has ", params.bias.size(), " values for ",
                     params.bias_ids.size(), " ids"));
  }
  for (float bias : params.bias) {
    if (bias != -INFINITY) {
      QUIRE_RETURN_IF_ERROR(CheckRange("bias", bias, -kLarge, kLarge));
    }
  }
  QUIRE_RETURN_IF_ERROR(CheckIds("bias_ids", params.bias_ids, vocab_size));
  QUIRE_RETURN_IF_ERROR(
      CheckIds("allowed_ids", params.allowed_ids, vocab_size));
  return CheckIds("banned_before_min", params.banned_before_min, vocab_size);
}

absl::StatusOr<SlotTable> SlotTable::Create(const EngineShape& shape,
                                            int num_blocks) {
  SlotTable table;
  table.shape_ = shape;
  table.num_blocks_ = num_blocks;
  table.max_blocks_per_seq_ =
      (shape.max_model_len + shape.block_size - 1) / shape.block_size;
  table.slots_.resize(shape.max_num_seqs);
  int64_t num_bytes = 0;
  table.Layout(nullptr, &num_bytes);
  QUIRE_ASSIGN_OR_RETURN(
      table.memory_,
      MappedMemory::Create(num_bytes, MappedMemory::Pages::kSmall));
  table.Layout(table.memory_.data(), &num_bytes);
  return table;
}

void SlotTable::Layout(char* base, int64_t* num_bytes) {
  const int64_t max_history = MaxHistoryTokens(shape_);
  const int64_t capacity = std::min<int64_t>(shape_.vocab_size, max_history);
  const int64_t table_size =
      static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(2 * capacity)));
  ArenaCursor cursor(base);
  for (SlotState& slot : slots_) {
    slot.block_table = cursor.Take<int32_t>(max_blocks_per_seq_);
  }
  for (SlotState& slot : slots_) {
    TokenCounts::Entry* entries = cursor.Take<TokenCounts::Entry>(capacity);
    int32_t* cells = cursor.Take<int32_t>(table_size);
    slot.counts = TokenCounts(entries, capacity, cells, table_size);
  }
  for (SlotState& slot : slots_) {
    slot.pooled_sum = cursor.Take<double>(shape_.pooled_cols);
    slot.history = cursor.Take<int32_t>(max_history);
  }
  *num_bytes = cursor.num_bytes();
}

absl::Status SlotTable::Validate(const SlotUpdate& update) const {
  if (update.slot < 0 || update.slot >= num_slots()) {
    return absl::InvalidArgumentError(
        absl::StrCat("not in [0, ", num_slots(), ")"));
  }
  const SlotState& slot = slots_[update.slot];
  const bool starts = update.params != nullptr;
  if (starts) {
    QUIRE_RETURN_IF_ERROR(
        ValidateSlotParams(*update.params, shape_.vocab_size));
    QUIRE_RETURN_IF_ERROR(
        CheckIds("history", update.history, shape_.vocab_size));
    const int64_t history_size = update.history.size();
    if (history_size > int64_t{shape_.max_model_len} + 1 ||
        update.num_prompt_tokens < 0 ||
        update.num_prompt_tokens > history_size ||
        update.num_computed_tokens < 0 ||
        update.num_computed_tokens > history_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("history of ", history_size, " tokens with ",
                       update.num_prompt_tokens, " prompt tokens and ",
                       update.num_computed_tokens, " computed, max_model_len ",
                       shape_.max_model_len));
    }
  } else if (!slot.is_active) {
    return absl::InvalidArgumentError("holds no sequence");
  }
  const size_t num_blocks =
      (starts ? 0 : slot.num_blocks) + update.append_blocks.size();
  if (num_blocks > static_cast<size_t>(max_blocks_per_seq_)) {
    return absl::InvalidArgumentError(absl::StrCat(
        num_blocks, " blocks, the block table holds ", max_blocks_per_seq_));
  }
  for (int32_t block : update.append_blocks) {
    if (block < 0 || block >= num_blocks_) {
      return absl::InvalidArgumentError(
          absl::StrCat("block ", block, " is not in [0, ", num_blocks_, ")"));
    }
  }
  return absl::OkStatus();
}

absl::Status SlotTable::Apply(const SlotUpdate& update) {
  const absl::Status status = Validate(update);
  if (!status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot ", update.slot, ": ", status.message()));
  }
  SlotState& slot = slots_[update.slot];
  if (update.params != nullptr) {
    slot.is_active = true;
    slot.params = *update.params;
    slot.num_prompt_tokens = update.num_prompt_tokens;
    slot.num_computed_tokens = update.num_computed_tokens;
    slot.num_start_tokens = update.history.size();
    slot.last_token = -1;
    slot.num_blocks = 0;
    std::fill_n(slot.pooled_sum, shape_.pooled_cols, 0.0);
    slot.num_pooled_tokens = 0;
    slot.counts.Clear();
    slot.has_penalties = HasPenalties(slot.params);
    if (slot.has_penalties) {
      for (size_t i = 0; i < update.history.size(); ++i) {
        if (static_cast<int64_t>(i) < update.num_prompt_tokens) {
          slot.counts.AddPromptToken(update.history[i]);
        } else {
          slot.counts.AddGeneratedToken(update.history[i]);
        }
      }
    }
    slot.has_history = NeedsHistory(slot.params);
    slot.history_size = 0;
    if (slot.has_history) {
      std::copy(update.history.begin(), update.history.end(), slot.history);
      slot.history_size = update.history.size();
    }
  }
  std::copy(update.append_blocks.begin(), update.append_blocks.end(),
            slot.block_table + slot.num_blocks);
  slot.num_blocks += static_cast<int32_t>(update.append_blocks.size());
  return absl::OkStatus();
}

}  // namespace quire
