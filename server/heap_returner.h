// Gives memory back to the system after a burst: the allocator keeps what was
// freed, a gigabyte as well as a kilobyte.
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
  // of its peak, or less, for kCalm; then waits for the next peak.
  // num_requests: open now.
  void Poll(absl::Time now, int64_t num_requests);

  static constexpr absl::Duration kCalm = absl::Seconds(2);
  // Fewer requests than these are no burst.
  static constexpr int64_t kMinPeak = 8;

 private:
  const std::function<void()> trim_;
  int64_t peak_ = 0;  // Since the last trim.
  absl::Time calm_since_ = absl::InfiniteFuture();
};

}  // namespace quire

#endif  // QUIRE_SERVER_HEAP_RETURNER_H_
