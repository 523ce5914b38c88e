#include "kernels/backend_factory.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cpu/cpu_backend.h"

namespace quire {

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(
    const BackendOptions& options) {
  if (options.device == "auto" || options.device == "cpu") {
    CpuBackendOptions cpu_options;
    cpu_options.num_threads = options.num_threads;
    QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<CpuBackend> backend,
                           CpuBackend::Create(cpu_options));
    return backend;
  }
  if (options.device == "cuda") {
    return absl::UnavailableError("this build has no CUDA backend");
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "device \"", options.device, "\" is not one of auto, cpu, cuda"));
}

}  // namespace quire
