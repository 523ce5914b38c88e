// What keeps the state of the sequences on the device.
#ifndef QUIRE_KERNELS_CUDA_STEP_KERNELS_H_
#define QUIRE_KERNELS_CUDA_STEP_KERNELS_H_

#include <cstdint>

#include "kernels/cuda/simt/types.h"

namespace quire::cuda {

// A new entry of the block tables, which are one array here.
struct BlockTableEntry {
  int32_t index = 0;
  int32_t block = 0;
};

// The start of a step: block tables grow, and token ids ~slot become what was
// last drawn for that slot. Every launch returns false if it is refused.
struct BeginStepArguments {
  const BlockTableEntry* entries = nullptr;
  int num_entries = 0;
  int32_t* block_tables = nullptr;
  int32_t* token_ids = nullptr;  // [num_tokens]
  int num_tokens = 0;
  const int32_t* last_tokens = nullptr;  // [slots]
};
bool LaunchBeginStep(const BeginStepArguments& arguments, simt::Stream stream);

// The tokens of one row of a step, which follow on num_pooled_tokens of their
// sequence.
struct PoolRow {
  int32_t slot = 0;  // -1: padding.
  int32_t first_token = 0;
  int32_t num_tokens = 0;
  int32_t num_pooled_tokens = 0;
  int32_t result = -1;  // Row of out, if the sequence ends here.
};

// sums[slot] += x of the row's tokens, in order, in double; the mean of a
// sequence that ends becomes a row of out.
struct MeanPoolArguments {
  const float* x = nullptr;  // [num_tokens, cols]
  const PoolRow* rows = nullptr;
  int num_rows = 0;
  int cols = 0;
  double* sums = nullptr;  // [slots, cols]
  float* out = nullptr;    // [.., cols]
};
bool LaunchMeanPool(const MeanPoolArguments& arguments, simt::Stream stream);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_STEP_KERNELS_H_
