// The per-sequence state of the CPU backend: what "device" slots hold.
#ifndef QUIRE_KERNELS_CPU_SLOT_TABLE_H_
#define QUIRE_KERNELS_CPU_SLOT_TABLE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cpu/mapped_memory.h"
#include "kernels/cpu/token_counts.h"

namespace quire {

struct SlotState {
  bool is_active = false;
  SlotParams params;
  int32_t num_prompt_tokens = 0;
  int64_t num_computed_tokens = 0;
  int64_t num_start_tokens = 0;  // Of the history that it started with.
  int32_t last_token = -1;       // Of an earlier Sample; -1: none.
  int32_t num_blocks = 0;
  int32_t* block_table = nullptr;  // [max blocks of a sequence]
  bool has_penalties = false;
  TokenCounts counts;             // Kept up to date only with penalties.
  double* pooled_sum = nullptr;   // [pooled_cols], of mean pooling.
  int64_t num_pooled_tokens = 0;  // In it.
  bool has_history = false;
  // Prompt and generated tokens; kept up to date only with has_history.
  int32_t* history = nullptr;  // [MaxHistoryTokens]
  int64_t history_size = 0;

  // Takes note of a drawn token. Requires: fewer than MaxHistoryTokens are
  // known.
  void AddGeneratedToken(int32_t id) {
    if (has_penalties) counts.AddGeneratedToken(id);
    if (has_history) history[history_size++] = id;
  }
};

// Thread-compatible. Block tables, penalty counts and histories are pieces of
// one mapping, memory once they are touched; an update allocates only where a
// sequence brings lists of ids (bias, allowed, banned, bad words).
class SlotTable {
 public:
  SlotTable() = default;

  static absl::StatusOr<SlotTable> Create(const EngineShape& shape,
                                          int num_blocks);

  int64_t num_bytes() const { return memory_.num_bytes(); }
  // A sequence's history and its draws together: each is at most one token a
  // position, plus the one after the last.
  static int64_t MaxHistoryTokens(const EngineShape& shape) {
    return 2 * (int64_t{shape.max_model_len} + 1);
  }
  int num_slots() const { return static_cast<int>(slots_.size()); }
  SlotState& operator[](int32_t slot) { return slots_[slot]; }

  // INVALID_ARGUMENT naming the slot; the slot is then unchanged.
  absl::Status Apply(const SlotUpdate& update);

 private:
  absl::Status Validate(const SlotUpdate& update) const;
  void Layout(char* base, int64_t* num_bytes);

  EngineShape shape_;
  int num_blocks_ = 0;
  int max_blocks_per_seq_ = 0;
  MappedMemory memory_;
  std::vector<SlotState> slots_;
};

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_SLOT_TABLE_H_
