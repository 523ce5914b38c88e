// Which ranks run where, which of them form groups, and what the ranks of one
// host share. Pure arithmetic.
#ifndef QUIRE_ENGINE_PARALLEL_RANK_LAYOUT_H_
#define QUIRE_ENGINE_PARALLEL_RANK_LAYOUT_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace quire {

// Node n runs the ranks [n * local_size, (n + 1) * local_size). See
// ParallelConfig for what a rank is.
struct RankLayout {
  int tensor_size = 1;
  int pipeline_size = 1;
  int num_nodes = 1;

  int size() const { return tensor_size * pipeline_size; }
  int local_size() const { return size() / num_nodes; }
  int NodeOf(int rank) const { return rank / local_size(); }
  int StageOf(int rank) const { return rank / tensor_size; }
  bool Draws(int rank) const { return StageOf(rank) + 1 == pipeline_size; }
  // Whose results count: the first rank of the last stage.
  int drawing_rank() const { return size() - tensor_size; }

  // INVALID_ARGUMENT if the ranks cannot be spread over the nodes evenly, or
  // are too many.
  absl::Status Validate() const;
};

// The ranks of `rank`'s tensor group, or of its pipeline, ascending.
std::vector<int> GroupOf(const RankLayout& layout, int rank, bool is_pipeline);

// All ranks of the group run on one node.
bool IsLocal(const RankLayout& layout, const std::vector<int>& group);

// The memory that the ranks of a node share: the ring of plans, then the groups
// that are local to it. Offsets in bytes.
struct NodeMemoryLayout {
  int64_t ring = 0;
  // Of the group of each local rank; -1: it is alone, or not local.
  std::vector<int64_t> tensor_groups, pipeline_groups;  // [local_size]
  int64_t num_bytes = 0;
};
NodeMemoryLayout LayOutNodeMemory(const RankLayout& layout, int node);

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_RANK_LAYOUT_H_
