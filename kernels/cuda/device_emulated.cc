#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {
namespace {

constexpr int64_t kTotalBytes = int64_t{8} << 30;

class EmulatedGraph : public Graph {
 public:
  simt::emulator::Queue entries;
};

class EmulatedEvent : public Event {
 public:
  int64_t serial = 0;  // Entries to run before it happens.
};

class EmulatedDevice : public Device {
 public:
  ~EmulatedDevice() override { QUIRE_CHECK(sizes_.empty()); }

  const DeviceProperties& properties() const override { return properties_; }

  absl::StatusOr<DeviceMemory> Memory() override {
    return DeviceMemory{kTotalBytes - num_bytes_, kTotalBytes};
  }

  absl::StatusOr<void*> Allocate(int64_t num_bytes) override {
    QUIRE_CHECK(num_bytes > 0);
    if (num_bytes > kTotalBytes - num_bytes_) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "cannot allocate ", num_bytes, " bytes on the GPU: ",
          kTotalBytes - num_bytes_, " of ", kTotalBytes, " bytes are free"));
    }
    ++num_allocations_;
    void* memory = nullptr;
    QUIRE_CHECK(posix_memalign(&memory, 256, num_bytes) == 0);
    std::memset(memory, 0xff, num_bytes);
    sizes_[memory] = num_bytes;
    num_bytes_ += num_bytes;
    return memory;
  }

  void Free(void* memory) override {
    const auto size = sizes_.find(memory);
    QUIRE_CHECK(size != sizes_.end());
    RunAll();  // As cudaFree waits.
    num_bytes_ -= size->second;
    sizes_.erase(size);
    std::free(memory);
  }

  absl::StatusOr<void*> AllocatePinned(int64_t num_bytes) override {
    return Allocate(num_bytes);
  }
  void FreePinned(void* memory) override { Free(memory); }

  simt::Stream stream() const override {
    return reinterpret_cast<simt::Stream>(&queue_);
  }

  absl::Status CopyToDevice(void* to, const void* from,
                            int64_t num_bytes) override {
    return Copy(to, from, num_bytes);
  }
  absl::Status CopyToHost(void* to, const void* from,
                          int64_t num_bytes) override {
    return Copy(to, from, num_bytes);
  }

  absl::Status Synchronize() override {
    RunAll();
    return status_;
  }

  absl::StatusOr<std::unique_ptr<Event>> CreateEvent() override {
    return std::make_unique<EmulatedEvent>();
  }
  absl::Status Record(Event& event) override {
    static_cast<EmulatedEvent&>(event).serial =
        num_run_ + static_cast<int64_t>(queue_.size());
    return status_;
  }
  bool HasHappened(const Event& event) override {
    return static_cast<const EmulatedEvent&>(event).serial <= num_run_;
  }
  absl::Status Wait(const Event& event) override {
    while (!HasHappened(event)) RunOne();
    return status_;
  }

  absl::Status BeginCapture() override {
    QUIRE_CHECK(!is_capturing_);
    is_capturing_ = true;
    before_capture_.swap(queue_);
    return status_;
  }
  absl::StatusOr<std::unique_ptr<Graph>> EndCapture() override {
    QUIRE_CHECK(is_capturing_);
    is_capturing_ = false;
    auto graph = std::make_unique<EmulatedGraph>();
    graph->entries.swap(queue_);
    before_capture_.swap(queue_);
    QUIRE_RETURN_IF_ERROR(status_);
    return graph;
  }
  absl::Status Launch(const Graph& graph) override {
    for (const auto& entry : static_cast<const EmulatedGraph&>(graph).entries) {
      queue_.push_back(entry);
    }
    return status_;
  }

  absl::Status LaunchError(const char* kernel) override {
    if (!status_.ok()) return status_;
    return absl::InternalError(
        absl::StrCat("the launch of ", kernel, " was refused"));
  }

 private:
  absl::Status Copy(void* to, const void* from, int64_t num_bytes) {
    queue_.push_back([to, from, num_bytes] {
      std::memcpy(to, from, num_bytes);
      return true;
    });
    return status_;
  }

  void RunOne() {
    QUIRE_CHECK(!is_capturing_);  // What waits ends a capture: not allowed.
    const auto entry = std::move(queue_.front());
    queue_.pop_front();
    ++num_run_;
    if (status_.ok() && !entry()) {
      status_ = absl::InternalError(
          absl::StrCat("GPU error: ", simt::emulator::LastError()));
    }
  }
  void RunAll() {
    while (!queue_.empty()) RunOne();
  }

  const DeviceProperties properties_ = {"emulated GPU", 9, 0, 4};
  mutable simt::emulator::Queue queue_;
  simt::emulator::Queue before_capture_;
  bool is_capturing_ = false;
  int64_t num_run_ = 0;
  int64_t num_bytes_ = 0;
  std::unordered_map<void*, int64_t> sizes_;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> CreateDevice(int device_idx) {
  if (device_idx != 0) {
    return absl::UnavailableError(
        absl::StrCat("there is no NVIDIA device ", device_idx));
  }
  return std::make_unique<EmulatedDevice>();
}

}  // namespace quire::cuda
