// Threads that run handlers, behind a queue with a limit.
#ifndef QUIRE_SERVER_HTTP_WORKER_POOL_H_
#define QUIRE_SERVER_HTTP_WORKER_POOL_H_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "server/http/event_loop.h"

namespace quire {

// Thread-safe.
class WorkerPool {
 public:
  // `handle` runs on the workers; must not throw.
  WorkerPool(size_t max_queued, std::function<void(PendingRequest)> handle)
      : max_queued_(max_queued), handle_(std::move(handle)) {}
  ~WorkerPool() { Stop(); }
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // RESOURCE_EXHAUSTED if the system refuses a thread.
  absl::Status Start(int num_workers);
  // False if the queue is full or the pool has stopped.
  bool Submit(PendingRequest request);
  // Drops what is queued and waits for what runs.
  void Stop();

 private:
  void Run();

  const size_t max_queued_;
  const std::function<void(PendingRequest)> handle_;
  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<PendingRequest> queue_;  // Guarded by mu_, as is_stopped_.
  bool is_stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_WORKER_POOL_H_
