// What a device can do at best, measured now: the denominators of benchmarks.
#ifndef QUIRE_KERNELS_DEVICE_PROBE_H_
#define QUIRE_KERNELS_DEVICE_PROBE_H_

#include "absl/status/statusor.h"

namespace quire {

// Holds memory of the device while it lives. Each call waits for the device and
// takes some milliseconds. Errors are the device's. Thread-compatible.
class DeviceProbe {
 public:
  virtual ~DeviceProbe() = default;

  // Bytes per second over memory that no cache holds: read only, and read and
  // written (both counted).
  virtual absl::StatusOr<double> ReadBandwidth() = 0;
  virtual absl::StatusOr<double> CopyBandwidth() = 0;

  // Floating-point operations per second of a large product of random bf16
  // matrices by the vendor's library. NOT_FOUND, FAILED_PRECONDITION or
  // UNIMPLEMENTED without one.
  virtual absl::StatusOr<double> Bf16Peak() = 0;
};

}  // namespace quire

#endif  // QUIRE_KERNELS_DEVICE_PROBE_H_
