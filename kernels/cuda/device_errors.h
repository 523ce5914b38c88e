// What CUDA says where no device can be used, in words of its own and ours.
// Numbers in place of CUDA's names: no CUDA header and no GPU is needed.
#ifndef QUIRE_KERNELS_CUDA_DEVICE_ERRORS_H_
#define QUIRE_KERNELS_CUDA_DEVICE_ERRORS_H_

#include "absl/status/status.h"

namespace quire::cuda {

// cudaError_t, as far as it is told apart; device_cuda.cc compares.
inline constexpr int kErrorMemoryAllocation = 2;
inline constexpr int kErrorInsufficientDriver = 35;
inline constexpr int kErrorDevicesUnavailable = 46;
inline constexpr int kErrorNoDevice = 100;
inline constexpr int kErrorSystemNotReady = 802;
inline constexpr int kErrorSystemDriverMismatch = 803;
inline constexpr int kErrorCompatNotSupported = 804;
inline constexpr int kErrorUnknown = 999;

struct FailedDeviceCall {
  const char* call = "";  // "cudaGetDeviceCount"
  int error = 0;          // What it returned: a cudaError_t.
  const char* name = "";  // Of it: "cudaErrorNoDevice".
  const char* words = "";
  int device_idx = 0;
  // As CUDA counts them: 12040. 0: there is no driver.
  int driver_version = 0;
  int runtime_version = 0;
  const char* visible_devices = nullptr;  // CUDA_VISIBLE_DEVICES; null: unset.
};

// UNAVAILABLE if there is no NVIDIA device `device_idx`; FAILED_PRECONDITION
// for everything else, with what to do about it. Requires: error != 0, or there
// are no more than device_idx devices.
absl::Status CannotUseDevice(const FailedDeviceCall& failed);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_DEVICE_ERRORS_H_
