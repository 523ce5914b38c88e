#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cmath>

namespace quire {
namespace {

float LoadKv(const PagedAttentionParams& params, int64_t idx) {
  switch (params.kv_dtype) {
    case DType::kF16:
      return HalfToFloat(static_cast<const uint16_t*>(params.kv)[idx]);
    case DType::kBF16:
      return Bf16ToFloat(static_cast<const uint16_t*>(params.kv)[idx]);
    default:
      return static_cast<const float*>(params.kv)[idx];
  }
}

}  // namespace

void PagedAttention(ThreadPool& pool, Isa isa,
                    const PagedAttentionParams& params,
                    AttentionScratch& scratch) {
  const int head_dim = params.head_dim;
  const int64_t head_stride = int64_t{params.block_size} * head_dim;
  for (const AttentionRow& row : params.rows) {
    for (int t = 0; t < row.num_tokens; ++t) {
      const int64_t position = row.first_position + t;
      const int64_t first =
          params.sliding_window > 0
              ? std::max<int64_t>(0, position - params.sliding_window + 1)
              : 0;
      for (int head = 0; head < params.num_heads; ++head) {
        const int kv_head = head / (params.num_heads / params.num_kv_heads);
        const float* q = params.q + (row.first_token + t) * params.q_stride +
                         head * head_dim;
        float* out = params.out + (row.first_token + t) * params.out_stride +
                     head * head_dim;
        const auto kv_at = [&](int64_t p) {
          return row.block_table[p / params.block_size] * params.block_stride +
                 kv_head * head_stride + p % params.block_size * head_dim;
        };
        float max_score = -INFINITY;
        for (int64_t p = first; p <= position; ++p) {
          float score = 0;
          const int64_t k = kv_at(p);
          for (int i = 0; i < head_dim; ++i) {
            score += q[i] * LoadKv(params, k + i);
          }
          score *= params.scale;
          if (params.softcap > 0) {
            score = params.softcap * std::tanh(score / params.softcap);
          }
          scratch.scores_[p] = score;
          max_score = std::max(max_score, score);
        }
        float sum = 0;
        std::fill(out, out + head_dim, 0.0f);
        for (int64_t p = first; p <= position; ++p) {
          const float weight = std::exp(scratch.scores_[p] - max_score);
          sum += weight;
          const int64_t v = kv_at(p) + params.num_kv_heads * head_stride;
          for (int i = 0; i < head_dim; ++i) {
            out[i] += weight * LoadKv(params, v + i);
          }
        }
        for (int i = 0; i < head_dim; ++i) out[i] /= sum;
      }
    }
  }
}

}  // namespace quire
