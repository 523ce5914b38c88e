#include "engine/kv_cache/prefix_cache.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace quire {
namespace {

using Ids = std::vector<int32_t>;

class PrefixCacheTest : public testing::Test {
 protected:
  PrefixCacheTest() : pool_(8), cache_(&pool_, 2, 42) {}

  // Caches a new block below `parent`; the block stays referenced.
  CacheEntryRef Insert(const CacheEntryRef& parent,
                       const BlockHash& parent_hash, const Ids& ids,
                       const std::string& ns = "a") {
    return cache_.FindOrInsert(parent, cache_.ChildHash(parent_hash, ids), ids,
                               ns, pool_.TakeFree());
  }
  void ExpectIntact() {
    EXPECT_TRUE(pool_.CheckIntegrity().ok()) << pool_.CheckIntegrity();
    EXPECT_TRUE(cache_.CheckIntegrity().ok()) << cache_.CheckIntegrity();
  }

  BlockPool pool_;
  PrefixCache cache_;
};

TEST_F(PrefixCacheTest, FindsWhatWasInserted) {
  const BlockHash root = cache_.RootHash("a");
  const CacheEntryRef first = Insert({}, root, {1, 2});
  const BlockHash first_hash = cache_.ChildHash(root, Ids{1, 2});
  const CacheEntryRef second = Insert(first, first_hash, {3, 4});
  EXPECT_EQ(cache_.Find({}, first_hash, Ids{1, 2}, "a").block_id,
            first.block_id);
  EXPECT_EQ(
      cache_
          .Find(first, cache_.ChildHash(first_hash, Ids{3, 4}), Ids{3, 4}, "a")
          .block_id,
      second.block_id);
  EXPECT_TRUE(cache_.Find({}, cache_.ChildHash(root, Ids{1, 3}), Ids{1, 3}, "a")
                  .is_root());
  ExpectIntact();
}

TEST_F(PrefixCacheTest, NamespacesShareNothing) {
  Insert({}, cache_.RootHash("a"), {1, 2}, "a");
  const BlockHash other = cache_.ChildHash(cache_.RootHash("b"), Ids{1, 2});
  EXPECT_TRUE(cache_.Find({}, other, Ids{1, 2}, "b").is_root());
  // Not even if the hashes collide.
  const BlockHash same = cache_.ChildHash(cache_.RootHash("a"), Ids{1, 2});
  EXPECT_TRUE(cache_.Find({}, same, Ids{1, 2}, "b").is_root());
}

TEST_F(PrefixCacheTest, CollisionIsAMissAndIsNotCached) {
  const BlockHash hash = cache_.ChildHash(cache_.RootHash("a"), Ids{1, 2});
  const int32_t block = pool_.TakeFree();
  cache_.FindOrInsert({}, hash, Ids{1, 2}, "a", block);
  const int32_t other = pool_.TakeFree();
  EXPECT_TRUE(cache_.Find({}, hash, Ids{5, 6}, "a").is_root());
  EXPECT_TRUE(cache_.FindOrInsert({}, hash, Ids{5, 6}, "a", other).is_root());
  EXPECT_FALSE(pool_.is_cached(other));
  ExpectIntact();
}

TEST_F(PrefixCacheTest, EqualContentStaysInTheFirstBlock) {
  const BlockHash root = cache_.RootHash("a");
  const CacheEntryRef first = Insert({}, root, {1, 2});
  const CacheEntryRef again = Insert({}, root, {1, 2});
  EXPECT_EQ(again.block_id, first.block_id);
  EXPECT_EQ(cache_.num_entries(), 1);
  ExpectIntact();
}

TEST_F(PrefixCacheTest, RemovingABlockRemovesWhatHangsBelow) {
  const BlockHash root = cache_.RootHash("a");
  const BlockHash h1 = cache_.ChildHash(root, Ids{1, 2});
  const BlockHash h2 = cache_.ChildHash(h1, Ids{3, 4});
  const CacheEntryRef top = Insert({}, root, {1, 2});
  const CacheEntryRef left = Insert(top, h1, {3, 4});
  const CacheEntryRef right = Insert(top, h1, {5, 6});
  const CacheEntryRef leaf = Insert(left, h2, {7, 8});
  const CacheEntryRef other = Insert({}, root, {9, 9});
  pool_.Release(leaf.block_id);  // Evictable: it becomes free.
  cache_.Remove(left.block_id);
  EXPECT_FALSE(cache_.IsCurrent(left));
  EXPECT_FALSE(cache_.IsCurrent(leaf));
  EXPECT_TRUE(cache_.IsCurrent(right));
  EXPECT_EQ(cache_.num_entries(), 3);
  ExpectIntact();
  cache_.Remove(top.block_id);
  EXPECT_FALSE(cache_.IsCurrent(right));
  EXPECT_TRUE(cache_.IsCurrent(other));
  EXPECT_EQ(cache_.num_entries(), 1);
  ExpectIntact();
}

TEST_F(PrefixCacheTest, EntryOfAReusedBlockIsAnotherOne) {
  const BlockHash root = cache_.RootHash("a");
  const CacheEntryRef first = Insert({}, root, {1, 2});
  cache_.Remove(first.block_id);
  const CacheEntryRef second = cache_.FindOrInsert(
      {}, cache_.ChildHash(root, Ids{3, 4}), Ids{3, 4}, "a", first.block_id);
  EXPECT_EQ(second.block_id, first.block_id);
  EXPECT_FALSE(cache_.IsCurrent(first));
  EXPECT_TRUE(cache_.IsCurrent(second));
}

TEST_F(PrefixCacheTest, SeedChangesEveryHash) {
  BlockPool pool(1);
  const PrefixCache other(&pool, 2, 43);
  EXPECT_FALSE(other.RootHash("a") == cache_.RootHash("a"));
  EXPECT_FALSE(other.ChildHash({}, Ids{1, 2}) ==
               cache_.ChildHash({}, Ids{1, 2}));
}

}  // namespace
}  // namespace quire
