// Causal attention over a paged KV cache.
#ifndef QUIRE_KERNELS_CPU_ATTENTION_H_
#define QUIRE_KERNELS_CPU_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/base/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/dtype.h"

namespace quire {

// Tokens first_token .. first_token + num_tokens - 1 of the batch are at
// positions first_position onwards; K and V of all positions are written.
struct AttentionRow {
  const int32_t* block_table = nullptr;
  int64_t first_position = 0;
  int32_t num_tokens = 0;
  int64_t first_token = 0;
};

struct PagedAttentionParams {
  absl::Span<const AttentionRow> rows;
  const float* q = nullptr;  // [num_tokens, num_heads * head_dim]
  int64_t q_stride = 0;
  float* out = nullptr;  // [num_tokens, num_heads * head_dim]
  int64_t out_stride = 0;
  const void* kv =
      nullptr;  // One layer: [block][K, V][kv_head][slot][head_dim]
  DType kv_dtype = DType::kBF16;
  int64_t block_stride = 0;  // Elements between blocks of one layer.
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;
  int sliding_window = 0;
  float scale = 0.0f;
  float softcap = 0.0f;
};

class AttentionScratch {
 public:
  AttentionScratch(int num_threads, int num_heads, int head_dim,
                   int64_t max_model_len)
      : scores_(max_model_len) {}
  std::vector<float> scores_;
};

void PagedAttention(ThreadPool& pool, Isa isa,
                    const PagedAttentionParams& params,
                    AttentionScratch& scratch);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_ATTENTION_H_
