// Holds a thread of a test until the test lets it go on.
#ifndef QUIRE_SERVER_GATE_H_
#define QUIRE_SERVER_GATE_H_

#include <condition_variable>
#include <functional>
#include <mutex>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace quire {

// Thread-safe, and understood by ThreadSanitizer, unlike absl::Notification of
// the packaged abseil. Once open it stays open.
class Gate {
 public:
  // Blocks until opened.
  void Wait() {
    std::unique_lock<std::mutex> lock(mu_);
    is_reached_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return is_open_; });
  }
  std::function<void()> Waiter() {
    return [this] { Wait(); };
  }

  // Blocks until somebody waits, or has waited. Fails the test after `timeout`.
  void AwaitReached(absl::Duration timeout) {
    std::unique_lock<std::mutex> lock(mu_);
    ASSERT_TRUE(changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout),
                                  [this] { return is_reached_; }));
  }

  void Open() {
    std::lock_guard<std::mutex> lock(mu_);
    is_open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  bool is_reached_ = false;  // Guarded by mu_, as the next one.
  bool is_open_ = false;
};

}  // namespace quire

#endif  // QUIRE_SERVER_GATE_H_
