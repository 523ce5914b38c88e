// Finds blocks that already hold the keys and values of a prompt's beginning.
//
// Full blocks form a forest: a block's entry hangs below the entry of the block
// before it, the first block of a sequence below the root of its namespace. An
// entry is found by a 128-bit hash chained over (parent's hash, token ids), the
// chain starting from the namespace, keyed by a seed that differs between
// processes (a fixed key lets a client construct collisions: CVE-2025-25183).
// A hit counts only if the parent entry, the token ids and the namespace are
// equal too, so a collision costs a miss and never shares wrong content.
//
// Thread-compatible: used by the engine thread only. Borrows the pool.
//
// Invariants, tested by CheckIntegrity:
//   I3. Every entry is a full block that is not free, and the entry above it is
//       present: evicting a block takes everything below it along, so that
//       nothing unreachable holds memory.
#ifndef QUIRE_ENGINE_KV_CACHE_PREFIX_CACHE_H_
#define QUIRE_ENGINE_KV_CACHE_PREFIX_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/kv_cache/block_pool.h"

namespace quire {

struct BlockHash {
  uint64_t low = 0;
  uint64_t high = 0;
  friend bool operator==(const BlockHash& a, const BlockHash& b) {
    return a.low == b.low && a.high == b.high;
  }
};

// Names an entry; it stays distinct from later entries of the same block. The
// default is the root, which all namespaces share here: only the entries of
// first blocks carry the namespace itself.
struct CacheEntryRef {
  int32_t block_id = kNoBlock;
  uint64_t entry_id = 0;
  bool is_root() const { return block_id == kNoBlock; }
};

class PrefixCache {
 public:
  // `pool` must outlive the cache. Requires: block_size >= 1.
  PrefixCache(BlockPool* pool, int block_size, uint64_t seed);

  // The start of a chain.
  BlockHash RootHash(absl::string_view cache_namespace) const;
  // Of a block below `parent`. token_ids: [block_size].
  BlockHash ChildHash(const BlockHash& parent,
                      absl::Span<const int32_t> token_ids) const;

  // True if the entry still exists; always true for the root.
  bool IsCurrent(const CacheEntryRef& entry) const;

  // The entry below `parent` with this hash and content; the root if there is
  // none. Requires: IsCurrent(parent).
  CacheEntryRef Find(const CacheEntryRef& parent, const BlockHash& hash,
                     absl::Span<const int32_t> token_ids,
                     absl::string_view cache_namespace) const;

  // As Find, and makes `block_id` the entry if there is none. Returns the
  // entry, which may be another block of equal content; the root if the hash
  // belongs to other content (the block then stays uncached). A new entry counts
  // for the pool's owner of that index. Requires:
  // IsCurrent(parent), the block is referenced, full and not cached.
  CacheEntryRef FindOrInsert(const CacheEntryRef& parent, const BlockHash& hash,
                             absl::Span<const int32_t> token_ids,
                             absl::string_view cache_namespace,
                             int32_t block_id, int32_t owner_idx = 0);

  // Removes the block's entry, if any, and all entries below it.
  void Remove(int32_t block_id);

  // True if the block is cached under this hash with these tokens.
  bool HasContent(int32_t block_id, const BlockHash& hash,
                  absl::Span<const int32_t> token_ids) const {
    return entries_[block_id].entry_id != 0 &&
           entries_[block_id].hash == hash && TokensOf(block_id) == token_ids;
  }

  int num_entries() const { return static_cast<int>(by_hash_.size()); }

  // Tests I3. INTERNAL naming the invariant and the block.
  absl::Status CheckIntegrity() const;

 private:
  struct Entry {
    uint64_t entry_id = 0;  // 0: no entry.
    BlockHash hash;
    int32_t parent = kNoBlock;  // kNoBlock: below the root.
    int32_t first_child = kNoBlock;
    int32_t prev_sibling = kNoBlock;  // Unused below the root.
    int32_t next_sibling = kNoBlock;
    std::string cache_namespace;  // Below the root only.
  };
  struct HashOf {
    size_t operator()(const BlockHash& hash) const { return hash.low; }
  };

  bool Matches(int32_t block_id, const CacheEntryRef& parent,
               absl::Span<const int32_t> token_ids,
               absl::string_view cache_namespace) const;
  absl::Span<const int32_t> TokensOf(int32_t block_id) const {
    return absl::MakeConstSpan(tokens_).subspan(
        static_cast<size_t>(block_id) * block_size_, block_size_);
  }

  BlockPool* const pool_;
  const int block_size_;
  const uint64_t seed_;
  uint64_t next_entry_id_ = 1;
  std::vector<Entry> entries_;   // [num_blocks]
  std::vector<int32_t> tokens_;  // [num_blocks, block_size]
  absl::flat_hash_map<BlockHash, int32_t, HashOf> by_hash_;
  std::vector<int32_t> removal_stack_;  // Of Remove, kept for its capacity.
};

}  // namespace quire

#endif  // QUIRE_ENGINE_KV_CACHE_PREFIX_CACHE_H_
