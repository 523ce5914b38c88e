// Accounts for every block of the KV cache: which are free, which are
// referenced, which are cached and may be evicted.
//
// Thread-compatible: used by the engine thread only. Owns numbers, no memory.
//
// Invariants, tested by CheckIntegrity:
//   I1. Every block is in exactly one state: free, referenced (ref_count >= 1),
//       or evictable (ref_count 0 and cached). The counts sum to num_blocks.
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

  // Says that the prefix cache holds the block, or no longer does; an evictable
  // block that is no longer cached becomes free. Requires: not free.
  void SetCached(int32_t block_id, bool is_cached);

  // The evictable block released longest ago; kNoBlock if there is none.
  int32_t OldestEvictable() const;

  // Tests I1. INTERNAL naming the invariant and the block.
  absl::Status CheckIntegrity() const;

 private:
  struct Block {
    int32_t ref_count = 0;
    bool is_cached = false;
    // Neighbours in the list of evictable blocks; kNoBlock outside it.
    int32_t prev = kNoBlock;
    int32_t next = kNoBlock;
  };

  void PushEvictable(int32_t block_id);
  void RemoveEvictable(int32_t block_id);

  const int num_blocks_;
  // One more than num_blocks: the last is the head of the circular list of
  // evictable blocks, oldest first.
  std::vector<Block> blocks_;
  std::vector<int32_t> free_;  // A stack.
  int num_evictable_ = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_KV_CACHE_BLOCK_POOL_H_
