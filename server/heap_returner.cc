#include "server/heap_returner.h"

#include <malloc.h>

#include <algorithm>

namespace quire {

void HeapReturner::Poll(absl::Time now, int64_t num_requests,
                        int64_t num_answers) {
  if (num_answers != num_answers_) {
    num_answers_ = num_answers;
    idle_since_ = now;
  }
  peak_ = std::max(peak_, num_requests);
  if (peak_ < kMinPeak || num_requests * 4 > peak_) {
    calm_since_ = absl::InfiniteFuture();
  } else {
    calm_since_ = std::min(calm_since_, now);
  }
  if (now - calm_since_ < kCalm && now - idle_since_ < kCalm) return;
  trim_();
  peak_ = num_requests;
  calm_since_ = absl::InfiniteFuture();
  idle_since_ = absl::InfiniteFuture();
}

void LimitFreeMemory() {
  constexpr int kThreshold = 128 << 10;  // What glibc begins with.
  mallopt(M_MMAP_THRESHOLD, kThreshold);
  // Beyond what a heap keeps at its end when it has given back (M_TOP_PAD, as
  // much again): otherwise each further page freed would be a system call.
  mallopt(M_TRIM_THRESHOLD, 2 * kThreshold);
  // Small pieces that wait, free, for others of their size keep what lies
  // around them from growing together; malloc_trim joins them to the end of a
  // thread's heap and leaves it there, some megabytes of a request long gone.
  mallopt(M_MXFAST, 0);
}

}  // namespace quire
