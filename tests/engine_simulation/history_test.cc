#include "tests/engine_simulation/history.h"

#include <cstdlib>
#include <set>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(HistoryTest, IsAFunctionOfTheSeed) {
  std::set<std::string> seen;
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    const std::string text = Describe(DrawHistory(seed));
    EXPECT_EQ(text, Describe(DrawHistory(seed)));
    EXPECT_TRUE(seen.insert(text).second) << seed;
  }
}

TEST(HistoryTest, OptionsAndRequestsAreValid) {
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    const History history = DrawHistory(seed);
    ASSERT_TRUE(ValidateEngineOptions(history.options).ok()) << seed;
    ASSERT_FALSE(history.requests.empty());
    for (size_t i = 0; i < history.requests.size(); ++i) {
      const PlannedRequest& planned = history.requests[i];
      EXPECT_EQ(planned.request.id, i + 1);
      const int num_prompt_tokens =
          static_cast<int>(planned.request.prompt_token_ids.size());
      EXPECT_GE(num_prompt_tokens, 1);
      EXPECT_LT(num_prompt_tokens,
                MaxNumTokens(history.options) +
                    (planned.request.kind == RequestKind::kEmbed));
      if (i > 0) {
        EXPECT_GE(planned.arrival_step, history.requests[i - 1].arrival_step);
      }
    }
  }
}

// What the simulation is for: the lengths, pools and states where engines
// break.
TEST(HistoryTest, ReachesTheCorners) {
  int num_around_block = 0, num_requests = 0;
  std::set<int> pools, triggers, model_faults, flaws, step_faults, overlaps;
  int num_backwards = 0, num_in_stages = 0;
  for (uint64_t seed = 1; seed <= 1000; ++seed) {
    const History history = DrawHistory(seed);
    pools.insert(history.options.num_blocks);
    overlaps.insert(history.options.steps_in_flight);
    num_in_stages += history.options.num_micro_batches > 1;
    for (const PlannedRequest& planned : history.requests) {
      ++num_requests;
      const int rest =
          static_cast<int>(planned.request.prompt_token_ids.size()) %
          history.options.block_size;
      num_around_block += history.options.block_size >= 4 &&
                          (rest <= 1 || rest == history.options.block_size - 1);
      for (const PlannedAbort& abort : planned.aborts) {
        triggers.insert(static_cast<int>(abort.trigger));
      }
      model_faults.insert(static_cast<int>(planned.fault.fault));
      flaws.insert(static_cast<int>(planned.flaw));
    }
    for (const PlannedStepFault& fault : history.step_faults) {
      step_faults.insert(static_cast<int>(fault.fault));
    }
    for (const PlannedJump& jump : history.jumps) {
      num_backwards += jump.nanos < 0;
    }
  }
  EXPECT_GT(num_around_block, num_requests / 4);
  EXPECT_EQ(*pools.begin(), 8);
  EXPECT_GE(*pools.rbegin(), 500);
  EXPECT_LE(*pools.rbegin(), 512);
  EXPECT_GT(num_in_stages, 100);
  EXPECT_EQ(overlaps, (std::set<int>{1, 2, 3}));
  EXPECT_EQ(triggers.size(), size_t{kNumAbortTriggers});
  EXPECT_EQ(model_faults.size(),
            static_cast<size_t>(ModelFault::kNumModelFaults));
  EXPECT_EQ(flaws.size(), static_cast<size_t>(Flaw::kNumFlaws));
  EXPECT_EQ(step_faults.size(), static_cast<size_t>(StepFault::kNumStepFaults));
  EXPECT_GT(num_backwards, 100);
}

TEST(HistoryTest, DescribesWhatHappens) {
  History history;
  history.options.num_blocks = 8;
  PlannedRequest planned;
  planned.arrival_step = 3;
  planned.request.id = 7;
  planned.request.prompt_token_ids = {5, 6};
  planned.request.n = 2;
  planned.aborts.push_back({AbortTrigger::kPreempted, 1, 0, false});
  planned.fault = {ModelFault::kNotFinite, 1, 4};
  history.requests.push_back(planned);
  history.step_faults.push_back({9, StepFault::kResultDuplicate});
  const std::string text = Describe(history);
  for (const char* part :
       {"step 3: request 7 arrives: 2 prompt tokens [5 6], n 2",
        "aborted when preempted, after 1 times, choice 0",
        "choice 1, not finite from position 4",
        "submit 9: gets the result before"}) {
    EXPECT_TRUE(absl::StrContains(text, part)) << part << " in\n" << text;
  }
}

}  // namespace
}  // namespace quire
