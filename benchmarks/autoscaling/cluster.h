// One to some replicas under stepped load, scaled by one signal or another: the
// real scheduler and admission, a model that takes so long for a step as a
// formula says, and the arithmetic of Kubernetes' HorizontalPodAutoscaler.
#ifndef QUIRE_BENCHMARKS_AUTOSCALING_CLUSTER_H_
#define QUIRE_BENCHMARKS_AUTOSCALING_CLUSTER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace quire {

// A step takes base + per_token * its tokens: about a model of 8e9 parameters
// on one accelerator (weights are read once per step, then compute).
struct ReplicaModel {
  absl::Duration step_base = absl::Milliseconds(15);
  absl::Duration step_per_token = absl::Microseconds(90);
  int max_num_seqs = 64;
  int max_num_batched_tokens = 512;
  int num_blocks = 8192;  // Of 16 tokens.
  absl::Duration target_queue_delay = absl::Seconds(1);
};

// Requests arrive at random (Poisson) at the rate of the level. Prompts and
// answers have lengths drawn evenly from these bounds.
struct LoadPlan {
  std::vector<double> requests_per_second;  // One level after the other.
  absl::Duration level_duration = absl::Minutes(10);
  int min_prompt_tokens = 100;
  int max_prompt_tokens = 700;
  int min_output_tokens = 50;
  int max_output_tokens = 150;
  uint64_t seed = 1;
};

enum class ScalingSignal : uint8_t {
  kOracle,      // Knows the load of each level and what it needs.
  kSaturation,  // quire:saturation, mean over replicas.
  kWaiting,     // vllm:num_requests_waiting, mean over replicas.
  kCpu,         // Part of the time that the engine's thread computes.
};
const char* ScalingSignalName(ScalingSignal signal);

// As in the HPA's spec, version autoscaling/v2.
struct ScalerOptions {
  ScalingSignal signal = ScalingSignal::kSaturation;
  double target = 0.8;
  int min_replicas = 1;
  int max_replicas = 4;
  absl::Duration period = absl::Seconds(15);
  double tolerance = 0.1;
  absl::Duration scale_down_stabilization = absl::Seconds(120);
  absl::Duration start_up = absl::Seconds(20);  // Of a replica, until ready.
  std::vector<int> oracle_replicas;             // kOracle: by level.
};

struct ClusterResult {
  int64_t num_requests = 0;
  double p50_ttft_seconds = 0;
  double p95_ttft_seconds = 0;
  double replica_seconds = 0;  // From start to removal.
  int num_changes = 0;         // Of the number wanted.
  std::vector<int> replicas_at_level_end;
  std::vector<double> signal_at_level_end;  // Mean of the last minute.
};

ClusterResult RunCluster(const ReplicaModel& model, const LoadPlan& plan,
                         const ScalerOptions& scaler);

// The smallest constant numbers of replicas that keep the level's p95 TTFT
// within the target, each level on its own, up to max_replicas.
std::vector<int> FindOracle(const ReplicaModel& model, const LoadPlan& plan,
                            absl::Duration target_ttft, int max_replicas);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_AUTOSCALING_CLUSTER_H_
