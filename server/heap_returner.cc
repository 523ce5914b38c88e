#include "server/heap_returner.h"

#include <algorithm>

namespace quire {

void HeapReturner::Poll(absl::Time now, int64_t num_requests) {
  peak_ = std::max(peak_, num_requests);
  if (peak_ < kMinPeak || num_requests * 4 > peak_) {
    calm_since_ = absl::InfiniteFuture();
    return;
  }
  calm_since_ = std::min(calm_since_, now);
  if (now - calm_since_ < kCalm) return;
  trim_();
  peak_ = num_requests;
  calm_since_ = absl::InfiniteFuture();
}

}  // namespace quire
