// Ranks as threads that connect over loopback, and as processes: this program
// is its own worker.
#include "engine/parallel/rank_group.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"
#include "engine/engine_options.h"
#include "engine/parallel/control_link.h"
#include "engine/parallel/rank_worker.h"
#include "gtest/gtest.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

constexpr int kVocabSize = 500;

EngineOptions SmallEngine(int steps_in_flight) {
  EngineOptions options;
  options.block_size = 4;
  options.num_blocks = 64;
  options.max_model_len = 64;
  options.vocab_size = kVocabSize;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 64;
  options.steps_in_flight = steps_in_flight;
  return options;
}

LoadedFacts FactsOf(const EngineOptions& options) {
  return {{options.max_num_seqs, options.max_num_batched_tokens,
           options.max_model_len, options.num_blocks, options.vocab_size},
          options.steps_in_flight};
}

// The hash model, and a sum over the tensor group in every step, as a sharded
// model has them; `fault` may spoil it.
class ShardRunner : public ModelRunner {
 public:
  ShardRunner(const EngineOptions& options, const ParallelConfig& config)
      : model_(options, HashModelOptions{}), config_(config) {}

  std::function<void(int64_t step_id)> before_sum;
  bool draws_other_tokens = false;
  bool fails = false;           // By itself.
  bool draws_no_token = false;  // One step's is outside the vocabulary.

  int steps_in_flight() const override { return model_.steps_in_flight(); }
  absl::Status Submit(const SchedulerOutput& output) override {
    if (before_sum != nullptr) before_sum(output.step_id);
    if (fails && output.step_id >= 110) {
      return absl::InternalError("a broken device");
    }
    for (Communicator* group : {config_.tensor, config_.pipeline}) {
      if (group == nullptr) continue;
      std::vector<float> ones(100, 1);
      QUIRE_RETURN_IF_ERROR(group->AllReduceSum(
          TensorView::Vector(ones.data(), DType::kF32, 100), nullptr));
      if (ones[99] != group->size()) return absl::InternalError("wrong sum");
    }
    return model_.Submit(output);
  }
  absl::StatusOr<StepResult> Collect() override {
    QUIRE_ASSIGN_OR_RETURN(StepResult result, model_.Collect());
    if (!model_.violation().empty()) {
      return absl::InternalError(model_.violation());
    }
    if (draws_other_tokens) result.rows[0].tokens[0].token_id ^= 1;
    if (draws_no_token && result.step_id == 105) {
      result.rows[0].tokens[0].token_id = kVocabSize;
    }
    return result;
  }
  bool Done() const override { return model_.Done(); }

 private:
  HashModelRunner model_;
  const ParallelConfig config_;
};

// One sequence that decodes for good, in one slot: a step for every call.
class PlanMaker {
 public:
  explicit PlanMaker(int num_prompt_tokens = 3, int slot = 0,
                     int64_t first_step_id = 100)
      : num_prompt_tokens_(num_prompt_tokens),
        slot_(slot),
        step_id_(first_step_id) {}

  SchedulerOutput Next() {
    SchedulerOutput plan;
    plan.step_id = step_id_++;
    ScheduledRow row;
    row.needs_token = true;
    row.slot = slot_;
    // As many as a sequence has.
    const int first_block = 7 + 16 * slot_;
    if (position_ == 0) {
      SlotStart start;
      start.params = &params_;
      start.slot = slot_;
      start.draw_key = 5;
      start.history.resize(num_prompt_tokens_, 3);
      start.num_prompt_tokens = num_prompt_tokens_;
      plan.slot_starts.push_back(start);
      plan.token_ids = start.history;
      row.num_tokens = num_prompt_tokens_;
      position_ = num_prompt_tokens_;
      BlockAppend append;
      append.slot = slot_;
      for (int at = 0; at < num_prompt_tokens_; at += 4) {
        append.block_ids.push_back(first_block + at / 4);
      }
      plan.block_appends.push_back(append);
    } else {
      row.num_tokens = 1;
      row.first_position = position_;
      if (position_ % 4 == 0) {
        plan.block_appends.push_back({slot_, {first_block + position_ / 4}});
      }
      plan.token_ids = {last_token_};
      ++position_;
      // Back to the start, before the longest context.
      if (position_ == 60) position_ = 0;
    }
    plan.rows.push_back(row);
    return plan;
  }
  void Took(const StepResult& result) {
    last_token_ = result.rows[0].tokens[0].token_id;
  }

 private:
  const int num_prompt_tokens_;
  const int slot_;
  SamplingParams params_;
  int64_t step_id_;
  int32_t position_ = 0;
  int32_t last_token_ = 0;
};

// Runs so many steps; the first error.
absl::Status RunSteps(ModelRunner* runner, PlanMaker& plans, int count) {
  for (int i = 0; i < count; ++i) {
    QUIRE_RETURN_IF_ERROR(runner->Submit(plans.Next()));
    QUIRE_ASSIGN_OR_RETURN(const StepResult result, runner->Collect());
    plans.Took(result);
  }
  return absl::OkStatus();
}

int FreePort() {
  auto listener = ListenTcp({"127.0.0.1", 0});
  return LocalAddress(listener->get()).port;
}

RankOptions TestRanks(int tensor_size, int pipeline_size, int num_nodes) {
  RankOptions ranks;
  ranks.layout = {tensor_size, pipeline_size, num_nodes};
  ranks.master = {"127.0.0.1", num_nodes > 1 ? FreePort() : 0};
  ranks.facts = {{"version", "1"}, {"--dtype", "auto"}};
  ranks.bootstrap_timeout = absl::Seconds(20);
  ranks.watchdog = absl::Seconds(2);
  return ranks;
}

// The first step takes longer than the watchdog of
// SlowStepsOfManyTokensMayTakeLong.
void BeSlow(int64_t step_id) {
  if (step_id == 100) absl::SleepFor(absl::Seconds(1.8));
}

// A worker's whole life; how it ended.
absl::Status Work(const RankWorkerOptions& options, const std::string& fault) {
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<RankWorker> worker,
                         RankWorker::Join(options));
  QUIRE_ASSIGN_OR_RETURN(const std::string shared, worker->AwaitShared());
  // That of StagesHaveSeveralStepsInFlight.
  EngineOptions engine = SmallEngine(fault == "two_steps" ? 2 : 1);
  if (fault == "blocks") engine.num_blocks = 63;
  if (fault == "seqs") engine.max_num_seqs = 3;
  if (fault == "load_hang") absl::SleepFor(absl::Seconds(100));
  if (fault == "load") return absl::DataLossError("a damaged file");
  if (fault == "load_exit") _exit(65);
  QUIRE_RETURN_IF_ERROR(worker->FinishLoading(FactsOf(engine)));
  ShardRunner runner(engine, worker->config());
  runner.draws_other_tokens = fault == "tokens";
  runner.draws_no_token = fault == "no_token";
  runner.before_sum = [&](int64_t step_id) {
    if (fault == "slow") BeSlow(step_id);
    if (step_id < 110) return;
    if (fault == "kill") kill(getpid(), SIGKILL);
    if (fault == "stop") kill(getpid(), SIGSTOP);
    if (fault == "hang") absl::SleepFor(absl::Seconds(100));
  };
  runner.fails = fault == "fail";
  return worker->Run(&runner);
}

// Of a process of its own: "--worker RANK TENSOR PIPELINE PARENT FAULT".
int WorkerMain(char** argv) {
  int rank = 0, tensor = 0, pipeline = 0, parent = 0;
  if (!absl::SimpleAtoi(argv[2], &rank) ||
      !absl::SimpleAtoi(argv[3], &tensor) ||
      !absl::SimpleAtoi(argv[4], &pipeline) ||
      !absl::SimpleAtoi(argv[5], &parent)) {
    return 64;
  }
  DieWithParent(parent);
  RankWorkerOptions options;
  options.ranks = TestRanks(tensor, pipeline, 1);
  options.rank = rank;
  options.link_fd = kWorkerLinkFd;
  options.memory_fd = kWorkerMemoryFd;
  options.on_stuck = [](const absl::Status&) { _exit(70); };
  const std::string fault = argv[6];
  return Work(options, fault).ok() ? 0 : 70;
}

// Rank 0 with worker processes of which the last one has the fault.
RankGroupOptions LocalGroup(int tensor, int pipeline,
                            const std::string& fault) {
  RankGroupOptions options;
  options.ranks = TestRanks(tensor, pipeline, 1);
  const int size = tensor * pipeline;
  for (int rank = 1; rank < size; ++rank) {
    WorkerCommand command;
    command.rank = rank;
    command.args = {"/proc/self/exe",
                    "--worker",
                    absl::StrCat(rank),
                    absl::StrCat(tensor),
                    absl::StrCat(pipeline),
                    absl::StrCat(getpid()),
                    rank == size - 1 || fault == "two_steps" ? fault : "none"};
    options.local_workers.push_back(std::move(command));
  }
  return options;
}

// The group, loaded; `status` if it does not get so far.
struct RunningGroup {
  std::unique_ptr<RankGroup> group;
  std::unique_ptr<ShardRunner> shard;
  ModelRunner* runner = nullptr;
  LoadedFacts agreed;
  absl::Status status;

  explicit RunningGroup(RankGroupOptions options, int steps_in_flight = 1) {
    auto started = RankGroup::Start(std::move(options));
    status = started.status();
    if (!status.ok()) return;
    group = std::move(*started);
    status = group->Share("id");
    if (!status.ok()) return;
    const EngineOptions engine = SmallEngine(steps_in_flight);
    const auto finished = group->FinishLoading(FactsOf(engine));
    status = finished.status();
    if (!status.ok()) return;
    agreed = *finished;
    shard = std::make_unique<ShardRunner>(engine, group->config());
    runner = group->WrapRunner(shard.get());
  }
};

// Runs steps until the group fails, 100 s at most.
absl::Status RunUntilFailure(ModelRunner* runner, PlanMaker& plans) {
  const absl::Time deadline = Clock::Monotonic()->Now() + absl::Seconds(100);
  while (Clock::Monotonic()->Now() < deadline)
    QUIRE_RETURN_IF_ERROR(RunSteps(runner, plans, 1));
  return absl::OkStatus();
}

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

TEST(RankGroupProcessesTest, KilledWorkerIsNamedWithinASecond) {
  RunningGroup running(LocalGroup(3, 1, "kill"));
  ASSERT_TRUE(running.status.ok()) << running.status;
  PlanMaker plans;
  ASSERT_TRUE(RunSteps(running.runner, plans, 10).ok());
  const absl::Time begin = Clock::Monotonic()->Now();
  const absl::Status status = RunUntilFailure(running.runner, plans);
  EXPECT_LT(Clock::Monotonic()->Now() - begin, absl::Seconds(1));
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "rank 2")) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "signal 9")) << status;
  EXPECT_EQ(running.group->Health(), status);
  EXPECT_EQ(running.runner->Submit(plans.Next()), status);
}

TEST(RankGroupProcessesTest, StoppedWorkerIsNamedAfterTheWatchdogsTime) {
  for (const char* fault : {"stop", "hang"}) {
    RunningGroup running(LocalGroup(2, 1, fault));
    ASSERT_TRUE(running.status.ok()) << running.status;
    PlanMaker plans;
    ASSERT_TRUE(RunSteps(running.runner, plans, 10).ok());
    const absl::Time begin = Clock::Monotonic()->Now();
    const absl::Status status = RunUntilFailure(running.runner, plans);
    const absl::Duration taken = Clock::Monotonic()->Now() - begin;
    EXPECT_GT(taken, absl::Seconds(1.7)) << fault;
    EXPECT_LT(taken, absl::Seconds(3.3)) << fault;
    EXPECT_TRUE(absl::IsUnavailable(status));
    EXPECT_TRUE(absl::StrContains(status.message(), "rank") &&
                absl::StrContains(status.message(), "1"))
        << status;
  }
}

// With signs of life, 31 tokens may take 3.1 s more than the watchdog's time.
TEST(RankGroupProcessesTest, SlowStepsOfManyTokensMayTakeLong) {
  RankGroupOptions options = LocalGroup(2, 1, "slow");
  options.ranks.watchdog = absl::Seconds(1);
  RunningGroup running(std::move(options));
  ASSERT_TRUE(running.status.ok()) << running.status;
  running.shard->before_sum = BeSlow;
  PlanMaker plans(31);
  const absl::Status status = RunSteps(running.runner, plans, 20);
  EXPECT_TRUE(status.ok()) << status;
}

// An abort that takes long holds nobody up.
TEST(RankGroupProcessesTest, LostRankAbortsTheDevicesOfRank0) {
  RunningGroup running(LocalGroup(2, 1, "kill"));
  ASSERT_TRUE(running.status.ok()) << running.status;
  absl::Notification may_end, has_begun;
  int num_aborts = 0;
  running.group->AbortOnFailure([&] {
    ++num_aborts;
    has_begun.Notify();
    may_end.WaitForNotification();
  });
  PlanMaker plans;
  const absl::Status status = RunUntilFailure(running.runner, plans);
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_TRUE(has_begun.WaitForNotificationWithTimeout(absl::Seconds(20)));
  EXPECT_EQ(running.group->Health(), status);
  EXPECT_EQ(running.runner->Submit(plans.Next()), status);
  may_end.Notify();
  // Who comes too late is called at once.
  bool is_called = false;
  running.group->AbortOnFailure([&] { is_called = true; });
  EXPECT_TRUE(is_called);
  running.group.reset();
  EXPECT_EQ(num_aborts, 1);
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

// A rank that says that it lives and never gets its shard loaded.
TEST(RankGroupProcessesTest, ARankThatHangsWhileLoadingIsGivenUp) {
  RankGroupOptions options = LocalGroup(3, 1, "load_hang");
  options.ranks.load_timeout = absl::Seconds(1);
  const absl::Time begin = Clock::Monotonic()->Now();
  RunningGroup running(std::move(options));
  EXPECT_LT(Clock::Monotonic()->Now() - begin, absl::Seconds(5));
  EXPECT_TRUE(absl::IsUnavailable(running.status));
  // Both sides, and not rank 1, which has loaded.
  for (const char* part :
       {"rank 2 (", "has not loaded 1s after", "rank 0 (", "--load-timeout"}) {
    EXPECT_TRUE(absl::StrContains(running.status.message(), part))
        << running.status;
  }
  EXPECT_FALSE(absl::StrContains(running.status.message(), "rank 1"))
      << running.status;
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

// The drawing rank tells what it drew: rank 0 has no tokens of its own.
TEST(RankGroupProcessesTest, AStageThatIsLostIsNamed) {
  for (const auto& [fault, min_taken] :
       {std::pair{"kill", 0.0}, {"stop", 1.7}, {"hang", 1.7}}) {
    SCOPED_TRACE(fault);
    RunningGroup running(LocalGroup(1, 2, fault));
    ASSERT_TRUE(running.status.ok()) << running.status;
    PlanMaker plans;
    ASSERT_TRUE(RunSteps(running.runner, plans, 10).ok());
    const absl::Time begin = Clock::Monotonic()->Now();
    const absl::Status status = RunUntilFailure(running.runner, plans);
    const absl::Duration taken = Clock::Monotonic()->Now() - begin;
    EXPECT_GE(taken, absl::Seconds(min_taken));
    EXPECT_LT(taken, absl::Seconds(min_taken + 1.6));
    EXPECT_TRUE(absl::IsUnavailable(status));
    EXPECT_TRUE(absl::StrContains(status.message(), "rank 1")) << status;
  }
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

// Rank 1 of two nodes, as a thread.
class RemoteWorker {
 public:
  RemoteWorker(RankOptions ranks, int rank, const std::string& fault = "none") {
    RankWorkerOptions options;
    options.ranks = std::move(ranks);
    options.rank = rank;
    thread_ =
        std::thread([this, options, fault] { status_ = Work(options, fault); });
  }
  ~RemoteWorker() {
    if (thread_.joinable()) thread_.join();
  }
  absl::Status Join() {
    thread_.join();
    return status_;
  }

 private:
  std::thread thread_;
  absl::Status status_;
};

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

TEST(RankGroupNodesTest, RanksThatDoNotFitAreRefusedAndBothSidesNamed) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  std::mutex mu;
  std::string log;
  options.on_log = [&](const std::string& line) {
    std::lock_guard<std::mutex> lock(mu);
    absl::StrAppend(&log, line, "\n");
  };
  std::unique_ptr<RankGroup> group;
  std::thread leader([&] {
    auto started = RankGroup::Start(options);
    if (started.ok()) group = *std::move(started);
  });
  RankOptions other = options.ranks;
  other.facts[0].second = "2";
  absl::Status refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_TRUE(absl::StrContains(refused.message(), "version is 1 on rank 0"))
      << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "2 on rank 1")) << refused;

  other = options.ranks;
  other.facts.pop_back();
  other.facts.push_back({"--seed", "7"});
  refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "--dtype is auto on rank 0"))
      << refused;

  other = options.ranks;
  other.layout = {3, 1, 3};
  refused = RemoteWorker(other, 2).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "none of the ranks 1 to 1"))
      << refused;

  // As the program says how many ranks there are.
  other.facts.push_back({"--tensor-parallel-size", "3"});
  refused = RemoteWorker(other, 2).Join();
  EXPECT_TRUE(absl::StrContains(
      refused.message(), "--tensor-parallel-size is not given on rank 0"))
      << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "and 3 on rank 2"))
      << refused;

  // Nobody who speaks another protocol is in the way.
  auto stranger = ConnectTcp(options.ranks.master, Clock::Monotonic()->Now());
  ASSERT_TRUE(stranger.ok());
  EXPECT_EQ(write(stranger->get(), "GET / HTTP/1.1\r\n\r\n", 18), 18);

  RemoteWorker right(options.ranks, 1, "load");
  leader.join();
  ASSERT_NE(group, nullptr);
  // It joins again while its first self is there, or comes too late.
  refused = RemoteWorker(options.ranks, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "comes too late"))
      << refused;
  EXPECT_TRUE(group->Share("").ok());
  right.Join().IgnoreError();
  std::lock_guard<std::mutex> lock(mu);
  EXPECT_TRUE(absl::StrContains(log, "version is 1")) << log;
  EXPECT_TRUE(absl::StrContains(log, "quire's protocol")) << log;
}

// Who cannot prove the key learns nothing; who can hears what is wrong.
TEST(RankGroupNodesTest, AGroupKeyIsAskedFor) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  options.ranks.key = *GroupKey::Create("a secret of the group");
  std::mutex mu;
  std::string log;
  options.on_log = [&](const std::string& line) {
    std::lock_guard<std::mutex> lock(mu);
    absl::StrAppend(&log, line, "\n");
  };
  absl::StatusOr<std::unique_ptr<RankGroup>> group;
  std::thread leader([&] { group = RankGroup::Start(options); });
  RankOptions other = options.ranks;
  other.key = GroupKey();
  absl::Status refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_TRUE(absl::StrContains(refused.message(), "the group has a key"))
      << refused;

  // The bytes themselves: a version is not told.
  auto fd = ConnectTcp(options.ranks.master, Clock::Monotonic()->Now());
  ASSERT_TRUE(fd.ok());
  ControlLink stranger(*std::move(fd));
  Hello hello;
  hello.rank = 1;
  ASSERT_TRUE(
      stranger.Send(MessageType::kHello, ToBytes(hello), absl::Seconds(5))
          .ok());
  const auto answer = stranger.Receive(
      kMaxControlBytes, Clock::Monotonic()->Now() + absl::Seconds(5));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->type, MessageType::kRefusal);
  EXPECT_EQ(answer->body, "refused");

  // It does not trust a leader that cannot prove it either.
  other.key = *GroupKey::Create("a secret of somebody else");
  refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "does not know")) << refused;
  // Rank 0 hears of it by the end of the connection, and says whose it was.
  const auto is_logged = [&](absl::string_view text) {
    std::lock_guard<std::mutex> lock(mu);
    return absl::StrContains(log, text);
  };
  const absl::Time deadline = Clock::Monotonic()->Now() + absl::Seconds(10);
  while (!is_logged("it has another one") &&
         Clock::Monotonic()->Now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(is_logged("refused: 127.0.0.1:"));
  EXPECT_TRUE(is_logged("it has another one (--group-key-file)"));

  other = options.ranks;
  other.facts[0].second = "2";
  refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "version is 1 on rank 0"))
      << refused;

  RemoteWorker right(options.ranks, 1, "load");
  leader.join();
  ASSERT_TRUE(group.ok()) << group.status();
  other = options.ranks;
  other.key = GroupKey();
  refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "the group has a key"))
      << refused;
  refused = RemoteWorker(options.ranks, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "comes too late"))
      << refused;
  EXPECT_TRUE((*group)->Share("").ok());
  right.Join().IgnoreError();
  std::lock_guard<std::mutex> lock(mu);
  EXPECT_TRUE(absl::StrContains(log, "does not prove the group's key")) << log;
}

TEST(RankGroupNodesTest, AKeyThatOnlyTheWorkerHasIsNamedOnBothSides) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  absl::StatusOr<std::unique_ptr<RankGroup>> group;
  std::thread leader([&] { group = RankGroup::Start(options); });
  RankOptions other = options.ranks;
  other.key = *GroupKey::Create("a secret of the group");
  const absl::Status refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(
      absl::StrContains(refused.message(), "has a group key, and rank 0"))
      << refused;
  RemoteWorker right(options.ranks, 1, "load");
  leader.join();
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_TRUE((*group)->Share("").ok());
  right.Join().IgnoreError();
}

// Of three nodes: rank 2 is lost, and rank 1 hears which one it was.
TEST(RankGroupNodesTest, TheOthersHearWhoWasLost) {
  RankGroupOptions options;
  options.ranks = TestRanks(3, 1, 3);
  RemoteWorker first(options.ranks, 1), second(options.ranks, 2, "fail");
  RunningGroup running(options);
  ASSERT_TRUE(running.status.ok()) << running.status;
  PlanMaker plans;
  const absl::Status status = RunUntilFailure(running.runner, plans);
  for (const absl::Status& ended : {status, first.Join()}) {
    EXPECT_TRUE(absl::IsUnavailable(ended)) << ended;
    EXPECT_TRUE(absl::StrContains(
        ended.message(), absl::StrCat("rank 2 (", OwnHostName(), ", process ")))
        << ended;
    EXPECT_TRUE(absl::StrContains(ended.message(), "a broken device")) << ended;
  }
  EXPECT_TRUE(absl::StrContains(second.Join().message(), "a broken device"));
}

// Rank 0 whose process says nothing, as one that was stopped: a link that
// nobody serves stands for it.
TEST(RankGroupNodesTest, ARank0ThatSaysNothingIsGivenUp) {
  RankOptions ranks = TestRanks(1, 2, 2);
  ranks.watchdog = absl::Seconds(1);
  auto listener = ListenTcp(ranks.master);
  ASSERT_TRUE(listener.ok());
  auto mesh_listener = ListenTcp({"127.0.0.1", 0});
  ASSERT_TRUE(mesh_listener.ok());
  RemoteWorker worker(ranks, 1);
  const absl::Time soon = Clock::Monotonic()->Now() + absl::Seconds(20);
  auto fd = AcceptTcp(listener->get(), soon);
  ASSERT_TRUE(fd.ok()) << fd.status();
  ControlLink link(*std::move(fd));
  EXPECT_EQ(link.Receive(kMaxHelloBytes, soon)->type, MessageType::kHello);
  Welcome welcome;
  welcome.leader_name = "rank 0 (leader, process 7)";
  welcome.mesh.resize(2);
  welcome.mesh[0].port = LocalAddress(mesh_listener->get()).port;
  ASSERT_TRUE(
      link.Send(MessageType::kWelcome, ToBytes(welcome), absl::Seconds(5))
          .ok());
  auto mesh = AcceptTcp(mesh_listener->get(), soon);
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  // Signs of life count, and then there are none.
  absl::Time last;
  for (int i = 0; i < 30; ++i) {
    ASSERT_TRUE(*link.TrySend(MessageType::kHeartbeat, ""));
    last = Clock::Monotonic()->Now();
    absl::SleepFor(absl::Milliseconds(50));
  }
  const absl::Status ended = worker.Join();
  EXPECT_GT(Clock::Monotonic()->Now() - last, absl::Seconds(0.9));
  EXPECT_TRUE(absl::StrContains(
      ended.message(),
      "rank 0 (leader, process 7) hangs: no sign of life for 1s, says rank 1"))
      << ended;
}

TEST(RankGroupNodesTest, RankThatJoinsTwiceIsRefused) {
  RankGroupOptions options;
  options.ranks = TestRanks(3, 1, 3);
  std::unique_ptr<RankGroup> group;
  std::atomic<int> num_joined{0};
  options.on_waiting = [&](int joined, int) { num_joined = joined; };
  std::thread leader([&] {
    auto started = RankGroup::Start(options);
    if (started.ok()) group = *std::move(started);
  });
  RemoteWorker first(options.ranks, 1, "load");
  while (num_joined < 2) std::this_thread::yield();
  const absl::Status refused = RemoteWorker(options.ranks, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "joins twice")) << refused;
  RemoteWorker other(options.ranks, 2, "load");
  leader.join();
  ASSERT_NE(group, nullptr);
  EXPECT_TRUE(group->Share("").ok());
  first.Join().IgnoreError();
  other.Join().IgnoreError();
}

TEST(RankGroupNodesTest, MissingRanksAndLeadersAreNamedAfterTheTimeout) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  options.ranks.bootstrap_timeout = absl::Milliseconds(200);
  const absl::Status missing = RankGroup::Start(options).status();
  EXPECT_TRUE(absl::IsUnavailable(missing));
  EXPECT_TRUE(absl::StrContains(missing.message(), "for rank 1 of 2"))
      << missing;
  RankWorkerOptions worker;
  worker.ranks = options.ranks;
  const absl::Status unreachable = RankWorker::Join(worker).status();
  EXPECT_TRUE(absl::IsUnavailable(unreachable));
  EXPECT_TRUE(
      absl::StrContains(unreachable.message(), options.ranks.master.ToString()))
      << unreachable;
  EXPECT_TRUE(absl::StrContains(unreachable.message(), "rank 1"))
      << unreachable;
}

TEST(RankGroupNodesTest, TakenPortIsAnError) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  auto taken = ListenTcp(options.ranks.master);
  ASSERT_TRUE(taken.ok());
  const absl::Status status = RankGroup::Start(options).status();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_TRUE(absl::StrContains(status.message(),
                                "in use (--master-port, rank 0 on node 0)"))
      << status;
}

TEST(RankGroupNodesTest, AMasterThatIsNotThisHostIsSaid) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  options.ranks.bootstrap_timeout = absl::Milliseconds(1);
  std::string log;
  options.on_log = [&](const std::string& line) { log += line; };
  EXPECT_TRUE(absl::IsUnavailable(RankGroup::Start(options).status()));
  EXPECT_EQ(log, "");
  options.ranks.master.host = "192.0.2.1";  // RFC 5737: of no host.
  EXPECT_TRUE(absl::IsUnavailable(RankGroup::Start(options).status()));
  EXPECT_EQ(log,
            absl::StrCat("--master-addr 192.0.2.1 is no address of node 0, or "
                         "not known yet: listening on all that it has, port ",
                         options.ranks.master.port));
}

TEST(RankGroupNodesTest, ImpossibleLayoutsAreRefused) {
  RankGroupOptions options;
  options.ranks = TestRanks(3, 1, 2);
  EXPECT_TRUE(absl::IsInvalidArgument(RankGroup::Start(options).status()));
  options.ranks.layout = {65, 1, 1};
  EXPECT_TRUE(absl::IsInvalidArgument(RankGroup::Start(options).status()));
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  if (argc > 6 && std::string(argv[1]) == "--worker") {
    return quire::WorkerMain(argv);
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
