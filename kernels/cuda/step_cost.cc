#include "kernels/cuda/step_cost.h"

#include <algorithm>

namespace quire::cuda {

int64_t CostModel::num_weights() const {
  const int64_t q = num_heads * head_dim, kv = num_kv_heads * head_dim;
  return num_layers * hidden_size * (2 * q + 2 * kv + 3 * intermediate_size);
}

double StepCost::Seconds(double bytes_per_second,
                         double flops_per_second) const {
  const double linear =
      std::max((weight_bytes + activation_bytes) / bytes_per_second,
               linear_flops / flops_per_second);
  const double attention =
      std::max((kv_read_bytes + kv_write_bytes) / bytes_per_second,
               attention_flops / flops_per_second);
  return linear + attention;
}

StepCost PlanStepCost(const CostModel& model, absl::Span<const CostRow> rows,
                      int64_t num_logits) {
  const double num_weights = static_cast<double>(model.num_weights());
  const double head_weights =
      static_cast<double>(model.hidden_size * model.vocab_size);
  const double kv_bytes_per_token =
      static_cast<double>(2 * model.num_layers * model.num_kv_heads *
                          model.head_dim * model.kv_bytes);
  StepCost cost;
  double num_tokens = 0;
  // As kernels/cuda/cuda_step.h divides them.
  bool has_few_queries = false, has_many_queries = false;
  for (const CostRow& row : rows) {
    num_tokens += static_cast<double>(row.num_tokens);
    const bool is_few =
        row.num_tokens == 1 ||
        row.num_tokens * model.num_heads / model.num_kv_heads <= 16;
    (is_few ? has_few_queries : has_many_queries) = true;
    const int64_t past = row.seq_len - row.num_tokens;
    const int64_t window =
        model.sliding_window > 0 ? model.sliding_window : row.seq_len;
    // The first token sees from here on.
    const int64_t first = std::max<int64_t>(0, past + 1 - window);
    cost.kv_read_bytes +=
        static_cast<double>(row.seq_len - first) * kv_bytes_per_token;
    // Positions seen: past + 1, past + 2, .., each at most the window.
    const int64_t num_growing =
        std::clamp<int64_t>(window - past, 0, row.num_tokens);
    const double seen =
        static_cast<double>(num_growing) * past +
        0.5 * static_cast<double>(num_growing) * (num_growing + 1) +
        static_cast<double>(row.num_tokens - num_growing) * window;
    cost.attention_flops +=
        4.0 * seen *
        static_cast<double>(model.num_layers * model.num_heads *
                            model.head_dim);
  }
  cost.weight_bytes = num_weights * model.bits_per_weight / 8;
  cost.linear_flops = 2 * num_tokens * num_weights;
  if (num_logits > 0) {
    cost.weight_bytes += head_weights * model.bits_per_head_weight / 8;
    cost.linear_flops += 2 * static_cast<double>(num_logits) * head_weights;
  }
  cost.kv_write_bytes = num_tokens * kv_bytes_per_token;
  // Per layer and token: hidden twice, q, k and v, what attention gives, and
  // the gated product; x' twice, where it is stored, and what a norm after a
  // branch takes; logits are f32.
  const bool stores_normed = num_tokens > model.max_norm_tokens;
  const bool rounds_x =
      model.rounds_to_fp8 &&
      num_tokens > static_cast<double>(model.max_skinny_tokens);
  const int64_t num_hidden =
      2 + (stores_normed ? 2 : 0) + (model.has_branch_norms ? 2 : 0);
  const int64_t values_per_layer =
      num_hidden * model.hidden_size + model.intermediate_size +
      (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim;
  cost.activation_bytes =
      num_tokens * 2 * 2 *
          static_cast<double>(model.num_layers * values_per_layer) +
      static_cast<double>(num_logits * model.vocab_size * 2 * 4);
  if (rounds_x) {
    const int64_t columns = 2 * model.hidden_size + model.intermediate_size +
                            model.num_heads * model.head_dim;
    cost.activation_bytes +=
        num_tokens * 2 * static_cast<double>(model.num_layers * columns);
  }
  // q k v, RoPE, o, gate and up, down, and two norms; before the layers the
  // embedding, after them a norm and the head.
  const int64_t kernels_per_layer =
      5 + (stores_normed ? 2 : 0) + (model.has_branch_norms ? 2 : 0) +
      (rounds_x ? 4 : 0) + (has_many_queries ? 1 : 0) +
      (has_few_queries ? (model.splits_keys ? 2 : 1) : 0);
  cost.num_kernels = model.num_layers * kernels_per_layer + 1;
  if (num_logits > 0) {
    cost.num_kernels += num_logits > model.max_norm_tokens ? 2 : 1;
  }
  return cost;
}

}  // namespace quire::cuda
