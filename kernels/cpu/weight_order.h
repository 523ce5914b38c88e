// In which order a step reads its weights: what the threads of a pool may fetch
// while they wait for the next product.
#ifndef QUIRE_KERNELS_CPU_WEIGHT_ORDER_H_
#define QUIRE_KERNELS_CPU_WEIGHT_ORDER_H_

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "absl/functional/function_ref.h"

namespace quire {

// Between two products one thread norms and rounds, attention keeps few bytes
// busy, and memory waits. Steps of few rows read the same weights one after the
// other each time: what came after a product last time is worth fetching, the
// beginning of each thread's part. Thread-compatible. Weights may be gone
// since: only their addresses are kept.
class WeightOrder {
 public:
  // For ThreadPool::FetchWhenIdle.
  struct Fetch {
    std::vector<const char*> starts;  // Of each thread; null: nothing.
    int64_t num_bytes = 0;
  };

  // A product with the weights `key` begins. `own` says what its threads begin
  // with, and is called (and memory allocated) only the first time. Returns
  // what came after it the last time; valid until the next call.
  const Fetch& Begin(const void* key, absl::FunctionRef<Fetch()> own);
  // A product that is not part of such a sequence begins.
  void Interrupt() { last_ = nullptr; }

 private:
  struct Entry {
    Fetch fetch;
    const void* next = nullptr;
  };
  std::unordered_map<const void*, Entry> entries_;
  const void* last_ = nullptr;
  const Fetch nothing_;
};

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_WEIGHT_ORDER_H_
