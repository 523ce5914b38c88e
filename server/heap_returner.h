// Gives memory back to the system: the allocator keeps what was freed, a
// gigabyte as well as a kilobyte, for each thread that ever had it.
#ifndef QUIRE_SERVER_HEAP_RETURNER_H_
#define QUIRE_SERVER_HEAP_RETURNER_H_

#include <cstdint>
#include <functional>
#include <utility>

#include "absl/time/time.h"

namespace quire {

// Thread-compatible.
class HeapReturner {
 public:
  // `trim` gives free memory back; malloc_trim takes some milliseconds per
  // gigabyte and holds up who allocates meanwhile.
  explicit HeapReturner(std::function<void()> trim) : trim_(std::move(trim)) {}

  // To be called a few times a second. Trims once the load has been a quarter
  // of its peak, or less, for kCalm; then waits for the next peak. Besides,
  // once nothing was answered for kCalm after something was. num_requests: open
  // now. num_answers: since the start, without probes.
  void Poll(absl::Time now, int64_t num_requests, int64_t num_answers);

  static constexpr absl::Duration kCalm = absl::Seconds(2);
  // Fewer requests than these are no burst.
  static constexpr int64_t kMinPeak = 8;

 private:
  const std::function<void()> trim_;
  int64_t peak_ = 0;  // Since the last trim.
  absl::Time calm_since_ = absl::InfiniteFuture();
  int64_t num_answers_ = 0;
  absl::Time idle_since_ = absl::InfiniteFuture();  // Trimmed, or never busy.
};

// Keeps glibc from raising, with the largest piece that was ever freed, the
// size from which pieces are mapped on their own and what each thread's heap
// keeps free at its end (mallopt(3): to 32 and 64 MiB), and from keeping small
// pieces apart that were freed. Call once, early.
void LimitFreeMemory();

}  // namespace quire

#endif  // QUIRE_SERVER_HEAP_RETURNER_H_
