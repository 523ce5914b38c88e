#include "engine/parallel/rank_test_group.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"
#include "engine/parallel/tcp.h"
#include "gtest/gtest.h"

extern char** environ;

namespace quire {
namespace {

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

int FreePort() {
  auto listener = ListenTcp({"127.0.0.1", 0});
  return LocalAddress(listener->get()).port;
}

// A worker's whole life; how it ended.
absl::Status Work(RankWorkerOptions options, absl::string_view fault,
                  const std::function<void(int64_t step_id)>& on_step) {
  options.ranks.computes_on_cpu = absl::ConsumePrefix(&fault, "cpu ");
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
    if (on_step != nullptr) on_step(step_id);
    if (fault == "slow") BeSlow(step_id);
    if (fault == "busy") BeBusy(step_id);
    if (fault == "layers") BeSlowAndGetOn(step_id, worker->config().progress);
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
  return Work(options, fault, nullptr).ok() ? 0 : 70;
}

RankOptions TwoNodes(int master_port) {
  RankOptions ranks = TestRanks(2, 1, 2);
  ranks.master.port = master_port;
  return ranks;
}

// Of a process of its own: "--node RANK PORT FAULT".
int NodeMain(char** argv) {
  int rank = 0, port = 0;
  if (!absl::SimpleAtoi(argv[2], &rank) || !absl::SimpleAtoi(argv[3], &port)) {
    return 64;
  }
  if (rank > 0) {
    RankWorkerOptions options;
    options.ranks = TwoNodes(port);
    options.rank = rank;
    return Work(options, argv[4], nullptr).ok() ? 0 : 70;
  }
  RankGroupOptions options;
  options.ranks = TwoNodes(port);
  RunningGroup running(std::move(options));
  if (!running.status.ok()) return 69;
  PlanMaker plans;
  return RunUntilFailure(running.runner, plans).ok() ? 0 : 70;
}

}  // namespace

absl::Status ShardRunner::Submit(const SchedulerOutput& output) {
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

absl::StatusOr<StepResult> ShardRunner::Collect() {
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

SchedulerOutput PlanMaker::Next() {
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

void PlanMaker::Took(const StepResult& result) {
  last_token_ = result.rows[0].tokens[0].token_id;
}

absl::Status RunSteps(ModelRunner* runner, PlanMaker& plans, int count) {
  for (int i = 0; i < count; ++i) {
    QUIRE_RETURN_IF_ERROR(runner->Submit(plans.Next()));
    QUIRE_ASSIGN_OR_RETURN(const StepResult result, runner->Collect());
    plans.Took(result);
  }
  return absl::OkStatus();
}

absl::Status RunUntilFailure(ModelRunner* runner, PlanMaker& plans) {
  const absl::Time deadline = Clock::Monotonic()->Now() + absl::Seconds(100);
  while (Clock::Monotonic()->Now() < deadline)
    QUIRE_RETURN_IF_ERROR(RunSteps(runner, plans, 1));
  return absl::OkStatus();
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

void BeSlow(int64_t step_id) {
  if (step_id == 100) absl::SleepFor(absl::Seconds(1.8));
}

void BeBusy(int64_t step_id) {
  const absl::Time end = Clock::Monotonic()->Now() + absl::Seconds(1.8);
  while (step_id == 100 && Clock::Monotonic()->Now() < end) {
  }
}

void BeSlowAndGetOn(int64_t step_id, StepProgress* progress) {
  for (int i = 0; step_id == 100 && i < 30; ++i) {
    absl::SleepFor(absl::Milliseconds(100));
    ++*progress;
  }
}

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

RunningGroup::RunningGroup(RankGroupOptions options, int steps_in_flight) {
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

RemoteWorker::RemoteWorker(RankOptions ranks, int rank,
                           const std::string& fault,
                           std::function<void(int64_t step_id)> on_step) {
  RankWorkerOptions options;
  options.ranks = std::move(ranks);
  options.rank = rank;
  thread_ = std::thread([this, options, fault, on_step] {
    status_ = Work(options, fault, on_step);
  });
}

RemoteWorker::~RemoteWorker() {
  if (thread_.joinable()) thread_.join();
}

absl::Status RemoteWorker::Join() {
  thread_.join();
  return status_;
}

NodeProcess::NodeProcess(int rank, int master_port, const std::string& fault) {
  std::string args[] = {"/proc/self/exe", "--node", absl::StrCat(rank),
                        absl::StrCat(master_port), fault};
  std::vector<char*> pointers;
  for (std::string& arg : args) pointers.push_back(arg.data());
  pointers.push_back(nullptr);
  EXPECT_EQ(posix_spawn(&pid_, pointers[0], nullptr, nullptr, pointers.data(),
                        environ),
            0);
}

NodeProcess::~NodeProcess() {
  Signal(SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void NodeProcess::Signal(int number) const { EXPECT_EQ(kill(pid_, number), 0); }

}  // namespace quire

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  const std::string role = argc > 1 ? argv[1] : "";
  if (argc > 6 && role == "--worker") return quire::WorkerMain(argv);
  if (argc > 4 && role == "--node") return quire::NodeMain(argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
