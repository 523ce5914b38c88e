#include "engine/base/thread_pool.h"

#include <algorithm>

namespace quire {

struct ThreadPool::State {};

int AvailableCpus() { return 1; }

ThreadPool::ThreadPool(int num_threads) {}
ThreadPool::~ThreadPool() = default;

int ThreadPool::num_threads() const { return 1; }

void ThreadPool::ParallelFor(
    int64_t num_items, int64_t chunk,
    absl::FunctionRef<void(int64_t begin, int64_t end, int thread_idx)> body) {
  for (int64_t begin = 0; begin < num_items; begin += chunk) {
    body(begin, std::min(num_items, begin + chunk), 0);
  }
}

}  // namespace quire
