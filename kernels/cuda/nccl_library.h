// NCCL, loaded at run time, and the collectives of one rank's stream. Which
// ranks there are, and how they meet, is the caller's.
#ifndef QUIRE_KERNELS_CUDA_NCCL_LIBRARY_H_
#define QUIRE_KERNELS_CUDA_NCCL_LIBRARY_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/shared_library.h"
#include "kernels/cuda/simt/types.h"
#include "kernels/dtype.h"

namespace quire::cuda {

// What rank 0 makes and all ranks of a communicator are given.
using NcclId = std::array<char, 128>;

// A communicator of the library. Thread-compatible, but for Abort.
class NcclCommunicator {
 public:
  virtual ~NcclCommunicator() = default;

  // Enqueued on `stream`, in place where from == to; may be captured. Sums are
  // NCCL's to round. INTERNAL with the library's words.
  virtual absl::Status AllReduceSum(const void* from, void* to, int64_t count,
                                    DType dtype, simt::Stream stream) = 0;
  // to: [num_ranks, count].
  virtual absl::Status AllGather(const void* from, void* to, int64_t count,
                                 DType dtype, simt::Stream stream) = 0;
  virtual absl::Status Broadcast(const void* from, void* to, int64_t count,
                                 DType dtype, int root,
                                 simt::Stream stream) = 0;
  // What happened to a collective that was enqueued: OK while nothing did.
  virtual absl::Status AsyncError() = 0;
  // Ends what is enqueued, on every rank that waits for this one. From any
  // thread; nothing may be enqueued after it.
  virtual void Abort() = 0;
};

// Thread-safe.
class NcclLibrary {
 public:
  virtual ~NcclLibrary() = default;

  // As OpenMatrixLibrary of matrix_library.h: NOT_FOUND with the places,
  // FAILED_PRECONDITION with path and version.
  static absl::StatusOr<std::unique_ptr<NcclLibrary>> Open(
      const LibraryPlaces& places);

  virtual std::string name() const = 0;  // "NCCL 2.28.9"
  virtual absl::StatusOr<NcclId> MakeId() = 0;
  // Waits for the other ranks. Uses the current device.
  virtual absl::StatusOr<std::unique_ptr<NcclCommunicator>> Join(
      const NcclId& id, int rank, int num_ranks) = 0;
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_NCCL_LIBRARY_H_
