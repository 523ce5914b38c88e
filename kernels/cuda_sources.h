// The CUDA backend as BackendSources: of default_backends.cc, and of programs
// of the tests whose GPU is emulated. Who includes it depends on one of the two
// forms of //kernels/cuda:cuda_backend.
#ifndef QUIRE_KERNELS_CUDA_SOURCES_H_
#define QUIRE_KERNELS_CUDA_SOURCES_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/base/status.h"
#include "kernels/backend_factory.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/group_of_gpus.h"

namespace quire {

inline BackendSources CudaBackendSources(std::function<NvidiaProbe()> probe) {
  BackendSources sources;
  sources.probe = std::move(probe);
  sources.create_cuda =
      [](const BackendOptions& options,
         std::string* notice) -> absl::StatusOr<std::unique_ptr<Backend>> {
    CudaBackendOptions cuda_options;
    cuda_options.enforce_eager = options.enforce_eager;
    cuda_options.copies.num_threads = options.num_threads;
    QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<CudaBackend> backend,
                           CudaBackend::Create(cuda_options));
    *notice = backend->notice();
    return backend;
  };
  sources.make_group_id = [] {
    return cuda::MakeGroupId(cuda::DefaultLibraryPlaces());
  };
  sources.join_group = [](Backend* backend, const std::string& id, int rank,
                          int size, const DeviceGroupOptions& options) {
    return cuda::JoinGroup(backend, cuda::DefaultLibraryPlaces(), id, rank,
                           size, {options.join_timeout, options.timeout});
  };
  return sources;
}

}  // namespace quire

#endif  // QUIRE_KERNELS_CUDA_SOURCES_H_
