#include "engine/kv_cache/block_pool.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {

BlockPool::BlockPool(int num_blocks)
    : num_blocks_(num_blocks), blocks_(num_blocks + 1) {
  blocks_[num_blocks_].prev = num_blocks_;
  blocks_[num_blocks_].next = num_blocks_;
  free_.reserve(num_blocks);
  for (int32_t id = num_blocks - 1; id >= 0; --id) free_.push_back(id);
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

void BlockPool::SetCached(int32_t block_id, bool is_cached) {
  Block& block = blocks_[block_id];
  if (block.is_cached == is_cached) return;
  QUIRE_CHECK(block.ref_count > 0 || block.is_cached);
  block.is_cached = is_cached;
  if (block.ref_count == 0) {
    RemoveEvictable(block_id);
    free_.push_back(block_id);
  }
}

int32_t BlockPool::OldestEvictable() const {
  return num_evictable_ == 0 ? kNoBlock : blocks_[num_blocks_].next;
}

void BlockPool::PushEvictable(int32_t block_id) {
  const int32_t head = num_blocks_;
  const int32_t last = blocks_[head].prev;
  blocks_[block_id].prev = last;
  blocks_[block_id].next = head;
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
  for (int32_t id = blocks_[num_blocks_].next; id != num_blocks_;
       id = blocks_[id].next) {
    if (seen[id] != 0 || blocks_[id].ref_count != 0 || !blocks_[id].is_cached) {
      return absl::InternalError(absl::StrCat(
          "I1: block ", id, " is evictable and also free or referenced"));
    }
    seen[id] = 1;
    ++num_evictable;
  }
  int num_referenced = 0;
  for (int32_t id = 0; id < num_blocks_; ++id) {
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
  return absl::OkStatus();
}

}  // namespace quire
