// Worker threads for data-parallel loops of microseconds to milliseconds.
#ifndef QUIRE_ENGINE_BASE_THREAD_POOL_H_
#define QUIRE_ENGINE_BASE_THREAD_POOL_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "engine/base/cpu_topology.h"

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
  using Body =
      absl::FunctionRef<void(int64_t begin, int64_t end, int thread_idx)>;

  // `num_threads` counts the caller; <= 0 means one for each physical core that
  // may be used (PlaceThreads). Threads are not pinned.
  explicit ThreadPool(int num_threads);
  // Workers are pinned as `placement` says.
  explicit ThreadPool(ThreadPlacement placement);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;
  // Of the NUMA nodes that the threads are on, if they are pinned there; one
  // entry otherwise.
  absl::Span<const int> node_ids() const;

  // Pins the calling thread, which is going to call ParallelFor for good, to
  // the place of thread 0, if the others are pinned. Threads that it makes
  // later inherit that.
  void PinCaller();

  // Calls body(begin, end, thread_idx) over disjoint chunks that cover
  // [0, num_items), each at most `chunk` long and starting at a multiple of it;
  // returns when all have finished. thread_idx is in [0, num_threads()).
  // `body` must not call ParallelFor. Requires: chunk > 0. With one chunk the
  // caller runs it alone and no worker wakes.
  void ParallelFor(int64_t num_items, int64_t chunk, Body body);

  // The same, but each node's threads begin with a part of the items that
  // depends on num_items and chunk only, before they help the others: what a
  // loop touches first is near the threads that come back to it.
  void ParallelForByNode(int64_t num_items, int64_t chunk, Body body);

  // Calls body(begin, end, thread_idx) over disjoint runs of at most `max_run`
  // items. For items that are consecutive pieces of memory read once: each
  // thread begins with consecutive items of its own, in order, so that what it
  // prefetches across their borders is not in vain, and without any left takes
  // the last half of another's. Runs become shorter towards the end, when the
  // threads wait for the last. Requires: num_items < 2^31, max_run > 0.
  void ParallelForStreams(int64_t num_items, int64_t max_run, Body body);

 private:
  struct State;
  void Start(ThreadPlacement placement);
  void Run(int64_t num_items, int64_t chunk, int num_ranges, Body body);

  std::unique_ptr<State> state_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_THREAD_POOL_H_
