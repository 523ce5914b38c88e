#include <cuda_runtime.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cuda/architectures.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_errors.h"

namespace quire::cuda {
namespace {

static_assert(kErrorMemoryAllocation == cudaErrorMemoryAllocation);
static_assert(kErrorInsufficientDriver == cudaErrorInsufficientDriver);
static_assert(kErrorDevicesUnavailable == cudaErrorDevicesUnavailable);
static_assert(kErrorNoDevice == cudaErrorNoDevice);
static_assert(kErrorSystemNotReady == cudaErrorSystemNotReady);
static_assert(kErrorSystemDriverMismatch == cudaErrorSystemDriverMismatch);
static_assert(kErrorCompatNotSupported == cudaErrorCompatNotSupportedOnDevice);
static_assert(kErrorUnknown == cudaErrorUnknown);

// What has been told is not the thread's last error any more: LaunchError would
// blame a launcher for it. What sticks is told again by every later call.
absl::Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  return absl::InternalError(absl::StrCat(what, ": ", cudaGetErrorName(error),
                                          " (", cudaGetErrorString(error),
                                          ")"));
}

class CudaGraph : public Graph {
 public:
  ~CudaGraph() override {
    if (executable != nullptr) cudaGraphExecDestroy(executable);
  }
  cudaGraphExec_t executable = nullptr;
};

class CudaEvent : public Event {
 public:
  ~CudaEvent() override {
    if (event != nullptr) cudaEventDestroy(event);
  }
  cudaEvent_t event = nullptr;
};

class CudaDevice : public Device {
 public:
  CudaDevice(int device_idx, DeviceProperties properties, cudaStream_t stream)
      : device_idx_(device_idx),
        properties_(std::move(properties)),
        stream_(stream) {}
  ~CudaDevice() override { cudaStreamDestroy(stream_); }

  const DeviceProperties& properties() const override { return properties_; }

  absl::StatusOr<DeviceMemory> Memory() override {
    size_t free_bytes = 0, total_bytes = 0;
    QUIRE_RETURN_IF_ERROR(
        ToStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"));
    return DeviceMemory{static_cast<int64_t>(free_bytes),
                        static_cast<int64_t>(total_bytes)};
  }

  void MakeCurrent() override { cudaSetDevice(device_idx_); }

  absl::StatusOr<void*> Allocate(int64_t num_bytes) override {
    ++num_allocations_;
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, num_bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // It does not stick.
      QUIRE_ASSIGN_OR_RETURN(const DeviceMemory memory_info, Memory());
      return absl::ResourceExhaustedError(
          absl::StrCat("cannot allocate ", num_bytes,
                       " bytes on the GPU: ", memory_info.free_bytes, " of ",
                       memory_info.total_bytes, " bytes are free"));
    }
    QUIRE_RETURN_IF_ERROR(ToStatus(error, "cudaMalloc"));
    return memory;
  }
  void Free(void* memory) override { cudaFree(memory); }

  absl::StatusOr<void*> AllocatePinned(int64_t num_bytes) override {
    ++num_allocations_;
    void* memory = nullptr;
    const cudaError_t error = cudaMallocHost(&memory, num_bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // It does not stick.
      return absl::ResourceExhaustedError(
          absl::StrCat("cannot pin ", num_bytes, " bytes of memory"));
    }
    QUIRE_RETURN_IF_ERROR(ToStatus(error, "cudaMallocHost"));
    return memory;
  }
  void FreePinned(void* memory) override { cudaFreeHost(memory); }

  simt::Stream stream() const override { return stream_; }

  absl::Status CopyToDevice(void* to, const void* from,
                            int64_t num_bytes) override {
    return ToStatus(
        cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyHostToDevice, stream_),
        "cudaMemcpyAsync");
  }
  absl::Status CopyToHost(void* to, const void* from,
                          int64_t num_bytes) override {
    return ToStatus(
        cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyDeviceToHost, stream_),
        "cudaMemcpyAsync");
  }
  absl::Status Synchronize() override {
    return ToStatus(cudaStreamSynchronize(stream_), "GPU error");
  }

  absl::StatusOr<std::unique_ptr<Event>> CreateEvent() override {
    auto event = std::make_unique<CudaEvent>();
    QUIRE_RETURN_IF_ERROR(ToStatus(
        cudaEventCreateWithFlags(&event->event, cudaEventDisableTiming),
        "cudaEventCreate"));
    return event;
  }
  absl::Status Record(Event& event) override {
    return ToStatus(
        cudaEventRecord(static_cast<CudaEvent&>(event).event, stream_),
        "cudaEventRecord");
  }
  bool HasHappened(const Event& event) override {
    // An error happened too: Wait tells it.
    if (cudaEventQuery(static_cast<const CudaEvent&>(event).event) !=
        cudaErrorNotReady) {
      return true;
    }
    cudaGetLastError();  // "Not ready" counts as one: see ToStatus.
    return false;
  }
  absl::Status Wait(const Event& event) override {
    return ToStatus(
        cudaEventSynchronize(static_cast<const CudaEvent&>(event).event),
        "GPU error");
  }

  absl::Status BeginCapture() override {
    // Relaxed: in the other modes a capture fails where a library allocates, or
    // a kernel is loaded, on first use meanwhile. We do neither in one: tests
    // count allocations, and what a graph holds lives as long as it.
    return ToStatus(
        cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed),
        "cudaStreamBeginCapture");
  }
  absl::StatusOr<std::unique_ptr<Graph>> EndCapture() override {
    cudaGraph_t captured = nullptr;
    QUIRE_RETURN_IF_ERROR(ToStatus(cudaStreamEndCapture(stream_, &captured),
                                   "cudaStreamEndCapture"));
    auto graph = std::make_unique<CudaGraph>();
    const absl::Status status =
        ToStatus(cudaGraphInstantiate(&graph->executable, captured, 0),
                 "cudaGraphInstantiate");
    cudaGraphDestroy(captured);
    QUIRE_RETURN_IF_ERROR(status);
    // Now, not in the first launch.
    QUIRE_RETURN_IF_ERROR(ToStatus(cudaGraphUpload(graph->executable, stream_),
                                   "cudaGraphUpload"));
    return graph;
  }
  absl::Status Launch(const Graph& graph) override {
    return ToStatus(
        cudaGraphLaunch(static_cast<const CudaGraph&>(graph).executable,
                        stream_),
        "cudaGraphLaunch");
  }

  absl::Status LaunchError(const char* kernel) override {
    const cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess) {
      return absl::InternalError(
          absl::StrCat("the launch of ", kernel, " was refused"));
    }
    return ToStatus(error, kernel);
  }

 private:
  const int device_idx_;
  const DeviceProperties properties_;
  const cudaStream_t stream_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> CreateDevice(int device_idx) {
  FailedDeviceCall failed;
  failed.device_idx = device_idx;
  failed.runtime_version = CUDART_VERSION;
  failed.visible_devices = getenv("CUDA_VISIBLE_DEVICES");
  const auto check = [&failed](cudaError_t error, const char* call) {
    if (error == cudaSuccess) return absl::OkStatus();
    cudaGetLastError();  // As ToStatus.
    failed.call = call;
    failed.error = error;
    failed.name = cudaGetErrorName(error);
    failed.words = cudaGetErrorString(error);
    return CannotUseDevice(failed);
  };
  int num_devices = 0;
  cudaDriverGetVersion(&failed.driver_version);  // 0 where there is no driver.
  QUIRE_RETURN_IF_ERROR(
      check(cudaGetDeviceCount(&num_devices), "cudaGetDeviceCount"));
  if (device_idx >= num_devices) return CannotUseDevice(failed);
  cudaDeviceProp found;
  QUIRE_RETURN_IF_ERROR(check(cudaGetDeviceProperties(&found, device_idx),
                              "cudaGetDeviceProperties"));
  QUIRE_RETURN_IF_ERROR(CheckArchitecture(QUIRE_CUDA_ARCHITECTURES, found.name,
                                          found.major, found.minor));
  QUIRE_RETURN_IF_ERROR(check(cudaSetDevice(device_idx), "cudaSetDevice"));
  cudaStream_t stream = nullptr;
  QUIRE_RETURN_IF_ERROR(
      check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
            "cudaStreamCreate"));
  return std::make_unique<CudaDevice>(
      device_idx,
      DeviceProperties{
          found.name, found.major, found.minor, found.multiProcessorCount,
          static_cast<int64_t>(found.sharedMemPerMultiprocessor),
          HasWarpgroups(QUIRE_CUDA_ARCHITECTURES, found.major, found.minor,
                        getenv("QUIRE_CUDA_WARPGROUPS"))},
      stream);
}

}  // namespace quire::cuda
