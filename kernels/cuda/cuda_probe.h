// The ceilings of a GPU: see kernels/device_probe.h.
#ifndef QUIRE_KERNELS_CUDA_CUDA_PROBE_H_
#define QUIRE_KERNELS_CUDA_CUDA_PROBE_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/matrix_library.h"
#include "kernels/device_probe.h"

namespace quire::cuda {

// The device outlives it. Takes about `num_bytes` of device memory: twice the
// second-level cache and more, so that it holds nothing; RESOURCE_EXHAUSTED if
// there is not so much.
//   open_library: null: there is none.
absl::StatusOr<std::unique_ptr<DeviceProbe>> NewCudaProbe(
    Device& device, const MatrixLibraryFactory& open_library,
    int64_t num_bytes);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_CUDA_PROBE_H_
