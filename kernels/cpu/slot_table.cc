#include "kernels/cpu/slot_table.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cpu/sampling.h"
#include "kernels/slot_params.h"

namespace quire {
namespace {

bool HasPenalties(const SlotParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

}  // namespace

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
        CheckTokenIds("history", update.history, shape_.vocab_size));
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
