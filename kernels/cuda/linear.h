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
// Up to eight tokens can be normed on the way (SkinnyNorm): every CTA norms
// them into its shared memory, with the bits of LaunchNorm, while its first
// weights travel. So that this is done once and not for every sixteen rows, the
// CTAs are then as many as fit the GPU at once, and each takes several groups
// of rows in turn.
//
// Many tokens, where cuBLASLt cannot be loaded (large_linear.h): CTA tiles of
// 128 tokens by 128 rows on mma.sync, k in steps of 32 through four stages of
// asynchronous copies, visited in order in one accumulator.
#ifndef QUIRE_KERNELS_CUDA_LINEAR_H_
#define QUIRE_KERNELS_CUDA_LINEAR_H_

#include <cstdint>

#include "kernels/cuda/linear_epilogue.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/dtype.h"

namespace quire::cuda {

inline constexpr int kMaxSkinnyTokens = 64;

// Device memory; pointers and strides are aligned to 16 bytes.
struct LinearArguments {
  DType dtype = DType::kBF16;  // Of weight and x: bf16 or f16.
  // [rows, cols] row-major. With a gated activation, groups of sixteen rows
  // are eight of the gate and the eight of up that go with them. A constant, as
  // the norm's weight: skinny kernels read it while the launch before them
  // still runs, which therefore must not write it (a copy that was waited for
  // may).
  const uint16_t* weight = nullptr;
  const uint16_t* x = nullptr;  // [num_tokens, x_stride]
  int64_t x_stride = 0;
  void* out = nullptr;  // [num_tokens, out_stride]
  int64_t out_stride = 0;
  int num_tokens = 0;  // >= 1; skinny: at most kMaxSkinnyTokens.
  int rows = 0;        // Of the weight; gated: a multiple of 16.
  int cols = 0;        // A multiple of 8.
  LinearEpilogue epilogue;

  // Skinny, up to kMaxNormTokens: x is what this norm gives; its out, scale and
  // addend are not used. residual_out is written once, while other CTAs still
  // read: it may alias nothing else of this launch, nor `out` the norm's
  // inputs.
  bool has_norm = false;
  NormArguments norm;
  // With a norm: CTAs that share the rows; at least 1.
  int num_ctas = 0;
};

// What a norm costs that every CTA does for itself, against a kernel of its
// own: for each eight columns of a token about 64 instructions, that is cols /
// 16 cycles of an SM for each token and CTA on it (4 x 32 lanes issue at once).
// With two CTAs, 8 tokens of 4096 columns are 4096 cycles, 2.3 us at 1.75 GHz,
// during which weights arrive (2 x 32 KiB are under way, 1.3 us of an H100's
// 3.0 TB/s on 132 SMs); a kernel of its own is a launch (1.3 us) and as long as
// the norm itself, with nothing beside it. More tokens lose. And the reads of x
// from L2 become fewer: once for each CTA, not for each sixteen rows.
inline constexpr int kMaxNormTokens = 8;
// CTAs of an SM that norm, as the kernels' registers and shared memory allow.
inline constexpr int kNormCtasOfSm = 2;

// Of the row of x' in shared memory: `phase` past a multiple of 128, so that
// the rows that a quarter warp reads at once lie in different banks. A quad
// reads its columns of a row as 4 x 16 bytes in one piece, or with fp8 weights
// at every other place.
constexpr int64_t NormedRowBytes(int cols, int phase) {
  return (int64_t{cols} * 2 + 127) / 128 * 128 + phase;
}
inline constexpr int kNormedPhase = 64;
inline constexpr int kNormedPhaseOfFp8 = 16;

// Whether the linear layer may norm `num_tokens` rows of x.
//   shared_bytes_of_sm: what kNormCtasOfSm CTAs share.
bool FitsSkinnyNorm(int num_tokens, int cols, int64_t shared_bytes_of_sm);
// LinearArguments::num_ctas: every CTA has as many groups of rows as any other,
// or one less.
int NumCtasOfSkinnyNorm(int rows, int num_sms);
// Shapes and counts that no skinny kernel takes.
bool IsRefusedBySkinny(const LinearArguments& arguments);

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
  // What multiplies them first, f32, both or neither: [num_tokens], and of all
  // rows of the weight.
  const float* x_scales = nullptr;
  const float* row_scales = nullptr;
};
// The epilogue of these rows. Weight and x of the arguments are not used.
bool LaunchFinishLinear(const LinearArguments& arguments,
                        const SumsToFinish& sums, simt::Stream stream);

// out[b, r] = the scale of columns 128 b onwards of row first_row + r: what a
// library takes that knows nothing of rows of the gate among those of up.
struct SpreadScalesArguments {
  // That of rows 8 i onwards and block b is element b * scale_stride + i.
  const float* scales = nullptr;
  int scale_stride = 0;
  int first_row = 0;
  int num_rows = 0;
  int num_blocks = 0;
  float* out = nullptr;  // [num_blocks, num_rows]
};
bool LaunchSpreadScales(const SpreadScalesArguments& arguments,
                        simt::Stream stream);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_LINEAR_H_
