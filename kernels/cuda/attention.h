// Ragged paged attention on tensor cores: prefill, chunks of it, decode and
// verification of drafts are the same kernel.
//
// Dao 2023, arXiv:2307.08691 (FlashAttention-2), Algorithm 1, over the blocks
// of a paged cache (Kwon et al. 2023, arXiv:2309.06180). The rows of a tile are
// (query token, query head of one KV head's group) pairs, so that the heads of
// a group share what is read. A row's keys are visited in tiles and splits at
// fixed absolute positions and merged in order: what is computed for a token
// does not depend on its company.
#ifndef QUIRE_KERNELS_CUDA_ATTENTION_H_
#define QUIRE_KERNELS_CUDA_ATTENTION_H_

#include <cstdint>

#include "kernels/cuda/simt/simt.h"
#include "kernels/dtype.h"

namespace quire::cuda {

// Queries of one sequence in a step.
struct AttentionSequence {
  int32_t first_token = 0;  // Its first query's row in q and out.
  int32_t num_tokens = 0;   // Queries.
  int32_t seq_len = 0;      // Positions in the cache, those of its queries
                            // included.
  int32_t block_table = 0;  // Row of the block tables.
};

// One CTA's work: rows [first_row, first_row + tile rows) of a sequence's
// packed queries, for one KV head, over keys [kv_begin, kv_end).
struct AttentionTask {
  int32_t sequence = 0;
  int32_t kv_head = 0;
  int32_t first_row = 0;
  int32_t kv_begin = 0;
  int32_t kv_end = 0;
  int32_t part = -1;  // Partial result to write; -1: the output itself.
};

// Partial results [first_part, first_part + num_parts) of one tile become its
// output.
struct AttentionMerge {
  int32_t sequence = 0;
  int32_t kv_head = 0;
  int32_t first_row = 0;
  int32_t first_part = 0;
  int32_t num_parts = 0;
};

// The lists of a step, in device memory.
struct AttentionWork {
  const AttentionSequence* sequences = nullptr;
  const AttentionTask* tasks = nullptr;
  const AttentionMerge* merges = nullptr;
  int32_t num_tasks = 0;
  int32_t num_merges = 0;
};

struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;        // A multiple of 8, at most 256.
  int block_size = 16;     // A power of two.
  int sliding_window = 0;  // As in AttentionSpec.
  float scale = 0.0f;
  float softcap = 0.0f;
};

// Rows of a tile: 64 where there are many queries, 16 for decode, whose warps
// share the keys instead, and 128 with products of warpgroups, which 9.0 has.
enum class AttentionTile : uint8_t { kPrefill, kDecode, kWarpgroup };
inline constexpr int kNumAttentionTiles = 3;
inline constexpr int AttentionTileRows(AttentionTile tile) {
  return tile == AttentionTile::kPrefill  ? 64
         : tile == AttentionTile::kDecode ? 16
                                          : 128;
}

// Device memory. Pointers are aligned to 16 bytes.
struct AttentionArguments {
  AttentionShape shape;
  DType dtype = DType::kBF16;  // Of q and out: bf16 or f16.
  // Of the cache: as `dtype`, or kF8E4M3, where head_dim is a multiple of 16:
  // K and V are widened to `dtype`, exactly, between shared memory and mma.
  DType kv_dtype = DType::kBF16;
  const void* q = nullptr;  // [num_tokens, q_stride], heads contiguous.
  int64_t q_stride = 0;     // Elements, a multiple of 8.
  void* out = nullptr;      // [num_tokens, num_heads * head_dim]
  // One layer: [num_blocks][K, V][num_kv_heads][block_size][head_dim].
  const void* kv_cache = nullptr;
  const int32_t* block_tables = nullptr;  // [.., block_table_stride]
  int64_t block_table_stride = 0;
  const AttentionSequence* sequences = nullptr;
  const AttentionTask* tasks = nullptr;
  const AttentionMerge* merges = nullptr;
  int num_tasks = 0;
  int num_merges = 0;
  // In device memory: read in place of the five above, of which the numbers
  // still say how many CTAs there are, so that a captured launch serves every
  // step. At least as many as there are tasks for kPrefill; for kDecode, CTAs
  // take several.
  const AttentionWork* work = nullptr;
  // [num_parts, tile rows, padded head_dim] sums and [num_parts, tile rows, 2]
  // (maximum in units of log2, sum).
  float* partial_out = nullptr;
  float* partial_stats = nullptr;
};

// head_dim rounded up to a size that there is a kernel for; 0 above 256.
int PaddedHeadDim(int head_dim);
// Floats of partial_out and partial_stats for `num_parts`.
int64_t AttentionPartialFloats(const AttentionShape& shape, AttentionTile tile,
                               int num_parts);

// Whether there is a kWarpgroup for these, on a GPU of 9.0: head_dim is at most
// 128, and the cache has the type of the activations.
bool HasWarpgroupTile(int head_dim, DType dtype, DType kv_dtype);

// False if a launch is refused, or a block of the cache is no power of two of
// positions or has 2 GiB, or there is no such tile.
bool LaunchAttention(const AttentionArguments& arguments, AttentionTile tile,
                     simt::Stream stream);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_ATTENTION_H_
