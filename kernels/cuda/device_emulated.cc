#include "kernels/cuda/device_emulated.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {
namespace {

class EmulatedGraph : public Graph {
 public:
  // Adds `num_bytes` to *taken_bytes while it exists.
  EmulatedGraph(int64_t num_bytes, int64_t* taken_bytes)
      : num_bytes_(num_bytes), taken_bytes_(taken_bytes) {
    *taken_bytes_ += num_bytes_;
  }
  ~EmulatedGraph() override { *taken_bytes_ -= num_bytes_; }
  std::deque<simt::emulator::QueueEntry> entries;

 private:
  const int64_t num_bytes_;
  int64_t* const taken_bytes_;
};

class EmulatedEvent : public Event {
 public:
  int64_t serial = 0;  // Entries to run before it happens.
};

class EmulatedDevice : public Device {
 public:
  ~EmulatedDevice() override { QUIRE_CHECK(allocations_.empty()); }

  const DeviceProperties& properties() const override { return properties_; }

  absl::StatusOr<DeviceMemory> Memory() override {
    QUIRE_RETURN_IF_ERROR(status_);
    return DeviceMemory{total_bytes_ - num_bytes_ - graph_bytes_ -
                            (has_loaded_code_ ? code_bytes_ : 0),
                        total_bytes_};
  }

  void MakeCurrent() override {}

  absl::StatusOr<void*> Allocate(int64_t num_bytes) override {
    QUIRE_CHECK(num_bytes > 0);
    if (num_bytes > total_bytes_ - num_bytes_) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "cannot allocate ", num_bytes, " bytes on the GPU: ",
          total_bytes_ - num_bytes_, " of ", total_bytes_, " bytes are free"));
    }
    num_bytes_ += num_bytes;
    return AllocateOnHost(num_bytes, /*is_pinned=*/false);
  }

  void Free(void* memory) override { num_bytes_ -= FreeOnHost(memory); }

  absl::StatusOr<void*> AllocatePinned(int64_t num_bytes) override {
    QUIRE_CHECK(num_bytes > 0);
    if (num_bytes > EmulatedOptions().pinned_bytes - num_pinned_bytes_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("cannot pin ", num_bytes, " bytes of memory"));
    }
    num_pinned_bytes_ += num_bytes;
    return AllocateOnHost(num_bytes, /*is_pinned=*/true);
  }
  void FreePinned(void* memory) override {
    num_pinned_bytes_ -= FreeOnHost(memory);
  }

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
        num_run_ + static_cast<int64_t>(queue_.entries.size());
    return status_;
  }
  bool HasHappened(const Event& event) override {
    return static_cast<const EmulatedEvent&>(event).serial <= num_run_;
  }
  bool Poll(const Event& event) override {
    if (!HasHappened(event)) RunOne();
    return HasHappened(event);
  }
  absl::Status Wait(const Event& event) override {
    while (!HasHappened(event)) RunOne();
    return status_;
  }

  absl::Status BeginCapture() override {
    QUIRE_CHECK(!queue_.is_capturing);
    queue_.is_capturing = true;
    before_capture_.swap(queue_.entries);
    return status_;
  }
  absl::StatusOr<std::unique_ptr<Graph>> EndCapture() override {
    QUIRE_CHECK(queue_.is_capturing);
    queue_.is_capturing = false;
    has_loaded_code_ = true;
    auto graph =
        std::make_unique<EmulatedGraph>(bytes_per_graph_, &graph_bytes_);
    graph->entries.swap(queue_.entries);
    before_capture_.swap(queue_.entries);
    QUIRE_RETURN_IF_ERROR(status_);
    if (num_failing_captures > 0) {
      --num_failing_captures;
      return absl::InternalError("the capture was invalidated");
    }
    return graph;
  }
  absl::Status Launch(const Graph& graph) override {
    if (queue_.discards) {
      ++queue_.num_discarded;
      return status_;
    }
    for (const auto& entry : static_cast<const EmulatedGraph&>(graph).entries) {
      queue_.entries.push_back(entry);
    }
    return status_;
  }

  absl::Status LaunchError(const char* kernel) override {
    if (!status_.ok()) return status_;
    return absl::InternalError(
        absl::StrCat("the launch of ", kernel, " was refused"));
  }

  // Of device_emulated.h.
  int64_t num_run() const { return num_run_; }
  int64_t num_launches() const { return num_launches_; }
  int64_t num_pinned_bytes() const { return num_pinned_bytes_; }
  std::vector<std::string> Contents() {
    RunAll();
    std::map<int64_t, std::string> by_serial;
    for (const auto& [memory, allocation] : allocations_) {
      if (allocation.is_pinned) continue;
      by_serial[allocation.serial].assign(static_cast<const char*>(memory),
                                          allocation.num_bytes);
    }
    std::vector<std::string> contents;
    for (auto& [serial, bytes] : by_serial) {
      contents.push_back(std::move(bytes));
    }
    return contents;
  }
  simt::emulator::Queue& queue() { return queue_; }
  int64_t fault_at = -1;  // Serial of the work that fails.
  int num_failing_captures = 0;

 private:
  void* AllocateOnHost(int64_t num_bytes, bool is_pinned) {
    ++num_allocations_;
    void* memory = nullptr;
    QUIRE_CHECK(posix_memalign(&memory, 256, num_bytes) == 0);
    if (fills_memory_) std::memset(memory, 0xff, num_bytes);
    allocations_[memory] = {num_bytes, num_allocations_, is_pinned};
    return memory;
  }
  // The number of bytes.
  int64_t FreeOnHost(void* memory) {
    const auto found = allocations_.find(memory);
    QUIRE_CHECK(found != allocations_.end());
    RunAll();  // As cudaFree and cudaFreeHost wait.
    const int64_t num_bytes = found->second.num_bytes;
    allocations_.erase(found);
    std::free(memory);
    return num_bytes;
  }

  absl::Status Copy(void* to, const void* from, int64_t num_bytes) {
    queue_.Add([to, from, num_bytes] { std::memcpy(to, from, num_bytes); });
    return status_;
  }

  // The next launch begins, where it may, before this one has run. What waits
  // for others may stay where it is.
  void RunOne() {
    QUIRE_CHECK(
        !queue_.is_capturing);  // What waits ends a capture: not allowed.
    std::deque<simt::emulator::QueueEntry>& entries = queue_.entries;
    if (status_.ok() && entries.front().attempt != nullptr &&
        !entries.front().attempt()) {
      std::this_thread::yield();
      return;
    }
    // The emulator runs one kernel at a time; the devices of several ranks are
    // used from as many threads.
    static std::mutex mutex;
    std::unique_lock<std::mutex> lock(mutex);
    const simt::emulator::QueueEntry entry = std::move(entries.front());
    entries.pop_front();
    const std::unique_ptr<Early> early = std::move(early_);
    simt::emulator::CurrentOptions().capability =
        properties_.major * 10 + properties_.minor;
    const bool is_launch = entry.body != nullptr;
    if (entry.attempt != nullptr) {
      ++num_run_;
      return;
    }
    if (status_.ok() && is_launch && !entries.empty() &&
        entries.front().body != nullptr) {
      early_ = std::make_unique<Early>(entries.front());
    }
    const bool is_fault_due =
        fault_at == num_run_++ ||
        (fault_request_ != nullptr && fault_request_->load());
    if (is_fault_due && status_.ok()) {
      status_ = absl::InternalError("GPU error: an illegal address (injected)");
    }
    if (!status_.ok()) return;
    num_launches_ += is_launch;
    if (!is_launch) {
      lock.unlock();  // It may wait for another rank.
      entry.work();
      return;
    }
    if (early != nullptr && early->launch != nullptr) {
      simt::emulator::Finish(*early->launch);
    } else {
      simt::emulator::Run(entry.shape, entry.body);
    }
    if (!simt::emulator::LastError().empty()) {
      status_ = absl::InternalError(
          absl::StrCat("GPU error: ", simt::emulator::LastError()));
    }
  }
  void RunAll() {
    while (!queue_.entries.empty()) RunOne();
  }

  // A launch that has begun; its entry is still in the queue.
  struct Early {
    explicit Early(const simt::emulator::QueueEntry& entry)
        : body(entry.body),
          launch(simt::emulator::StartEarly(entry.shape, body)) {}
    const std::function<void()> body;
    const std::shared_ptr<simt::emulator::EarlyLaunch> launch;
  };

  const DeviceProperties properties_ = {"emulated GPU",
                                        EmulatedOptions().major,
                                        EmulatedOptions().minor,
                                        EmulatedOptions().num_sms,
                                        EmulatedOptions().shared_bytes_of_sm,
                                        EmulatedOptions().major == 9};
  const int64_t total_bytes_ = EmulatedOptions().total_bytes;
  const int64_t bytes_per_graph_ = EmulatedOptions().bytes_per_graph;
  const int64_t code_bytes_ = EmulatedOptions().code_bytes;
  const bool fills_memory_ = EmulatedOptions().fills_memory;
  const std::atomic<bool>* const fault_request_ =
      EmulatedOptions().fault_request;
  mutable simt::emulator::Queue queue_;
  std::deque<simt::emulator::QueueEntry> before_capture_;
  std::unique_ptr<Early> early_;  // Of the queue's front.
  int64_t num_run_ = 0;
  int64_t num_launches_ = 0;
  int64_t num_bytes_ = 0;
  int64_t num_pinned_bytes_ = 0;
  int64_t graph_bytes_ = 0;
  bool has_loaded_code_ = false;
  struct Allocation {
    int64_t num_bytes = 0;
    int64_t serial = 0;
    bool is_pinned = false;
  };
  std::unordered_map<void*, Allocation> allocations_;
  absl::Status status_;
};

EmulatedDevice& AsEmulated(Device& device) {
  return static_cast<EmulatedDevice&>(device);
}

// CUDA C++ Programming Guide, "Technical Specifications per Compute
// Capability".
struct EmulatedGpu {
  const char* capability;
  int major, minor;
  int64_t shared_bytes_of_sm;
};
constexpr EmulatedGpu kEmulatedGpus[] = {
    {"7.5", 7, 5, 64 << 10},  {"8.0", 8, 0, 164 << 10},
    {"8.6", 8, 6, 100 << 10}, {"8.9", 8, 9, 100 << 10},
    {"9.0", 9, 0, 228 << 10}, {"12.0", 12, 0, 100 << 10}};

EmulatedDeviceOptions InitialOptions() {
  const char* const variable = std::getenv("QUIRE_EMULATED_GPU");
  const absl::string_view wanted = variable != nullptr     ? variable
                                   : SIMT_HAS_SMALL_SHARED ? "7.5"
                                                           : "9.0";
  EmulatedDeviceOptions options;
  const auto gpu =
      std::find_if(std::begin(kEmulatedGpus), std::end(kEmulatedGpus),
                   [wanted](const EmulatedGpu& other) {
                     return wanted == other.capability;
                   });
  QUIRE_CHECK(gpu != std::end(kEmulatedGpus));
  options.major = gpu->major;
  options.minor = gpu->minor;
  options.shared_bytes_of_sm = gpu->shared_bytes_of_sm;
  return options;
}

}  // namespace

EmulatedDeviceOptions& EmulatedOptions() {
  static EmulatedDeviceOptions options = InitialOptions();
  return options;
}

int64_t NumLaunchesOf(const Device& device) {
  return static_cast<const EmulatedDevice&>(device).num_launches();
}

int64_t NumRunOf(const Device& device) {
  return static_cast<const EmulatedDevice&>(device).num_run();
}

int64_t NumPinnedBytesOf(const Device& device) {
  return static_cast<const EmulatedDevice&>(device).num_pinned_bytes();
}

std::vector<std::string> ContentsOf(Device& device) {
  return AsEmulated(device).Contents();
}

void InjectFault(Device& device, int64_t num_before) {
  AsEmulated(device).fault_at = NumRunOf(device) + num_before;
}

void FailCaptures(Device& device, int num_captures) {
  AsEmulated(device).num_failing_captures = num_captures;
}

void DiscardWork(Device& device, bool discards) {
  simt::emulator::Queue& queue = AsEmulated(device).queue();
  QUIRE_CHECK(queue.entries.empty());
  queue.discards = discards;
}

absl::StatusOr<std::unique_ptr<Device>> CreateDevice(int device_idx) {
  if (device_idx != 0) {
    return absl::UnavailableError(
        absl::StrCat("there is no NVIDIA device ", device_idx));
  }
  // The form of the kernels is that of the build.
  QUIRE_CHECK((EmulatedOptions().major < 8) == SIMT_HAS_SMALL_SHARED);
  return std::make_unique<EmulatedDevice>();
}

}  // namespace quire::cuda
