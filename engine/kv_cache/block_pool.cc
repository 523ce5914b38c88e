#include "engine/kv_cache/block_pool.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {

BlockPool::BlockPool(int num_blocks)
    : num_blocks_(num_blocks), blocks_(num_blocks) {
  AddOwner();
  free_.reserve(num_blocks);
  for (int32_t id = num_blocks - 1; id >= 0; --id) free_.push_back(id);
}

int32_t BlockPool::AddOwner() {
  const auto head = static_cast<int32_t>(blocks_.size());
  blocks_.emplace_back();
  blocks_[head].prev = head;
  blocks_[head].next = head;
  num_cached_.push_back(0);
  weights_.push_back(1);
  return head - num_blocks_;
}

int32_t BlockPool::TakeFree() {
  QUIRE_CHECK(!free_.empty());
  const int32_t id = free_.back();
  free_.pop_back();
  blocks_[id].ref_count = 1;
  return id;
}

void BlockPool::AddRef(int32_t block_id) {
  Block& block = blocks_[block_id];
  if (block.ref_count == 0) {
    QUIRE_CHECK(block.is_cached);  // A free block belongs to nobody.
    RemoveEvictable(block_id);
  }
  ++block.ref_count;
}

void BlockPool::Release(int32_t block_id) {
  Block& block = blocks_[block_id];
  QUIRE_CHECK(block.ref_count >= 1);
  if (--block.ref_count > 0) return;
  if (block.is_cached) {
    PushEvictable(block_id);
  } else {
    free_.push_back(block_id);
  }
}

void BlockPool::SetCached(int32_t block_id, bool is_cached, int32_t owner_idx) {
  Block& block = blocks_[block_id];
  if (block.is_cached == is_cached) return;
  QUIRE_CHECK(block.ref_count > 0 || block.is_cached);
  block.is_cached = is_cached;
  if (is_cached) block.owner_idx = owner_idx;
  num_cached_[block.owner_idx] += is_cached ? 1 : -1;
  if (block.ref_count == 0) {
    RemoveEvictable(block_id);
    free_.push_back(block_id);
  }
}

int32_t BlockPool::NextToEvict() const {
  int32_t oldest = kNoBlock;
  int32_t chosen = kNoBlock;
  int32_t chosen_owner = 0;
  for (int32_t owner_idx = 0; owner_idx < num_owners(); ++owner_idx) {
    const int32_t first = blocks_[num_blocks_ + owner_idx].next;
    if (first >= num_blocks_) continue;  // Nothing of it is evictable.
    const auto is_older = [&](int32_t other) {
      return other == kNoBlock ||
             blocks_[first].release_no < blocks_[other].release_no;
    };
    if (is_older(oldest)) oldest = first;
    // Of two quotients, multiplied out: counts and weights are below 2^31.
    const int64_t here =
        int64_t{num_cached_[owner_idx]} * weights_[chosen_owner];
    const int64_t there =
        int64_t{num_cached_[chosen_owner]} * weights_[owner_idx];
    if (chosen == kNoBlock || here > there ||
        (here == there && is_older(chosen))) {
      chosen = first;
      chosen_owner = owner_idx;
    }
  }
  if (oldest == kNoBlock) return kNoBlock;
  const int64_t age = num_releases_ - blocks_[oldest].release_no;
  return age > kNumProtectedTurns * num_blocks_ ? oldest : chosen;
}

void BlockPool::PushEvictable(int32_t block_id) {
  Block& block = blocks_[block_id];
  const int32_t head = num_blocks_ + block.owner_idx;
  const int32_t last = blocks_[head].prev;
  block.release_no = num_releases_++;
  block.prev = last;
  block.next = head;
  blocks_[last].next = block_id;
  blocks_[head].prev = block_id;
  ++num_evictable_;
}

void BlockPool::RemoveEvictable(int32_t block_id) {
  Block& block = blocks_[block_id];
  blocks_[block.prev].next = block.next;
  blocks_[block.next].prev = block.prev;
  block.prev = kNoBlock;
  block.next = kNoBlock;
  --num_evictable_;
}

absl::Status BlockPool::CheckIntegrity() const {
  std::vector<char> seen(num_blocks_, 0);
  for (int32_t id : free_) {
    if (seen[id] != 0 || blocks_[id].ref_count != 0 || blocks_[id].is_cached) {
      return absl::InternalError(absl::StrCat(
          "I1: block ", id, " is in the free list",
          seen[id] != 0 ? " twice" : "", ", ref_count ", blocks_[id].ref_count,
          ", cached ", blocks_[id].is_cached));
    }
    seen[id] = 1;
  }
  int num_evictable = 0;
  for (int32_t owner_idx = 0; owner_idx < num_owners(); ++owner_idx) {
    const int32_t head = num_blocks_ + owner_idx;
    for (int32_t id = blocks_[head].next; id != head; id = blocks_[id].next) {
      if (seen[id] != 0 || blocks_[id].ref_count != 0 ||
          !blocks_[id].is_cached || blocks_[id].owner_idx != owner_idx) {
        return absl::InternalError(absl::StrCat(
            "I1: block ", id, " is evictable and also free or referenced"));
      }
      seen[id] = 1;
      ++num_evictable;
    }
  }
  int num_referenced = 0;
  std::vector<int> num_cached(num_owners(), 0);
  for (int32_t id = 0; id < num_blocks_; ++id) {
    if (blocks_[id].is_cached) ++num_cached[blocks_[id].owner_idx];
    if (seen[id] != 0) continue;
    if (blocks_[id].ref_count < 1) {
      return absl::InternalError(absl::StrCat(
          "I1: block ", id, " is neither free, referenced nor evictable"));
    }
    ++num_referenced;
  }
  if (num_evictable != num_evictable_ ||
      num_referenced != this->num_referenced()) {
    return absl::InternalError(
        absl::StrCat("I1: counted ", num_evictable, " evictable and ",
                     num_referenced, " referenced blocks, the counters say ",
                     num_evictable_, " and ", this->num_referenced()));
  }
  if (num_cached != num_cached_) {
    return absl::InternalError(
        "I1: the cached blocks of owners are miscounted");
  }
  return absl::OkStatus();
}

}  // namespace quire
