#include "benchmarks/autoscaling/cluster.h"

#include <numeric>

#include "gtest/gtest.h"

namespace quire {
namespace {

constexpr absl::Duration kTarget = absl::Seconds(2);

LoadPlan ShortPlan() {
  LoadPlan plan;
  plan.requests_per_second = {5, 16, 30, 9};
  plan.level_duration = absl::Minutes(10);
  return plan;
}

ScalerOptions Scaler(ScalingSignal signal, double target) {
  ScalerOptions scaler;
  scaler.signal = signal;
  scaler.target = target;
  return scaler;
}

// The full table: //benchmarks/autoscaling, figures in RESULTS.md.
TEST(ClusterTest, SaturationHoldsTheTargetWithAlmostTheOraclesReplicas) {
  const ReplicaModel model;
  const LoadPlan plan = ShortPlan();
  ScalerOptions oracle = Scaler(ScalingSignal::kOracle, 0);
  oracle.oracle_replicas = FindOracle(model, plan, kTarget, 4);
  // A replica serves some 14 requests per second.
  EXPECT_EQ(oracle.oracle_replicas, (std::vector<int>{1, 2, 3, 1}));
  const ClusterResult best = RunCluster(model, plan, oracle);
  EXPECT_LE(best.p95_ttft_seconds, 2);

  const ClusterResult saturation =
      RunCluster(model, plan, Scaler(ScalingSignal::kSaturation, 0.85));
  EXPECT_EQ(saturation.num_requests, best.num_requests);
  EXPECT_LE(saturation.p95_ttft_seconds, 2);
  EXPECT_LE(saturation.replica_seconds, 1.1 * best.replica_seconds);

  // What others scale by is late and swings, or always wants more.
  const ClusterResult waiting =
      RunCluster(model, plan, Scaler(ScalingSignal::kWaiting, 5));
  EXPECT_GT(waiting.p95_ttft_seconds, 2);
  EXPECT_GT(waiting.num_changes, saturation.num_changes);
  const ClusterResult cpu =
      RunCluster(model, plan, Scaler(ScalingSignal::kCpu, 0.7));
  EXPECT_GT(cpu.replica_seconds, 1.5 * best.replica_seconds);
}

TEST(ClusterTest, TheSameSeedGivesTheSameRun) {
  LoadPlan plan = ShortPlan();
  plan.level_duration = absl::Minutes(1);
  const ScalerOptions scaler = Scaler(ScalingSignal::kSaturation, 0.85);
  const ClusterResult a = RunCluster(ReplicaModel(), plan, scaler);
  const ClusterResult b = RunCluster(ReplicaModel(), plan, scaler);
  EXPECT_EQ(a.num_requests, b.num_requests);
  EXPECT_EQ(a.p95_ttft_seconds, b.p95_ttft_seconds);
  EXPECT_EQ(a.replica_seconds, b.replica_seconds);
  plan.seed = 2;
  EXPECT_NE(RunCluster(ReplicaModel(), plan, scaler).num_requests,
            a.num_requests);
}

}  // namespace
}  // namespace quire
