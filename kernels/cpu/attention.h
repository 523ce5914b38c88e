// Causal attention of ragged query tokens over a paged KV cache.
#ifndef QUIRE_KERNELS_CPU_ATTENTION_H_
#define QUIRE_KERNELS_CPU_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/base/thread_pool.h"
#include "kernels/backend.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/isa.h"

namespace quire {

// Where K and V lie in one block of one layer:
//   [num_kv_heads][K, V], each
//     K: [head_dim][block_size], V: [block_size][head_dim] elements, and
//     for kI8 [block_size] f32 scales: an element stands for itself times the
//     scale of its token.
// K lies by element so that a vector holds consecutive positions, whose scores
// it computes without a transposition or a horizontal sum; V so that it holds
// elements of the output. K and V of a head are neighbours because a thread
// reads one head at a time: longer pieces suit the memory's prefetchers.
struct KvBlockLayout {
  DType dtype = DType::kBF16;  // f32, f16, bf16, fp8_e4m3 or i8.
  int num_kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;

  int64_t HeadBytes() const {
    return block_size * KvHeadBytes(dtype, head_dim);
  }
  int64_t BlockBytes() const { return 2 * num_kv_heads * HeadBytes(); }
  // Byte offsets in a block; `slot` is a position in it.
  int64_t K(int kv_head, int64_t slot, int d) const {
    return 2 * kv_head * HeadBytes() +
           (int64_t{d} * block_size + slot) * DTypeSize(dtype);
  }
  int64_t V(int kv_head, int64_t slot, int d) const {
    return (2 * kv_head + 1) * HeadBytes() +
           (slot * head_dim + d) * DTypeSize(dtype);
  }
  // kI8 only.
  int64_t KScale(int kv_head, int64_t slot) const {
    return K(kv_head, 0, 0) + int64_t{block_size} * head_dim + slot * 4;
  }
  int64_t VScale(int kv_head, int64_t slot) const {
    return KScale(kv_head, slot) + HeadBytes();
  }
};

// Query tokens of one sequence: rows first_token .. first_token + num_tokens of
// q and out, at positions first_position onwards. K and V of all positions up
// to the last query's are in the cache, those of the query tokens included.
struct AttentionRow {
  // Block of positions [i * block_size, (i + 1) * block_size) at index i.
  // Entries wholly before the window of the first query token are not read.
  const int32_t* block_table = nullptr;
  int64_t first_position = 0;
  int32_t num_tokens = 0;
  int64_t first_token = 0;
};

struct PagedAttentionParams {
  absl::Span<const AttentionRow> rows;
  // [num_tokens, num_heads * head_dim], f32, after norm and RoPE.
  const float* q = nullptr;
  int64_t q_stride = 0;
  float* out = nullptr;  // Shaped as q; must not overlap it.
  int64_t out_stride = 0;
  // Block b of this layer starts at byte b * block_bytes and is laid out as
  // KvBlockLayout says.
  const void* kv = nullptr;
  DType kv_dtype = DType::kBF16;
  int64_t block_bytes = 0;
  int num_heads = 0;
  int num_kv_heads = 0;  // Divides num_heads.
  int head_dim = 0;
  int block_size = 0;
  int sliding_window =
      0;               // A query at p sees max(0, p - window + 1) .. p; 0: all.
  float scale = 1.0f;  // Applied to q . k.
  float softcap = 0.0f;  // cap * tanh(score / cap) if > 0.
};

// Work space of PagedAttention. Not thread-safe: one call at a time.
class AttentionScratch {
 public:
  AttentionScratch(int num_threads, int num_heads, int head_dim,
                   int64_t max_model_len);

 private:
  friend void PagedAttention(ThreadPool& pool, Isa isa,
                             const PagedAttentionParams& params,
                             AttentionScratch& scratch);
  // What one thread computes at a time: one KV head of some tokens of a row.
  struct Unit {
    int64_t row_idx;
    int32_t kv_head;
    int32_t token_begin;
    int32_t num_tokens;
    // One split, into the partials at `offset`; or [split, split_end) into out.
    bool is_partial;
    int64_t split;
    int64_t split_end;
    int64_t offset;  // Floats.
  };

  void Plan(const PagedAttentionParams& params, int64_t padded_dim);

  int num_threads_;
  int64_t max_item_rows_;
  int64_t max_padded_dim_;
  int64_t thread_floats_;
  AlignedBuffer per_thread_;
  AlignedBuffer partials_;
  // Of the current call; the capacity stays.
  std::vector<int64_t> row_order_;
  std::vector<Unit> units_;
  std::vector<Unit> merges_;  // [split, split_end) at `offset` into out.
};

// softmax(scale * q k^T, masked) v for every query token and head, computed in
// f32; K and V are widened exactly (the scales of kI8 multiply the scores and
// the probabilities).
// Requires: positions and blocks as AttentionRow says; scratch made for at
// least this num_heads and head_dim and the pool's num_threads. Determinism: on
// one instruction set the bits of a (token, head) depend only on its query, its
// position and the visible K and V: not on the other rows, the chunking of its
// prompt, num_tokens or the number of threads. Rows with num_tokens 0 and an
// empty list are no-ops.
void PagedAttention(ThreadPool& pool, Isa isa,
                    const PagedAttentionParams& params,
                    AttentionScratch& scratch);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_ATTENTION_H_
