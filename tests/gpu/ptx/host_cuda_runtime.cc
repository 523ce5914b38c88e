// The CUDA runtime for programs of tests that are linked with it in place of
// NVIDIA's: streams, events, graphs and memory on the host, and kernels by the
// PTX that nvcc made of them (ptx_machine.h). What real hardware refuses is
// refused; what it leaves open happens as late as it may:
// - Nothing in a stream runs before somebody waits for it or asks whether it
//   has happened.
// - Pinned memory is copied when the copy runs, other memory of the host at the
//   call, as the runtime stages it.
// - Device memory is not initialized: it begins as NaNs.
// A fault of a kernel is told on stderr, and sticks.
//
// Environment:
//   QUIRE_PTX         the folders of .ptx files, by colons (kernels/cuda and
//                     tests/gpu below the current one)
//   QUIRE_PTX_SMS     multiprocessors (132)
//   QUIRE_PTX_ORDER   "late" (copies of cp.async when they are waited for,
//                     warps from the first), or "early" (at once, from the
//                     last)
#include "tests/gpu/ptx/host_cuda_runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/gpu/ptx/ptx_machine.h"
#include "tests/gpu/ptx/ptx_program.h"

// Opaque to who includes CUDA's headers.
struct CUevent_st {
  bool is_recorded = false;
  uint64_t stream = 0, ticket = 0;
  std::chrono::steady_clock::time_point time;
};

namespace {

using quire::ptx::Function;
using quire::ptx::Program;

constexpr int64_t kTotalBytes = int64_t{8} << 30;
constexpr size_t kStaticLimit = 48 << 10;

// nvcc names what is in an anonymous namespace by hashes that differ between
// its runs: "_GLOBAL__N__1b443515_12_attention_cc_410e9191".
std::string WithoutHashes(std::string name) {
  for (size_t at = 0; (at = name.find("_GLOBAL__N__", at)) != std::string::npos;
       at += 12) {
    const size_t second = name.find("_cc_", at);
    for (const size_t begin : {at + 12, second + 4}) {
      for (size_t i = begin; i < begin + 8 && i < name.size(); ++i) {
        if (second != std::string::npos) name[i] = '0';
      }
    }
  }
  return name;
}

struct Kernel {
  std::string name;
  const Program* program = nullptr;
  const Function* function = nullptr;
  size_t max_dynamic_bytes = kStaticLimit;  // With the static ones.
  bool was_raised = false;
};

struct Operation {
  enum Kind : uint8_t { kLaunch, kCopy, kRecord, kHost } kind = kLaunch;
  const Kernel* kernel = nullptr;
  quire::ptx::Launch launch;
  void* to = nullptr;
  const void* from = nullptr;
  size_t num_bytes = 0;
  std::vector<char> staged;  // Of a copy from memory that is not pinned.
  CUevent_st* event = nullptr;
  cudaHostFn_t host = nullptr;
  void* host_data = nullptr;
};

}  // namespace

struct CUstream_st {
  uint64_t id = 0;
  std::deque<Operation> queue;
  uint64_t num_enqueued = 0, num_run = 0;
  bool is_capturing = false;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  cudaError_t capture_error = cudaSuccess;
  std::vector<Operation> captured;
};
struct CUgraph_st {
  std::vector<Operation> operations;
};
struct CUgraphExec_st {
  std::vector<Operation> operations;
};

namespace {

class Runtime {
 public:
  static Runtime& Get() {
    static auto* const runtime = new Runtime();
    return *runtime;
  }

  std::recursive_mutex mu;
  quire::ptx::Memory memory;
  std::map<const void*, std::unique_ptr<Kernel>> kernels;
  std::map<const void*, size_t> device, pinned;
  std::map<uint64_t, CUstream_st*> streams;
  uint64_t num_streams = 0;
  int64_t used_bytes = 0;
  cudaError_t sticky = cudaSuccess;
  int capability = 0;  // 90
  int num_sms = 132;

  // The PTX of a kernel, found by its name.
  bool Find(Kernel& kernel) {
    LoadPrograms();
    if (kernel.function != nullptr) return true;
    const auto found = functions_.find(WithoutHashes(kernel.name));
    if (found == functions_.end()) return false;
    kernel.program = found->second.first;
    kernel.function = found->second.second;
    return true;
  }
  void LoadPrograms() {
    if (!programs_.empty()) return;
    const char* const folders = getenv("QUIRE_PTX");
    if (const char* sms = getenv("QUIRE_PTX_SMS"); sms != nullptr) {
      if (!absl::SimpleAtoi(sms, &num_sms) || num_sms < 1) Die("QUIRE_PTX_SMS");
    }
    for (const absl::string_view folder : absl::StrSplit(
             folders == nullptr ? "kernels/cuda:tests/gpu" : folders, ':')) {
      std::error_code error;
      for (const auto& entry :
           std::filesystem::directory_iterator(std::string(folder), error)) {
        if (entry.path().extension() == ".ptx") Load(entry.path());
      }
    }
    if (programs_.empty()) Die("no .ptx file is found");
  }

  // Shared memory that a CTA may have at the most (CUDA C++ Programming Guide,
  // table "Technical specifications per compute capability").
  size_t MaxSharedBytes() const {
    if (capability < 80) return 64 << 10;
    if (capability == 80) return 163 << 10;
    if (capability < 90 || capability >= 120) return 99 << 10;
    return 227 << 10;
  }

  void Fault(const char* what) {
    std::fprintf(stderr, "PTX: %s\n", what);
    sticky = cudaErrorIllegalAddress;
  }

  cudaError_t RunOne(CUstream_st& stream) {
    if (sticky != cudaSuccess) return sticky;
    Operation operation = std::move(stream.queue.front());
    stream.queue.pop_front();
    ++stream.num_run;
    switch (operation.kind) {
      case Operation::kCopy:
        std::memcpy(
            operation.to,
            operation.staged.empty() ? operation.from : operation.staged.data(),
            operation.num_bytes);
        break;
      case Operation::kRecord:
        operation.event->time = std::chrono::steady_clock::now();
        break;
      case Operation::kHost:
        operation.host(operation.host_data);
        break;
      case Operation::kLaunch: {
        const char* order = getenv("QUIRE_PTX_ORDER");
        quire::ptx::RunOptions options;
        if (order != nullptr && absl::string_view(order) == "early") {
          options = {.has_late_copies = false, .is_reversed = true};
        }
        const absl::Status status = quire::ptx::Run(
            *operation.kernel->program, *operation.kernel->function,
            operation.launch, memory, options);
        if (!status.ok()) Fault(std::string(status.message()).c_str());
        break;
      }
    }
    return sticky;
  }
  cudaError_t RunAll(CUstream_st& stream) {
    while (!stream.queue.empty() && sticky == cudaSuccess) RunOne(stream);
    return sticky;
  }
  cudaError_t RunEverything() {
    for (auto& [id, stream] : streams) RunAll(*stream);
    return sticky;
  }

 private:
  [[noreturn]] static void Die(absl::string_view what) {
    std::fprintf(stderr, "PTX: %s\n", std::string(what).c_str());
    std::abort();
  }
  void Load(const std::filesystem::path& path) {
    std::ifstream file(path);
    texts_.push_back(
        std::make_unique<std::string>(std::istreambuf_iterator<char>(file),
                                      std::istreambuf_iterator<char>()));
    auto program = Program::Parse(*texts_.back());
    if (!program.ok()) {
      Die(absl::StrCat(path.string(), ": ", program.status().message()));
    }
    const size_t target = texts_.back()->find(".target sm_");
    if (target != std::string::npos) {
      capability = std::atoi(texts_.back()->c_str() + target + 11);
    }
    for (const auto& function : (*program)->functions()) {
      functions_[WithoutHashes(function->name)] = {program->get(),
                                                   function.get()};
    }
    programs_.push_back(*std::move(program));
  }

  std::vector<std::unique_ptr<std::string>> texts_;
  std::vector<std::unique_ptr<Program>> programs_;
  std::map<std::string, std::pair<const Program*, const Function*>> functions_;
};

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t Remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// Whoever holds it may use the runtime; its error is what a call returns.
struct Locked {
  Runtime& runtime = Runtime::Get();
  std::lock_guard<std::recursive_mutex> lock{runtime.mu};
};

cudaError_t Enqueue(Locked& locked, CUstream_st* stream, Operation operation) {
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (locked.runtime.sticky != cudaSuccess) return locked.runtime.sticky;
  if (stream->is_capturing) {
    stream->captured.push_back(std::move(operation));
    return cudaSuccess;
  }
  stream->queue.push_back(std::move(operation));
  ++stream->num_enqueued;
  return cudaSuccess;
}

// What holds [p, p + num_bytes) among allocations.
bool IsWithin(const std::map<const void*, size_t>& allocations, const void* p,
              size_t num_bytes) {
  auto next = allocations.upper_bound(p);
  if (next == allocations.begin()) return false;
  --next;
  return static_cast<const char*>(p) + num_bytes <=
         static_cast<const char*>(next->first) + next->second;
}

// A call that the modes of capture above Relaxed do not allow.
cudaError_t CheckUnsafe(Locked& locked) {
  for (auto& [id, stream] : locked.runtime.streams) {
    if (stream->is_capturing && stream->mode != cudaStreamCaptureModeRelaxed) {
      stream->capture_error = cudaErrorStreamCaptureInvalidated;
      return cudaErrorStreamCaptureUnsupported;
    }
  }
  return locked.runtime.sticky;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void* /*binary*/) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void** /*handle*/) {}
void __cudaUnregisterFatBinary(void** /*handle*/) {}
void __cudaRegisterFunction(void** /*handle*/, const char* host,
                            char* /*device*/, const char* name, int /*limit*/,
                            uint3* /*tid*/, uint3* /*bid*/, dim3* /*block*/,
                            dim3* /*grid*/, int* /*warp*/) {
  Locked locked;
  auto kernel = std::make_unique<Kernel>();
  kernel->name = name;
  locked.runtime.kernels[host] = std::move(kernel);
}
// Of "<<<>>>", which nothing here uses.
cudaError_t __cudaPopCallConfiguration(dim3* /*grid*/, dim3* /*block*/,
                                       size_t* /*shared*/, void* /*stream*/) {
  return cudaErrorNotSupported;
}
cudaError_t __cudaGetKernel(cudaKernel_t* /*kernel*/, const void* /*entry*/) {
  return cudaErrorNotSupported;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t /*kernel*/, dim3 /*grid*/,
                               dim3 /*block*/, void** /*arguments*/,
                               size_t /*shared*/, cudaStream_t /*stream*/) {
  return cudaErrorNotSupported;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  Locked locked;
  locked.runtime.LoadPrograms();
  *count = 1;
  return Remember(locked.runtime.sticky);
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return Remember(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int device) {
  Locked locked;
  locked.runtime.LoadPrograms();
  if (device != 0) return Remember(cudaErrorInvalidDevice);
  std::memset(found, 0, sizeof(*found));
  std::snprintf(found->name, sizeof(found->name), "PTX on the host");
  found->major = locked.runtime.capability / 10;
  found->minor = locked.runtime.capability % 10;
  found->multiProcessorCount = locked.runtime.num_sms;
  found->sharedMemPerMultiprocessor = locked.runtime.MaxSharedBytes() + 1024;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute,
                                   int /*device*/) {
  Locked locked;
  locked.runtime.LoadPrograms();
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = locked.runtime.capability / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = locked.runtime.capability % 10;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = locked.runtime.num_sms;
      return cudaSuccess;
    default:
      return Remember(cudaErrorNotSupported);
  }
}

cudaError_t cudaGetLastError() {
  Locked locked;
  const cudaError_t error =
      locked.runtime.sticky != cudaSuccess ? locked.runtime.sticky : last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    default:
      return "another error";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  return cudaGetErrorName(error);
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  Locked locked;
  *free_bytes = kTotalBytes - locked.runtime.used_bytes;
  *total_bytes = kTotalBytes;
  return Remember(locked.runtime.sticky);
}
cudaError_t cudaMalloc(void** memory, size_t num_bytes) {
  Locked locked;
  if (const cudaError_t error = CheckUnsafe(locked); error != cudaSuccess) {
    return Remember(error);
  }
  *memory = nullptr;
  if (num_bytes == 0) return cudaSuccess;
  if (locked.runtime.used_bytes + static_cast<int64_t>(num_bytes) >
      kTotalBytes) {
    return Remember(cudaErrorMemoryAllocation);
  }
  const size_t rounded = (num_bytes + 255) / 256 * 256;
  *memory = std::aligned_alloc(256, rounded);
  if (*memory == nullptr) return Remember(cudaErrorMemoryAllocation);
  // Large allocations are mostly caches that tests never fill: untouched pages.
  if (num_bytes <= (size_t{64} << 20)) std::memset(*memory, 0xff, rounded);
  locked.runtime.device[*memory] = num_bytes;
  locked.runtime.memory.Add(*memory, static_cast<int64_t>(num_bytes));
  locked.runtime.used_bytes += static_cast<int64_t>(num_bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  Locked locked;
  if (memory == nullptr) return cudaSuccess;
  const auto found = locked.runtime.device.find(memory);
  if (found == locked.runtime.device.end()) {
    return Remember(cudaErrorInvalidValue);
  }
  if (const cudaError_t error = CheckUnsafe(locked); error != cudaSuccess) {
    return Remember(error);
  }
  const cudaError_t error = locked.runtime.RunEverything();
  locked.runtime.used_bytes -= static_cast<int64_t>(found->second);
  locked.runtime.memory.Remove(memory);
  locked.runtime.device.erase(found);
  std::free(memory);
  return Remember(error);
}
cudaError_t cudaMallocHost(void** memory, size_t num_bytes) {
  Locked locked;
  if (const cudaError_t error = CheckUnsafe(locked); error != cudaSuccess) {
    return Remember(error);
  }
  const size_t rounded = (std::max<size_t>(num_bytes, 1) + 4095) / 4096 * 4096;
  *memory = std::aligned_alloc(4096, rounded);
  if (*memory == nullptr) return Remember(cudaErrorMemoryAllocation);
  locked.runtime.pinned[*memory] = num_bytes;
  locked.runtime.memory.Add(*memory, static_cast<int64_t>(num_bytes));
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  Locked locked;
  if (memory == nullptr) return cudaSuccess;
  if (locked.runtime.pinned.erase(memory) == 0) {
    return Remember(cudaErrorInvalidValue);
  }
  const cudaError_t error = locked.runtime.RunEverything();
  locked.runtime.memory.Remove(memory);
  std::free(memory);
  return Remember(error);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t num_bytes,
                            cudaMemcpyKind kind, cudaStream_t stream) {
  Locked locked;
  Runtime& runtime = locked.runtime;
  if (num_bytes == 0) return Remember(runtime.sticky);
  const bool is_to_device =
      kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool is_from_device =
      kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (is_to_device != IsWithin(runtime.device, to, num_bytes) ||
      is_from_device != IsWithin(runtime.device, from, num_bytes)) {
    return Remember(cudaErrorInvalidValue);
  }
  Operation copy;
  copy.kind = Operation::kCopy;
  copy.to = to;
  copy.from = from;
  copy.num_bytes = num_bytes;
  const bool is_staged =
      !is_from_device && !IsWithin(runtime.pinned, from, num_bytes);
  const bool is_waited_for =
      !is_to_device && !IsWithin(runtime.pinned, to, num_bytes);
  if (is_staged || is_waited_for) {
    if (stream != nullptr && stream->is_capturing) {
      stream->capture_error = cudaErrorStreamCaptureInvalidated;
      return Remember(cudaErrorStreamCaptureUnsupported);
    }
  }
  if (is_staged) {
    copy.staged.assign(static_cast<const char*>(from),
                       static_cast<const char*>(from) + num_bytes);
  }
  cudaError_t error = Enqueue(locked, stream, std::move(copy));
  if (error == cudaSuccess && is_waited_for) error = runtime.RunAll(*stream);
  return Remember(error);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream,
                                      unsigned /*flags*/) {
  Locked locked;
  *stream = new CUstream_st();
  (*stream)->id = ++locked.runtime.num_streams;
  locked.runtime.streams[(*stream)->id] = *stream;
  return Remember(locked.runtime.sticky);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Locked locked;
  const cudaError_t error = locked.runtime.RunAll(*stream);
  locked.runtime.streams.erase(stream->id);
  delete stream;
  return Remember(error);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Locked locked;
  if (stream->is_capturing) {
    stream->capture_error = cudaErrorStreamCaptureInvalidated;
    return Remember(cudaErrorStreamCaptureUnsupported);
  }
  return Remember(locked.runtime.RunAll(*stream));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned /*flags*/) {
  Locked locked;
  *event = new CUevent_st();
  return Remember(locked.runtime.sticky);
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, 0);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Locked locked;
  // It may still stand in a queue.
  const cudaError_t error = locked.runtime.RunEverything();
  delete event;
  return Remember(error);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Locked locked;
  if (stream->is_capturing) return Remember(cudaErrorNotSupported);
  Operation record;
  record.kind = Operation::kRecord;
  record.event = event;
  const cudaError_t error = Enqueue(locked, stream, std::move(record));
  event->is_recorded = true;
  event->stream = stream->id;
  event->ticket = stream->num_enqueued;
  return Remember(error);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  Locked locked;
  const auto stream = locked.runtime.streams.find(event->stream);
  if (locked.runtime.sticky != cudaSuccess || !event->is_recorded ||
      stream == locked.runtime.streams.end() ||
      stream->second->num_run >= event->ticket) {
    return Remember(locked.runtime.sticky);
  }
  const cudaError_t error = locked.runtime.RunOne(*stream->second);
  return Remember(error != cudaSuccess ? error : cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Locked locked;
  const auto stream = locked.runtime.streams.find(event->stream);
  while (locked.runtime.sticky == cudaSuccess && event->is_recorded &&
         stream != locked.runtime.streams.end() &&
         stream->second->num_run < event->ticket) {
    locked.runtime.RunOne(*stream->second);
  }
  return Remember(locked.runtime.sticky);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin,
                                 cudaEvent_t end) {
  *milliseconds =
      std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream,
                                   cudaStreamCaptureMode mode) {
  Locked locked;
  if (stream->is_capturing) return Remember(cudaErrorIllegalState);
  stream->is_capturing = true;
  stream->mode = mode;
  stream->capture_error = cudaSuccess;
  stream->captured.clear();
  return Remember(locked.runtime.sticky);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Locked locked;
  *graph = nullptr;
  if (!stream->is_capturing) return Remember(cudaErrorIllegalState);
  stream->is_capturing = false;
  if (stream->capture_error != cudaSuccess) {
    return Remember(stream->capture_error);
  }
  *graph = new CUgraph_st{std::move(stream->captured)};
  return Remember(locked.runtime.sticky);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long /*flags*/) {
  Locked locked;
  *executable = new CUgraphExec_st{graph->operations};
  return Remember(locked.runtime.sticky);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t /*executable*/,
                            cudaStream_t /*stream*/) {
  Locked locked;
  return Remember(locked.runtime.sticky);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  Locked locked;
  if (stream->is_capturing) return Remember(cudaErrorNotSupported);
  for (const Operation& operation : executable->operations) {
    const cudaError_t error = Enqueue(locked, stream, operation);
    if (error != cudaSuccess) return Remember(error);
  }
  return Remember(locked.runtime.sticky);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  Locked locked;
  // It must not run any more.
  const cudaError_t error = locked.runtime.RunEverything();
  delete executable;
  return Remember(error);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
                                  cudaStreamCaptureStatus* status) {
  Locked locked;
  *status = stream->is_capturing ? cudaStreamCaptureStatusActive
                                 : cudaStreamCaptureStatusNone;
  return Remember(locked.runtime.sticky);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function,
                               void* data) {
  Locked locked;
  Operation operation;
  operation.kind = Operation::kHost;
  operation.host = function;
  operation.host_data = data;
  return Remember(Enqueue(locked, stream, std::move(operation)));
}

bool QuireHostRuntimeHolds(const void* begin, size_t num_bytes) {
  Locked locked;
  uint64_t first = 0, end = 0;
  return locked.runtime.memory.Find(reinterpret_cast<uint64_t>(begin),
                                    static_cast<int64_t>(num_bytes), &first,
                                    &end);
}
void QuireHostRuntimeFault(const char* what) {
  Locked locked;
  locked.runtime.Fault(what);
}

cudaError_t cudaFuncSetAttribute(const void* entry, cudaFuncAttribute attribute,
                                 int value) {
  Locked locked;
  const auto found = locked.runtime.kernels.find(entry);
  if (found == locked.runtime.kernels.end()) {
    return Remember(cudaErrorInvalidDeviceFunction);
  }
  Kernel& kernel = *found->second;
  if (!locked.runtime.Find(kernel)) {
    return Remember(cudaErrorNoKernelImageForDevice);
  }
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      value + static_cast<size_t>(kernel.function->shared_bytes) >
          locked.runtime.MaxSharedBytes()) {
    return Remember(cudaErrorInvalidValue);
  }
  kernel.max_dynamic_bytes = value;
  kernel.was_raised = true;
  return Remember(locked.runtime.sticky);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config,
                                const void* entry, void** arguments) {
  Locked locked;
  const auto found = locked.runtime.kernels.find(entry);
  if (found == locked.runtime.kernels.end()) {
    return Remember(cudaErrorInvalidDeviceFunction);
  }
  Kernel& kernel = *found->second;
  if (!locked.runtime.Find(kernel)) {
    return Remember(cudaErrorNoKernelImageForDevice);
  }
  const Function& function = *kernel.function;
  const dim3 grid = config->gridDim, block = config->blockDim;
  const uint64_t num_threads = uint64_t{block.x} * block.y * block.z;
  if (num_threads == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
      num_threads > static_cast<uint64_t>(function.max_threads)) {
    return Remember(cudaErrorInvalidConfiguration);
  }
  const size_t static_bytes = function.shared_bytes;
  const size_t dynamic_bytes = config->dynamicSmemBytes;
  const size_t most = kernel.was_raised ? kernel.max_dynamic_bytes
                                        : kStaticLimit - static_bytes;
  if (dynamic_bytes > most) return Remember(cudaErrorInvalidValue);
  Operation operation;
  operation.kind = Operation::kLaunch;
  operation.kernel = &kernel;
  operation.launch.grid = {grid.x, grid.y, grid.z};
  operation.launch.block = {block.x, block.y, block.z};
  operation.launch.dynamic_shared_bytes = static_cast<int64_t>(dynamic_bytes);
  for (unsigned a = 0; a < config->numAttrs; ++a) {
    const cudaLaunchAttribute& attribute = config->attrs[a];
    if (attribute.id == cudaLaunchAttributeCooperative) {
      operation.launch.is_cooperative = attribute.val.cooperative != 0;
    } else if (attribute.id !=
                   cudaLaunchAttributeProgrammaticStreamSerialization ||
               locked.runtime.capability < 90) {
      return Remember(cudaErrorNotSupported);
    }
  }
  operation.launch.parameters.resize(function.parameter_bytes);
  for (size_t p = 0; p < function.parameters.size(); ++p) {
    std::memcpy(
        operation.launch.parameters.data() + function.parameters[p].offset,
        arguments[p], function.parameters[p].num_bytes);
  }
  return Remember(Enqueue(locked, config->stream, std::move(operation)));
}

}  // extern "C"
