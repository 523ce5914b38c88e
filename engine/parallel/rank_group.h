// Rank 0's view of the ranks that run a model together: starts or awaits them,
// sends them each step's plan, and notices when one is gone, hangs or draws
// other tokens.
#ifndef QUIRE_ENGINE_PARALLEL_RANK_GROUP_H_
#define QUIRE_ENGINE_PARALLEL_RANK_GROUP_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/model_runner.h"
#include "engine/parallel/group_key.h"
#include "engine/parallel/local_ranks.h"
#include "engine/parallel/parallel_config.h"
#include "engine/parallel/rank_layout.h"
#include "engine/parallel/rank_messages.h"

namespace quire {

// What all ranks of a run are started with.
struct RankOptions {
  RankLayout layout;
  HostPort master;  // Where rank 0 listens; of use with several nodes.
  RankFacts facts;  // Compared with rank 0's.
  absl::Duration bootstrap_timeout = absl::Minutes(10);
  // From when all have joined until all have loaded.
  absl::Duration load_timeout = absl::Hours(1);
  // Of ranks that join from other nodes; those that do not know it are refused
  // without being told anything.
  GroupKey key;
  // A rank that serves and says nothing for so long hangs, if nothing tells
  // that its machine or the network holds it up (liveness.h).
  absl::Duration heartbeat_timeout = absl::Seconds(1);
  // So does one, besides rank 0, that is in a step and waits for no other rank,
  // and whose threads sleep all the same. Not where they may wait for a device.
  bool computes_on_cpu = false;
  // One that says nothing for so long hangs whatever it may be; so does one
  // that says that it lives, and gets no further within a step for this and
  // 100 ms for each of its tokens.
  absl::Duration watchdog = absl::Seconds(30);
};

struct RankGroupOptions {
  RankOptions ranks;
  // How to start the ranks 1 to local_size - 1 of this node.
  std::vector<WorkerCommand> local_workers;
  // All may be null. Called on another thread:
  //   on_waiting: so many ranks of all are there.
  //   on_log: a line for the log (a rank was refused, the master's address is
  //     of another host).
  //   on_stuck: the group has failed (Health says why) and this object still
  //     lives 4 s later, or in the midst of loading 0.7 s: whoever owns it does
  //     not get on, the process must end.
  std::function<void(int num_joined, int size)> on_waiting;
  std::function<void(const std::string&)> on_log;
  std::function<void(const absl::Status&)> on_stuck;
};

class RankGroup {
 public:
  // Blocks until all ranks have joined. Errors name both sides:
  // INVALID_ARGUMENT for a layout that cannot be; UNAVAILABLE if the port is
  // taken or ranks are missing after the timeout (with the last one that was
  // refused, and why).
  static absl::StatusOr<std::unique_ptr<RankGroup>> Start(
      RankGroupOptions options);
  // Shutdown, then waits for local workers; what does not end is killed.
  virtual ~RankGroup() = default;

  // Of rank 0; valid as long as this.
  virtual ParallelConfig config() const = 0;

  // Gives all ranks the same bytes (RankWorker::AwaitShared).
  virtual absl::Status Share(const std::string& bytes) = 0;

  // Ends the group's device collectives when it fails: `abort` is called then,
  // once, on a thread of its own, for it may take long; at once if the group
  // has failed already. It may be called after what it aborts has gone
  // (Communicator::DetachedAbort). Once, before FinishLoading. Thread-safe.
  virtual void AbortOnFailure(std::function<void()> abort) = 0;

  // This rank has loaded its shard; blocks until the others have, compares what
  // they prepared for, and lets them serve. What all of them can do: of the
  // longest context and of the KV blocks the least that a rank has. UNAVAILABLE
  // if a rank fails meanwhile or has not loaded in time.
  virtual absl::StatusOr<LoadedFacts> FinishLoading(const LoadedFacts& own) = 0;

  // A runner that sends each plan to all ranks and executes it on `own`, which
  // must outlive it; results are those of the last stage. Every error ends the
  // group: Submit and Collect then say UNAVAILABLE and why. Call once, after
  // FinishLoading.
  virtual ModelRunner* WrapRunner(ModelRunner* own) = 0;

  // OK, or UNAVAILABLE and which rank failed how. Thread-safe.
  virtual absl::Status Health() const = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_RANK_GROUP_H_
