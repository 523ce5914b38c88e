#include "kernels/cpu/weight_order.h"

#include <algorithm>

namespace quire {
namespace {

// A part of an L2 of 1 MiB, and what memory delivers to a thread in the
// microseconds of such a pause.
constexpr int64_t kMaxFetchBytes = 128 << 10;

}  // namespace

const WeightOrder::Fetch& WeightOrder::Begin(const void* key,
                                             absl::FunctionRef<Fetch()> own) {
  Entry& entry = entries_[key];
  if (entry.fetch.starts.empty()) {
    entry.fetch = own();
    entry.fetch.num_bytes = std::min(entry.fetch.num_bytes, kMaxFetchBytes);
  }
  if (last_ != nullptr) entries_[last_].next = key;
  last_ = key;
  const auto next = entries_.find(entry.next);
  return next == entries_.end() ? nothing_ : next->second.fetch;
}

}  // namespace quire
