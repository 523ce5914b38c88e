#include "kernels/backend_factory.h"

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

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend() {
#ifdef QUIRE_HAS_CUDA
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<CudaBackend> backend,
                         CudaBackend::Create(CudaBackendOptions()));
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
  if (options.device != "cpu") {
    auto backend = CreateCudaBackend();
    if (!is_auto || !absl::IsUnavailable(backend.status())) return backend;
    *fallback_reason = std::string(backend.status().message());
  }
  CpuBackendOptions cpu_options;
  cpu_options.num_threads = options.num_threads;
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<CpuBackend> backend,
                         CpuBackend::Create(cpu_options));
  return backend;
}

}  // namespace quire
