#include "engine/parallel/rank_layout.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/parallel/plan_ring.h"
#include "kernels/host_communicator.h"

namespace quire {

absl::Status RankLayout::Validate() const {
  if (tensor_size < 1 || pipeline_size < 1 || num_nodes < 1 ||
      int64_t{tensor_size} * pipeline_size > 1024 ||
      tensor_size > kMaxHostRanks || pipeline_size > kMaxHostRanks) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor parallel size ", tensor_size, " and pipeline parallel size ",
        pipeline_size, " must be at least 1 and at most ", kMaxHostRanks));
  }
  if (size() % num_nodes != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor parallel size ", tensor_size, " x pipeline parallel size ",
        pipeline_size, " = ", size(), " ranks cannot be spread over ",
        num_nodes, " nodes evenly"));
  }
  return absl::OkStatus();
}

std::vector<int> GroupOf(const RankLayout& layout, int rank, bool is_pipeline) {
  std::vector<int> group;
  const int count = is_pipeline ? layout.pipeline_size : layout.tensor_size;
  const int stride = is_pipeline ? layout.tensor_size : 1;
  const int first = is_pipeline ? rank % layout.tensor_size
                                : rank - rank % layout.tensor_size;
  for (int i = 0; i < count; ++i) group.push_back(first + i * stride);
  return group;
}

bool IsLocal(const RankLayout& layout, const std::vector<int>& group) {
  return layout.NodeOf(group.front()) == layout.NodeOf(group.back());
}

NodeMemoryLayout LayOutNodeMemory(const RankLayout& layout, int node) {
  constexpr int64_t kPage = 4096;
  NodeMemoryLayout memory;
  memory.num_bytes = PlanRingBytes();
  const int first = node * layout.local_size();
  for (const bool is_pipeline : {false, true}) {
    auto& offsets = is_pipeline ? memory.pipeline_groups : memory.tensor_groups;
    offsets.assign(layout.local_size(), -1);
    for (int i = 0; i < layout.local_size(); ++i) {
      const std::vector<int> group = GroupOf(layout, first + i, is_pipeline);
      if (group.size() == 1 || !IsLocal(layout, group)) continue;
      if (group.front() != first + i) {
        offsets[i] = offsets[group.front() - first];
        continue;
      }
      memory.num_bytes = (memory.num_bytes + kPage - 1) / kPage * kPage;
      offsets[i] = memory.num_bytes;
      memory.num_bytes += SharedCommunicatorBytes(group.size());
    }
  }
  return memory;
}

}  // namespace quire
