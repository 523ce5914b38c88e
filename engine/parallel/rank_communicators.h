// The communicators of one rank's groups: shared memory where a group lies on
// one node, connections where it does not.
#ifndef QUIRE_ENGINE_PARALLEL_RANK_COMMUNICATORS_H_
#define QUIRE_ENGINE_PARALLEL_RANK_COMMUNICATORS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/shared_memory.h"
#include "engine/parallel/noted_communicator.h"
#include "engine/parallel/parallel_config.h"
#include "engine/parallel/rank_layout.h"
#include "engine/parallel/rank_messages.h"
#include "engine/parallel/tcp.h"
#include "kernels/communicator.h"

namespace quire {

struct RankCommunicators {
  std::unique_ptr<Communicator> tensor, pipeline;  // Null: alone in it.
  // Of both.
  std::shared_ptr<const CollectiveActivity> activity =
      std::make_shared<const CollectiveActivity>();

  ParallelConfig Config(const RankLayout& layout, int rank) const;
  // Of operations between stages from now on.
  void SetStageTimeout(absl::Duration timeout) {
    if (pipeline != nullptr) pipeline->SetTimeout(timeout);
  }
  // From any thread.
  void Abort();
};

// True if a group of `rank` needs connections to other ranks.
bool NeedsMesh(const RankLayout& layout, int rank);

struct CommunicatorOptions {
  RankLayout layout;
  int rank = 0;
  SharedMemory* memory = nullptr;  // The node's; null: it has one rank.
  // For groups that are not local: where the others listen (an empty host is
  // master_host), what they ask for, and where they find this rank.
  Welcome welcome;
  std::string master_host;
  int mesh_listener = -1;
  absl::Time deadline;     // Of connecting.
  absl::Duration timeout;  // Of an operation.
};

// Blocks until all ranks of the groups are connected. UNAVAILABLE naming the
// rank that is missing.
absl::StatusOr<RankCommunicators> ConnectRanks(
    const CommunicatorOptions& options);

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_RANK_COMMUNICATORS_H_
