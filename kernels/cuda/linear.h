// Linear layers: out = epilogue(x W^T).
//
// Few tokens (decode): the weights are read once, at memory speed; everything
// else hides behind that.
// The weights are the A operand of mma m16n8k16 (sixteen rows), the tokens its
// B operand (eight columns). A dot product does not care in which order it
// visits k, so lane t of a quad takes eight consecutive k in one 16-byte load
// of an ordinary row-major weight, and the tokens are loaded with the same
// permutation. Eight warps of a CTA share k; their sums are added in a fixed
// order: a token's result has the same bits in every batch.
//
// Many tokens, where cuBLASLt cannot be loaded (large_linear.h): CTA tiles of
// 128 tokens by 128 rows on mma.sync, k in steps of 32 through four stages of
// asynchronous copies, visited in order in one accumulator.
#ifndef QUIRE_KERNELS_CUDA_LINEAR_H_
#define QUIRE_KERNELS_CUDA_LINEAR_H_

#include <cstdint>

#include "kernels/cuda/linear_epilogue.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/dtype.h"

namespace quire::cuda {

inline constexpr int kMaxSkinnyTokens = 64;

// Device memory; pointers and strides are aligned to 16 bytes.
struct LinearArguments {
  DType dtype = DType::kBF16;  // Of weight and x: bf16 or f16.
  // [rows, cols] row-major. With a gated activation, groups of sixteen rows
  // are eight of the gate and the eight of up that go with them.
  const uint16_t* weight = nullptr;
  const uint16_t* x = nullptr;  // [num_tokens, x_stride]
  int64_t x_stride = 0;
  void* out = nullptr;  // [num_tokens, out_stride]
  int64_t out_stride = 0;
  int num_tokens = 0;  // >= 1; skinny: at most kMaxSkinnyTokens.
  int rows = 0;        // Of the weight; gated: a multiple of 16.
  int cols = 0;        // A multiple of 8.
  LinearEpilogue epilogue;
};

// False if a launch is refused.
bool LaunchSkinnyLinear(const LinearArguments& arguments, simt::Stream stream);
bool LaunchTiledLinear(const LinearArguments& arguments, simt::Stream stream);

// Sums that another kernel left for some rows of the weight: [num_tokens,
// stride], f32, the first column being that of `first_row`; in device memory.
struct SumsToFinish {
  const float* sums = nullptr;  // May be `out`, where that is f32.
  int64_t stride = 0;
  int first_row = 0;  // Gated: a multiple of 16, as num_rows.
  int num_rows = 0;
};
// The epilogue of these rows. Weight and x of the arguments are not used.
bool LaunchFinishLinear(const LinearArguments& arguments,
                        const SumsToFinish& sums, simt::Stream stream);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_LINEAR_H_
