// What CreateBackend finds in a program that is linked with this library: the
// CUDA backend where the build has a toolkit. tests/gpu/emulated_backends.cc
// stands for it in a program of the tests.
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/base/status.h"
#include "kernels/backend_factory.h"
#ifdef QUIRE_HAS_CUDA
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/group_of_gpus.h"
#endif

namespace quire {

BackendSources DefaultBackendSources() {
  BackendSources sources;
  sources.probe = [] { return ProbeNvidia(); };
#ifdef QUIRE_HAS_CUDA
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
#endif
  return sources;
}

}  // namespace quire
