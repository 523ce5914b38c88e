#include "engine/load_monitor.h"

#include "gtest/gtest.h"

namespace quire {
namespace {

class LoadMonitorTest : public testing::Test {
 protected:
  // Half a minute of equal intervals: what was before is forgotten but for 5 %.
  void Run(LoadMonitor::Interval interval, int64_t work_per_second = 0) {
    for (int i = 0; i < 300; ++i) RunOnce(interval, work_per_second);
  }
  void RunOnce(LoadMonitor::Interval interval, int64_t work_per_second) {
    now_ += absl::Milliseconds(100);
    work_ += work_per_second / 10;
    interval.work = work_;
    monitor_.Note(now_, interval);
  }
  double Predict(int64_t cost_ahead,
                 absl::Duration stalled = absl::ZeroDuration()) const {
    return absl::ToDoubleSeconds(monitor_.PredictDelay(cost_ahead, stalled));
  }

  absl::Time now_ = absl::UnixEpoch();
  int64_t work_ = 0;
  LoadMonitor monitor_{absl::Seconds(2), absl::UnixEpoch()};
};

TEST_F(LoadMonitorTest, SaturationIsTheLargestPart) {
  EXPECT_EQ(monitor_.Saturation(now_), 0);
  Run({.step_use = 0.5, .kv_use = 0.25});
  EXPECT_NEAR(monitor_.Saturation(now_), 0.5, 0.03);
  EXPECT_NEAR(monitor_.kv_use(), 0.25, 0.02);
  Run({.step_use = 0.5, .kv_use = 0.9});
  EXPECT_NEAR(monitor_.Saturation(now_), 0.9, 0.04);
  // 1000 wait, 1000 are done in a second: half of the target.
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

TEST_F(LoadMonitorTest, PredictsByTheRateOfWorkWhileSomethingWaits) {
  EXPECT_EQ(monitor_.PredictDelay(1000), absl::ZeroDuration());
  Run({.has_queue = true, .queued_cost = 500}, 200);
  EXPECT_NEAR(*monitor_.service_rate(), 200, 2);
  EXPECT_NEAR(Predict(1000), 5, 0.1);
  // Calm time says nothing of how fast a queue is served.
  Run({.step_use = 0.1}, 10);
  EXPECT_NEAR(*monitor_.service_rate(), 200, 2);
}

TEST_F(LoadMonitorTest, WhatIsNotKnownDelaysNobody) {
  // Nothing has been measured.
  EXPECT_EQ(Predict(1 << 30), 0);
  // One request alone says nothing of many together.
  Run({.step_use = 0.1}, 10);
  EXPECT_FALSE(monitor_.service_rate().has_value());
  EXPECT_EQ(Predict(1 << 30), 0);
}

// All slots are taken and none becomes free, but all of them come along.
TEST_F(LoadMonitorTest, TheFirstStepWithAQueueTellsTheRate) {
  RunOnce({.has_queue = true, .queued_cost = 2000}, 1000);
  EXPECT_NEAR(Predict(2000), 2, 0.01);
  Run({.has_queue = true, .queued_cost = 2000}, 1000);
  EXPECT_NEAR(Predict(2000), 2, 0.01);
}

TEST_F(LoadMonitorTest, AStallDelaysLongerAndLonger) {
  // Before anything was done: as long as others have waited in vain.
  double last = 0;
  for (int i = 1; i <= 50; ++i) {
    RunOnce({.has_queue = true, .queued_cost = 500}, 0);
    EXPECT_NEAR(Predict(500), 0.1 * i, 1e-6);
  }
  EXPECT_NEAR(Predict(500, absl::Seconds(60)), 65, 1e-6);
  // Of a rate: it falls, with steps that do nothing and with one that does not
  // end.
  Run({.has_queue = true, .queued_cost = 500}, 200);
  last = Predict(500);
  EXPECT_NEAR(last, 2.5, 0.1);
  for (int seconds = 1; seconds < 100; ++seconds) {
    const double predicted = Predict(500, absl::Seconds(seconds));
    EXPECT_GT(predicted, last);
    EXPECT_GE(predicted, seconds);
    last = predicted;
  }
  EXPECT_GT(last, 20);
  EXPECT_EQ(Predict(0, absl::Seconds(30)), 30);
  last = Predict(500);
  for (int i = 0; i < 10; ++i) {
    Run({.has_queue = true, .queued_cost = 500}, 0);
    EXPECT_GE(Predict(500), last);
    last = Predict(500);
  }
  EXPECT_EQ(last, absl::ToDoubleSeconds(absl::Hours(24)));
  EXPECT_LE(monitor_.PredictDelay(int64_t{1} << 60), absl::Hours(24));
  // One second of work, and it is over.
  for (int i = 0; i < 10; ++i) {
    RunOnce({.has_queue = true, .queued_cost = 500}, 200);
  }
  EXPECT_LT(Predict(500), 60);
}

TEST_F(LoadMonitorTest, AClockThatGoesBackDoesNoHarm) {
  Run({.step_use = 0.5});
  now_ -= absl::Hours(1);
  monitor_.Note(now_, {.step_use = 1});
  EXPECT_NEAR(monitor_.Saturation(now_), 0.5, 0.03);
}

}  // namespace
}  // namespace quire
