// The backends of quire_ptx, the program as a GPU runs it on a CUDA runtime of
// the host (ptx/host_cuda_runtime.cc), which has one GPU and no NCCL.
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base/status.h"
#include "kernels/backend_factory.h"
#include "kernels/cuda/cuda_backend.h"

namespace quire {

BackendSources DefaultBackendSources() {
  BackendSources sources;
  sources.probe = [] { return NvidiaProbe{true, "PTX on the host", true}; };
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
  return sources;
}

}  // namespace quire
