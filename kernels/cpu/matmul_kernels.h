// What matmul.cc and its per-instruction-set units share. Plain data only: see
// simd.h for why these units include nothing else.
#ifndef QUIRE_KERNELS_CPU_MATMUL_KERNELS_H_
#define QUIRE_KERNELS_CPU_MATMUL_KERNELS_H_

#include <stdint.h>

#include "kernels/cpu/isa_dispatch.h"
#include "kernels/cpu/matmul_output.h"

namespace quire {

// Layout of the packed weights: panels of 2 * lanes output channels, the tail
// padded with zeros, one panel after the other. One step of a panel is
//   kF32, kF16:  [2 * lanes] elements of one k
//   kBf16Pairs:  [2 * lanes][2] elements of k, k + 1 (the operand of vdpbf16ps)
// and a panel holds `num_steps` steps. Gated matrices (kGateUp) hold `lanes`
// gate channels and then the same `lanes` up channels in each panel, so that
// silu(gate) * up is an operation on two vectors of the same panel.
enum class PanelFormat : int { kF32, kF16, kBf16Pairs };
constexpr int kNumPanelFormats = 3;

// The largest number of rows of x that any kernel handles at once.
constexpr int kMaxTileRows = 16;

// The most segments of a sum; a power of two.
constexpr int kMaxSegments = 8;

struct MatmulJob : MatmulOutput {
  PanelFormat format;
  const char* panels;
  int64_t panel_bytes;
  int64_t num_steps;
  // Sums of equal segments of the steps are added pairwise; a power of two that
  // divides num_steps. With more than one, `bias` is null and this is added to
  // the first segment's sum.
  int num_segments = 1;
  const float* segment_bias;  // As `bias`.

  const float* x;  // [num_rows, cols]
  int64_t x_stride;
  int64_t cols;
  // Row tiles of x, packed in the order in which they are read: blocks of
  // `block_steps` steps (the last one of a segment shorter), in each block the
  // row tiles, in each tile [steps of the block][tile rows] elements or pairs.
  // A row takes num_steps * packed_x_step_bytes.
  char* packed_x;
  int64_t block_steps;
  int64_t num_rows;
  int64_t num_tiles;
};

struct MatmulKernels {
  int lanes;
  int panel_step_bytes[kNumPanelFormats];
  int max_tile_rows[kNumPanelFormats];
  int packed_x_step_bytes[kNumPanelFormats];  // Per row.
  // Requires: num_steps > 0.
  void (*pack_x)(const MatmulJob& job, int64_t tile);
  // Outputs of panels [panel_begin, panel_end) for row tiles [tile_begin,
  // tile_end). The arithmetic of one output element is one chain over k
  // ascending for each segment, whatever the arguments.
  void (*compute)(const MatmulJob& job, int64_t panel_begin, int64_t panel_end,
                  int64_t tile_begin, int64_t tile_end);
  // Element-wise functions, for tests.
  void (*exp)(const float* x, float* y, int64_t size);
  void (*tanh)(const float* x, float* y, int64_t size);
  void (*gelu_erf)(const float* x, float* y, int64_t size);
};

QUIRE_DECLARE_ISA_TABLES(MatmulKernels, kMatmulKernels)

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_MATMUL_KERNELS_H_
