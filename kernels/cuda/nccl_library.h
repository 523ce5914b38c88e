// NCCL, loaded at run time: a program that computes on one GPU does without it.
#ifndef QUIRE_KERNELS_CUDA_NCCL_LIBRARY_H_
#define QUIRE_KERNELS_CUDA_NCCL_LIBRARY_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/nccl_api.h"
#include "kernels/cuda/shared_library.h"

namespace quire::cuda {

// Cheap to copy: the library stays open as long as the process. Thread-safe.
class NcclLibrary {
 public:
  // NOT_FOUND with the places; FAILED_PRECONDITION with the path and what is
  // wrong with the file: not NCCL, or too old.
  static absl::StatusOr<NcclLibrary> Open(const LibraryPlaces& places);

  std::string name() const;  // "NCCL 2.28.9"
  const std::string& path() const { return path_; }
  const NcclApi& api() const { return api_; }

  // For rank 0, which tells it to the others.
  absl::StatusOr<NcclId> MakeId() const;

  // INTERNAL with the library's words: "ncclAllReduce: unhandled system error:
  // ...".
  absl::Status ToStatus(nccl::Result result, const char* what) const;

 private:
  NcclLibrary(std::string path, const NcclApi& api)
      : path_(std::move(path)), api_(api) {}

  std::string path_;
  NcclApi api_;
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_NCCL_LIBRARY_H_
