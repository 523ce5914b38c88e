#include "engine/kv_cache/kv_cache_manager.h"

#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace quire {
namespace {

std::vector<int32_t> Tokens(int num_tokens, int first = 0) {
  std::vector<int32_t> ids(num_tokens);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

// Sequences and what they have computed, for the checks.
class KvCacheManagerTest : public testing::Test {
 protected:
  static constexpr int kBlockSize = 4;

  void MakeManager(int num_blocks, bool enable_prefix_caching = true) {
    manager_ = std::make_unique<KvCacheManager>(num_blocks, kBlockSize,
                                                enable_prefix_caching, 1);
  }
  // Allocates for the tokens and caches them as if all were computed.
  bool Compute(const std::vector<int32_t>& tokens, SequenceBlocks* blocks) {
    const PrefixHit hit = manager_->Lookup(tokens, "ns", blocks);
    if (!manager_->Allocate(hit, static_cast<int>(tokens.size()), 0, blocks)) {
      return false;
    }
    manager_->CacheFull(tokens, "ns", static_cast<int>(tokens.size()), blocks);
    return true;
  }
  int HitTokens(const std::vector<int32_t>& tokens,
                absl::string_view cache_namespace = "ns") {
    SequenceBlocks blocks;
    return manager_->Lookup(tokens, cache_namespace, &blocks).num_tokens;
  }
  void ExpectIntact(
      const std::vector<std::pair<const SequenceBlocks*,
                                  const std::vector<int32_t>*>>& tables) {
    std::vector<KvCacheManager::TableView> views;
    for (const auto& [blocks, tokens] : tables) {
      const int num_tokens = static_cast<int>(tokens->size());
      views.push_back({blocks, *tokens, num_tokens, num_tokens});
    }
    const absl::Status status = manager_->CheckIntegrity(views);
    EXPECT_TRUE(status.ok()) << status;
  }

  std::unique_ptr<KvCacheManager> manager_;
};

TEST_F(KvCacheManagerTest, HitIsWholeBlocksAndLeavesATokenToCompute) {
  MakeManager(16);
  SequenceBlocks blocks;
  const std::vector<int32_t> tokens = Tokens(12);
  ASSERT_TRUE(Compute(tokens, &blocks));
  EXPECT_EQ(HitTokens(tokens), 8);  // Not 12: the last token is computed.
  EXPECT_EQ(HitTokens(Tokens(13)), 12);
  EXPECT_EQ(HitTokens(Tokens(11)), 8);
  EXPECT_EQ(HitTokens(Tokens(9)), 8);
  EXPECT_EQ(HitTokens(Tokens(8)), 4);
  EXPECT_EQ(HitTokens(Tokens(4)), 0);
  EXPECT_EQ(HitTokens(Tokens(1)), 0);
  EXPECT_EQ(HitTokens(Tokens(13, 1)), 0);
  EXPECT_EQ(HitTokens(Tokens(13), "other"), 0);
  ExpectIntact({{&blocks, &tokens}});
}

TEST_F(KvCacheManagerTest, WithoutPrefixCachingNothingIsFound) {
  MakeManager(16, false);
  SequenceBlocks blocks;
  ASSERT_TRUE(Compute(Tokens(12), &blocks));
  EXPECT_EQ(HitTokens(Tokens(13)), 0);
  EXPECT_EQ(manager_->num_cached_blocks(), 0);
}

TEST_F(KvCacheManagerTest, SharedBlocksAreCountedOnce) {
  MakeManager(8);
  const std::vector<int32_t> tokens = Tokens(13);
  SequenceBlocks a;
  SequenceBlocks b;
  ASSERT_TRUE(Compute(tokens, &a));
  ASSERT_TRUE(Compute(tokens, &b));
  EXPECT_EQ(manager_->num_referenced_blocks(), 5);
  EXPECT_EQ(a.block_table[2], b.block_table[2]);
  EXPECT_NE(a.block_table[3], b.block_table[3]);
  ExpectIntact({{&a, &tokens}, {&b, &tokens}});
  manager_->Free(&a);
  EXPECT_EQ(manager_->num_referenced_blocks(), 4);
  ExpectIntact({{&b, &tokens}});
  manager_->Free(&b);
  EXPECT_EQ(manager_->num_available_blocks(), 8);
  EXPECT_EQ(HitTokens(tokens), 12);
}

TEST_F(KvCacheManagerTest, AllocateKeepsTheReserveAndChangesNothingOnFailure) {
  MakeManager(4);
  SequenceBlocks blocks;
  const PrefixHit no_hit;
  EXPECT_FALSE(manager_->Allocate(no_hit, 17, 0, &blocks));
  EXPECT_FALSE(manager_->Allocate(no_hit, 13, 1, &blocks));
  EXPECT_TRUE(blocks.block_table.empty());
  EXPECT_EQ(manager_->num_available_blocks(), 4);
  EXPECT_TRUE(manager_->Allocate(no_hit, 12, 1, &blocks));
  EXPECT_TRUE(manager_->Append(16, &blocks));
  EXPECT_FALSE(manager_->Append(17, &blocks));
  EXPECT_EQ(blocks.block_table.size(), 4);
}

TEST_F(KvCacheManagerTest, EvictableBlocksOfAHitAreNotCountedAsRoom) {
  MakeManager(4);
  const std::vector<int32_t> tokens = Tokens(12);
  SequenceBlocks blocks;
  ASSERT_TRUE(Compute(tokens, &blocks));
  manager_->Free(&blocks);
  // The three cached blocks are hit; 17 tokens need two more, one is free.
  const PrefixHit hit = manager_->Lookup(Tokens(17), "ns", &blocks);
  EXPECT_EQ(hit.num_tokens, 12);
  EXPECT_EQ(hit.num_evictable_blocks, 3);
  EXPECT_FALSE(manager_->Allocate(hit, 17, 0, &blocks));
  EXPECT_TRUE(manager_->Allocate(hit, 16, 0, &blocks));
}

TEST_F(KvCacheManagerTest, EvictsLeastRecentlyUsedAndChildrenBeforeParents) {
  MakeManager(6);
  SequenceBlocks old_blocks;
  SequenceBlocks new_blocks;
  ASSERT_TRUE(Compute(Tokens(12), &old_blocks));
  ASSERT_TRUE(Compute(Tokens(12, 100), &new_blocks));
  manager_->Free(&old_blocks);
  manager_->Free(&new_blocks);
  SequenceBlocks other;
  ASSERT_TRUE(manager_->Allocate({}, 4, 0, &other));
  // The end of the older prompt went first.
  EXPECT_EQ(HitTokens(Tokens(13)), 8);
  EXPECT_EQ(HitTokens(Tokens(13, 100)), 12);
  ASSERT_TRUE(manager_->Append(12, &other));
  EXPECT_EQ(HitTokens(Tokens(13)), 0);
  EXPECT_EQ(HitTokens(Tokens(13, 100)), 12);
}

TEST_F(KvCacheManagerTest, ForkSharesFullBlocksAndCopiesThePartialOne) {
  for (int num_tokens : {1, 4, 5, 6, 8, 9}) {
    MakeManager(16);
    const std::vector<int32_t> tokens = Tokens(num_tokens);
    SequenceBlocks parent;
    SequenceBlocks child;
    ASSERT_TRUE(Compute(tokens, &parent));
    std::optional<std::pair<int32_t, int32_t>> copy;
    ASSERT_TRUE(manager_->Fork(parent, num_tokens, 0, &child, &copy));
    // All but the last token is taken over.
    const int num_shared = (num_tokens - 1) / kBlockSize;
    ASSERT_EQ(child.block_table.size(), num_shared + 1);
    for (int i = 0; i < num_shared; ++i) {
      EXPECT_EQ(child.block_table[i], parent.block_table[i]);
    }
    EXPECT_EQ(copy.has_value(), (num_tokens - 1) % kBlockSize != 0);
    if (copy.has_value()) {
      EXPECT_EQ(copy->first, parent.block_table[num_shared]);
      EXPECT_EQ(copy->second, child.block_table[num_shared]);
    }
    const std::vector<int32_t> computed = Tokens(num_tokens - 1);
    ExpectIntact({{&parent, &tokens}, {&child, &computed}});
    manager_->Free(&parent);
    manager_->Free(&child);
    EXPECT_EQ(manager_->num_available_blocks(), 16);
  }
}

TEST_F(KvCacheManagerTest, ForkKeepsTheReserve) {
  MakeManager(3);
  SequenceBlocks parent;
  SequenceBlocks child;
  ASSERT_TRUE(Compute(Tokens(8), &parent));
  std::optional<std::pair<int32_t, int32_t>> copy;
  EXPECT_FALSE(manager_->Fork(parent, 8, 1, &child, &copy));
  EXPECT_TRUE(child.block_table.empty());
  EXPECT_TRUE(manager_->Fork(parent, 8, 0, &child, &copy));
}

TEST_F(KvCacheManagerTest, ChainIsRestoredWithOwnBlocksAfterEviction) {
  MakeManager(5);
  const std::vector<int32_t> tokens = Tokens(12);
  SequenceBlocks a;
  SequenceBlocks b;
  // b computes the same first block beside a, so only a's is cached.
  ASSERT_TRUE(manager_->Allocate({}, 4, 0, &a));
  ASSERT_TRUE(manager_->Allocate({}, 12, 0, &b));
  manager_->CacheFull(tokens, "ns", 4, &a);
  manager_->CacheFull(tokens, "ns", 8, &b);
  EXPECT_EQ(manager_->num_cached_blocks(), 2);
  manager_->Free(&a);
  // a's block is evicted; what b had cached below it goes too.
  SequenceBlocks other;
  ASSERT_TRUE(manager_->Allocate({}, 8, 0, &other));
  EXPECT_EQ(manager_->num_cached_blocks(), 0);
  manager_->CacheFull(tokens, "ns", 12, &b);
  EXPECT_EQ(manager_->num_cached_blocks(), 3);
  EXPECT_EQ(HitTokens(Tokens(13)), 12);
  const std::vector<int32_t> nothing;
  ExpectIntact({{&b, &tokens}, {&other, &nothing}});
}

TEST_F(KvCacheManagerTest, DistrustedBlocksAreNotFoundNorCachedAgain) {
  MakeManager(16);
  const std::vector<int32_t> tokens = Tokens(12);
  SequenceBlocks bad;
  SequenceBlocks sharer;
  ASSERT_TRUE(Compute(tokens, &bad));
  const std::vector<int32_t> longer = Tokens(20);
  ASSERT_TRUE(Compute(longer, &sharer));
  EXPECT_EQ(HitTokens(Tokens(21)), 20);
  manager_->Distrust(bad);
  EXPECT_EQ(HitTokens(Tokens(21)), 0);
  manager_->Free(&bad);
  // Who shares them goes on, but what it computed is not to be trusted either.
  manager_->CacheFull(longer, "ns", 20, &sharer);
  EXPECT_EQ(manager_->num_cached_blocks(), 0);
  manager_->Free(&sharer);
  // Written anew, the same blocks are good.
  SequenceBlocks good;
  ASSERT_TRUE(Compute(Tokens(64), &good));
  EXPECT_EQ(HitTokens(Tokens(13)), 12);
}

// A fault may have begun in a block that is not cached itself because an equal
// one is: no block of that sequence may take the equal one's place later.
TEST_F(KvCacheManagerTest, SequenceWithADistrustedBlockCachesNothing) {
  MakeManager(16);
  const std::vector<int32_t> tokens = Tokens(12);
  SequenceBlocks clean;
  SequenceBlocks bad;
  ASSERT_TRUE(manager_->Allocate({}, 4, 0, &clean));
  ASSERT_TRUE(manager_->Allocate({}, 12, 0, &bad));
  manager_->CacheFull(tokens, "ns", 4, &clean);
  manager_->CacheFull(tokens, "ns", 8, &bad);  // Its first block is a double.
  SequenceBlocks victim;
  const PrefixHit hit = manager_->Lookup(tokens, "ns", &victim);
  ASSERT_EQ(hit.num_tokens, 8);
  ASSERT_TRUE(manager_->Allocate(hit, 12, 0, &victim));
  manager_->Distrust(victim);
  manager_->CacheFull(tokens, "ns", 12, &bad);
  EXPECT_EQ(manager_->num_cached_blocks(), 0);
}

TEST_F(KvCacheManagerTest, ChecksNameTheInvariant) {
  MakeManager(8);
  const std::vector<int32_t> tokens = Tokens(8);
  SequenceBlocks a;
  ASSERT_TRUE(Compute(tokens, &a));
  const auto check = [this](const SequenceBlocks& blocks,
                            const std::vector<int32_t>& ids, int num_computed,
                            int num_submitted) {
    const KvCacheManager::TableView view{&blocks, ids, num_computed,
                                         num_submitted};
    return std::string(manager_->CheckIntegrity({view}).message());
  };
  EXPECT_EQ(check(a, tokens, 8, 8), "");
  EXPECT_EQ(manager_->CheckIntegrity({}).message().substr(0, 2), "I2");
  EXPECT_EQ(check(a, Tokens(8, 1), 8, 8).substr(0, 2), "I3");
  EXPECT_EQ(check(a, tokens, 8, 9).substr(0, 2), "I5");
  EXPECT_EQ(check(a, tokens, 7, 8).substr(0, 2), "I6");
  // Two tables, and a block that both may write.
  SequenceBlocks b;
  std::optional<std::pair<int32_t, int32_t>> copy;
  MakeManager(8, false);
  SequenceBlocks c;
  ASSERT_TRUE(Compute(tokens, &c));
  ASSERT_TRUE(manager_->Fork(c, 8, 0, &b, &copy));
  const absl::Status status =
      manager_->CheckIntegrity({{&c, tokens, 3, 8}, {&b, tokens, 7, 8}});
  EXPECT_EQ(status.message().substr(0, 2), "I4") << status;
}

}  // namespace
}  // namespace quire
