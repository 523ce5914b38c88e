// Accounts for every block of the KV cache: which are free, which are
// referenced, which are cached and may be evicted.
//
// Thread-compatible: used by the engine thread only. Owns numbers, no memory.
//
// Invariants, tested by CheckIntegrity:
//   I1. Every block is in exactly one state: free, referenced (ref_count >= 1),
//       or evictable (ref_count 0 and cached). The counts sum to num_blocks.
//       An owner has as many cached blocks as are counted for it.
#ifndef QUIRE_ENGINE_KV_CACHE_BLOCK_POOL_H_
#define QUIRE_ENGINE_KV_CACHE_BLOCK_POOL_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace quire {

inline constexpr int32_t kNoBlock = -1;

class BlockPool {
 public:
  // Requires: num_blocks >= 0. All blocks are free.
  explicit BlockPool(int num_blocks);

  int num_blocks() const { return num_blocks_; }
  int num_free() const { return static_cast<int>(free_.size()); }
  int num_evictable() const { return num_evictable_; }
  int num_referenced() const {
    return num_blocks_ - num_free() - num_evictable_;
  }
  // Blocks that an allocation can get: free, or evictable.
  int num_available() const { return num_free() + num_evictable_; }

  int ref_count(int32_t block_id) const { return blocks_[block_id].ref_count; }
  bool is_cached(int32_t block_id) const { return blocks_[block_id].is_cached; }

  // A free block, now with ref_count 1; the one freed last is taken first, its
  // memory may still be in a cache. Requires: num_free() > 0.
  int32_t TakeFree();

  // Requires: the block is referenced or evictable.
  void AddRef(int32_t block_id);

  // Drops one reference. Without any, the block becomes the evictable one used
  // last if it is cached, and free otherwise. Requires: ref_count >= 1.
  void Release(int32_t block_id);

  // Says that the prefix cache holds the block for an owner, below
  // num_owners(), or no longer does; an evictable block that is no longer
  // cached becomes free. Requires: not free.
  void SetCached(int32_t block_id, bool is_cached, int32_t owner_idx = 0);

  int num_owners() const { return static_cast<int>(num_cached_.size()); }
  int32_t AddOwner();
  // Of the owner's share among the others'; 1 at first. Requires: weight >= 1.
  void SetWeight(int32_t owner_idx, int32_t weight) {
    weights_[owner_idx] = weight;
  }
  int num_cached_of(int32_t owner_idx) const { return num_cached_[owner_idx]; }

  // The block to give up next; kNoBlock if none is evictable. The one released
  // longest ago, of the owner that has most cached blocks for its weight: as
  // long as somebody has more than its share (the pool divided by weights),
  // nobody who has less loses any. A share is kept for somebody who uses it:
  // what was released kNumProtectedTurns pools of blocks ago goes first,
  // whoever owns it.
  int32_t NextToEvict() const;
  static constexpr int64_t kNumProtectedTurns = 64;

  // Tests I1. INTERNAL naming the invariant and the block.
  absl::Status CheckIntegrity() const;

 private:
  struct Block {
    int32_t ref_count = 0;
    bool is_cached = false;
    int32_t owner_idx = 0;  // Of a cached block.
    int64_t release_no = 0;
    // Neighbours in the owner's list of evictable blocks; kNoBlock outside it.
    int32_t prev = kNoBlock;
    int32_t next = kNoBlock;
  };

  void PushEvictable(int32_t block_id);
  void RemoveEvictable(int32_t block_id);

  const int num_blocks_;
  // After num_blocks blocks, the head of each owner's circular list of
  // evictable blocks, oldest first.
  std::vector<Block> blocks_;
  std::vector<int> num_cached_;  // By owner.
  std::vector<int32_t> weights_;
  int64_t num_releases_ = 0;
  std::vector<int32_t> free_;  // A stack.
  int num_evictable_ = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_KV_CACHE_BLOCK_POOL_H_
