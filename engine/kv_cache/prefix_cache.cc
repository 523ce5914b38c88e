#include "engine/kv_cache/prefix_cache.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/planted_bug.h"
#include "engine/base/status.h"

namespace quire {

PrefixCache::PrefixCache(BlockPool* pool, int block_size, uint64_t seed)
    : pool_(pool),
      block_size_(block_size),
      seed_(seed),
      entries_(pool->num_blocks()),
      tokens_(static_cast<size_t>(pool->num_blocks()) * block_size) {
  by_hash_.reserve(pool->num_blocks());
}

BlockHash PrefixCache::RootHash(absl::string_view cache_namespace) const {
  if (HasPlantedBug(PlantedBug::kNamespaceIgnored)) cache_namespace = "";
  const XXH128_hash_t hash = XXH3_128bits_withSeed(
      cache_namespace.data(), cache_namespace.size(), seed_);
  return {hash.low64, hash.high64};
}

BlockHash PrefixCache::ChildHash(const BlockHash& parent,
                                 absl::Span<const int32_t> token_ids) const {
  // One contiguous input: parent's 16 bytes, then the ids. 256 ids fit the
  // largest block that ValidateEngineOptions allows.
  char input[16 + 256 * sizeof(int32_t)];
  QUIRE_CHECK(token_ids.size() <= 256);
  std::memcpy(input, &parent.low, 8);
  std::memcpy(input + 8, &parent.high, 8);
  const size_t num_id_bytes = token_ids.size() * sizeof(int32_t);
  std::memcpy(input + 16, token_ids.data(), num_id_bytes);
  const XXH128_hash_t hash =
      XXH3_128bits_withSeed(input, 16 + num_id_bytes, seed_);
  return {hash.low64, hash.high64};
}

bool PrefixCache::IsCurrent(const CacheEntryRef& entry) const {
  if (HasPlantedBug(PlantedBug::kStaleEntryUsed)) {
    return entry.is_root() || entries_[entry.block_id].entry_id != 0;
  }
  return entry.is_root() || entries_[entry.block_id].entry_id == entry.entry_id;
}

bool PrefixCache::Matches(int32_t block_id, const CacheEntryRef& parent,
                          absl::Span<const int32_t> token_ids,
                          absl::string_view cache_namespace) const {
  const Entry& entry = entries_[block_id];
  if (entry.parent != parent.block_id) return false;
  if (entry.parent == kNoBlock && entry.cache_namespace != cache_namespace &&
      !HasPlantedBug(PlantedBug::kNamespaceIgnored)) {
    return false;
  }
  return TokensOf(block_id) == token_ids;
}

CacheEntryRef PrefixCache::Find(const CacheEntryRef& parent,
                                const BlockHash& hash,
                                absl::Span<const int32_t> token_ids,
                                absl::string_view cache_namespace) const {
  const auto it = by_hash_.find(hash);
  if (it == by_hash_.end()) return {};
  if (!Matches(it->second, parent, token_ids, cache_namespace)) return {};
  return {it->second, entries_[it->second].entry_id};
}

CacheEntryRef PrefixCache::FindOrInsert(const CacheEntryRef& parent,
                                        const BlockHash& hash,
                                        absl::Span<const int32_t> token_ids,
                                        absl::string_view cache_namespace,
                                        int32_t block_id, int32_t owner_idx) {
  const auto [it, inserted] = by_hash_.try_emplace(hash, block_id);
  if (!inserted) {
    if (!Matches(it->second, parent, token_ids, cache_namespace)) return {};
    return {it->second, entries_[it->second].entry_id};
  }
  Entry& entry = entries_[block_id];
  QUIRE_CHECK(entry.entry_id == 0);
  entry.entry_id = next_entry_id_++;
  entry.hash = hash;
  entry.parent = parent.block_id;
  entry.first_child = kNoBlock;
  entry.prev_sibling = kNoBlock;
  entry.next_sibling = kNoBlock;
  if (parent.is_root()) {
    entry.cache_namespace = std::string(cache_namespace);
  } else {
    Entry& above = entries_[parent.block_id];
    entry.next_sibling = above.first_child;
    if (above.first_child != kNoBlock) {
      entries_[above.first_child].prev_sibling = block_id;
    }
    above.first_child = block_id;
  }
  std::copy(token_ids.begin(), token_ids.end(),
            tokens_.begin() + static_cast<size_t>(block_id) * block_size_);
  pool_->SetCached(block_id, true, owner_idx);
  return {block_id, entry.entry_id};
}

void PrefixCache::Remove(int32_t block_id) {
  if (entries_[block_id].entry_id == 0) return;
  // Only the top one has to leave its siblings: the lists below go as a whole.
  Entry& top = entries_[block_id];
  if (top.parent != kNoBlock) {
    if (top.prev_sibling != kNoBlock) {
      entries_[top.prev_sibling].next_sibling = top.next_sibling;
    } else {
      entries_[top.parent].first_child = top.next_sibling;
    }
    if (top.next_sibling != kNoBlock) {
      entries_[top.next_sibling].prev_sibling = top.prev_sibling;
    }
  }
  removal_stack_.assign(1, block_id);
  while (!removal_stack_.empty()) {
    const int32_t id = removal_stack_.back();
    removal_stack_.pop_back();
    Entry& entry = entries_[id];
    for (int32_t child = entry.first_child; child != kNoBlock;
         child = entries_[child].next_sibling) {
      if (HasPlantedBug(PlantedBug::kChildrenNotEvicted)) break;
      removal_stack_.push_back(child);
    }
    if (!HasPlantedBug(PlantedBug::kHashNotErased)) by_hash_.erase(entry.hash);
    entry.entry_id = 0;
    entry.first_child = kNoBlock;
    entry.cache_namespace.clear();
    pool_->SetCached(id, false);
  }
}

absl::Status PrefixCache::CheckIntegrity() const {
  int num_entries = 0;
  for (int32_t id = 0; id < pool_->num_blocks(); ++id) {
    const Entry& entry = entries_[id];
    if ((entry.entry_id != 0) != pool_->is_cached(id)) {
      return absl::InternalError(absl::StrCat(
          "I3: block ", id, " has entry ", entry.entry_id,
          " but the pool's cached flag is ", pool_->is_cached(id)));
    }
    if (entry.entry_id == 0) continue;
    ++num_entries;
    const auto it = by_hash_.find(entry.hash);
    if (it == by_hash_.end() || it->second != id) {
      return absl::InternalError(
          absl::StrCat("I3: block ", id, " is not found by its hash"));
    }
    BlockHash parent_hash = RootHash(entry.cache_namespace);
    if (entry.parent != kNoBlock) {
      const Entry& parent = entries_[entry.parent];
      if (parent.entry_id == 0) {
        return absl::InternalError(
            absl::StrCat("I3: block ", id, " is cached below block ",
                         entry.parent, ", which is not"));
      }
      parent_hash = parent.hash;
    }
    if (!(ChildHash(parent_hash, TokensOf(id)) == entry.hash)) {
      return absl::InternalError(absl::StrCat(
          "I3: the content of cached block ", id, " does not have its hash"));
    }
  }
  if (num_entries != static_cast<int>(by_hash_.size())) {
    return absl::InternalError(absl::StrCat("I3: ", num_entries, " entries, ",
                                            by_hash_.size(), " hashes"));
  }
  return absl::OkStatus();
}

}  // namespace quire
