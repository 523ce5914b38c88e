// The engine as it is: random histories must be clean, and reach what they are
// meant to reach. To look at a seed, or to run more of them: tools/simulate.sh.
#include "tests/engine_simulation/simulation.h"

#include <algorithm>
#include <cstdio>

#include "gtest/gtest.h"
#include "tests/engine_simulation/campaign.h"

namespace quire {
namespace {

constexpr int64_t kNumSteps = 1'000'000;

TEST(SimulationTest, RandomHistoriesAreClean) {
  Progress progress;
  const absl::Status status = RunSeedsApart(1, 1, kNumSteps, &progress);
  ASSERT_TRUE(status.ok()) << "tools/simulate.sh --seed " << progress.seed
                           << " --steps " << progress.num_steps() << ": "
                           << status;
  const Coverage& coverage = progress.coverage;
  std::printf("%s\n", coverage.ToString().c_str());
  EXPECT_EQ(coverage[Covered::kSteps], kNumSteps);
  // What is rare is not tested; per million steps.
  const std::pair<Covered, int64_t> kExpected[] = {
      {Covered::kRequests, 50'000},
      {Covered::kRefused, 1000},
      {Covered::kPreemptions, 5000},
      {Covered::kUrgentPreemptions, 500},
      {Covered::kScoredTokens, 5000},
      {Covered::kEmbedded, 2000},
      {Covered::kEmbeddedCached, 500},
      {Covered::kEmbeddedEveryToken, 500},
      {Covered::kEmbeddedPreempted, 25},
      {Covered::kCachedTokens, 100'000},
      {Covered::kFullPoolSteps, 20'000},
      {Covered::kCopies, 5000},
      {Covered::kOnDeviceRows, 100'000},
      {Covered::kInnerChunks, 100'000},
      {Covered::kMixedSteps, 50'000},
      {Covered::kPenalizedTokens, 100'000},
      {Covered::kDraftedHistories, 1000},
      {Covered::kDraftTokens, 100'000},
      {Covered::kAcceptedTokens, 30'000},
      {Covered::kDrafterFailures, 100},
      {Covered::kRestarts, 4000},
      {Covered::kFailedSubmits, 1000},
      {Covered::kFailedCollects, 1000},
      {Covered::kSpoiledResults, 1000},
      {Covered::kSpoiledTokens, 300},
      {Covered::kNotFinite, 1000},
      {Covered::kContaminated, 10},
      {Covered::kEngineDeaths, 100},
      {Covered::kShutdowns, 100},
      {Covered::kClockJumps, 1000},
      {Covered::kCheckedAlone, 1000},
      {Covered::kEndedByStop, 10'000},
      {Covered::kEndedByStopToken, 2000},
      {Covered::kEndedByLength, 40'000},
      {Covered::kEndedByError, 10'000},
      {Covered::kEndedOverdue, 1000},
      {Covered::kOvertakingRows, 10'000},
      {Covered::kAbortedWaiting, 5000},
      {Covered::kAbortedPrefill, 1000},
      {Covered::kAbortedDecode, 2000},
      {Covered::kAbortedPreempted, 150},
      {Covered::kAbortedInFlight, 2000},
      {Covered::kAbortedFinishing, 300},
      {Covered::kAbortedCollecting, 2000},
      {Covered::kAbortedSingleChoice, 2000},
  };
  for (const auto& [what, least] : kExpected) {
    EXPECT_GE(coverage[what], least) << "counter " << static_cast<int>(what);
  }
}

// Drafters of every quality, with all that goes wrong beside them: what is told
// is what the hash model says without drafts (ledger.h). A case is a history in
// which drafts were verified; shards take a part each.
class DraftedCasesTest : public testing::TestWithParam<int> {};
constexpr int kNumParts = 4;
constexpr int64_t kNumDraftedCases = 100'000;

TEST_P(DraftedCasesTest, TokensAreThoseWithoutDrafts) {
  Progress progress;
  const absl::Status status = RunDraftedSeedsApart(
      1 + GetParam(), kNumParts, kNumDraftedCases / kNumParts, &progress);
  ASSERT_TRUE(status.ok()) << "tools/simulate.sh --drafted-cases 1 --seed "
                           << progress.seed << ": " << status;
  const Coverage& coverage = progress.coverage;
  std::printf("%s\n", coverage.ToString().c_str());
  EXPECT_EQ(coverage[Covered::kDraftedHistories], kNumDraftedCases / kNumParts);
  EXPECT_GT(coverage[Covered::kDraftTokens],
            5 * coverage[Covered::kDraftedHistories]);
  EXPECT_GT(coverage[Covered::kAcceptedTokens],
            coverage[Covered::kDraftTokens] / 5);
  EXPECT_LT(coverage[Covered::kAcceptedTokens],
            coverage[Covered::kDraftTokens] * 4 / 5);
  EXPECT_GT(coverage[Covered::kPreemptions], 1000);
  EXPECT_GT(coverage[Covered::kPenalizedTokens], 10'000);
  EXPECT_GT(coverage[Covered::kDrafterFailures], 100);
}

INSTANTIATE_TEST_SUITE_P(Parts, DraftedCasesTest, testing::Range(0, kNumParts));

TEST(SimulationTest, TheSameSeedGivesTheSameTrace) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    std::string traces[2];
    for (std::string& trace : traces) {
      Coverage coverage;
      const Outcome outcome =
          Simulate(DrawHistory(seed), INT64_MAX, &coverage,
                   [&trace](const std::string& line) { trace += line + "\n"; });
      EXPECT_TRUE(outcome.status.ok()) << outcome.status;
      EXPECT_EQ(outcome.num_steps, coverage[Covered::kSteps]);
    }
    EXPECT_FALSE(traces[0].empty());
    EXPECT_EQ(traces[0], traces[1]);
  }
}

TEST(SimulationTest, StopsAfterExactlySoManySteps) {
  int num_cut = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Coverage coverage;
    const History history = DrawHistory(seed);
    const int64_t num_steps =
        Simulate(history, INT64_MAX, &coverage, nullptr).num_steps;
    EXPECT_EQ(Simulate(history, 17, &coverage, nullptr).num_steps,
              std::min<int64_t>(num_steps, 17));
    num_cut += num_steps > 17;
  }
  EXPECT_GE(num_cut, 10);
  Progress progress;
  ASSERT_TRUE(RunSeeds(1, 1, 1000, &progress).ok());
  EXPECT_EQ(progress.coverage[Covered::kSteps], 1000);
  EXPECT_GT(progress.seed, 1);
}

}  // namespace
}  // namespace quire
