// The memory-bound operations between the matrix products.
#ifndef QUIRE_KERNELS_CUDA_ELEMENTWISE_H_
#define QUIRE_KERNELS_CUDA_ELEMENTWISE_H_

#include <cstdint>

#include "kernels/cuda/linear_epilogue.h"
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

// As NormSpec in kernels/backend.h; weights are f32.
struct NormArguments {
  enum class Kind : uint8_t { kNone, kRms, kLayer };
  DType dtype = DType::kBF16;
  Kind kind = Kind::kRms;
  const float* weight = nullptr;  // [cols]
  const float* bias = nullptr;    // [cols], or null.
  float eps = 1e-5f;
  float weight_offset = 0.0f;
  const uint16_t* x = nullptr;         // [num_tokens, cols]
  const uint16_t* residual = nullptr;  // Added to x first; may be null.
  uint16_t* residual_out = nullptr;    // The sum; may be null, may alias.
  uint16_t* out = nullptr;             // norm(sum); may alias x.
  int num_tokens = 0;
  int cols = 0;
};
bool LaunchNorm(const NormArguments& arguments, simt::Stream stream);

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

// QK-norm, RoPE and the write to the cache, in one pass over qkv.
struct RopeArguments {
  DType dtype = DType::kBF16;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  // At most 256.
  int block_size = 16;
  // RMS over head_dim with weight [head_dim], f32; null: no norm.
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float norm_eps = 1e-6f;
  float norm_weight_offset = 0.0f;
  const float* rope_table = nullptr;  // As in AttentionSpec; null: no RoPE.
  int rotary_dim = 0;                 // Even.
  bool is_interleaved = false;
  uint16_t* qkv = nullptr;  // [num_tokens, qkv_stride]: q is overwritten.
  int64_t qkv_stride = 0;
  uint16_t* kv_cache = nullptr;         // One layer, as AttentionArguments.
  const int32_t* positions = nullptr;   // [num_tokens]
  const int32_t* table_rows = nullptr;  // [num_tokens], of the block tables.
  const int32_t* block_tables = nullptr;
  int64_t block_table_stride = 0;
  int num_tokens = 0;
};
bool LaunchRopeAndCache(const RopeArguments& arguments, simt::Stream stream);

// Copies whole blocks in every layer; no block is both a source and a target.
struct BlockCopyArguments {
  uint16_t* kv_cache = nullptr;  // [num_layers][num_blocks][block_elements]
  int num_layers = 0;
  int64_t layer_stride = 0;        // Elements.
  int64_t block_elements = 0;      // K and V of all heads; a multiple of 8.
  const int32_t* pairs = nullptr;  // [num_pairs][from, to]
  int num_pairs = 0;
};
bool LaunchBlockCopy(const BlockCopyArguments& arguments, simt::Stream stream);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_ELEMENTWISE_H_
