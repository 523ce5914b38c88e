#include "engine/load_monitor.h"

#include "gtest/gtest.h"

namespace quire {
namespace {

class LoadMonitorTest : public testing::Test {
 protected:
  // Half a minute of equal intervals: what was before is forgotten but for 5 %.
  void Run(LoadMonitor::Interval interval, int64_t cost_per_second = 0) {
    for (int i = 0; i < 300; ++i) {
      now_ += absl::Milliseconds(100);
      started_ += cost_per_second / 10;
      interval.started_cost = started_;
      monitor_.Note(now_, interval);
    }
  }

  absl::Time now_ = absl::UnixEpoch();
  int64_t started_ = 0;
  LoadMonitor monitor_{absl::Seconds(2), absl::UnixEpoch()};
};

TEST_F(LoadMonitorTest, SaturationIsTheLargestPart) {
  EXPECT_EQ(monitor_.Saturation(now_), 0);
  Run({.step_use = 0.5, .kv_use = 0.25});
  EXPECT_NEAR(monitor_.Saturation(now_), 0.5, 0.03);
  EXPECT_NEAR(monitor_.kv_use(), 0.25, 0.02);
  Run({.step_use = 0.5, .kv_use = 0.9});
  EXPECT_NEAR(monitor_.Saturation(now_), 0.9, 0.04);
  // 1000 wait, 1000 start in a second: half of the target.
  Run({.step_use = 0.2, .has_queue = true, .queued_cost = 1000}, 1000);
  EXPECT_NEAR(monitor_.queue_use(), 0.5, 0.03);
  EXPECT_NEAR(monitor_.Saturation(now_), 0.5, 0.05);
  Run({.step_use = 0.2, .has_queue = true, .queued_cost = 1'000'000}, 1000);
  EXPECT_NEAR(monitor_.Saturation(now_), 1, 0.05);
  EXPECT_LE(monitor_.Saturation(now_), 1);
}

TEST_F(LoadMonitorTest, TimeCountsNotSteps) {
  // A tenth of the time is spent in full steps.
  for (int i = 0; i < 100; ++i) {
    now_ += absl::Milliseconds(900);
    monitor_.Note(now_, {});
    for (int k = 0; k < 10; ++k) {
      now_ += absl::Milliseconds(10);
      monitor_.Note(now_, {.step_use = 1});
    }
  }
  EXPECT_NEAR(monitor_.Saturation(now_), 0.1, 0.05);
}

TEST_F(LoadMonitorTest, IdlenessFadesWithoutBeingTold) {
  Run({.step_use = 1});
  EXPECT_GT(monitor_.Saturation(now_), 0.9);
  EXPECT_LT(monitor_.Saturation(now_ + absl::Seconds(30)), 0.06);
}

TEST_F(LoadMonitorTest, PredictsByTheRateOfStartsWhileSomethingWaits) {
  EXPECT_EQ(monitor_.PredictDelay(1000), absl::ZeroDuration());
  Run({.has_queue = true, .queued_cost = 500}, 200);
  EXPECT_NEAR(*monitor_.service_rate(), 200, 2);
  EXPECT_NEAR(absl::ToDoubleSeconds(monitor_.PredictDelay(1000)), 5, 0.1);
  // Calm time says nothing of how fast a queue is served.
  Run({.step_use = 0.1}, 10);
  EXPECT_NEAR(*monitor_.service_rate(), 200, 2);
  // Nothing starts any more.
  Run({.has_queue = true, .queued_cost = 500}, 0);
  EXPECT_GT(monitor_.PredictDelay(1000), absl::Seconds(60));
  EXPECT_LE(monitor_.PredictDelay(int64_t{1} << 60), absl::Hours(24));
}

TEST_F(LoadMonitorTest, AClockThatGoesBackDoesNoHarm) {
  Run({.step_use = 0.5});
  now_ -= absl::Hours(1);
  monitor_.Note(now_, {.step_use = 1});
  EXPECT_NEAR(monitor_.Saturation(now_), 0.5, 0.03);
}

}  // namespace
}  // namespace quire
