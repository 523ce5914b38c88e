#include "kernels/nvidia_probe.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace quire {
namespace {

class NvidiaProbeTest : public testing::Test {
 protected:
  NvidiaProbeTest()
      : root_(testing::TempDir() + "/" +
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::create_directories(root_ + "/dev");
    std::filesystem::create_directories(root_ + "/proc/driver/nvidia");
  }
  void Write(const std::string& path, const std::string& text = "") {
    std::ofstream(root_ + path) << text;
  }

  const std::string root_;
};

TEST_F(NvidiaProbeTest, NothingIsNoDevice) {
  const NvidiaProbe probe = ProbeNvidia(root_);
  EXPECT_FALSE(probe.has_device);
  EXPECT_EQ(probe.driver_version, "");
}

TEST_F(NvidiaProbeTest, FindsDevicesByTheirNodes) {
  Write("/dev/nvidia3");
  EXPECT_TRUE(ProbeNvidia(root_).has_device);
}

TEST_F(NvidiaProbeTest, AnEmptyListHidesThem) {
  Write("/dev/nvidia0");
  unsetenv("CUDA_VISIBLE_DEVICES");
  EXPECT_FALSE(ProbeNvidia(root_).is_hidden);
  for (const char* none : {"", "-1", " ,0"}) {
    setenv("CUDA_VISIBLE_DEVICES", none, 1);
    EXPECT_TRUE(ProbeNvidia(root_).is_hidden) << none;
  }
  setenv("CUDA_VISIBLE_DEVICES", "7", 1);
  EXPECT_FALSE(ProbeNvidia(root_).is_hidden);
  unsetenv("CUDA_VISIBLE_DEVICES");
  EXPECT_TRUE(ProbeNvidia(root_).has_device);
}

TEST_F(NvidiaProbeTest, ReadsTheVersionOfTheDriver) {
  Write("/dev/nvidiactl");
  Write("/proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  "
        "Release Build\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n");
  const NvidiaProbe probe = ProbeNvidia(root_);
  EXPECT_TRUE(probe.has_device);
  EXPECT_EQ(probe.driver_version, "550.54.15");
}

TEST_F(NvidiaProbeTest, AFileWithoutAVersionIsNoVersion) {
  Write("/proc/driver/nvidia/version", "garbage . .5 x1.2");
  EXPECT_EQ(ProbeNvidia(root_).driver_version, "");
}

TEST_F(NvidiaProbeTest, VisibleGpusAreThoseOfCudasList) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(VisibleGpus("3, 1", root_), (Names{"3", "1"}));
  EXPECT_EQ(VisibleGpus("GPU-ab,-1,2", root_), (Names{"GPU-ab"}));
  EXPECT_EQ(VisibleGpus("", root_), Names());
  EXPECT_EQ(VisibleGpus(nullptr, root_), Names());
  Write("/dev/nvidia2");
  Write("/dev/nvidia5");
  EXPECT_EQ(VisibleGpus(nullptr, root_), (Names{"0", "1"}));
}

}  // namespace
}  // namespace quire
