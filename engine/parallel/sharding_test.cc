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

// The segments of all ranks, side by side, are those of one rank.
TEST(ColumnSegmentsTest, RanksShareTheSegmentsOfOne) {
  for (const int64_t total : {8, 24, 768, 11008}) {
    for (const int size : {1, 2, 4, 8}) {
      for (int rank = 0; rank < size; ++rank) {
        const auto own = ShardEvenly(total, {rank, size}, "columns");
        ASSERT_TRUE(own.ok()) << own.status();
        EXPECT_EQ(ColumnSegments(total, *own, {rank, size}, 8), 8 / size);
      }
    }
  }
  // As many as divide the columns.
  EXPECT_EQ(ColumnSegments(12, {0, 12}, {0, 1}, 8), 4);
  EXPECT_EQ(ColumnSegments(12, {6, 12}, {1, 2}, 8), 2);
  EXPECT_EQ(ColumnSegments(7, {0, 7}, {0, 1}, 8), 1);
}

TEST(ColumnSegmentsTest, NoneWhereRanksCannotShareThem) {
  EXPECT_EQ(ColumnSegments(24, {8, 16}, {1, 3}, 8), 1);
  EXPECT_EQ(ColumnSegments(64, {4, 8}, {1, 16}, 8), 1);
  // 24 columns in units of 8 over two ranks: 16 and 8.
  EXPECT_EQ(ColumnSegments(24, {0, 16}, {0, 2}, 8), 1);
  EXPECT_EQ(ColumnSegments(24, {16, 24}, {1, 2}, 8), 1);
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

TEST(ShardHeadsTest, ErrorsListTheSizesThatWork) {
  const auto message = [](int64_t heads, int64_t kv_heads, int size) {
    return std::string(
        ShardHeads(heads, kv_heads, {0, size}).status().message());
  };
  EXPECT_THAT(message(14, 2, 4), testing::HasSubstr("over 1, 2 or 14"));
  EXPECT_THAT(message(24, 3, 4), testing::HasSubstr("over 1, 3, 6, 12 or 24"));
  EXPECT_THAT(message(1, 1, 2), testing::HasSubstr("over 1"));
}

// All that is listed works, and nothing else does.
TEST(ShardHeadsTest, ListedSizes) {
  for (const auto& [heads, kv_heads] : {std::pair(14, 2), std::pair(24, 3),
                                        std::pair(12, 12), std::pair(40, 8)}) {
    const std::vector<int> listed = HeadShardSizes(heads, kv_heads);
    std::vector<int> working;
    for (int size = 1; size <= 2 * heads; ++size) {
      if (ShardHeads(heads, kv_heads, {0, size}).ok()) working.push_back(size);
    }
    EXPECT_EQ(listed, working);
  }
}

TEST(CutUnitTest, BlocksGroupsAndTheGpu) {
  EXPECT_EQ(CutUnit(QuantFormat::kDense, 0), 8);
  EXPECT_EQ(CutUnit(QuantFormat::kFp8, 0), 8);  // A scale per tensor or row.
  EXPECT_EQ(CutUnit(QuantFormat::kFp8, 128), 128);
  EXPECT_EQ(CutUnit(QuantFormat::kInt4, 32), 32);
  EXPECT_EQ(CutUnit(QuantFormat::kInt4, 20), 40);
  EXPECT_EQ(CutUnit(QuantFormat::kQ4_0, 0), 32);
  EXPECT_EQ(CutUnit(QuantFormat::kMXFP4, 0), 32);
  EXPECT_EQ(CutUnit(QuantFormat::kQ4_K, 0), 256);
  EXPECT_EQ(CutUnit(QuantFormat::kQ4_K, 128), 256);
  EXPECT_EQ(CutUnit(QuantFormat::kIQ4_XS, 0), 256);
}

TEST(ShardUnitsTest, PartsAreWholeUnitsInOrderAndNearlyEqual) {
  for (const int64_t total : {8, 96, 1000, 4864, 18944, 14336}) {
    for (const int64_t unit : {1, 8, 32, 128, 256}) {
      for (const int size : {1, 2, 3, 4, 8}) {
        const int64_t num_units = (total + unit - 1) / unit;
        int64_t covered = 0;
        for (int rank = 0; rank < size; ++rank) {
          const auto range = ShardUnits(total, unit, {rank, size}, "rows");
          ASSERT_EQ(range.ok(), num_units >= size) << range.status();
          if (!range.ok()) continue;
          EXPECT_EQ(range->begin, covered);
          EXPECT_GT(range->size(), 0);
          const int64_t units = (range->size() + unit - 1) / unit;
          EXPECT_GE(units, num_units / size);
          EXPECT_LE(units, (num_units + size - 1) / size);
          if (rank + 1 < size) {
            EXPECT_EQ(range->end % unit, 0);
          }
          covered = range->end;
        }
        if (num_units >= size) {
          EXPECT_EQ(covered, total);
        }
      }
    }
  }
}

TEST(ShardUnitsTest, TooFewUnitsAreAnErrorThatSaysHowMany) {
  const auto range = ShardUnits(768, 256, {0, 4}, "intermediate_size");
  EXPECT_EQ(range.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(range.status().message()),
              testing::AllOf(testing::HasSubstr("intermediate_size 768"),
                             testing::HasSubstr("into 3 parts at most")));
}

TEST(ShardVocabTest, SlicesOfOneSizeCoverTheVocabulary) {
  for (const int64_t vocab_size :
       {8, 41, 256, 320, 32000, 50272, 128256, 151936}) {
    for (const int size : {1, 2, 3, 4, 8}) {
      int64_t covered = 0, slice_size = 0;
      for (int rank = 0; rank < size; ++rank) {
        const auto shard = ShardVocab(vocab_size, {rank, size});
        if (vocab_size / 4 < size) {
          EXPECT_FALSE(shard.ok()) << vocab_size << " over " << size;
          continue;
        }
        if (!shard.ok()) continue;  // Below.
        if (rank == 0) slice_size = shard->slice_size;
        EXPECT_EQ(shard->slice_size, slice_size);
        if (size > 1) {
          EXPECT_EQ(slice_size % 4, 0);
        }
        EXPECT_EQ(shard->ids.begin, rank * slice_size);
        EXPECT_EQ(shard->ids.begin, covered);
        EXPECT_GT(shard->ids.size(), 0);
        EXPECT_LE(shard->ids.size(), slice_size);
        covered = shard->ids.end;
      }
      // Whatever is large enough to matter works, and in units of 64.
      if (vocab_size >= 256) {
        EXPECT_EQ(covered, vocab_size) << vocab_size << " over " << size;
      }
      if (vocab_size >= 32000 && size > 1) {
        EXPECT_EQ(slice_size % 64, 0);
      }
    }
  }
}

TEST(StageLayersTest, ConsecutiveAndTheFirstAreLarger) {
  EXPECT_EQ(*StageLayers(7, {0, 3}, 0), (IndexRange{0, 3}));
  EXPECT_EQ(*StageLayers(7, {1, 3}, 0), (IndexRange{3, 5}));
  EXPECT_EQ(*StageLayers(7, {2, 3}, 0), (IndexRange{5, 7}));
  EXPECT_EQ(*StageLayers(7, {0, 1}, 100), (IndexRange{0, 7}));
  const auto too_many = StageLayers(3, {0, 4}, 0);
  EXPECT_THAT(std::string(too_many.status().message()),
              testing::HasSubstr("at most 3 work"));
}

TEST(StageLayersTest, TheLastOneHasFewerForTheLogits) {
  // 24 layers and 4.5: 14.25 for each of two stages.
  EXPECT_EQ(*StageLayers(24, {0, 2}, 4.5), (IndexRange{0, 14}));
  EXPECT_EQ(*StageLayers(24, {1, 2}, 4.5), (IndexRange{14, 24}));
  // Logits of a third of a layer's work cost the last one none.
  EXPECT_EQ(*StageLayers(6, {0, 2}, 0.33), (IndexRange{0, 3}));
  EXPECT_EQ(*StageLayers(6, {1, 2}, 0.33), (IndexRange{3, 6}));
  // However large the vocabulary, every stage has a layer; and together all.
  for (const double head_layers : {0.0, 0.6, 3.0, 50.0}) {
    for (const int num_layers : {4, 5, 17, 80}) {
      for (const int size : {1, 2, 3, 4}) {
        int64_t next = 0;
        for (int rank = 0; rank < size; ++rank) {
          const auto range = StageLayers(num_layers, {rank, size}, head_layers);
          ASSERT_TRUE(range.ok()) << range.status();
          EXPECT_EQ(range->begin, next);
          EXPECT_GE(range->size(), 1);
          next = range->end;
        }
        EXPECT_EQ(next, num_layers);
      }
    }
  }
}

}  // namespace
}  // namespace quire
