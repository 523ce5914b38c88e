#include "kernels/backend_factory.h"

#include <unistd.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cpu/cpu_backend.h"
#ifdef QUIRE_HAS_CUDA
#include "kernels/cuda/cuda_backend.h"
#endif

namespace quire {

namespace {

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(
    [[maybe_unused]] const BackendOptions& options) {
#ifdef QUIRE_HAS_CUDA
  CudaBackendOptions cuda_options;
  cuda_options.enforce_eager = options.enforce_eager;
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<CudaBackend> backend,
                         CudaBackend::Create(cuda_options));
  return backend;
#else
  return absl::UnavailableError("this build has no CUDA backend");
#endif
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(
    const BackendOptions& options, std::string* fallback_reason) {
  const bool is_auto = options.device == "auto";
  if (!is_auto && options.device != "cpu" && options.device != "cuda") {
    return absl::InvalidArgumentError(absl::StrCat(
        "device \"", options.device, "\" is not one of auto, cpu, cuda"));
  }
  if (options.device == "cuda") return CreateCudaBackend(options);
  // Not yet: nobody should get answers from a backend that has only run on an
  // emulation without having asked for it.
  if (is_auto && access("/dev/nvidiactl", F_OK) == 0) {
    *fallback_reason =
        "the CUDA backend has not been measured on a GPU yet; --device cuda "
        "chooses it";
  }
  CpuBackendOptions cpu_options;
  cpu_options.num_threads = options.num_threads;
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<CpuBackend> backend,
                         CpuBackend::Create(cpu_options));
  return backend;
}

}  // namespace quire
