// The end of a group's device collectives when the group fails.
#ifndef QUIRE_ENGINE_PARALLEL_DEVICE_ABORT_H_
#define QUIRE_ENGINE_PARALLEL_DEVICE_ABORT_H_

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

namespace quire {

// Calls a library's abort once, and not on a thread that must get on: it waits
// for whom it likes. Thread-safe, but for Join.
class DeviceAbort {
 public:
  // on_end: called on that thread when the abort is over.
  explicit DeviceAbort(std::function<void()> on_end)
      : on_end_(std::move(on_end)) {}
  ~DeviceAbort() { Join(); }

  // What Start calls; called here if it was before.
  void Set(std::function<void()> abort) {
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (!has_started_) {
        abort_ = std::move(abort);
        return;
      }
    }
    abort();
  }

  void Start() {
    std::lock_guard<std::mutex> lock(mu_);
    if (std::exchange(has_started_, true) || abort_ == nullptr) return;
    is_running_ = true;
    thread_ = std::thread([this, abort = std::move(abort_)] {
      abort();
      is_running_ = false;
      on_end_();
    });
  }

  bool is_running() const { return is_running_; }
  void Join() {
    if (thread_.joinable()) thread_.join();
  }

 private:
  const std::function<void()> on_end_;
  std::mutex mu_;
  std::function<void()> abort_;  // Null: no device.
  bool has_started_ = false;
  std::atomic<bool> is_running_{false};
  std::thread thread_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_DEVICE_ABORT_H_
