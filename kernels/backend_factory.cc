#include "kernels/backend_factory.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cpu/cpu_backend.h"

namespace quire {
namespace {

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(
    const BackendOptions& options) {
  CpuBackendOptions cpu_options;
  cpu_options.threads = {options.num_threads, options.cpus, options.numa};
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<CpuBackend> backend,
                         CpuBackend::Create(cpu_options));
  return backend;
}

absl::StatusOr<std::unique_ptr<Backend>> CreateGpuBackend(
    const BackendOptions& options, const BackendSources& sources,
    const NvidiaProbe& probe, std::string* notice) {
  if (sources.create_cuda == nullptr) {
    return absl::UnavailableError("this build has no CUDA backend");
  }
  if (!probe.has_device) {
    return absl::UnavailableError("there is no NVIDIA device");
  }
  if (probe.is_hidden) {
    return absl::UnavailableError("CUDA_VISIBLE_DEVICES names no GPU");
  }
  const std::string driver =
      probe.driver_version.empty()
          ? ""
          : absl::StrCat(" (driver ", probe.driver_version, ")");
  if (!probe.has_driver_library) {
    return absl::FailedPreconditionError(absl::StrCat(
        "there is an NVIDIA device", driver,
        ", but its library libcuda.so.1 is not found; a container gets it from "
        "the NVIDIA container runtime; --device cpu does without"));
  }
  auto backend = sources.create_cuda(options, notice);
  // A GPU that has fallen off its bus, MIG without instances, a GPU that is too
  // old for the driver.
  if (absl::IsUnavailable(backend.status())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "there is an NVIDIA device", driver,
        ", but CUDA finds none that it can use (", backend.status().message(),
        "); --device cpu does without the GPU"));
  }
  if (absl::IsFailedPrecondition(backend.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat(backend.status().message(), driver,
                     "; --device cpu does without the GPU"));
  }
  return backend;
}

}  // namespace

std::string SupportedBackends() {
  return DefaultBackendSources().create_cuda == nullptr ? "cpu" : "cpu, cuda";
}

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(
    const BackendOptions& options, const BackendSources& sources,
    std::string* notice) {
  notice->clear();
  if (options.device == "cpu") return CreateCpuBackend(options);
  if (options.device != "auto" && options.device != "cuda") {
    return absl::InvalidArgumentError(absl::StrCat(
        "device \"", options.device, "\" is not one of auto, cpu, cuda"));
  }
  auto backend = CreateGpuBackend(options, sources, sources.probe(), notice);
  if (options.device == "cuda" || !absl::IsUnavailable(backend.status())) {
    return backend;
  }
  *notice = absl::StrCat("computing on the CPU: ", backend.status().message());
  return CreateCpuBackend(options);
}

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(
    const BackendOptions& options, std::string* notice) {
  return CreateBackend(options, DefaultBackendSources(), notice);
}

absl::StatusOr<std::string> MakeDeviceGroupId(const BackendSources& sources) {
  if (sources.make_group_id == nullptr) {
    return absl::UnavailableError("this build has no CUDA backend");
  }
  return sources.make_group_id();
}

absl::StatusOr<Communicator*> JoinDeviceGroup(Backend* backend,
                                              const std::string& id, int rank,
                                              int size,
                                              const DeviceGroupOptions& options,
                                              const BackendSources& sources) {
  if (sources.join_group == nullptr) {
    return absl::UnavailableError("this build has no CUDA backend");
  }
  if (id.size() != kDeviceGroupIdBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the id of a group of GPUs has ", kDeviceGroupIdBytes,
                     " bytes, not ", id.size()));
  }
  return sources.join_group(backend, id, rank, size, options);
}

}  // namespace quire
