// Makes the backend that the configuration names: the only library that knows
// the concrete ones.
#ifndef QUIRE_KERNELS_BACKEND_FACTORY_H_
#define QUIRE_KERNELS_BACKEND_FACTORY_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace quire {

struct BackendOptions {
  // auto, cpu or cuda. auto is the CPU until the CUDA backend has been measured
  // on a GPU.
  std::string device = "auto";
  int num_threads = 0;         // Of the CPU; <= 0: all that may be used.
  bool enforce_eager = false;  // On a GPU: no CUDA graphs.
};

// INVALID_ARGUMENT for an unknown device or instruction set (QUIRE_CPU_ISA);
// UNAVAILABLE if this build or machine has no such device; FAILED_PRECONDITION
// if there is an NVIDIA device that cannot be used: it names the version of
// driver or architecture found and the one needed.
//   fallback_reason: not null; set if auto takes the CPU beside a GPU.
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(
    const BackendOptions& options, std::string* fallback_reason);

}  // namespace quire

#endif  // QUIRE_KERNELS_BACKEND_FACTORY_H_
