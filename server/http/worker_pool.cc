#include "server/http/worker_pool.h"

#include <pthread.h>

#include <system_error>
#include <utility>

#include "engine/base/short_slice.h"

namespace quire {

absl::Status WorkerPool::Start(int num_workers) {
  for (int i = 0; i < num_workers; ++i) {
    try {
      threads_.emplace_back([this] { Run(); });
    } catch (const std::system_error&) {
      Stop();
      return absl::ResourceExhaustedError("cannot start an HTTP worker thread");
    }
  }
  return absl::OkStatus();
}

bool WorkerPool::Submit(PendingRequest request) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (is_stopped_ || queue_.size() >= max_queued_) return false;
    queue_.push_back(std::move(request));
  }
  changed_.notify_one();
  return true;
}

void WorkerPool::Stop() {
  std::deque<PendingRequest> dropped;
  {
    std::lock_guard<std::mutex> lock(mu_);
    is_stopped_ = true;
    dropped.swap(queue_);
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void WorkerPool::Run() {
  pthread_setname_np(pthread_self(), "http-worker");
  TakeShortSlices();
  while (true) {
    PendingRequest request;
    {
      std::unique_lock<std::mutex> lock(mu_);
      changed_.wait(lock, [this] { return is_stopped_ || !queue_.empty(); });
      if (is_stopped_) return;
      request = std::move(queue_.front());
      queue_.pop_front();
    }
    handle_(std::move(request));
  }
}

}  // namespace quire
