// Attention for many queries with the products of Hopper's warpgroups.
#ifndef QUIRE_KERNELS_CUDA_ATTENTION_WARPGROUP_H_
#define QUIRE_KERNELS_CUDA_ATTENTION_WARPGROUP_H_

#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {

// Requires: HasWarpgroupTile. No partial results: keys are not split. False if
// the launch is refused.
bool LaunchWarpgroupAttention(const KernelArguments& arguments,
                              simt::Stream stream);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_ATTENTION_WARPGROUP_H_
