#include "engine/parallel/sharding.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(ShardEvenlyTest, PartsCoverTheWholeInOrder) {
  for (const int64_t total : {0, 6, 60, 720}) {
    for (const int size : {1, 2, 3, 6}) {
      int64_t covered = 0;
      for (int rank = 0; rank < size; ++rank) {
        const auto range = ShardEvenly(total, {rank, size}, "rows");
        ASSERT_TRUE(range.ok()) << range.status();
        EXPECT_EQ(range->begin, covered);
        EXPECT_EQ(range->size(), total / size);
        covered = range->end;
      }
      EXPECT_EQ(covered, total);
    }
  }
}

TEST(ShardEvenlyTest, RemainderIsAnErrorThatNamesIt) {
  const auto range = ShardEvenly(7, {0, 2}, "intermediate_size");
  EXPECT_EQ(range.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(range.status().message()),
              testing::HasSubstr("intermediate_size 7"));
}

TEST(ShardEvenlyTest, InvalidSpecs) {
  EXPECT_FALSE(ShardEvenly(8, {0, 0}, "rows").ok());
  EXPECT_FALSE(ShardEvenly(8, {2, 2}, "rows").ok());
  EXPECT_FALSE(ShardEvenly(8, {-1, 2}, "rows").ok());
}

// Every query head is owned once, and its rank holds the KV head it reads:
// head h reads KV head h / (num_heads / num_kv_heads).
TEST(ShardHeadsTest, EveryHeadFindsItsKvHeadOnItsRank) {
  struct Case {
    int heads, kv_heads, size;
  };
  for (const Case& c : std::vector<Case>{{8, 8, 4},
                                         {8, 2, 2},
                                         {8, 2, 4},
                                         {8, 2, 8},
                                         {14, 2, 2},
                                         {12, 3, 6},
                                         {32, 1, 8}}) {
    std::vector<int> owners(c.heads, 0);
    for (int rank = 0; rank < c.size; ++rank) {
      const auto shard = ShardHeads(c.heads, c.kv_heads, {rank, c.size});
      ASSERT_TRUE(shard.ok()) << shard.status();
      EXPECT_EQ(shard->heads.size() % shard->kv_heads.size(), 0);
      const int64_t local_group = shard->heads.size() / shard->kv_heads.size();
      for (int64_t head = shard->heads.begin; head < shard->heads.end; ++head) {
        ++owners[head];
        const int64_t kv_head = head / (c.heads / c.kv_heads);
        EXPECT_EQ(kv_head, shard->kv_heads.begin +
                               (head - shard->heads.begin) / local_group)
            << c.heads << "/" << c.kv_heads << " rank " << rank;
      }
    }
    EXPECT_THAT(owners, testing::Each(1));
  }
}

TEST(ShardHeadsTest, ImpossibleSplits) {
  EXPECT_FALSE(ShardHeads(14, 2, {0, 4}).ok());  // 14 heads over 4 ranks.
  EXPECT_FALSE(ShardHeads(12, 3, {0, 2}).ok());  // 3 KV heads over 2 ranks.
  EXPECT_FALSE(ShardHeads(24, 3, {0, 4}).ok());  // 4 ranks, 3 KV heads.
}

}  // namespace
}  // namespace quire
