// What decodes must move and compute by the planner's count
// (kernels/cuda/step_cost.h), and the speed that this allows on an H100, and on
// several with the all-reduces that others have measured: the predictions
// beside which a measured speed is held. Nothing is measured here.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <optional>
#include <string>
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
constexpr double kDeviceBytes = 80e9;

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

// All-reduces of bf16 among H100s of one host over NVLink, by a kernel of one
// pass (sgl-project/sglang#2904), in seconds by bytes and ranks. NCCL with
// symmetric memory is 1.2 to 1.5 times faster up to 16 KB, and slower from
// there to 512 KB with 4 ranks and 128 KB with 8 (vllm-project/vllm#33839).
struct AllReduceTime {
  double num_bytes;
  double seconds_of_2, seconds_of_4, seconds_of_8;
};
constexpr AllReduceTime kAllReduceTimes[] = {
    {512, 3.7e-6, 4.8e-6, 5.9e-6},
    {32 << 10, 4.5e-6, 4.8e-6, 7.8e-6},
    {256 << 10, 7.9e-6, 13.9e-6, 16.7e-6}};

// Between two sizes that were measured, a straight line.
double AllReduceSeconds(double num_bytes, int num_ranks) {
  if (num_ranks == 1) return 0;
  const auto seconds = [num_ranks](const AllReduceTime& time) {
    return num_ranks == 2   ? time.seconds_of_2
           : num_ranks == 4 ? time.seconds_of_4
                            : time.seconds_of_8;
  };
  const AllReduceTime* above = std::begin(kAllReduceTimes);
  while (above + 1 != std::end(kAllReduceTimes) &&
         above->num_bytes < num_bytes) {
    ++above;
  }
  if (above == std::begin(kAllReduceTimes)) return seconds(*above);
  const AllReduceTime* below = above - 1;
  const double part =
      (num_bytes - below->num_bytes) / (above->num_bytes - below->num_bytes);
  return seconds(*below) + part * (seconds(*above) - seconds(*below));
}

struct RanksCase {
  const char* preset;
  const char* format;
  double bits_per_weight;
  int num_seqs, seq_len;
};

// No sum is larger than what was measured.
constexpr RanksCase kRanksCases[] = {{"llama-3.1-8b", "bf16", 16, 1, 64},
                                     {"llama-3.1-8b", "bf16", 16, 32, 640},
                                     {"llama-3.1-8b", "fp8", 8, 1, 64},
                                     {"llama-3.1-70b", "bf16", 16, 1, 64},
                                     {"llama-3.1-70b", "bf16", 16, 16, 640},
                                     {"llama-3.1-70b", "fp8", 8, 1, 64},
                                     {"llama-3.1-70b", "fp8", 8, 16, 640}};

// What one of `num_ranks` has of the model (engine/parallel/sharding.h); null
// if there is no such preset.
std::optional<cuda::CostModel> ModelOf(const std::string& preset,
                                       double bits_per_weight, int num_ranks) {
  cuda::CostModel model;
  model.bits_per_weight = bits_per_weight;
  model.rounds_to_fp8 = bits_per_weight == 8;
  if (preset == "llama-3.1-70b") {
    // The published config.json: too large to be made for measurements.
    model.num_layers = 80;
    model.hidden_size = 8192;
    model.num_heads = 64;
    model.num_kv_heads = 8;
    model.head_dim = 128;
    model.intermediate_size = 28672;
    model.vocab_size = 128256;
  } else {
    const auto shape = PresetShape(preset);
    if (!shape.ok()) return std::nullopt;
    model.num_layers = shape->num_layers;
    model.hidden_size = shape->hidden_size;
    model.num_heads = shape->num_heads;
    model.num_kv_heads = shape->num_kv_heads;
    model.head_dim = shape->head_dim;
    model.intermediate_size = shape->intermediate_size;
    model.vocab_size = shape->vocab_size;
  }
  model.num_heads /= num_ranks;
  model.num_kv_heads = std::max<int64_t>(1, model.num_kv_heads / num_ranks);
  model.intermediate_size /= num_ranks;
  model.vocab_size /= num_ranks;
  return model;
}

void PrintRanks(const RanksCase& c) {
  double seconds_of_first = 0;
  int first = 0;
  for (const int num_ranks : {1, 2, 4, 8}) {
    const auto model = ModelOf(c.preset, c.bits_per_weight, num_ranks);
    if (!model.has_value()) return;
    const std::vector<cuda::CostRow> rows(c.num_seqs, {1, c.seq_len});
    const cuda::StepCost cost = cuda::PlanStepCost(*model, rows, c.num_seqs);
    // A tenth is for the KV cache and the rest.
    if (cost.weight_bytes > 0.9 * kDeviceBytes) continue;
    const double compute =
        cost.Seconds(kReached * kBytesPerSecond, kReached * kFlopsPerSecond);
    // Two sums in each layer, and the best entries of the slices of the logits.
    const double num_bytes = 2.0 * c.num_seqs * model->hidden_size;
    const double exchange =
        2 * model->num_layers * AllReduceSeconds(num_bytes, num_ranks) +
        AllReduceSeconds(8.0 * c.num_seqs, num_ranks);
    const double seconds = compute + exchange;
    if (first == 0) {
      first = num_ranks;
      seconds_of_first = seconds;
    }
    absl::PrintF(
        "| %s %s | %d | %d | %.1f | %.0f | %.2f | %.2f | %.2f | %.0f | "
        "%.2f of %d |\n",
        c.preset, c.format, c.num_seqs, num_ranks, cost.weight_bytes / 1e9,
        num_bytes / 1024, compute * 1e3, exchange * 1e3, seconds * 1e3,
        c.num_seqs / seconds, seconds_of_first / seconds, num_ranks / first);
  }
}

void Print(const Case& c) {
  const auto model = ModelOf(c.preset, c.bits_per_weight, 1);
  if (!model.has_value()) return;
  const std::vector<cuda::CostRow> rows(c.num_seqs, {1, c.seq_len});
  const cuda::StepCost cost = cuda::PlanStepCost(*model, rows, c.num_seqs);
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

// A draft of three tokens by a head in the shape of EAGLE-3's published ones:
// one step over the tokens that the target has verified, and two of a token.
void PrintDrafter(const char* preset, const char* format,
                  double bits_per_weight) {
  constexpr int kNumDrafts = 3;
  constexpr int64_t kDraftVocabSize = 32000;
  // Of a step beside what the device does: its copy, launch and the wait for
  // it, which nothing hides. An assumption.
  constexpr double kHostSeconds = 30e-6;
  const auto target = ModelOf(preset, bits_per_weight, 1);
  if (!target.has_value()) return;
  cuda::CostModel head = *target;
  head.num_layers = 1;
  head.bits_per_weight = head.bits_per_head_weight = 16;
  head.rounds_to_fp8 = false;
  head.vocab_size = kDraftVocabSize;
  const std::vector<cuda::CostRow> verified = {{1 + kNumDrafts, 64}};
  const std::vector<cuda::CostRow> one = {{1, 64}};
  const double bytes = kReached * kBytesPerSecond;
  const double flops = kReached * kFlopsPerSecond;
  const double target_seconds =
      cuda::PlanStepCost(*target, verified, 1 + kNumDrafts)
          .Seconds(bytes, flops);
  // Beside a usual layer: three hidden states become one, and q, k and v are
  // made of two.
  const double fused = 2.0 * 3 * head.hidden_size * head.hidden_size / bytes;
  const double wider = 2.0 * head.hidden_size *
                       (head.num_heads + 2 * head.num_kv_heads) *
                       head.head_dim / bytes;
  const double first =
      cuda::PlanStepCost(head, verified, 1).Seconds(bytes, flops) + fused +
      wider;
  const double further =
      cuda::PlanStepCost(head, one, 1).Seconds(bytes, flops) + wider;
  const double device = first + (kNumDrafts - 1) * further;
  const double drafter = device + kNumDrafts * kHostSeconds;
  absl::PrintF("| %s %s | %.2f | %.2f | %.2f | %.1f %% | %.1f %% |\n", preset,
               format, target_seconds * 1e3, device * 1e3, drafter * 1e3,
               100 * device / (target_seconds + device),
               100 * drafter / (target_seconds + drafter));
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
  std::printf(
      "\n| shape | sequences | GPUs | weights of each, GB | a sum, KiB | "
      "compute at %.0f %%, ms | sums, ms | step, ms | tokens/s | times as fast "
      "|\n|---|---|---|---|---|---|---|---|---|---|\n",
      100 * quire::kReached);
  for (const quire::RanksCase& c : quire::kRanksCases) quire::PrintRanks(c);
  std::printf(
      "\n| shape | verification of 3 drafts, ms | head, ms | with its host "
      "part, "
      "ms | part of the whole step | with it |\n|---|---|---|---|---|---|\n");
  quire::PrintDrafter("llama-3.1-8b", "bf16", 16);
  quire::PrintDrafter("qwen3-8b", "bf16", 16);
}
