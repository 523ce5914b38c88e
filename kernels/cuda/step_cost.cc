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
  for (const CostRow& row : rows) {
    num_tokens += static_cast<double>(row.num_tokens);
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
  // the gated product; x' twice, where it is stored; logits are f32.
  const bool stores_normed = num_tokens > model.max_norm_tokens;
  const int64_t values_per_layer =
      (stores_normed ? 4 : 2) * model.hidden_size + model.intermediate_size +
      (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim;
  cost.activation_bytes =
      num_tokens * 2 * 2 *
          static_cast<double>(model.num_layers * values_per_layer) +
      static_cast<double>(num_logits * model.vocab_size * 2 * 4);
  // q k v, RoPE, attention, o, gate and up, down, and two norms; before the
  // layers the embedding, after them a norm and the head.
  cost.num_kernels = model.num_layers * (stores_normed ? 8 : 6) + 1;
  if (num_logits > 0) {
    cost.num_kernels += num_logits > model.max_norm_tokens ? 2 : 1;
  }
  return cost;
}

}  // namespace quire::cuda
