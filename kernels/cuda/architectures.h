// Which GPUs the kernels of a build run on.
#ifndef QUIRE_KERNELS_CUDA_ARCHITECTURES_H_
#define QUIRE_KERNELS_CUDA_ARCHITECTURES_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace quire::cuda {

// FAILED_PRECONDITION, with what is there and what is needed, unless kernels
// compiled for `architectures` (of --//kernels/cuda:architectures: "all" or
// "80,90a") run on the GPU `name` of compute capability `major`.`minor`.
absl::Status CheckArchitecture(absl::string_view architectures,
                               const std::string& name, int major, int minor);

// Whether a GPU of this capability multiplies by warpgroups and `architectures`
// has code for it: 9.0, and 90a. `wanted`: of the environment; "0": no.
bool HasWarpgroups(absl::string_view architectures, int major, int minor,
                   const char* wanted);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_ARCHITECTURES_H_
