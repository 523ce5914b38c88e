#include "engine/parallel/rank_layout.h"

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(RankLayoutTest, GroupsAreNeighboursAndStages) {
  const RankLayout layout = {.tensor_size = 4, .pipeline_size = 2};
  EXPECT_EQ(layout.size(), 8);
  EXPECT_EQ(GroupOf(layout, 6, false), (std::vector<int>{4, 5, 6, 7}));
  EXPECT_EQ(GroupOf(layout, 6, true), (std::vector<int>{2, 6}));
}

TEST(RankLayoutTest, GroupsAreLocalIfTheirRanksAre) {
  const RankLayout layout = {
      .tensor_size = 4, .pipeline_size = 2, .num_nodes = 2};
  EXPECT_EQ(layout.local_size(), 4);
  EXPECT_EQ(layout.NodeOf(3), 0);
  EXPECT_EQ(layout.NodeOf(4), 1);
  EXPECT_TRUE(IsLocal(layout, GroupOf(layout, 5, false)));
  EXPECT_FALSE(IsLocal(layout, GroupOf(layout, 5, true)));
}

TEST(RankLayoutTest, MemoryOfANodeHoldsItsGroupsOnce) {
  // Two tensor groups on one node, and the stages' groups besides.
  const RankLayout one = {.tensor_size = 2, .pipeline_size = 2};
  const NodeMemoryLayout memory = LayOutNodeMemory(one, 0);
  EXPECT_EQ(memory.tensor_groups[0], memory.tensor_groups[1]);
  EXPECT_EQ(memory.tensor_groups[2], memory.tensor_groups[3]);
  EXPECT_LT(memory.tensor_groups[0], memory.tensor_groups[2]);
  EXPECT_EQ(memory.pipeline_groups[0], memory.pipeline_groups[2]);
  EXPECT_NE(memory.pipeline_groups[0], memory.pipeline_groups[1]);
  EXPECT_GT(memory.num_bytes, memory.pipeline_groups[3]);

  const RankLayout two = {.tensor_size = 4, .pipeline_size = 1, .num_nodes = 2};
  const NodeMemoryLayout part = LayOutNodeMemory(two, 1);
  EXPECT_EQ(part.tensor_groups, (std::vector<int64_t>{-1, -1}));
  EXPECT_EQ(part.pipeline_groups, (std::vector<int64_t>{-1, -1}));
}

TEST(RankLayoutTest, ImpossibleLayoutsAreRefused) {
  const auto is_valid = [](int tensor, int pipeline, int nodes) {
    return RankLayout{tensor, pipeline, nodes}.Validate().ok();
  };
  EXPECT_TRUE(is_valid(8, 2, 2));
  EXPECT_TRUE(is_valid(64, 1, 1));
  EXPECT_FALSE(is_valid(3, 1, 2));
  EXPECT_FALSE(is_valid(0, 1, 1));
  EXPECT_FALSE(is_valid(65, 1, 1));
  EXPECT_FALSE(is_valid(64, 64, 1));
  EXPECT_FALSE(is_valid(1, 1, 2));
}

}  // namespace
}  // namespace quire
