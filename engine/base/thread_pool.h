// Worker threads for data-parallel loops of microseconds to milliseconds.
#ifndef QUIRE_ENGINE_BASE_THREAD_POOL_H_
#define QUIRE_ENGINE_BASE_THREAD_POOL_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace quire {

// CPUs this process may use at once: the smaller of the scheduling affinity and
// the cgroup CPU quota (v1 and v2, rounded up), at least 1.
int AvailableCpus();

// Fixed workers; the calling thread takes part. One caller at a time: the
// engine thread owns the pool (thread-compatible, not thread-safe).
// Work is handed out in dynamic chunks by an atomic counter, because cores of a
// shared machine change speed within milliseconds and a static split would wait
// for the slowest. Idle workers spin for a few microseconds, then sleep.
class ThreadPool {
 public:
  // `num_threads` counts the caller; <= 0 means AvailableCpus().
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Calls body(begin, end, thread_idx) over disjoint chunks that cover
  // [0, num_items), each at most `chunk` long and starting at a multiple of it;
  // returns when all have finished. thread_idx is in [0, num_threads()).
  // `body` must not call ParallelFor. Requires: chunk > 0. With one chunk the
  // caller runs it alone and no worker wakes.
  void ParallelFor(
      int64_t num_items, int64_t chunk,
      absl::FunctionRef<void(int64_t begin, int64_t end, int thread_idx)> body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_THREAD_POOL_H_
