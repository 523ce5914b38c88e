#include "benchmarks/step_timer.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

namespace quire {
namespace {

// A device whose steps take 100 s from their submission or the end of the step
// before, and a host whose time the test moves.
class FakeDevice : public ModelRunner {
 public:
  int steps_in_flight() const override { return 2; }
  absl::Status Submit(const SchedulerOutput&) override {
    time += 2;
    end = std::max(end, time) + 100;
    ends.push_back(end);
    return absl::OkStatus();
  }
  absl::StatusOr<StepResult> Collect() override {
    time = std::max(time, ends.front());
    ends.erase(ends.begin());
    return StepResult();
  }
  bool Done() const override { return ends.front() <= time; }

  double time = 1;
  double end = 0;
  std::vector<double> ends;
};

TEST(StepTimerTest, AHostBesideTheDeviceIsNotExposed) {
  FakeDevice device;
  StepTimer timer(&device, [&] { return device.time; });
  ASSERT_TRUE(timer.Submit({}).ok());
  for (int i = 0; i < 10; ++i) {
    device.time += 30;  // Plans.
    ASSERT_TRUE(timer.Submit({}).ok());
    ASSERT_TRUE(timer.Collect().ok());
    device.time += 7;  // Tells.
  }
  const StepTimes times = timer.Times();
  EXPECT_EQ(times.num_steps, 10);
  EXPECT_DOUBLE_EQ(times.host, 39e6);
  EXPECT_EQ(times.exposed, 0);
  EXPECT_EQ(times.exposed_steps, 0);
}

TEST(StepTimerTest, ADeviceThatWaitsIsSeen) {
  FakeDevice device;
  StepTimer timer(&device, [&] { return device.time; });
  for (int i = 0; i < 5; ++i) {
    // One after the other: everything but the wait is exposed.
    device.time += 30;
    ASSERT_TRUE(timer.Submit({}).ok());
    ASSERT_TRUE(timer.Collect().ok());
    device.time += 7;
  }
  StepTimes times = timer.Times();
  EXPECT_EQ(times.num_steps, 4);
  EXPECT_DOUBLE_EQ(times.host, 39e6);
  EXPECT_DOUBLE_EQ(times.exposed, 39e6);
  EXPECT_EQ(times.exposed_steps, 100);
  // What passes while there is nothing to do belongs to no step.
  timer.PrepareAhead();
  device.time += 1000;
  ASSERT_TRUE(timer.Submit({}).ok());
  ASSERT_TRUE(timer.Collect().ok());
  EXPECT_EQ(timer.Times().num_steps, 4);
}

}  // namespace
}  // namespace quire
