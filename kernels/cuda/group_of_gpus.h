// What a group of GPUs is made of, for BackendSources.
#ifndef QUIRE_KERNELS_CUDA_GROUP_OF_GPUS_H_
#define QUIRE_KERNELS_CUDA_GROUP_OF_GPUS_H_

#include <algorithm>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base/status.h"
#include "kernels/communicator.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/nccl_library.h"

namespace quire::cuda {

inline absl::StatusOr<std::string> MakeGroupId(const LibraryPlaces& places) {
  QUIRE_ASSIGN_OR_RETURN(const NcclLibrary library, NcclLibrary::Open(places));
  QUIRE_ASSIGN_OR_RETURN(const NcclId id, library.MakeId());
  return std::string(id.begin(), id.end());
}

// Requires: `backend` is a CudaBackend, and `id` of MakeGroupId.
inline absl::StatusOr<Communicator*> JoinGroup(
    Backend* backend, const LibraryPlaces& places, const std::string& text,
    int rank, int size, const NcclCommunicatorOptions& options = {}) {
  NcclId id = {};
  std::copy_n(text.begin(), std::min(text.size(), id.size()), id.begin());
  return static_cast<CudaBackend*>(backend)->JoinGroup(places, id, rank, size,
                                                       options);
}

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_GROUP_OF_GPUS_H_
