// What decodes must move and compute by the planner's count
// (kernels/cuda/step_cost.h), and the speed that this allows on an H100: the
// predictions beside which a measured speed is held. Nothing is measured.
#include <cstdio>
#include <vector>

#include "absl/strings/str_format.h"
#include "benchmarks/random_model.h"
#include "kernels/cuda/step_cost.h"

namespace quire {
namespace {

// Datasheet of the H100 SXM: HBM3 bandwidth, dense bf16.
constexpr double kBytesPerSecond = 3.35e12;
constexpr double kFlopsPerSecond = 989e12;
constexpr double kReached = 0.85;  // Of both.

struct Case {
  const char* preset;
  const char* format;
  double bits_per_weight;
  int num_seqs, seq_len;
};

// Batch 1: the middle of 128 tokens after an empty context. Of many: that of
// 1024 after 128.
constexpr Case kCases[] = {
    {"llama-3.1-8b", "bf16", 16, 1, 64},    {"llama-3.1-8b", "fp8", 8, 1, 64},
    {"llama-3.1-8b", "int4", 4.125, 1, 64}, {"llama-3.2-1b", "bf16", 16, 1, 64},
    {"qwen3-8b", "bf16", 16, 64, 640},      {"qwen3-8b", "bf16", 16, 128, 640},
    {"qwen3-8b", "bf16", 16, 256, 640},     {"qwen3-8b", "fp8", 8, 64, 640},
    {"qwen3-8b", "fp8", 8, 128, 640},       {"qwen3-8b", "fp8", 8, 256, 640}};

void Print(const Case& c) {
  const auto shape = PresetShape(c.preset);
  if (!shape.ok()) return;
  cuda::CostModel model;
  model.num_layers = shape->num_layers;
  model.hidden_size = shape->hidden_size;
  model.num_heads = shape->num_heads;
  model.num_kv_heads = shape->num_kv_heads;
  model.head_dim = shape->head_dim;
  model.intermediate_size = shape->intermediate_size;
  model.vocab_size = shape->vocab_size;
  model.bits_per_weight = c.bits_per_weight;
  const std::vector<cuda::CostRow> rows(c.num_seqs, {1, c.seq_len});
  const cuda::StepCost cost = cuda::PlanStepCost(model, rows, c.num_seqs);
  const double seconds =
      cost.Seconds(kReached * kBytesPerSecond, kReached * kFlopsPerSecond);
  absl::PrintF(
      "| %s %s | %d | %d | %.2f | %.2f | %.2f | %.0f | %d | %.2f | "
      "%.0f |\n",
      c.preset, c.format, c.num_seqs, c.seq_len, cost.weight_bytes / 1e9,
      (cost.kv_read_bytes + cost.kv_write_bytes) / 1e9,
      cost.activation_bytes / 1e9, cost.flops() / 1e9, cost.num_kernels,
      seconds * 1e3, c.num_seqs / seconds);
}

}  // namespace
}  // namespace quire

int main() {
  std::printf(
      "| shape | sequences | length | weights, GB | KV, GB | activations, GB "
      "| GFLOP | kernels | step at %.0f %%, ms | tokens/s |\n"
      "|---|---|---|---|---|---|---|---|---|---|\n",
      100 * quire::kReached);
  for (const quire::Case& c : quire::kCases) quire::Print(c);
}
