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

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_ARCHITECTURES_H_
