#include "engine/kv_cache/kv_cache_manager.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/planted_bug.h"
#include "engine/base/status.h"

namespace quire {

KvCacheManager::KvCacheManager(int num_blocks, int block_size,
                               bool enable_prefix_caching, uint64_t seed)
    : block_size_(block_size),
      enable_prefix_caching_(enable_prefix_caching),
      pool_(num_blocks),
      cache_(&pool_, block_size, seed),
      owner_idxs_({{"", 0}}),
      is_distrusted_(num_blocks, 0) {}

int32_t KvCacheManager::OwnerIdx(absl::string_view owner, int32_t weight) {
  auto found = owner_idxs_.find(owner);
  if (found == owner_idxs_.end()) {
    found = owner_idxs_.emplace(owner, pool_.AddOwner()).first;
  }
  pool_.SetWeight(found->second, weight);
  return found->second;
}

int32_t KvCacheManager::TakeBlock() {
  if (pool_.num_free() == 0) {
    const int32_t oldest = pool_.NextToEvict();
    QUIRE_CHECK(oldest != kNoBlock);
    cache_.Remove(oldest);
  }
  const int32_t block_id = pool_.TakeFree();
  is_distrusted_[block_id] = 0;
  return block_id;
}

void KvCacheManager::ExtendHashes(absl::Span<const int32_t> token_ids,
                                  absl::string_view cache_namespace,
                                  int num_blocks,
                                  SequenceBlocks* blocks) const {
  int block_idx = static_cast<int>(blocks->hashes.size());
  if (block_idx >= num_blocks) return;
  BlockHash parent =
      block_idx == 0 ? cache_.RootHash(cache_namespace) : blocks->hashes.back();
  for (; block_idx < num_blocks; ++block_idx) {
    parent = cache_.ChildHash(
        parent, token_ids.subspan(block_idx * block_size_, block_size_));
    blocks->hashes.push_back(parent);
  }
}

PrefixHit KvCacheManager::Lookup(absl::Span<const int32_t> token_ids,
                                 absl::string_view cache_namespace,
                                 SequenceBlocks* blocks) const {
  PrefixHit hit;
  if (!enable_prefix_caching_ || token_ids.empty()) return hit;
  const int num_needed = HasPlantedBug(PlantedBug::kHitAllPromptTokens) ? 0 : 1;
  const int max_blocks =
      static_cast<int>(token_ids.size() - num_needed) / block_size_;
  ExtendHashes(token_ids, cache_namespace, max_blocks, blocks);
  CacheEntryRef parent;
  for (int i = 0; i < max_blocks; ++i) {
    const CacheEntryRef entry = cache_.Find(
        parent, blocks->hashes[i],
        token_ids.subspan(i * block_size_, block_size_), cache_namespace);
    if (entry.is_root()) break;
    hit.entries.push_back(entry);
    if (pool_.ref_count(entry.block_id) == 0 &&
        !HasPlantedBug(PlantedBug::kEvictableHitsNotCounted)) {
      ++hit.num_evictable_blocks;
    }
    parent = entry;
  }
  hit.num_tokens = static_cast<int>(hit.entries.size()) * block_size_;
  if (HasPlantedBug(PlantedBug::kComputedOffByOne) && hit.num_tokens > 0 &&
      hit.num_tokens + 1 < static_cast<int>(token_ids.size())) {
    ++hit.num_tokens;
  }
  return hit;
}

bool KvCacheManager::Allocate(const PrefixHit& hit, int num_tokens,
                              int num_reserved, SequenceBlocks* blocks) {
  QUIRE_CHECK(blocks->block_table.empty());
  const int num_blocks = NumBlocksFor(num_tokens);
  const int num_hits = static_cast<int>(hit.entries.size());
  QUIRE_CHECK(num_hits <= num_blocks);
  if (HasPlantedBug(PlantedBug::kReserveTooLarge)) ++num_reserved;
  const int num_taken = num_blocks - num_hits + hit.num_evictable_blocks;
  if (num_taken + num_reserved > pool_.num_available()) return false;
  blocks->block_table.reserve(num_blocks);
  if (HasPlantedBug(PlantedBug::kHitsNotReferenced)) {
    for (int i = num_hits; i < num_blocks; ++i) {
      blocks->block_table.push_back(TakeBlock());
    }
  }
  // All references first: taking a block may evict what nobody references.
  for (const CacheEntryRef& entry : hit.entries) {
    pool_.AddRef(entry.block_id);
    blocks->block_table.push_back(entry.block_id);
  }
  while (static_cast<int>(blocks->block_table.size()) < num_blocks) {
    blocks->block_table.push_back(TakeBlock());
  }
  blocks->num_cached_blocks = num_hits;
  blocks->last_entry = num_hits > 0 ? hit.entries.back() : CacheEntryRef();
  return true;
}

bool KvCacheManager::Append(int num_tokens, SequenceBlocks* blocks) {
  if (HasPlantedBug(PlantedBug::kAppendOffByOne)) --num_tokens;
  const int num_new =
      NumBlocksFor(num_tokens) - static_cast<int>(blocks->block_table.size());
  if (num_new > pool_.num_available()) return false;
  for (int i = 0; i < num_new; ++i) blocks->block_table.push_back(TakeBlock());
  return true;
}

bool KvCacheManager::Fork(const SequenceBlocks& parent, int num_tokens,
                          int num_reserved, SequenceBlocks* child,
                          std::optional<std::pair<int32_t, int32_t>>* copy) {
  QUIRE_CHECK(child->block_table.empty());
  const int num_shared = (num_tokens - 1) / block_size_;
  QUIRE_CHECK(num_shared < static_cast<int>(parent.block_table.size()));
  copy->reset();
  if (1 + num_reserved > pool_.num_available()) return false;
  child->block_table.reserve(num_shared + 1);
  for (int i = 0; i < num_shared; ++i) {
    pool_.AddRef(parent.block_table[i]);
    child->block_table.push_back(parent.block_table[i]);
  }
  if (HasPlantedBug(PlantedBug::kPartialBlockShared)) {
    pool_.AddRef(parent.block_table[num_shared]);
    child->block_table.push_back(parent.block_table[num_shared]);
    return true;
  }
  child->block_table.push_back(TakeBlock());
  // The same tokens have the same hashes.
  if (static_cast<int>(child->hashes.size()) < num_shared) {
    const int num_hashes =
        std::min(num_shared, static_cast<int>(parent.hashes.size()));
    child->hashes.assign(parent.hashes.begin(),
                         parent.hashes.begin() + num_hashes);
  }
  // Its place in the cache is found by CacheFull, from its first block.
  child->num_cached_blocks = 0;
  child->last_entry = CacheEntryRef();
  if ((num_tokens - 1) % block_size_ != 0 &&
      !HasPlantedBug(PlantedBug::kCopyForgotten)) {
    copy->emplace(parent.block_table[num_shared], child->block_table.back());
  }
  return true;
}

void KvCacheManager::CacheFull(absl::Span<const int32_t> token_ids,
                               absl::string_view cache_namespace,
                               int num_computed_tokens,
                               SequenceBlocks* blocks) {
  if (!enable_prefix_caching_) return;
  if (HasPlantedBug(PlantedBug::kPartialBlockCached)) ++num_computed_tokens;
  if (HasPlantedBug(PlantedBug::kUncollectedBlockCached)) {
    num_computed_tokens = static_cast<int>(token_ids.size());
  }
  const int num_full = num_computed_tokens / block_size_;
  if (blocks->num_cached_blocks >= num_full) return;
  ExtendHashes(token_ids, cache_namespace, num_full, blocks);
  if (!cache_.IsCurrent(blocks->last_entry)) {
    // The entry was another sequence's block and is gone. Our own blocks may
    // take the places in the chain, unless one of them is distrusted: then all
    // are, for the fault may have begun in a block that only we hold, while an
    // equal one of another sequence was in the cache.
    for (int32_t block_id : blocks->block_table) {
      if (is_distrusted_[block_id]) return;
    }
    blocks->num_cached_blocks = 0;
    blocks->last_entry = CacheEntryRef();
  }
  for (int i = blocks->num_cached_blocks; i < num_full; ++i) {
    const int32_t block_id = blocks->block_table[i];
    if (is_distrusted_[block_id]) return;
    const CacheEntryRef entry =
        cache_.FindOrInsert(blocks->last_entry, blocks->hashes[i],
                            token_ids.subspan(i * block_size_, block_size_),
                            cache_namespace, block_id, blocks->owner_idx);
    if (entry.is_root()) return;
    blocks->last_entry = entry;
    blocks->num_cached_blocks = i + 1;
  }
}

void KvCacheManager::Free(SequenceBlocks* blocks) {
  for (auto it = blocks->block_table.rbegin(); it != blocks->block_table.rend();
       ++it) {
    if (HasPlantedBug(PlantedBug::kMissingDecref) &&
        it == blocks->block_table.rbegin()) {
      continue;
    }
    pool_.Release(*it);
  }
  if (HasPlantedBug(PlantedBug::kDoubleRelease) &&
      !blocks->block_table.empty()) {
    pool_.Release(blocks->block_table[0]);
  }
  blocks->block_table.clear();
  blocks->num_cached_blocks = 0;
  blocks->last_entry = CacheEntryRef();
}

void KvCacheManager::Distrust(const SequenceBlocks& blocks) {
  if (HasPlantedBug(PlantedBug::kDistrustForgotten)) return;
  for (int32_t block_id : blocks.block_table) {
    cache_.Remove(block_id);
    is_distrusted_[block_id] = 1;
  }
}

absl::Status KvCacheManager::CheckIntegrity(
    absl::Span<const TableView> tables) const {
  QUIRE_RETURN_IF_ERROR(pool_.CheckIntegrity());
  QUIRE_RETURN_IF_ERROR(cache_.CheckIntegrity());
  std::vector<int> num_owners(pool_.num_blocks(), 0);
  for (const TableView& table : tables) {
    for (int32_t id : table.blocks->block_table) ++num_owners[id];
  }
  for (int32_t id = 0; id < pool_.num_blocks(); ++id) {
    if (num_owners[id] != pool_.ref_count(id)) {
      return absl::InternalError(absl::StrCat(
          "I2: block ", id, " is in ", num_owners[id],
          " block tables, its ref_count is ", pool_.ref_count(id)));
    }
  }
  for (const TableView& table : tables) {
    const SequenceBlocks& blocks = *table.blocks;
    const int num_blocks = static_cast<int>(blocks.block_table.size());
    if (NumBlocksFor(table.num_submitted_tokens) > num_blocks ||
        table.num_computed_tokens > table.num_submitted_tokens) {
      return absl::InternalError(absl::StrCat(
          "I5: ", table.num_computed_tokens, " tokens computed, ",
          table.num_submitted_tokens, " submitted, ", num_blocks, " blocks"));
    }
    for (int i = 0; i < num_blocks; ++i) {
      const int32_t id = blocks.block_table[i];
      if (!pool_.is_cached(id)) {
        // Positions from num_computed_tokens on are or will be written.
        if ((i + 1) * block_size_ > table.num_computed_tokens &&
            pool_.ref_count(id) != 1) {
          return absl::InternalError(absl::StrCat(
              "I4: block ", id, " at index ", i,
              " is to be written and has ref_count ", pool_.ref_count(id)));
        }
        continue;
      }
      if ((i + 1) * block_size_ > table.num_computed_tokens) {
        return absl::InternalError(absl::StrCat(
            "I6: cached block ", id, " at index ", i, " reaches beyond the ",
            table.num_computed_tokens, " computed tokens"));
      }
      if (i >= static_cast<int>(blocks.hashes.size()) ||
          !cache_.HasContent(
              id, blocks.hashes[i],
              table.token_ids.subspan(i * block_size_, block_size_))) {
        return absl::InternalError(
            absl::StrCat("I3: cached block ", id, " at index ", i,
                         " does not hold the tokens of its sequence"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace quire
