// Makes the backend that the configuration names: the only library that knows
// the concrete ones.
#ifndef QUIRE_KERNELS_BACKEND_FACTORY_H_
#define QUIRE_KERNELS_BACKEND_FACTORY_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/cpu_topology.h"
#include "kernels/backend.h"
#include "kernels/communicator.h"
#include "kernels/nvidia_probe.h"

namespace quire {

struct BackendOptions {
  // auto, cpu or cuda. auto is the GPU where there is one.
  std::string device = "auto";
  // Of the CPU; with a GPU those that load. <= 0: one for each physical core.
  int num_threads = 0;
  bool enforce_eager = false;  // On a GPU: no CUDA graphs.
  // Of the CPU: see PlacementRequest.
  std::vector<int> cpus = {};
  NumaPolicy numa = NumaPolicy::kOff;
};

// Of a group of GPUs.
struct DeviceGroupOptions {
  absl::Duration join_timeout = absl::Minutes(10);  // Until all have come.
  // How long a rank waits for one that says nothing, in a step.
  absl::Duration timeout = absl::Seconds(30);
};

// What the factory asks of machine and build; tests give other answers.
struct BackendSources {
  std::function<NvidiaProbe()> probe;
  // As CudaBackend::Create; *notice as of CreateBackend. Null: a build without
  // CUDA.
  std::function<absl::StatusOr<std::unique_ptr<Backend>>(
      const BackendOptions& options, std::string* notice)>
      create_cuda;
  // As CudaBackend::JoinGroup, of a backend that create_cuda made; the id as
  // MakeDeviceGroupId gives it. Null: a build without CUDA.
  std::function<absl::StatusOr<std::string>()> make_group_id;
  std::function<absl::StatusOr<Communicator*>(
      Backend* backend, const std::string& id, int rank, int size,
      const DeviceGroupOptions& options)>
      join_group;
};
// Which ones there are is decided when a program is linked:
// //kernels:default_backends, or others in tests.
BackendSources DefaultBackendSources();

// Of this build: "cpu" or "cpu, cuda".
std::string SupportedBackends();

// INVALID_ARGUMENT for an unknown device or instruction set (QUIRE_CPU_ISA);
// UNAVAILABLE if this build or machine has no such device; FAILED_PRECONDITION
// if there is an NVIDIA device that cannot be used: it names the version of
// driver or architecture found and the one needed. auto gives this error, too:
// whoever has a GPU does not want to find out from the speed that it is not
// used.
//   notice: not null; a line for the log, or empty: why auto took the CPU, or
//     what the GPU lacks.
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(
    const BackendOptions& options, std::string* notice);
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(
    const BackendOptions& options, const BackendSources& sources,
    std::string* notice);

// Groups of GPUs, a process each. Rank 0 makes an id and tells it to the
// others; every rank joins with it, which waits for all. NOT_FOUND or
// FAILED_PRECONDITION say what of NCCL is missing; UNAVAILABLE: a build without
// CUDA, or a rank that does not come.
inline constexpr size_t kDeviceGroupIdBytes = 128;
absl::StatusOr<std::string> MakeDeviceGroupId(
    const BackendSources& sources = DefaultBackendSources());
// Requires: CreateBackend made `backend` of the same sources, for a GPU. The
// communicator lives as long as the backend.
absl::StatusOr<Communicator*> JoinDeviceGroup(
    Backend* backend, const std::string& id, int rank, int size,
    const DeviceGroupOptions& options = {},
    const BackendSources& sources = DefaultBackendSources());

}  // namespace quire

#endif  // QUIRE_KERNELS_BACKEND_FACTORY_H_
