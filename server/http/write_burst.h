// Many writes to responders in a row, for which who takes them is woken once.
#ifndef QUIRE_SERVER_HTTP_WRITE_BURST_H_
#define QUIRE_SERVER_HTTP_WRITE_BURST_H_

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/container/inlined_vector.h"

namespace quire {

// While one lives, what its thread writes wakes nobody until Deliver or the
// end. Without it a reader that is faster than the writer falls asleep after
// each write and is woken for the next: two context switches and a system call
// for each of a thousand streams, longer than what is written takes to be made.
//
// Not thread-safe; at most one at a time on a thread.
class WriteBurst {
 public:
  // Who takes what is written, on a thread of its own.
  class Reader {
   public:
    virtual ~Reader() = default;
    virtual void WakeIfAsleep() = 0;
  };

  WriteBurst() { current_ = this; }
  ~WriteBurst() {
    Deliver();
    current_ = nullptr;
  }
  WriteBurst(const WriteBurst&) = delete;
  WriteBurst& operator=(const WriteBurst&) = delete;

  // Of the calling thread; null if it writes none.
  static WriteBurst* current() { return current_; }

  // For readers: `reader` sleeps and has something to take.
  void WakeLater(std::shared_ptr<Reader> reader) {
    if (std::find(asleep_.begin(), asleep_.end(), reader) == asleep_.end()) {
      asleep_.push_back(std::move(reader));
    }
  }
  void Deliver() {
    for (const auto& reader : asleep_) reader->WakeIfAsleep();
    asleep_.clear();
  }

 private:
  static inline thread_local WriteBurst* current_ = nullptr;
  // As many as a process has servers, without an allocation that may fail.
  absl::InlinedVector<std::shared_ptr<Reader>, 2> asleep_;
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_WRITE_BURST_H_
