#include "kernels/cuda/device_errors.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace quire::cuda {
namespace {

FailedDeviceCall Failed(int error, int driver_version = 13000) {
  FailedDeviceCall failed;
  failed.call = "cudaGetDeviceCount";
  failed.error = error;
  failed.name = "cudaErrorName";
  failed.words = "what CUDA says";
  failed.driver_version = driver_version;
  failed.runtime_version = 13020;
  return failed;
}

TEST(DeviceErrorsTest, WithoutADeviceItIsUnavailable) {
  FailedDeviceCall failed = Failed(kErrorNoDevice);
  EXPECT_EQ(CannotUseDevice(failed),
            absl::UnavailableError("there is no NVIDIA device 0"));
  failed.visible_devices = "7";
  failed.device_idx = 2;
  EXPECT_EQ(CannotUseDevice(failed),
            absl::UnavailableError("there is no NVIDIA device 2 with "
                                   "CUDA_VISIBLE_DEVICES=7"));
  // Fewer devices than were asked for; no driver at all.
  EXPECT_TRUE(absl::IsUnavailable(CannotUseDevice(Failed(0))));
  EXPECT_TRUE(absl::IsUnavailable(
      CannotUseDevice(Failed(kErrorInsufficientDriver, 0))));
}

TEST(DeviceErrorsTest, AnOldDriverIsToldByItsVersion) {
  EXPECT_EQ(
      CannotUseDevice(Failed(kErrorInsufficientDriver, 12040)),
      absl::FailedPreconditionError(
          "the NVIDIA driver supports CUDA 12.4, this program needs 13.0, "
          "that is driver 580 or newer"));
}

// Each is the GPU's state, not ours: what CUDA says, and what to do.
TEST(DeviceErrorsTest, OtherFailuresSayWhatToDo) {
  const struct {
    int error;
    const char* hint;
  } cases[] = {
      {kErrorSystemDriverMismatch, "reboot"},
      {kErrorSystemNotReady, "nvidia-fabricmanager"},
      {kErrorCompatNotSupported, "cuda-compat"},
      {kErrorDevicesUnavailable, "another process"},
      {kErrorMemoryAllocation, "nvidia-smi lists"},
      {kErrorUnknown, "kernel's log"},
      {3, "kernel's log"},
  };
  for (const auto& [error, hint] : cases) {
    for (const int driver_version : {0, 13000}) {
      const absl::Status status =
          CannotUseDevice(Failed(error, driver_version));
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
      EXPECT_TRUE(absl::StartsWith(
          status.message(),
          "cudaGetDeviceCount: cudaErrorName (what CUDA says): "))
          << status;
      EXPECT_TRUE(absl::StrContains(status.message(), hint)) << status;
    }
  }
}

}  // namespace
}  // namespace quire::cuda
