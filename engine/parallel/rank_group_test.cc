// A group that runs in good order, and what its ranks compare.
#include "engine/parallel/rank_group.h"

#include <atomic>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/parallel/rank_test_group.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(RankGroupProcessesTest, RanksExecuteTheSamePlans) {
  for (const auto& [tensor, pipeline] :
       {std::pair{2, 1}, {4, 1}, {2, 2}, {1, 2}}) {
    RunningGroup running(LocalGroup(tensor, pipeline, "none"));
    ASSERT_TRUE(running.status.ok()) << running.status;
    const ParallelConfig config = running.group->config();
    EXPECT_EQ(config.size, tensor * pipeline);
    EXPECT_EQ(config.tensor != nullptr, tensor > 1);
    EXPECT_EQ(config.pipeline != nullptr, pipeline > 1);
    PlanMaker plans;
    const absl::Status status = RunSteps(running.runner, plans, 300);
    EXPECT_TRUE(status.ok()) << status;
    running.runner->PrepareAhead();
    EXPECT_TRUE(RunSteps(running.runner, plans, 10).ok());
    EXPECT_TRUE(running.group->Health().ok());
  }
}

TEST(RankGroupProcessesTest, WorkerThatDrawsOtherTokensIsNoticed) {
  RunningGroup running(LocalGroup(2, 1, "tokens"));
  ASSERT_TRUE(running.status.ok()) << running.status;
  PlanMaker plans;
  const absl::Status status = RunUntilFailure(running.runner, plans);
  EXPECT_TRUE(absl::StrContains(status.message(), "other tokens")) << status;
}

TEST(RankGroupProcessesTest, FailuresWhileLoadingAreNamed) {
  for (const auto& [fault, expected] : {std::pair{"seqs", "3 on rank 1"},
                                        {"load", "exit code 70"},
                                        {"load_exit", "exit code 65"}}) {
    RunningGroup running(LocalGroup(2, 1, fault));
    EXPECT_TRUE(absl::IsUnavailable(running.status)) << fault;
    EXPECT_TRUE(absl::StrContains(running.status.message(), "rank 1"))
        << running.status;
    EXPECT_TRUE(absl::StrContains(running.status.message(), expected))
        << running.status;
  }
}

// What one rank has no memory for, nobody uses.
TEST(RankGroupProcessesTest, TheLeastNumberOfBlocksCounts) {
  RunningGroup running(LocalGroup(3, 1, "blocks"));
  ASSERT_TRUE(running.status.ok()) << running.status;
  EXPECT_EQ(running.agreed.limits.num_blocks, 63);
  EXPECT_EQ(running.agreed.limits.max_num_seqs, 4);
  PlanMaker plans;
  EXPECT_TRUE(RunSteps(running.runner, plans, 20).ok());
}

// Two steps in flight, whose results are the last stage's.
TEST(RankGroupProcessesTest, StagesHaveSeveralStepsInFlight) {
  RunningGroup running(LocalGroup(1, 3, "two_steps"), 2);
  ASSERT_TRUE(running.status.ok()) << running.status;
  PlanMaker plans[2] = {PlanMaker(3, 0), PlanMaker(5, 1)};
  int64_t step_id = 100;
  const auto submit = [&](PlanMaker& maker) {
    SchedulerOutput plan = maker.Next();
    plan.step_id = step_id++;
    return running.runner->Submit(plan);
  };
  ASSERT_TRUE(submit(plans[0]).ok());
  for (int i = 0; i < 200; ++i) {
    const absl::Status status = submit(plans[(i + 1) % 2]);
    ASSERT_TRUE(status.ok()) << status;
    const auto result = running.runner->Collect();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->step_id, 100 + i);
    ASSERT_EQ(result->rows.size(), 1u);
    EXPECT_EQ(result->rows[0].slot, i % 2);
    plans[i % 2].Took(*result);
  }
  ASSERT_TRUE(running.runner->Collect().ok());
}

// It costs the request that the scheduler finds it for, not the group.
TEST(RankGroupProcessesTest, ATokenOutsideTheVocabularyReachesTheScheduler) {
  RunningGroup running(LocalGroup(1, 2, "no_token"));
  ASSERT_TRUE(running.status.ok()) << running.status;
  PlanMaker plans;
  ASSERT_TRUE(RunSteps(running.runner, plans, 5).ok());
  ASSERT_TRUE(running.runner->Submit(plans.Next()).ok());
  const auto result = running.runner->Collect();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->rows[0].tokens[0].token_id, kVocabSize);
  // The slot's next sequence.
  PlanMaker others(3, 0, /*first_step_id=*/106);
  const absl::Status status = RunSteps(running.runner, others, 4);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(running.group->Health().ok()) << running.group->Health();
}

TEST(RankGroupProcessesTest, ProgramThatIsNotThereIsAnError) {
  RankGroupOptions options = LocalGroup(2, 1, "none");
  options.local_workers[0].args[0] = "/nonexistent/quire";
  const auto group = RankGroup::Start(std::move(options));
  EXPECT_FALSE(group.ok());
  EXPECT_TRUE(absl::StrContains(group.status().message(), "rank 1"))
      << group.status();
}

TEST(RankGroupNodesTest, TwoNodesRunOverTcpAndEndInGoodOrder) {
  for (const bool is_pipeline : {false, true}) {
    RankGroupOptions options;
    options.ranks = TestRanks(is_pipeline ? 1 : 2, is_pipeline ? 2 : 1, 2);
    RemoteWorker worker(options.ranks, 1);
    std::atomic<int> num_told{0};
    options.on_waiting = [&](int num_joined, int size) {
      EXPECT_EQ(size, 2);
      num_told = num_joined;
    };
    {
      RunningGroup running(options);
      ASSERT_TRUE(running.status.ok()) << running.status;
      EXPECT_EQ(num_told, 2);
      PlanMaker plans;
      const absl::Status status = RunSteps(running.runner, plans, 200);
      EXPECT_TRUE(status.ok()) << status;
    }
    const absl::Status ended = worker.Join();
    EXPECT_TRUE(ended.ok()) << ended;
  }
}

TEST(RankGroupNodesTest, FourNodesFormAMesh) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 2, 4);
  RemoteWorker first(options.ranks, 1), second(options.ranks, 2),
      third(options.ranks, 3);
  {
    RunningGroup running(options);
    ASSERT_TRUE(running.status.ok()) << running.status;
    PlanMaker plans;
    const absl::Status status = RunSteps(running.runner, plans, 50);
    EXPECT_TRUE(status.ok()) << status;
  }
  EXPECT_TRUE(first.Join().ok());
  EXPECT_TRUE(second.Join().ok());
  EXPECT_TRUE(third.Join().ok());
}

}  // namespace
}  // namespace quire
