#include "kernels/cuda/device_errors.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace quire::cuda {
namespace {

// The first driver of CUDA 13 (its release notes, table of drivers).
constexpr char kLowestDriver[] = "580";

// "12.4" of 12040.
std::string VersionText(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

const char* Hint(int error) {
  switch (error) {
    case kErrorMemoryAllocation:
      return "the GPU has no memory left for this process: nvidia-smi lists "
             "who "
             "has it";
    case kErrorDevicesUnavailable:
      return "another process may have the GPU for itself: nvidia-smi -q -d "
             "COMPUTE tells its mode";
    case kErrorSystemNotReady:
      return "GPUs behind NVSwitch need the service nvidia-fabricmanager, of "
             "the "
             "driver's version: is it running?";
    case kErrorSystemDriverMismatch:
      return "the kernel module and libcuda.so.1 are of different versions, as "
             "after an update of the driver: reboot, or load the module anew";
    case kErrorCompatNotSupported:
      return "this libcuda.so.1 is that of a package cuda-compat, which does "
             "not "
             "support this GPU: take its folder off the loader's path";
    default:
      return "nvidia-smi and the kernel's log may say more; after a fault of "
             "the "
             "driver only loading its module anew, or a reboot, helps";
  }
}

}  // namespace

absl::Status CannotUseDevice(const FailedDeviceCall& failed) {
  const bool has_no_driver =
      failed.error == kErrorInsufficientDriver && failed.driver_version == 0;
  if (failed.error == 0 || failed.error == kErrorNoDevice || has_no_driver) {
    return absl::UnavailableError(
        absl::StrCat("there is no NVIDIA device ", failed.device_idx,
                     failed.visible_devices == nullptr
                         ? std::string()
                         : absl::StrCat(" with CUDA_VISIBLE_DEVICES=",
                                        failed.visible_devices)));
  }
  if (failed.error == kErrorInsufficientDriver) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the NVIDIA driver supports CUDA ", VersionText(failed.driver_version),
        ", this program needs ",
        VersionText(failed.runtime_version / 1000 * 1000), ", that is driver ",
        kLowestDriver, " or newer"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat(failed.call, ": ", failed.name, " (", failed.words,
                   "): ", Hint(failed.error)));
}

}  // namespace quire::cuda
