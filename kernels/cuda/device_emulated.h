// What tests may ask of the emulated device. Beside device.h, in programs that
// are linked with device_emulated.cc.
#ifndef QUIRE_KERNELS_CUDA_DEVICE_EMULATED_H_
#define QUIRE_KERNELS_CUDA_DEVICE_EMULATED_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {

// Of devices that are created from here on.
struct EmulatedDeviceOptions {
  int64_t total_bytes = int64_t{8} << 30;
  // That can be pinned; also of devices that there are.
  int64_t pinned_bytes = int64_t{8} << 30;
  // That every graph takes.
  int64_t bytes_per_graph = int64_t{256} << 10;
  // That a device's first capture takes for good, as kernels do that are loaded
  // on first use.
  int64_t code_bytes = 0;
  // Compute capability, multiprocessors and the shared memory of one.
  // Initially as QUIRE_EMULATED_GPU says ("7.5", "8.0", "8.6", "8.9", "9.0" or
  // "12.0"), or else 9.0. Kernels have the form of the build: 7.5 alone, and no
  // other, in that with QUIRE_EMULATES_SM75. Instructions that a capability
  // lacks fail.
  int major = 9;
  int minor = 0;
  int num_sms = 4;
  int64_t shared_bytes_of_sm = 228 << 10;
  // Memory starts as NaNs. False: as the system gives it, for measuring.
  bool fills_memory = true;
  // Once it is true, the next work fails, as of InjectFault; null: nobody asks.
  const std::atomic<bool>* fault_request = nullptr;
};
EmulatedDeviceOptions& EmulatedOptions();

// The functions below require an emulated device.

// Work (launches and copies) that has run.
int64_t NumRunOf(const Device& device);
// Launches alone.
int64_t NumLaunchesOf(const Device& device);
// Pinned memory that there is now.
int64_t NumPinnedBytesOf(const Device& device);
// Of device memory, each allocation by itself, in their order; waits first.
std::vector<std::string> ContentsOf(Device& device);
// The next work but `num_before` fails, as an illegal access would.
void InjectFault(Device& device, int64_t num_before);
// So many captures fail, each where it ends.
void FailCaptures(Device& device, int num_captures);
// From now on nothing is enqueued, and nothing computed: what is left is the
// host's part of a step. Requires: nothing is enqueued.
void DiscardWork(Device& device, bool discards);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_DEVICE_EMULATED_H_
