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
  std::string device = "auto";  // auto, cpu or cuda.
  int num_threads = 0;          // Of the CPU; <= 0: all that may be used.
};

// INVALID_ARGUMENT for an unknown device or instruction set (QUIRE_CPU_ISA);
// UNAVAILABLE if this build or machine has no such device.
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(
    const BackendOptions& options);

}  // namespace quire

#endif  // QUIRE_KERNELS_BACKEND_FACTORY_H_
