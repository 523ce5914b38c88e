// The CUDA runtime as plain C++: memory, copies, one stream, events and graphs
// of one GPU. No CUDA header is needed to use it.
//
// Which implementation a program has is decided when it is linked:
// device_cuda.cc, or device_emulated.cc, whose kernels run on the host. The
// emulated stream is as asynchronous as a real one may be: nothing runs before
// somebody waits for it, memory starts as NaNs, and an allocation has exactly
// its size, so that AddressSanitizer sees overruns.
#ifndef QUIRE_KERNELS_CUDA_DEVICE_H_
#define QUIRE_KERNELS_CUDA_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/simt/types.h"

namespace quire::cuda {

struct DeviceProperties {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int major = 0;     // Compute capability.
  int minor = 0;
  int num_sms = 0;
  int64_t shared_bytes_of_sm = 0;  // That its CTAs share.
  bool has_warpgroups = false;     // Products of them, and kernels for these.
};

struct DeviceMemory {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};

// What a captured part of the stream repeats, with the same arguments.
class Graph {
 public:
  virtual ~Graph() = default;
};

class Event {
 public:
  virtual ~Event() = default;
};

// Thread-compatible. INTERNAL: the driver reported an error, in its words. Such
// an error sticks: whatever was computed since means nothing, and every later
// call fails.
class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceProperties& properties() const = 0;
  virtual absl::StatusOr<DeviceMemory> Memory() = 0;

  // Of the calling thread: kernels and collectives go to the current device of
  // who launches them. Creating a device makes it that of the thread.
  virtual void MakeCurrent() = 0;

  // Device memory, aligned to 256 bytes and not initialized.
  // RESOURCE_EXHAUSTED with what is free. May wait for the device.
  virtual absl::StatusOr<void*> Allocate(int64_t num_bytes) = 0;
  virtual void Free(void* memory) = 0;
  // Host memory that copies do not have to stage. RESOURCE_EXHAUSTED if no
  // more can be pinned.
  virtual absl::StatusOr<void*> AllocatePinned(int64_t num_bytes) = 0;
  virtual void FreePinned(void* memory) = 0;
  // Calls of Allocate and AllocatePinned so far.
  int64_t num_allocations() const { return num_allocations_; }

  // Kernels and all below run in the order of this stream.
  virtual simt::Stream stream() const = 0;
  // Host memory must stay as it is until the copy has run.
  virtual absl::Status CopyToDevice(void* to, const void* from,
                                    int64_t num_bytes) = 0;
  virtual absl::Status CopyToHost(void* to, const void* from,
                                  int64_t num_bytes) = 0;
  // Waits for everything.
  virtual absl::Status Synchronize() = 0;

  virtual absl::StatusOr<std::unique_ptr<Event>> CreateEvent() = 0;
  // The event happens when what is in the stream now has run.
  virtual absl::Status Record(Event& event) = 0;
  virtual bool HasHappened(const Event& event) = 0;
  // The same, for who asks until it has: the emulated device runs while
  // somebody waits, and only then.
  virtual bool Poll(const Event& event) { return HasHappened(event); }
  virtual absl::Status Wait(const Event& event) = 0;

  // Between the two, work becomes a graph and does not run.
  virtual absl::Status BeginCapture() = 0;
  virtual absl::StatusOr<std::unique_ptr<Graph>> EndCapture() = 0;
  virtual absl::Status Launch(const Graph& graph) = 0;

  // What the runtime says of a launch that returned false.
  virtual absl::Status LaunchError(const char* kernel) = 0;

 protected:
  int64_t num_allocations_ = 0;
};

// UNAVAILABLE if there is no NVIDIA device. FAILED_PRECONDITION if there is one
// that cannot be used, with the version of driver or architecture found and the
// one needed, or with what CUDA says and what to do (device_errors.h).
absl::StatusOr<std::unique_ptr<Device>> CreateDevice(int device_idx);

// Device or pinned memory that is freed with its owner. The device outlives it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  static absl::StatusOr<DeviceBuffer> Create(Device& device, int64_t num_bytes,
                                             bool is_pinned = false) {
    auto memory = is_pinned ? device.AllocatePinned(num_bytes)
                            : device.Allocate(num_bytes);
    if (!memory.ok()) return memory.status();
    DeviceBuffer buffer;
    buffer.device_ = &device;
    buffer.memory_ = *memory;
    buffer.num_bytes_ = num_bytes;
    buffer.is_pinned_ = is_pinned;
    return buffer;
  }
  // Of memory that somebody else frees, later.
  static DeviceBuffer Borrow(void* memory, int64_t num_bytes) {
    DeviceBuffer buffer;
    buffer.memory_ = memory;
    buffer.num_bytes_ = num_bytes;
    return buffer;
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(memory_, other.memory_);
    std::swap(num_bytes_, other.num_bytes_);
    std::swap(is_pinned_, other.is_pinned_);
    return *this;
  }
  ~DeviceBuffer() {
    if (memory_ == nullptr || device_ == nullptr) return;
    is_pinned_ ? device_->FreePinned(memory_) : device_->Free(memory_);
  }

  template <typename T = char>
  T* data() const {
    return static_cast<T*>(memory_);
  }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  Device* device_ = nullptr;
  void* memory_ = nullptr;
  int64_t num_bytes_ = 0;
  bool is_pinned_ = false;
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_DEVICE_H_
