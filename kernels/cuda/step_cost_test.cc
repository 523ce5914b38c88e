#include "kernels/cuda/step_cost.h"

#include <vector>

#include "gtest/gtest.h"

namespace quire::cuda {
namespace {

CostModel Llama8B() {
  CostModel model;
  model.num_layers = 32;
  model.hidden_size = 4096;
  model.num_heads = 32;
  model.num_kv_heads = 8;
  model.head_dim = 128;
  model.intermediate_size = 14336;
  model.vocab_size = 128256;
  return model;
}

// By hand, per layer: q and o 2 * 4096 * 4096 = 33,554,432; k and v 2 * 4096 *
// 1024 = 8,388,608; gate, up and down 3 * 4096 * 14336 = 176,160,768. In all
// 218,103,808, times 32 is 6,979,321,856; the head 128256 * 4096 = 525,336,576.
TEST(StepCostTest, DecodeOfLlama8B) {
  CostModel model = Llama8B();
  EXPECT_EQ(model.num_weights(), 6979321856);
  const std::vector<CostRow> rows = {{1, 1000}};
  const StepCost cost = PlanStepCost(model, rows, 1);
  EXPECT_DOUBLE_EQ(cost.weight_bytes, 2.0 * (6979321856 + 525336576));
  EXPECT_DOUBLE_EQ(cost.linear_flops, 2.0 * (6979321856 + 525336576));
  // 32 layers * K and V * 8 heads * 128 * 2 bytes = 128 KiB a token.
  EXPECT_DOUBLE_EQ(cost.kv_read_bytes, 1000 * 131072.0);
  EXPECT_DOUBLE_EQ(cost.kv_write_bytes, 131072.0);
  // q k^T and p v: 2 * 2 * 1000 positions * 32 heads * 128, in 32 layers.
  EXPECT_DOUBLE_EQ(cost.attention_flops, 4.0 * 1000 * 4096 * 32);
  // Beside the weights, what flows between kernels is nothing.
  EXPECT_LT(cost.activation_bytes, 0.001 * cost.weight_bytes);
  // 15.01 GB at 3.0 TB/s, and 0.13 GB of KV.
  EXPECT_NEAR(cost.Seconds(3.0e12, 798e12), 5.05e-3, 0.01e-3);

  model.bits_per_weight = 8;
  EXPECT_DOUBLE_EQ(PlanStepCost(model, rows, 1).weight_bytes,
                   6979321856 + 2.0 * 525336576);
  model.bits_per_weight = 4.125;
  model.kv_bytes = 1;
  const StepCost small = PlanStepCost(model, rows, 1);
  EXPECT_DOUBLE_EQ(small.weight_bytes,
                   6979321856 / 8.0 * 4.125 + 2.0 * 525336576);
  EXPECT_DOUBLE_EQ(small.kv_read_bytes, 500 * 131072.0);
}

TEST(StepCostTest, WeightsAreReadOncePerBatch) {
  const std::vector<CostRow> rows(64, CostRow{1, 10});
  const StepCost batch = PlanStepCost(Llama8B(), rows, 64);
  const StepCost one =
      PlanStepCost(Llama8B(), absl::MakeConstSpan(rows).subspan(0, 1), 1);
  EXPECT_DOUBLE_EQ(batch.weight_bytes, one.weight_bytes);
  EXPECT_DOUBLE_EQ(batch.linear_flops, 64 * one.linear_flops);
  EXPECT_DOUBLE_EQ(batch.kv_read_bytes, 64 * one.kv_read_bytes);
  // 64 tokens store x' of two norms in each of 32 layers.
  EXPECT_DOUBLE_EQ(batch.activation_bytes,
                   64 * (one.activation_bytes + 2 * 2 * 32 * 2 * 4096));
}

// The norms are part of the linear layers for few tokens.
TEST(StepCostTest, CountsKernels) {
  std::vector<CostRow> rows(8, CostRow{1, 10});
  EXPECT_EQ(PlanStepCost(Llama8B(), rows, 8).num_kernels, 32 * 7 + 2);
  EXPECT_EQ(PlanStepCost(Llama8B(), rows, 0).num_kernels, 32 * 7 + 1);
  rows.push_back({1, 10});
  EXPECT_EQ(PlanStepCost(Llama8B(), rows, 9).num_kernels, 32 * 9 + 3);
  EXPECT_EQ(PlanStepCost(Llama8B(), rows, 1).num_kernels, 32 * 9 + 2);
  // Four heads share a KV head: 5 tokens are more queries than a tile of few
  // has.
  rows.push_back({5, 10});
  EXPECT_EQ(PlanStepCost(Llama8B(), rows, 1).num_kernels, 32 * 10 + 2);
  rows.back() = {4, 10};
  EXPECT_EQ(PlanStepCost(Llama8B(), rows, 1).num_kernels, 32 * 9 + 2);
  CostModel model = Llama8B();
  model.splits_keys = false;
  EXPECT_EQ(PlanStepCost(model, rows, 1).num_kernels, 32 * 8 + 2);
  model.has_branch_norms = true;
  EXPECT_EQ(PlanStepCost(model, rows, 1).num_kernels, 32 * 10 + 2);
  model.rounds_to_fp8 = true;
  EXPECT_EQ(PlanStepCost(model, rows, 1).num_kernels, 32 * 10 + 2);
  rows.assign({CostRow{65, 65}});
  EXPECT_EQ(PlanStepCost(model, rows, 1).num_kernels, 32 * 14 + 2);
}

// By counting.
TEST(StepCostTest, AttentionCountsWhatEveryTokenSees) {
  for (const int64_t window : {0, 1, 5, 12, 40}) {
    for (const CostRow row : {CostRow{1, 1}, CostRow{7, 7}, CostRow{9, 30}}) {
      CostModel model;
      model.num_layers = model.num_heads = model.num_kv_heads = 1;
      model.head_dim = 1;
      model.hidden_size = model.intermediate_size = 1;
      model.sliding_window = window;
      double seen = 0;
      int64_t first = row.seq_len;
      for (int64_t p = row.seq_len - row.num_tokens; p < row.seq_len; ++p) {
        for (int64_t key = 0; key <= p; ++key) {
          if (window > 0 && key <= p - window) continue;
          ++seen;
          first = std::min(first, key);
        }
      }
      const StepCost cost =
          PlanStepCost(model, absl::MakeConstSpan(&row, 1), 0);
      EXPECT_DOUBLE_EQ(cost.attention_flops, 4 * seen) << window;
      EXPECT_DOUBLE_EQ(cost.kv_read_bytes, 4.0 * (row.seq_len - first));
      EXPECT_DOUBLE_EQ(cost.weight_bytes, 2.0 * (2 + 2 + 3));
    }
  }
}

// 36 layers of Qwen3-8B: 218,103,808 - 3 * 4096 * 14336 + 3 * 4096 * 12288 =
// 192,937,984 each.
TEST(StepCostTest, PrefillIsBoundByArithmetic) {
  CostModel model = Llama8B();
  model.num_layers = 36;
  model.intermediate_size = 12288;
  model.vocab_size = 151936;
  const CostRow prompt = {2048, 2048};
  const StepCost cost = PlanStepCost(model, absl::MakeConstSpan(&prompt, 1), 1);
  EXPECT_DOUBLE_EQ(cost.linear_flops,
                   2.0 * 2048 * 36 * 192937984 + 2.0 * 4096 * 151936);
  EXPECT_DOUBLE_EQ(cost.attention_flops, 4.0 * 36 * 4096 * (2048.0 * 2049 / 2));
  // 37 ms on an H100's 798 TFLOP/s.
  EXPECT_NEAR(cost.Seconds(3.0e12, 798e12), 37e-3, 1e-3);
}

}  // namespace
}  // namespace quire::cuda
