#include "kernels/cuda/device_emulated.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "absl/strings/str_cat.h"
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
  ~EmulatedDevice() override { QUIRE_CHECK(sizes_.empty()); }

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
  simt::emulator::Queue& queue() { return queue_; }
  int64_t fault_at = -1;  // Serial of the work that fails.
  int num_failing_captures = 0;

 private:
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

  const DeviceProperties properties_ = {"emulated GPU", 9, 0, 4, 228 << 10};
  const int64_t total_bytes_ = EmulatedOptions().total_bytes;
  const int64_t bytes_per_graph_ = EmulatedOptions().bytes_per_graph;
  const int64_t code_bytes_ = EmulatedOptions().code_bytes;
  const std::atomic<bool>* const fault_request_ =
      EmulatedOptions().fault_request;
  mutable simt::emulator::Queue queue_;
  std::deque<simt::emulator::QueueEntry> before_capture_;
  std::unique_ptr<Early> early_;  // Of the queue's front.
  int64_t num_run_ = 0;
  int64_t num_bytes_ = 0;
  int64_t graph_bytes_ = 0;
  bool has_loaded_code_ = false;
  std::unordered_map<void*, int64_t> sizes_;
  absl::Status status_;
};

EmulatedDevice& AsEmulated(Device& device) {
  return static_cast<EmulatedDevice&>(device);
}

}  // namespace

EmulatedDeviceOptions& EmulatedOptions() {
  static EmulatedDeviceOptions options;
  return options;
}

int64_t NumRunOf(const Device& device) {
  return static_cast<const EmulatedDevice&>(device).num_run();
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
  return std::make_unique<EmulatedDevice>();
}

}  // namespace quire::cuda
