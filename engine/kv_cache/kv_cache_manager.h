// Gives sequences their blocks: all that the scheduler sees of the KV cache.
//
// Thread-compatible: used by the engine thread only. It counts and names
// blocks; the memory behind them belongs to the backend.
//
// Invariants, tested by CheckIntegrity (numbers as in engine/DESIGN.md):
//   I1. A block is free, referenced or evictable (see block_pool.h).
//   I2. ref_count of a block = number of block tables that contain it.
//   I3. Only full blocks are in the prefix cache, below entries that are there
//       too, and their content does not change while they are.
//   I4. Positions not yet computed lie in blocks of ref_count 1 which are not
//       cached: what is shared is never written.
//   I5. A table covers what its sequence has computed.
//   I6. Nothing at or after num_computed_tokens is in the prefix cache.
#ifndef QUIRE_ENGINE_KV_CACHE_KV_CACHE_MANAGER_H_
#define QUIRE_ENGINE_KV_CACHE_KV_CACHE_MANAGER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/kv_cache/block_pool.h"
#include "engine/kv_cache/prefix_cache.h"

namespace quire {

// What one sequence holds of the cache; changed by KvCacheManager only.
struct SequenceBlocks {
  std::vector<int32_t> block_table;
  // Hashes of the first full blocks of the sequence's tokens, as far as needed.
  // They outlive the blocks: tokens do not change.
  std::vector<BlockHash> hashes;
  // The first so many blocks are in the cache (perhaps as another block of
  // equal content); the last of those entries.
  int num_cached_blocks = 0;
  CacheEntryRef last_entry;
  int32_t owner_idx = 0;  // KvCacheManager::OwnerIdx: whose share they take.
};

// The longest cached prefix of some tokens; holds nothing. Valid until the
// manager is changed.
struct PrefixHit {
  std::vector<CacheEntryRef> entries;
  int num_tokens = 0;
  int num_evictable_blocks = 0;  // Of its blocks, those nobody references.
};

class KvCacheManager {
 public:
  // `seed` keys the prefix cache's hash. Requires: block_size in [1, 256].
  KvCacheManager(int num_blocks, int block_size, bool enable_prefix_caching,
                 uint64_t seed);

  int block_size() const { return block_size_; }
  int num_blocks() const { return pool_.num_blocks(); }
  int num_available_blocks() const { return pool_.num_available(); }
  int num_referenced_blocks() const { return pool_.num_referenced(); }
  int num_cached_blocks() const { return cache_.num_entries(); }
  bool IsReferenced(int32_t block_id) const {
    return pool_.ref_count(block_id) > 0;
  }
  bool enable_prefix_caching() const { return enable_prefix_caching_; }
  int NumBlocksFor(int num_tokens) const {
    return (num_tokens + block_size_ - 1) / block_size_;
  }

  // Of SequenceBlocks. Evictions leave each owner a share of the cache by its
  // weight, which is the last one said, if it uses it (BlockPool::NextToEvict).
  // Names are kept for good: they are the operator's (API keys). "" is 0.
  int32_t OwnerIdx(absl::string_view owner, int32_t weight = 1);

  // The longest cached prefix of token_ids under the namespace, in whole
  // blocks and shorter than token_ids: the last token is always computed, its
  // logits are needed. Empty without prefix caching. Fills blocks->hashes.
  PrefixHit Lookup(absl::Span<const int32_t> token_ids,
                   absl::string_view cache_namespace,
                   SequenceBlocks* blocks) const;

  // Makes blocks->block_table cover num_tokens positions: the hit's blocks by
  // reference, then new ones. False, and nothing is changed, if fewer than
  // num_reserved blocks would stay available. Requires: the table is empty.
  bool Allocate(const PrefixHit& hit, int num_tokens, int num_reserved,
                SequenceBlocks* blocks);

  // Lengthens the table to num_tokens positions. False, and nothing is changed,
  // if there are too few blocks.
  bool Append(int num_tokens, SequenceBlocks* blocks);

  // Gives `child` the blocks of its parent's first num_tokens - 1 positions,
  // and room for one more: full blocks by reference, a partial one as a copy
  // for the caller to have made (from, to) before the next step writes; none if
  // num_tokens - 1 ends a block. False as in Allocate. Requires: the parent's
  // table covers num_tokens >= 1; the child's is empty.
  bool Fork(const SequenceBlocks& parent, int num_tokens, int num_reserved,
            SequenceBlocks* child,
            std::optional<std::pair<int32_t, int32_t>>* copy);

  // Puts the full blocks of the first num_computed_tokens positions into the
  // prefix cache; call it when their contents are known to be good. Equal
  // content that is there already stays in its own block.
  void CacheFull(absl::Span<const int32_t> token_ids,
                 absl::string_view cache_namespace, int num_computed_tokens,
                 SequenceBlocks* blocks);

  // Drops the table. Cached blocks stay reusable; the last block is released
  // first, so that eviction shortens prefixes from their end.
  void Free(SequenceBlocks* blocks);

  // The contents are not to be trusted (logits were not finite): takes the
  // table's blocks and everything cached below them out of the prefix cache,
  // and keeps them out until they are allocated anew.
  void Distrust(const SequenceBlocks& blocks);

  // One live table, for CheckIntegrity.
  struct TableView {
    const SequenceBlocks* blocks = nullptr;
    absl::Span<const int32_t> token_ids;
    int num_computed_tokens = 0;   // Known to be computed.
    int num_submitted_tokens = 0;  // Computed, or by a step in flight.
  };
  // Tests I1 to I6 given all tables that hold blocks. INTERNAL naming the
  // invariant.
  absl::Status CheckIntegrity(absl::Span<const TableView> tables) const;

 private:
  // Requires: num_available_blocks() > 0.
  int32_t TakeBlock();
  void ExtendHashes(absl::Span<const int32_t> token_ids,
                    absl::string_view cache_namespace, int num_blocks,
                    SequenceBlocks* blocks) const;

  const int block_size_;
  const bool enable_prefix_caching_;
  BlockPool pool_;
  PrefixCache cache_;
  absl::flat_hash_map<std::string, int32_t> owner_idxs_;
  std::vector<char> is_distrusted_;  // [num_blocks]
};

}  // namespace quire

#endif  // QUIRE_ENGINE_KV_CACHE_KV_CACHE_MANAGER_H_
