// Any rank but 0: joins the group, then executes the plans that rank 0 sends.
#ifndef QUIRE_ENGINE_PARALLEL_RANK_WORKER_H_
#define QUIRE_ENGINE_PARALLEL_RANK_WORKER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/model_runner.h"
#include "engine/parallel/parallel_config.h"
#include "engine/parallel/rank_group.h"

namespace quire {

struct RankWorkerOptions {
  RankOptions ranks;
  int rank = 1;
  // From the parent: the connection to rank 0 (-1: by TCP to ranks.master), and
  // the node's memory (-1: none). Taken over.
  int link_fd = -1;
  int memory_fd = -1;
  // The first rank of another node starts the node's other ranks with these;
  // rank, link and memory as in a RankGroup.
  std::vector<WorkerCommand> local_workers;
  // If not null: rank 0 cannot be reached yet, and is waited for.
  std::function<void(const std::string&)> on_log;
  // On another thread, if not null: the group has ended in disorder and this
  // object still lives 2 s later, or in the midst of loading 0.5 s: the process
  // must end.
  std::function<void(const absl::Status&)> on_stuck;
};

class RankWorker {
 public:
  // Blocks until the group is complete. UNAVAILABLE if rank 0 cannot be reached
  // in time or goes away; FAILED_PRECONDITION with its reason if it refuses
  // this rank.
  static absl::StatusOr<std::unique_ptr<RankWorker>> Join(
      RankWorkerOptions options);
  virtual ~RankWorker() = default;

  virtual ParallelConfig config() const = 0;
  // RankGroup::Share's bytes.
  virtual absl::StatusOr<std::string> AwaitShared() = 0;

  // See RankGroup.
  virtual void AbortOnFailure(std::function<void()> abort) = 0;

  // This rank has loaded; blocks until rank 0 says that all have.
  virtual absl::Status FinishLoading(const LoadedFacts& own) = 0;

  // Executes plans on `runner` until rank 0 ends the group in good order (OK)
  // or something fails (UNAVAILABLE and what). `facts`: of FinishLoading.
  virtual absl::Status Run(ModelRunner* runner) = 0;

  // Tells rank 0 why this rank is going to end.
  virtual void ReportFailure(const absl::Status& status) = 0;

  // OK, or why the group has ended. Thread-safe.
  virtual absl::Status Health() const = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_RANK_WORKER_H_
