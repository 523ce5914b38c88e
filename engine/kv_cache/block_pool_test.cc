#include "engine/kv_cache/block_pool.h"

#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(BlockPoolTest, StartsWithEveryBlockFree) {
  for (int num_blocks : {0, 1, 7}) {
    const BlockPool pool(num_blocks);
    EXPECT_EQ(pool.num_free(), num_blocks);
    EXPECT_EQ(pool.num_referenced(), 0);
    EXPECT_EQ(pool.NextToEvict(), kNoBlock);
    EXPECT_TRUE(pool.CheckIntegrity().ok());
  }
}

TEST(BlockPoolTest, TakesTheBlockFreedLast) {
  BlockPool pool(4);
  const int32_t first = pool.TakeFree();
  const int32_t second = pool.TakeFree();
  EXPECT_NE(first, second);
  pool.Release(first);
  EXPECT_EQ(pool.TakeFree(), first);
  EXPECT_EQ(pool.num_referenced(), 2);
}

TEST(BlockPoolTest, BlockIsFreeOnlyWithoutReferences) {
  BlockPool pool(2);
  const int32_t id = pool.TakeFree();
  pool.AddRef(id);
  pool.Release(id);
  EXPECT_EQ(pool.ref_count(id), 1);
  EXPECT_EQ(pool.num_free(), 1);
  pool.Release(id);
  EXPECT_EQ(pool.num_free(), 2);
}

TEST(BlockPoolTest, CachedBlocksAreEvictedOldestFirst) {
  BlockPool pool(3);
  const int32_t a = pool.TakeFree();
  const int32_t b = pool.TakeFree();
  const int32_t c = pool.TakeFree();
  for (int32_t id : {a, b, c}) pool.SetCached(id, true);
  for (int32_t id : {b, a, c}) pool.Release(id);
  EXPECT_EQ(pool.num_evictable(), 3);
  EXPECT_EQ(pool.num_available(), 3);
  EXPECT_EQ(pool.NextToEvict(), b);
  // Used again, it is no longer the oldest.
  pool.AddRef(b);
  EXPECT_EQ(pool.NextToEvict(), a);
  pool.Release(b);
  pool.SetCached(a, false);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.NextToEvict(), c);
  EXPECT_TRUE(pool.CheckIntegrity().ok()) << pool.CheckIntegrity();
}

TEST(BlockPoolTest, UncachedWhileReferencedIsFreedWithTheLastReference) {
  BlockPool pool(1);
  const int32_t id = pool.TakeFree();
  pool.SetCached(id, true);
  pool.SetCached(id, false);
  EXPECT_EQ(pool.num_referenced(), 1);
  pool.Release(id);
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(BlockPoolDeathTest, RefusesReferencesToFreeBlocks) {
  BlockPool pool(1);
  EXPECT_DEATH(pool.AddRef(0), "check failed");
  EXPECT_DEATH(pool.Release(0), "check failed");
  pool.TakeFree();
  EXPECT_DEATH(pool.TakeFree(), "check failed");
}

// Against a model that keeps a count and a flag per block.
TEST(BlockPoolTest, RandomOperationsKeepEveryBlockAccountedFor) {
  SimulationRandom random(7);
  constexpr int kNumBlocks = 13;
  BlockPool pool(kNumBlocks);
  std::vector<int> refs(kNumBlocks, 0);
  std::vector<bool> cached(kNumBlocks, false);
  for (int i = 0; i < 20000; ++i) {
    const int32_t id = static_cast<int32_t>(random.Below(kNumBlocks));
    const bool is_free = refs[id] == 0 && !cached[id];
    switch (random.Below(4)) {
      case 0:
        if (pool.num_free() > 0) ++refs[pool.TakeFree()];
        break;
      case 1:
        if (is_free) break;
        pool.AddRef(id);
        ++refs[id];
        break;
      case 2:
        if (refs[id] == 0) break;
        pool.Release(id);
        --refs[id];
        break;
      default:
        if (is_free || (refs[id] == 0 && !cached[id])) break;
        cached[id] = !cached[id];
        pool.SetCached(id, cached[id]);
    }
    int num_free = 0;
    int num_evictable = 0;
    for (int k = 0; k < kNumBlocks; ++k) {
      num_free += refs[k] == 0 && !cached[k];
      num_evictable += refs[k] == 0 && cached[k];
      ASSERT_EQ(pool.ref_count(k), refs[k]);
    }
    ASSERT_EQ(pool.num_free(), num_free);
    ASSERT_EQ(pool.num_evictable(), num_evictable);
    const absl::Status status = pool.CheckIntegrity();
    ASSERT_TRUE(status.ok()) << status;
  }
}

}  // namespace
}  // namespace quire
