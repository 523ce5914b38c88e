#include "engine/speculative/match_record.h"

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(MatchRecordTest, LongerAndSurerMatchesAreTrustedMore) {
  const MatchRecord record;
  float last = 0;
  for (int length = 1; length < 60; ++length) {
    const float probability =
        record.ProbabilityOf(MatchRecord::CellOf(length, 1.0f));
    EXPECT_GE(probability, last);
    EXPECT_LT(probability, 1);
    last = probability;
  }
  EXPECT_LT(record.ProbabilityOf(MatchRecord::CellOf(5, 0.3f)),
            record.ProbabilityOf(MatchRecord::CellOf(5, 0.9f)));
}

TEST(MatchRecordTest, LearnsUpToTheFirstMistake) {
  MatchRecord record;
  const uint8_t first = MatchRecord::CellOf(3, 1), second = 2, third = 7;
  const float third_before = record.ProbabilityOf(third);
  for (int i = 0; i < 500; ++i) {
    MatchRecord::Proposal proposal{2, {5, 6, 7}, {first, second, third}};
    // The second draft is wrong, so that nothing is known of the third.
    const std::vector<int32_t> tokens = {1, 2, 5, 9, 7};
    record.Learn(tokens, &proposal);
    EXPECT_TRUE(proposal.token_ids.empty());
  }
  EXPECT_GT(record.ProbabilityOf(first), 0.95f);
  EXPECT_LT(record.ProbabilityOf(second), 0.05f);
  EXPECT_EQ(record.ProbabilityOf(third), third_before);
  // What is not known yet is not judged.
  MatchRecord::Proposal beyond{5, {1}, {third}};
  record.Learn({1, 2, 3, 4, 5}, &beyond);
  EXPECT_EQ(record.ProbabilityOf(third), third_before);
}

}  // namespace
}  // namespace quire
