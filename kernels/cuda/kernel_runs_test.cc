// Kernels without a race write the same bytes under every schedule, and nothing
// beside what is theirs; planted_bugs_test shows that these runs see.
#include "kernels/cuda/kernel_runs.h"

#include <string>

#include "gtest/gtest.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {
namespace {

class KernelRunsTest : public ::testing::TestWithParam<NamedRun> {
 protected:
  void TearDown() override { simt::emulator::CurrentOptions() = {}; }
};

TEST_P(KernelRunsTest, WriteTheSameUnderEverySchedule) {
  std::string first;
  for (const simt::emulator::Schedule schedule :
       simt::emulator::kAllSchedules) {
    for (const bool is_lazy : {false, true}) {
      simt::emulator::CurrentOptions() = {
          .schedule = schedule, .seed = 7, .is_copy_lazy = is_lazy};
      std::string result;
      ASSERT_TRUE(GetParam().run(&result)) << simt::emulator::LastError();
      ASSERT_FALSE(result.empty());
      if (first.empty()) first = result;
      EXPECT_TRUE(result == first) << "schedule " << static_cast<int>(schedule);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, KernelRunsTest, ::testing::ValuesIn(kKernelRuns),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace quire::cuda
