#include "engine/base/token_sequence_set.h"

#include "gtest/gtest.h"

namespace quire {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;

Sequences StartingWith(const TokenSequenceSet& set, int32_t id) {
  const auto span = set.StartingWith(id);
  return Sequences(span.begin(), span.end());
}

TEST(TokenSequenceSetTest, FindsByFirstToken) {
  const TokenSequenceSet set({{7, 2}, {3}, {7}, {7, 2}, {5, 900, 1}});
  EXPECT_EQ(set.sequences().size(), 4u);  // One was there twice.
  EXPECT_EQ(set.max_id(), 900);
  EXPECT_EQ(StartingWith(set, 7), (Sequences{{7}, {7, 2}}));
  EXPECT_EQ(StartingWith(set, 5), (Sequences{{5, 900, 1}}));
  EXPECT_EQ(StartingWith(set, 6), Sequences());
  EXPECT_TRUE(set.HasStart(5));
  EXPECT_FALSE(set.HasSingle(5));
  EXPECT_TRUE(set.HasSingle(7));
  // Ids that are only inside or above all others.
  EXPECT_FALSE(set.HasStart(900));
  EXPECT_FALSE(set.HasStart(901));
  EXPECT_FALSE(set.HasSingle(1'000'000));
}

TEST(TokenSequenceSetTest, EmptyHasNothing) {
  const TokenSequenceSet set;
  EXPECT_EQ(set.max_id(), -1);
  EXPECT_FALSE(set.HasStart(0));
  EXPECT_EQ(StartingWith(set, 0), Sequences());
  EXPECT_EQ(TokenSequenceSet(Sequences()).max_id(), -1);
}

}  // namespace
}  // namespace quire
