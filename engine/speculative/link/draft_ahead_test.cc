#include "engine/speculative/link/draft_ahead.h"

#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using Ids = std::vector<int32_t>;

Ids TokensOf(const DraftChain& chain) {
  return Ids(chain.tokens().begin(), chain.tokens().end());
}

TEST(DraftChainTest, HearsWhatItDrafted) {
  DraftChain chain;
  chain.Extend(0, 10);
  chain.Extend(1, 11);
  chain.Extend(2, 12);
  EXPECT_EQ(chain.num_ahead(), 3);
  DraftChain::Outcome outcome = chain.Hear({10, 11});
  EXPECT_EQ(outcome.num_tested, 2);
  EXPECT_EQ(outcome.num_agreed, 2);
  EXPECT_FALSE(outcome.is_broken);
  EXPECT_EQ(chain.num_heard(), 2);
  EXPECT_EQ(chain.num_ahead(), 1);
  outcome = chain.Hear({50, 51});
  EXPECT_EQ(outcome.num_tested, 1);
  EXPECT_EQ(outcome.num_agreed, 0);
  EXPECT_TRUE(outcome.is_broken);
  EXPECT_EQ(chain.chain_no(), 1u);
  EXPECT_EQ(TokensOf(chain), (Ids{10, 11, 50, 51}));
  EXPECT_EQ(chain.num_ahead(), 0);
}

TEST(DraftChainTest, ComparesDraftsThatComeLate) {
  DraftChain chain;
  chain.Hear({10, 11, 12});
  DraftChain::Outcome outcome = chain.Extend(1, 11);
  EXPECT_EQ(outcome.num_agreed, 1);
  EXPECT_EQ(TokensOf(chain), (Ids{10, 11, 12}));
  outcome = chain.Extend(2, 99);
  EXPECT_EQ(outcome.num_agreed, 0);
  EXPECT_TRUE(outcome.is_broken);
  EXPECT_EQ(chain.chain_no(), 1u);
  EXPECT_EQ(TokensOf(chain), (Ids{10, 11, 12}));
}

// Against a list of what was heard, at random.
TEST(DraftChainTest, AlwaysHoldsWhatWasHeard) {
  SimulationRandom random(1);
  for (int run = 0; run < 500; ++run) {
    DraftChain chain;
    Ids heard;
    int64_t position = 0;
    for (int step = 0; step < 60; ++step) {
      bool is_broken = false;
      if (random.Below(2) == 0) {
        Ids tokens;
        for (int64_t i = random.Between(1, 3); i > 0; --i) {
          tokens.push_back(static_cast<int32_t>(random.Below(2)));
        }
        heard.insert(heard.end(), tokens.begin(), tokens.end());
        is_broken = chain.Hear(tokens).is_broken;
      } else {
        is_broken =
            chain.Extend(position, static_cast<int32_t>(random.Below(2)))
                .is_broken;
        ++position;
      }
      if (is_broken) position = chain.num_heard();
      ASSERT_EQ(chain.num_heard(), static_cast<int64_t>(heard.size()));
      ASSERT_GE(chain.num_ahead(), 0);
      for (size_t i = 0; i < heard.size(); ++i) {
        ASSERT_EQ(chain.tokens()[i], heard[i]);
      }
    }
  }
}

DraftAheadPolicy MakePolicy(double round_trip_ms, double step_ms,
                            double draft_ms, double acceptance) {
  DraftAheadPolicy policy(4);
  SimulationRandom random(2);
  for (int i = 0; i < 100; ++i) {
    policy.NoteRoundTrip(absl::Milliseconds(round_trip_ms));
    policy.NoteStep(absl::Milliseconds(step_ms));
    policy.NoteDraft(absl::Milliseconds(draft_ms));
    for (int k = 0; k < 5; ++k) {
      policy.NoteOutcome({1, random.Uniform() < acceptance, false});
    }
  }
  return policy;
}

TEST(DraftAheadPolicyTest, DraftsWhereChainsOutliveTheRoundTrip) {
  EXPECT_GE(MakePolicy(0, 25, 5, 0.5).NumAhead(true), 8);
  EXPECT_GE(MakePolicy(20, 25, 5, 0.7).NumAhead(true), 8);
  // 100 ms are five tokens: 0.9^5 of the chains get there, 0.3^5 do not.
  DraftAheadPolicy far = MakePolicy(100, 25, 5, 0.9);
  EXPECT_NEAR(far.num_late(), 5, 0.01);
  EXPECT_NEAR(far.acceptance(), 0.9, 0.06);
  EXPECT_GE(far.NumAhead(true), 13);
  EXPECT_EQ(MakePolicy(100, 25, 5, 0.3).NumAhead(true), 0);
  // The edge is slower than the cloud.
  EXPECT_EQ(MakePolicy(0, 5, 6, 0.9).NumAhead(true), 0);
}

TEST(DraftAheadPolicyTest, TriesAgainNowAndThen) {
  DraftAheadPolicy policy = MakePolicy(100, 5, 4, 0.5);
  int num_trials = 0;
  for (int i = 0; i < 160; ++i) {
    if (policy.NumAhead(true) == 0) continue;
    ++num_trials;
    EXPECT_GT(policy.NumAhead(false), 0);  // The trial is seen through.
  }
  EXPECT_EQ(num_trials, 10);
  // A shorter way makes it worth the work again.
  for (int i = 0; i < 60; ++i) policy.NoteRoundTrip(absl::Milliseconds(1));
  EXPECT_GT(policy.NumAhead(true), 0);
  EXPECT_GT(policy.NumAhead(true), 0);
}

TEST(DraftAheadPolicyTest, ACloudThatVerifiesNothingGetsNoDrafts) {
  DraftAheadPolicy policy(0);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(policy.NumAhead(true), 0);
}

}  // namespace
}  // namespace quire
