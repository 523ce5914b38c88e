// The backends of quire_emulated, the program whose GPU is emulated. SIGUSR1
// makes the next work of that GPU fail, as an illegal access would.
#include <signal.h>

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base/status.h"
#include "kernels/backend_factory.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_emulated.h"
#include "kernels/cuda/group_of_gpus.h"

namespace quire {
namespace {

std::atomic<bool> g_fault_request = false;
static_assert(std::atomic<bool>::is_always_lock_free);  // In a handler.

}  // namespace

BackendSources DefaultBackendSources() {
  BackendSources sources;
  sources.probe = [] { return NvidiaProbe{true, "emulated", true}; };
  sources.create_cuda =
      [](const BackendOptions& options,
         std::string* /*notice*/) -> absl::StatusOr<std::unique_ptr<Backend>> {
    signal(SIGUSR1, [](int) { g_fault_request.store(true); });
    cuda::EmulatedOptions().fault_request = &g_fault_request;
    // All of it is written, when it is allocated.
    cuda::EmulatedOptions().total_bytes = int64_t{256} << 20;
    CudaBackendOptions cuda_options;
    cuda_options.enforce_eager = options.enforce_eager;
    cuda_options.copies.num_threads = options.num_threads;
    QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<CudaBackend> backend,
                           CudaBackend::Create(cuda_options));
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
