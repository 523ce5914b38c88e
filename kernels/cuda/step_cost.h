// What a step must move and compute, from shapes alone: the bounds that a
// measured time is held against.
#ifndef QUIRE_KERNELS_CUDA_STEP_COST_H_
#define QUIRE_KERNELS_CUDA_STEP_COST_H_

#include <cstdint>

#include "absl/types/span.h"

namespace quire::cuda {

// A decoder of equal layers with a gated feed-forward part.
struct CostModel {
  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;
  int64_t sliding_window = 0;  // As in AttentionSpec.
  // Bits of a weight with its share of scales: 16; fp8 8; int4 in groups of 128
  // with 16-bit scales 4.125, and 4.1875 with zero points.
  double bits_per_weight = 16;
  double bits_per_head_weight = 16;  // Of the matrix before the logits.
  int64_t kv_bytes = 2;              // Of an element of K or V.
  // Steps of up to so many tokens norm within the linear layers
  // (kernels/cuda/linear.h): x' is not stored.
  int64_t max_norm_tokens = 8;
  // Beside the two norms before a layer's branches one after each (Gemma 2).
  bool has_branch_norms = false;
  // Rows of few queries split their keys, and a kernel merges them: where
  // max_model_len is above 256 positions, whatever the lengths are.
  bool splits_keys = true;
  // Weights in fp8, from compute capability 8.9 on: steps of more than
  // max_skinny_tokens round x' to e4m3 before every linear layer.
  bool rounds_to_fp8 = false;
  int64_t max_skinny_tokens = 64;

  // Elements of all linear layers but the head.
  int64_t num_weights() const;
};

struct CostRow {
  int64_t num_tokens = 0;
  int64_t seq_len = 0;  // With these tokens.
};

struct StepCost {
  double weight_bytes = 0;   // Each weight is read once.
  double kv_read_bytes = 0;  // K and V that some token of a row sees.
  double kv_write_bytes = 0;
  // 16-bit activations between the kernels, each written once and read once.
  double activation_bytes = 0;
  double linear_flops = 0;     // A multiply-add is two.
  double attention_flops = 0;  // q k^T and p v over what a token sees.
  // Up to the logits; the start of a step and sampling are 7 more. Without
  // those that finish what cuBLASLt has multiplied (large_linear.h).
  int64_t num_kernels = 0;

  double bytes() const {
    return weight_bytes + kv_read_bytes + kv_write_bytes + activation_bytes;
  }
  double flops() const { return linear_flops + attention_flops; }
  // A lower bound in seconds: attention does not overlap the linear layers.
  double Seconds(double bytes_per_second, double flops_per_second) const;
};

// num_logits: rows that need logits; 0: the head is not read.
StepCost PlanStepCost(const CostModel& model, absl::Span<const CostRow> rows,
                      int64_t num_logits);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_STEP_COST_H_
