// Draws from rows of logits of which every rank has a slice: what a rank sends
// the others of its slice, the merge of that, and whole rows where that does
// not suffice.
#ifndef QUIRE_KERNELS_CUDA_VOCAB_SLICES_H_
#define QUIRE_KERNELS_CUDA_VOCAB_SLICES_H_

#include <cstdint>

#include "kernels/cuda/sampling.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {

// What a rank's slice adds to the draw of a row: eight words, so that it
// travels as f32.
struct alignas(16) SliceRecord {
  uint64_t best;       // ScoreKey of its best entry; 0: none.
  double sum;          // Of e^(logit - max), raw; if log-probabilities are due.
  float max;           // Of the raw logits.
  float logit;         // The raw one of its best entry.
  int32_t non_finite;  // Not 0: some logit is not finite.
  int32_t padding = 0;
};

// Records of this rank for the step's rows of logits.
//   arguments: of the slice (first_id, num_ids). No row is scored, filtered or
//   reports top entries.
//   records: [num_logits]
bool LaunchSampleSlice(const SampleArguments& arguments, SliceRecord* records,
                       simt::Stream stream);

// The draws from the records of all ranks, and the update of the slots.
//   arguments: as above. records: [num_ranks, num_logits]
bool LaunchSampleRecords(const SampleArguments& arguments,
                         const SliceRecord* records, int num_ranks,
                         simt::Stream stream);

// whole[row, id] = slices[id / slice_size][row][id % slice_size].
struct JoinSlicesArguments {
  const float* slices = nullptr;  // [ranks, num_rows, slice_size]
  float* whole = nullptr;         // [num_rows, vocab_size]
  int32_t num_rows = 0;
  int32_t slice_size = 0;
  int32_t vocab_size = 0;
};
bool LaunchJoinSlices(const JoinSlicesArguments& arguments,
                      simt::Stream stream);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_VOCAB_SLICES_H_
