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
  mallopt(M_TRIM_THRESHOLD, kThreshold);
}

}  // namespace quire
