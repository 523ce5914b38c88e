// Cuts the attention of a step into tasks for CTAs (host code).
#ifndef QUIRE_KERNELS_CUDA_ATTENTION_PLAN_H_
#define QUIRE_KERNELS_CUDA_ATTENTION_PLAN_H_

#include <vector>

#include "absl/types/span.h"
#include "kernels/cuda/attention.h"

namespace quire::cuda {

struct AttentionPlanSize {
  int num_tasks = 0;
  int num_merges = 0;
  int num_parts = 0;
};

AttentionPlanSize SizeOfAttentionPlan(
    const AttentionShape& shape, AttentionTile tile, int split_size,
    absl::Span<const AttentionSequence> sequences);

// Keys in splits of `split_size` positions (a multiple of 64), at fixed
// absolute positions; longer tasks first, to a 64th of the longest, so that the
// last wave is short. Allocates nothing.
//   tasks, merges: as many as SizeOfAttentionPlan says of the same arguments.
void WriteAttentionPlan(const AttentionShape& shape, AttentionTile tile,
                        int split_size,
                        absl::Span<const AttentionSequence> sequences,
                        AttentionTask* tasks, AttentionMerge* merges);

struct AttentionPlan {
  AttentionTile tile = AttentionTile::kDecode;
  std::vector<AttentionTask> tasks;
  std::vector<AttentionMerge> merges;
  int num_parts = 0;
};

// Both of the above.
AttentionPlan PlanAttention(const AttentionShape& shape, AttentionTile tile,
                            int split_size,
                            absl::Span<const AttentionSequence> sequences);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_ATTENTION_PLAN_H_
