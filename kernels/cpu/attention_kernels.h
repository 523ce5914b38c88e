// What attention.cc and its per-instruction-set units share. Plain data only:
// see simd.h for why these units include nothing else.
#ifndef QUIRE_KERNELS_CPU_ATTENTION_KERNELS_H_
#define QUIRE_KERNELS_CPU_ATTENTION_KERNELS_H_

#include <stdint.h>

#include "kernels/cpu/isa_dispatch.h"

namespace quire {

// Positions whose scores are computed before the running maximum is updated.
// Tiles and splits start at multiples of their size in absolute positions, so
// the arithmetic of a query does not depend on how it was scheduled.
constexpr int kAttentionTile = 64;
// Positions that are summed on their own before they are merged; the unit of
// parallelism along a long context. 512 positions of one KV head of 64 to 128
// bf16 elements are 128 to 256 KiB: 10 to 20 us of one thread's bandwidth,
// against well under 1 us for the merge.
constexpr int kAttentionSplit = 512;

enum class KvFormat : int { kF32, kF16, kBf16, kF8, kI8 };
constexpr int kNumKvFormats = 5;

struct AttentionJob {
  const float* q;  // [num_tokens, num_heads * head_dim]
  int64_t q_stride;
  float* out;
  int64_t out_stride;
  const char* kv;
  KvFormat kv_format;
  int64_t block_bytes;  // From block to block.
  int num_heads;
  int num_kv_heads;
  int head_dim;
  int padded_dim;  // head_dim rounded up to two vectors.
  int block_size;
  int sliding_window;  // 0: none.
  float scale;
  float softcap;
};

// The query heads of one KV head for a few consecutive tokens of a sequence:
// num_tokens * (num_heads / num_kv_heads) query rows, token-major.
struct AttentionItem {
  const int32_t* block_table;
  int64_t first_position;  // Of the first token.
  int64_t first_token;     // Its row of q and out.
  int num_tokens;
  int kv_head;
};

// A partial softmax over some positions, for each query row of an item:
//   [num_rows][padded_dim] sums of exp(score - max) * V, then
//   [num_rows] maxima (-infinity: no position was visible) and
//   [num_rows] sums of exp(score - max).
static inline int64_t PartialFloats(int64_t num_rows, int64_t padded_dim) {
  return num_rows * (padded_dim + 2);
}

// Floats of scratch that one thread needs for items of up to max_rows rows.
static inline int64_t AttentionScratchFloats(int64_t max_rows,
                                             int64_t padded_dim) {
  return max_rows * padded_dim              // Packed queries.
         + 2 * kAttentionTile * padded_dim  // K by element, V.
         + 16 * kAttentionTile              // Scores of a row tile.
         + max_rows * 16                    // Sums by lane.
         + 2 * PartialFloats(max_rows, padded_dim) + 64;
}

struct AttentionKernels {
  int lanes;
  // One split (positions split * kAttentionSplit ...) of an item into
  // `partial`.
  void (*compute_split)(const AttentionJob& job, const AttentionItem& item,
                        int64_t split, float* scratch, float* partial);
  // Merges splits in ascending order and writes the item's rows of `out`.
  // partials: [num_splits][PartialFloats(rows, padded_dim)].
  void (*merge_splits)(const AttentionJob& job, const AttentionItem& item,
                       int64_t num_splits, const float* partials,
                       float* scratch);
  // The same for all splits in [split_begin, split_end) on one thread.
  void (*compute)(const AttentionJob& job, const AttentionItem& item,
                  int64_t split_begin, int64_t split_end, float* scratch);
};

QUIRE_DECLARE_ISA_TABLES(AttentionKernels, kAttentionKernels)

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_ATTENTION_KERNELS_H_
