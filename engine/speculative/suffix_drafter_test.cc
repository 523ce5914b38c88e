#include "engine/speculative/suffix_drafter.h"

#include <algorithm>
#include <string>

#include "engine/base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class SuffixDrafterTest : public testing::Test {
 protected:
  Draft Propose(SuffixDrafter* drafter, const std::vector<int32_t>& token_ids,
                int max_drafts, uint64_t id = 1,
                const std::string& cache_namespace = "") {
    DraftSequence sequence;
    sequence.sequence_id = id;
    sequence.token_ids = token_ids;
    sequence.max_num_drafts = max_drafts;
    sequence.cache_namespace = cache_namespace;
    std::vector<Draft> drafts(1);
    EXPECT_TRUE(drafter->Propose({sequence}, absl::MakeSpan(drafts)).ok());
    return drafts[0];
  }

  SuffixOptions options_;
};

TEST_F(SuffixDrafterTest, DraftsAsLongAsTheContextIs) {
  SuffixDrafter drafter(options_);
  EXPECT_THAT(Propose(&drafter, {1, 2, 3, 4, 5, 6, 1, 2}, 9).token_ids,
              ElementsAre(3, 4));
  EXPECT_THAT(Propose(&drafter, {1, 2, 3, 4, 5, 6, 1, 2, 3, 4}, 9).token_ids,
              ElementsAre(5, 6, 1, 2));
  EXPECT_THAT(Propose(&drafter, {1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5}, 1).token_ids,
              ElementsAre(6));
  EXPECT_THAT(
      Propose(&drafter, {1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 9}, 9).token_ids,
      IsEmpty());
}

TEST_F(SuffixDrafterTest, StopsWhereItIsUnlikely) {
  options_.min_token_prob = 0.6f;
  SuffixDrafter drafter(options_);
  // 1 2 is followed by 3 and by 4.
  EXPECT_THAT(Propose(&drafter, {1, 2, 3, 1, 2, 4, 1, 2}, 9).token_ids,
              IsEmpty());
  options_.min_token_prob = 0.2f;
  SuffixDrafter bolder(options_);
  const Draft draft = Propose(&bolder, {1, 2, 3, 1, 2, 4, 1, 2}, 9);
  ASSERT_FALSE(draft.token_ids.empty());
  EXPECT_LT(draft.probabilities[0], 0.6f);
}

TEST_F(SuffixDrafterTest, RecentAnswersOfTheSameNamespaceCount) {
  SuffixDrafter drafter(options_);
  drafter.End(1, {50, 51, 10, 11, 12, 13, 14}, 2, "a");
  EXPECT_THAT(Propose(&drafter, {60, 10, 11, 12}, 9, 2, "a").token_ids,
              ElementsAre(13, 14));
  // Prompts are not kept, and nothing is told to others.
  EXPECT_THAT(Propose(&drafter, {50}, 9, 3, "a").token_ids, IsEmpty());
  EXPECT_THAT(Propose(&drafter, {60, 10, 11, 12}, 9, 4, "b").token_ids,
              IsEmpty());
}

TEST_F(SuffixDrafterTest, WithoutCachedRequestsASequenceSeesItselfOnly) {
  options_.max_cached_requests = 0;
  SuffixDrafter drafter(options_);
  drafter.End(1, {50, 10, 11, 12}, 1, "a");
  EXPECT_THAT(Propose(&drafter, {10, 11}, 9, 2, "a").token_ids, IsEmpty());
  EXPECT_EQ(drafter.num_cached_tokens(), 0);
}

TEST_F(SuffixDrafterTest, MemoryIsBounded) {
  options_.max_cached_tokens = 4000;
  options_.max_local_tokens = 1000;
  SuffixDrafter drafter(options_);
  SimulationRandom random(4);
  int64_t most = 0;
  for (uint64_t id = 1; id < 400; ++id) {
    std::vector<int32_t> tokens;
    for (int i = 0; i < 300; ++i) {
      tokens.push_back(static_cast<int32_t>(random.Below(50)));
    }
    Propose(&drafter, tokens, 5, id, std::to_string(id % 5));
    EXPECT_LE(drafter.num_local_tokens(), 1000);
    if (id % 7 == 0) continue;  // Ends later.
    drafter.End(id, tokens, 10, std::to_string(id % 5));
    EXPECT_LE(drafter.num_cached_tokens(), 4000);
    most = std::max(most, drafter.num_cached_tokens());
  }
  EXPECT_GT(most, 3000);
  for (uint64_t id = 7; id < 400; id += 7) drafter.End(id, {1, 2}, 2, "x");
  EXPECT_EQ(drafter.num_local_tokens(), 0);
  // An answer longer than everything that may be kept.
  drafter.End(1000, std::vector<int32_t>(100'000, 3), 1, "y");
  EXPECT_LE(drafter.num_cached_tokens(), 4000);
}

// Clients choose namespaces: what each costs besides its tokens counts.
TEST_F(SuffixDrafterTest, MemoryIsBoundedWhateverTheNamespaces) {
  options_.max_cached_bytes = 1 << 20;
  SuffixDrafter drafter(options_);
  size_t most = 0;
  for (uint64_t id = 0; id < 100'000; ++id) {
    drafter.End(id, {7, 8}, 1, std::to_string(id));
    ASSERT_LE(drafter.num_cached_bytes(), options_.max_cached_bytes);
    most = std::max(most, drafter.num_namespaces());
    // Used over and over, so that others go.
    if (id % 100 == 0) drafter.End(id, {1, 2, 3, 4, 5, 6}, 1, "kept");
    if (id % 100 == 50) Propose(&drafter, {1, 2, 3}, 1, id, "used");
    if (id == 0) drafter.End(id, {1, 2, 3, 4, 5, 6}, 1, "used");
  }
  EXPECT_GT(most, 500u);
  EXPECT_LT(most, 5000u);
  EXPECT_THAT(Propose(&drafter, {9, 2, 3, 4}, 1, 200'000, "kept").token_ids,
              ElementsAre(5));
  EXPECT_THAT(Propose(&drafter, {9, 2, 3, 4}, 1, 200'001, "used").token_ids,
              ElementsAre(5));
  EXPECT_THAT(Propose(&drafter, {7}, 1, 200'002, "0").token_ids, IsEmpty());
  // A namespace whose name alone is too large.
  drafter.End(300'000, {1, 2}, 1, std::string(2 << 20, 'x'));
  EXPECT_LE(drafter.num_cached_bytes(), options_.max_cached_bytes);
}

// The newest answers survive when a generation is full.
TEST_F(SuffixDrafterTest, ForgetsTheOldest) {
  options_.max_cached_requests = 4;
  SuffixDrafter drafter(options_);
  for (int32_t i = 0; i < 10; ++i) {
    drafter.End(i, {0, 100 + i, 200 + i, 300 + i}, 1, "a");
  }
  EXPECT_THAT(Propose(&drafter, {0, 109, 209}, 1, 50, "a").token_ids,
              ElementsAre(309));
  EXPECT_THAT(Propose(&drafter, {0, 107, 207}, 1, 51, "a").token_ids,
              ElementsAre(307));
  EXPECT_THAT(Propose(&drafter, {0, 100, 200}, 1, 52, "a").token_ids,
              IsEmpty());
}

}  // namespace
}  // namespace quire
