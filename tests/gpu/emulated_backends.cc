// The backends of quire_emulated, the program whose GPU is emulated. SIGUSR1
// makes the next work of that GPU fail, as an illegal access would.
#include <signal.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/cuda/device_emulated.h"
#include "kernels/cuda_sources.h"

namespace quire {
namespace {

std::atomic<bool> g_fault_request = false;
static_assert(std::atomic<bool>::is_always_lock_free);  // In a handler.

}  // namespace

BackendSources DefaultBackendSources() {
  BackendSources sources = CudaBackendSources([] {
    return NvidiaProbe{true, "emulated", true};
  });
  sources.create_cuda =
      [create = std::move(sources.create_cuda)](
          const BackendOptions& options,
          std::string* notice) -> absl::StatusOr<std::unique_ptr<Backend>> {
    signal(SIGUSR1, [](int) { g_fault_request.store(true); });
    cuda::EmulatedOptions().fault_request = &g_fault_request;
    // All of it is written, when it is allocated.
    cuda::EmulatedOptions().total_bytes = int64_t{256} << 20;
    auto backend = create(options, notice);
    notice->clear();  // Of libraries that an emulation cannot have.
    return backend;
  };
  return sources;
}

}  // namespace quire
