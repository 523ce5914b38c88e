// The memory-bound operations between the matrix products.
#ifndef QUIRE_KERNELS_CUDA_ELEMENTWISE_H_
#define QUIRE_KERNELS_CUDA_ELEMENTWISE_H_

#include <cstdint>

#include "kernels/cuda/linear_epilogue.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/dtype.h"

namespace quire::cuda {

// Activations are bf16 or f16 (`dtype`); pointers and row strides are aligned
// to 16 bytes, columns are multiples of 8. Every launch returns false if it is
// refused.

// x[t] = scale * table[token_ids[t]], or x[t] += table[positions[t]].
struct GatherArguments {
  DType dtype = DType::kBF16;
  const uint16_t* table = nullptr;   // [entries, cols]
  const int32_t* entries = nullptr;  // [num_tokens]
  uint16_t* x = nullptr;             // [num_tokens, cols]
  int num_tokens = 0;
  int cols = 0;
  float scale = 1.0f;
  bool adds = false;
};
bool LaunchGather(const GatherArguments& arguments, simt::Stream stream);

// out = gate(x) * up(x) of a product whose columns alternate eight of the gate
// and eight of up.
struct GatedArguments {
  DType dtype = DType::kBF16;
  LinearActivation activation = LinearActivation::kSwiGlu;
  const uint16_t* x = nullptr;  // [num_tokens, 2 * cols]
  uint16_t* out = nullptr;      // [num_tokens, cols]
  int num_tokens = 0;
  int cols = 0;
};
bool LaunchGated(const GatedArguments& arguments, simt::Stream stream);

// A norm of the heads of q or of k; see AttentionSpec for what it may span.
struct HeadNorm {
  enum class Span : uint8_t { kHead, kEachHead, kAllHeads };
  NormArguments::Kind kind = NormArguments::Kind::kNone;
  Span span = Span::kHead;
  // [head_dim], or [heads * head_dim] unless kHead; f32.
  const float* weight = nullptr;
  const float* bias = nullptr;  // As weight, or null.
  float eps = 1e-6f;
  float weight_offset = 0.0f;
};

// QK-norm, RoPE and the write to the cache, in one pass over qkv. A norm that
// spans all heads has a pass before it.
struct RopeArguments {
  DType dtype = DType::kBF16;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  // At most 256.
  int block_size = 16;
  HeadNorm q_norm, k_norm;
  // [num_tokens, q and k, mean and factor], for a norm that spans all heads.
  float* statistics = nullptr;
  // > 0: the norms, kRms, span the heads of so many ranks, and `statistics` has
  // zero and the sum of all squares, of which LaunchHeadSquares computes this
  // rank's.
  int num_norm_ranks = 0;
  const float* rope_table = nullptr;  // As in AttentionSpec; null: no RoPE.
  // Of tokens whose sequence started with more than long_rope_after tokens;
  // null: none.
  const float* long_rope_table = nullptr;
  int64_t long_rope_after = 0;
  const int32_t* start_tokens = nullptr;  // [num_tokens]
  int rotary_dim = 0;                     // Even.
  bool is_interleaved = false;
  uint16_t* qkv = nullptr;  // [num_tokens, qkv_stride]: q is overwritten.
  int64_t qkv_stride = 0;
  // As `dtype`, or kF8E4M3: saturating.
  DType kv_dtype = DType::kBF16;
  void* kv_cache = nullptr;            // One layer, as AttentionArguments.
  const int32_t* positions = nullptr;  // [num_tokens]
  // [num_tokens], of the block tables; -1: padding, left alone.
  const int32_t* table_rows = nullptr;
  const int32_t* block_tables = nullptr;
  int64_t block_table_stride = 0;
  int num_tokens = 0;
};
bool LaunchRopeAndCache(const RopeArguments& arguments, simt::Stream stream);
bool LaunchHeadSquares(const RopeArguments& arguments, simt::Stream stream);

// Copies whole blocks in every layer; no block is both a source and a target.
struct BlockCopyArguments {
  unsigned char* kv_cache = nullptr;  // [num_layers][num_blocks][block_bytes]
  int num_layers = 0;
  int64_t layer_bytes = 0;
  int64_t block_bytes = 0;         // K and V of all heads; a multiple of 16.
  const int32_t* pairs = nullptr;  // [num_pairs][from, to]
  int num_pairs = 0;
};
bool LaunchBlockCopy(const BlockCopyArguments& arguments, simt::Stream stream);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_ELEMENTWISE_H_
