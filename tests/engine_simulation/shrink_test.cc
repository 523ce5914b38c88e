#include "tests/engine_simulation/shrink.h"

#include "gtest/gtest.h"

namespace quire {
namespace {

// A failure that needs two requests of certain sizes and one fault.
bool Fails(const History& history) {
  bool has_long = false;
  bool has_choices = false;
  for (const PlannedRequest& planned : history.requests) {
    has_long |= planned.request.prompt_token_ids.size() >= 5;
    has_choices |= planned.request.n >= 2;
  }
  return has_long && has_choices && !history.step_faults.empty() &&
         history.options.num_blocks >= 6;
}

TEST(ShrinkTest, KeepsWhatTheFailureNeedsAndNothingElse) {
  int num_shrunk = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    const History history = DrawHistory(seed);
    if (!Fails(history)) continue;
    ++num_shrunk;
    const History small = Shrink(history, Fails, 5000);
    ASSERT_TRUE(Fails(small));
    ASSERT_LE(small.requests.size(), 2u);
    size_t num_tokens = 0;
    int n = 0;
    for (const PlannedRequest& planned : small.requests) {
      num_tokens += planned.request.prompt_token_ids.size();
      n += planned.request.n;
      EXPECT_EQ(planned.request.sampling.max_tokens, 1);
      EXPECT_EQ(planned.arrival_step, 0);
      EXPECT_TRUE(planned.aborts.empty());
      EXPECT_EQ(planned.fault.fault, ModelFault::kNone);
    }
    EXPECT_EQ(num_tokens, small.requests.size() + 4);
    EXPECT_EQ(n, static_cast<int>(small.requests.size()) + 1);
    EXPECT_EQ(small.step_faults.size(), 1u);
    EXPECT_TRUE(small.jumps.empty());
    EXPECT_TRUE(small.commotions.empty());
    EXPECT_EQ(small.options.num_blocks, 6);
    EXPECT_EQ(small.options.steps_in_flight, 1);
  }
  EXPECT_GE(num_shrunk, 20);
}

TEST(ShrinkTest, AsksNoMoreThanAllowed) {
  int num_runs = 0;
  Shrink(
      DrawHistory(1),
      [&num_runs](const History&) {
        ++num_runs;
        return true;
      },
      7);
  EXPECT_EQ(num_runs, 7);
}

}  // namespace
}  // namespace quire
