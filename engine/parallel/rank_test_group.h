// Groups of ranks for tests, on the hash model: as processes (a test program is
// its own worker) and as threads that connect over loopback.
#ifndef QUIRE_ENGINE_PARALLEL_RANK_TEST_GROUP_H_
#define QUIRE_ENGINE_PARALLEL_RANK_TEST_GROUP_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine_options.h"
#include "engine/model_runner.h"
#include "engine/parallel/rank_group.h"
#include "engine/parallel/rank_worker.h"
#include "tests/hash_model_runner.h"

namespace quire {

inline constexpr int kVocabSize = 500;

// The hash model, and a sum over the tensor group in every step, as a sharded
// model has them.
class ShardRunner : public ModelRunner {
 public:
  ShardRunner(const EngineOptions& options, const ParallelConfig& config)
      : model_(options, HashModelOptions{}), config_(config) {}

  // What may spoil it.
  std::function<void(int64_t step_id)> before_sum;
  bool draws_other_tokens = false;
  bool fails = false;           // By itself.
  bool draws_no_token = false;  // One step's is outside the vocabulary.

  int steps_in_flight() const override { return model_.steps_in_flight(); }
  absl::Status Submit(const SchedulerOutput& output) override;
  absl::StatusOr<StepResult> Collect() override;
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

  SchedulerOutput Next();
  void Took(const StepResult& result);

 private:
  const int num_prompt_tokens_;
  const int slot_;
  SamplingParams params_;
  int64_t step_id_;
  int32_t position_ = 0;
  int32_t last_token_ = 0;
};

// Runs so many steps; the first error.
absl::Status RunSteps(ModelRunner* runner, PlanMaker& plans, int count);
// Runs steps until the group fails, 100 s at most.
absl::Status RunUntilFailure(ModelRunner* runner, PlanMaker& plans);

// On one node, or on several of this host: then rank 0 is at a free port.
RankOptions TestRanks(int tensor_size, int pipeline_size, int num_nodes);

// The first step takes 1.8 s, asleep or computing.
void BeSlow(int64_t step_id);
void BeBusy(int64_t step_id);
// The first step takes 3 s, in which there is some progress every 0.1 s.
void BeSlowAndGetOn(int64_t step_id, StepProgress* progress);

// Rank 0 with worker processes of which the last one has the fault: "none",
// or what Work in rank_test_group.cc knows; behind "cpu " it computes on CPUs.
RankGroupOptions LocalGroup(int tensor, int pipeline, const std::string& fault);

// The group, loaded; `status` if it does not get so far.
struct RunningGroup {
  std::unique_ptr<RankGroup> group;
  std::unique_ptr<ShardRunner> shard;
  ModelRunner* runner = nullptr;
  LoadedFacts agreed;
  absl::Status status;

  explicit RunningGroup(RankGroupOptions options, int steps_in_flight = 1);
};

// A rank of another node, as a thread.
class RemoteWorker {
 public:
  // on_step: called before each step's sum.
  RemoteWorker(RankOptions ranks, int rank, const std::string& fault = "none",
               std::function<void(int64_t step_id)> on_step = nullptr);
  ~RemoteWorker();
  absl::Status Join();  // How it ended.

 private:
  std::thread thread_;
  absl::Status status_;
};

// One of two nodes as a process of its own, with one rank: rank 0, which runs
// steps until the group fails, or rank 1, which has the fault. The destructor
// ends it.
class NodeProcess {
 public:
  NodeProcess(int rank, int master_port, const std::string& fault = "none");
  ~NodeProcess();
  void Signal(int number) const;

 private:
  int pid_ = -1;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_RANK_TEST_GROUP_H_
