// Prints how each signal scales: p95 TTFT, and replicas beside the oracle's.
// bazel run -c opt //benchmarks/autoscaling [-- MINUTES_PER_LEVEL [SEED]]
#include <cstdio>
#include <cstdlib>

#include "benchmarks/autoscaling/cluster.h"

int main(int argc, char** argv) {
  using quire::ScalingSignal;
  const quire::ReplicaModel model;
  quire::LoadPlan plan;
  plan.requests_per_second = {5, 16, 30, 38, 22, 9};
  plan.level_duration = absl::Minutes(argc > 1 ? std::atoi(argv[1]) : 15);
  if (argc > 2) plan.seed = std::atoi(argv[2]);
  const absl::Duration target = absl::Seconds(2);

  quire::ScalerOptions oracle;
  oracle.signal = ScalingSignal::kOracle;
  oracle.oracle_replicas = quire::FindOracle(model, plan, target, 4);
  const double oracle_seconds =
      quire::RunCluster(model, plan, oracle).replica_seconds;
  std::printf("load (requests/s):");
  for (double rate : plan.requests_per_second) std::printf(" %g", rate);
  std::printf(", each for %g min; target p95 TTFT 2 s\n",
              absl::ToDoubleMinutes(plan.level_duration));
  std::printf("%-26s %6s %9s %9s %8s %8s  %s\n", "signal", "target", "p50 TTFT",
              "p95 TTFT", "replicas", "changes",
              "at the end of each level (signal)");
  const auto row = [&](ScalingSignal signal, double signal_target) {
    quire::ScalerOptions scaler = oracle;
    scaler.signal = signal;
    scaler.target = signal_target;
    const quire::ClusterResult result = quire::RunCluster(model, plan, scaler);
    std::printf("%-26s %6g %7.2f s %7.2f s %7.2fx %8d ",
                quire::ScalingSignalName(signal), signal_target,
                result.p50_ttft_seconds, result.p95_ttft_seconds,
                result.replica_seconds / oracle_seconds, result.num_changes);
    for (size_t i = 0; i < result.replicas_at_level_end.size(); ++i) {
      std::printf(" %d (%.2f)", result.replicas_at_level_end[i],
                  result.signal_at_level_end[i]);
    }
    std::printf("\n");
    std::fflush(stdout);
  };
  row(ScalingSignal::kOracle, 0);
  for (double value : {0.6, 0.7, 0.8, 0.85}) {
    row(ScalingSignal::kSaturation, value);
  }
  for (double value : {1, 5, 10}) row(ScalingSignal::kWaiting, value);
  for (double value : {0.5, 0.7, 0.9}) row(ScalingSignal::kCpu, value);
  return 0;
}
