#include <cuda_runtime.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cuda/architectures.h"
#include "kernels/cuda/device.h"

namespace quire::cuda {
namespace {

// The first driver of CUDA 13 (its release notes, table of drivers).
constexpr char kLowestDriver[] = "580";

absl::Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cudaGetErrorName(error),
                                          " (", cudaGetErrorString(error),
                                          ")"));
}

// "12.4" of 12040.
std::string VersionText(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
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
    return cudaEventQuery(static_cast<const CudaEvent&>(event).event) !=
           cudaErrorNotReady;
  }
  absl::Status Wait(const Event& event) override {
    return ToStatus(
        cudaEventSynchronize(static_cast<const CudaEvent&>(event).event),
        "GPU error");
  }

  absl::Status BeginCapture() override {
    return ToStatus(
        cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCapture");
  }
  absl::StatusOr<std::unique_ptr<Graph>> EndCapture() override {
    cudaGraph_t captured = nullptr;
    const absl::Status ended = ToStatus(
        cudaStreamEndCapture(stream_, &captured), "cudaStreamEndCapture");
    if (!ended.ok()) {
      cudaGetLastError();  // It does not stick.
      return ended;
    }
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
  int num_devices = 0, driver = 0;
  const cudaError_t error = cudaGetDeviceCount(&num_devices);
  cudaDriverGetVersion(&driver);  // 0 where there is no driver.
  if (error == cudaErrorNoDevice || driver == 0 ||
      (error == cudaSuccess && device_idx >= num_devices)) {
    const char* visible = getenv("CUDA_VISIBLE_DEVICES");
    return absl::UnavailableError(absl::StrCat(
        "there is no NVIDIA device ", device_idx,
        visible == nullptr
            ? std::string()
            : absl::StrCat(" with CUDA_VISIBLE_DEVICES=", visible)));
  }
  if (error == cudaErrorInsufficientDriver) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the NVIDIA driver supports CUDA ", VersionText(driver),
        ", this program needs ", VersionText(CUDART_VERSION / 1000 * 1000),
        ", that is driver ", kLowestDriver, " or newer"));
  }
  QUIRE_RETURN_IF_ERROR(ToStatus(error, "cudaGetDeviceCount"));
  cudaDeviceProp found;
  QUIRE_RETURN_IF_ERROR(ToStatus(cudaGetDeviceProperties(&found, device_idx),
                                 "cudaGetDeviceProperties"));
  QUIRE_RETURN_IF_ERROR(CheckArchitecture(QUIRE_CUDA_ARCHITECTURES, found.name,
                                          found.major, found.minor));
  QUIRE_RETURN_IF_ERROR(ToStatus(cudaSetDevice(device_idx), "cudaSetDevice"));
  cudaStream_t stream = nullptr;
  QUIRE_RETURN_IF_ERROR(
      ToStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
               "cudaStreamCreate"));
  return std::make_unique<CudaDevice>(
      device_idx,
      DeviceProperties{found.name, found.major, found.minor,
                       found.multiProcessorCount,
                       static_cast<int64_t>(found.sharedMemPerMultiprocessor)},
      stream);
}

}  // namespace quire::cuda
