// Cuts the attention of a step into tasks for CTAs (host code).
#ifndef QUIRE_KERNELS_CUDA_ATTENTION_PLAN_H_
#define QUIRE_KERNELS_CUDA_ATTENTION_PLAN_H_

#include <algorithm>
#include <limits>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cuda/attention.h"

namespace quire::cuda {

// How the keys of a sequence are cut: into splits of `least_size` positions (a
// multiple of 64), or larger ones where there would be more than `most`. What a
// split is follows from the sequence's length alone, so that a token's bits do
// not depend on its company; a single long sequence still has work for a GPU.
struct AttentionSplits {
  int least_size = 256;
  int most = std::numeric_limits<int>::max();

  // Positions of a split: a multiple of 64.
  int SizeFor(int seq_len) const {
    const int least_for_most = (seq_len - 1) / most + 1;
    return std::max(least_size, (least_for_most + 63) / 64 * 64);
  }
};

struct AttentionPlanSize {
  int num_tasks = 0;
  int num_merges = 0;
  int num_parts = 0;
};

AttentionPlanSize SizeOfAttentionPlan(
    const AttentionShape& shape, AttentionTile tile, AttentionSplits splits,
    absl::Span<const AttentionSequence> sequences);

// Splits begin at multiples of their size; longer tasks first, to a 64th of the
// longest, so that the last wave is short. Allocates nothing.
//   tasks, merges: as many as SizeOfAttentionPlan says of the same arguments.
void WriteAttentionPlan(const AttentionShape& shape, AttentionTile tile,
                        AttentionSplits splits,
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
                            AttentionSplits splits,
                            absl::Span<const AttentionSequence> sequences);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_ATTENTION_PLAN_H_
