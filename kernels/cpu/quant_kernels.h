// What quant_matmul.cc and its per-instruction-set units share. Plain data
// only: see simd.h.
#ifndef QUIRE_KERNELS_CPU_QUANT_KERNELS_H_
#define QUIRE_KERNELS_CPU_QUANT_KERNELS_H_

#include <stdint.h>

#include "kernels/cpu/isa_dispatch.h"
#include "kernels/cpu/matmul_output.h"
#include "kernels/cpu/quant_layout.h"

namespace quire {

// Consecutive channels in one layout.
struct QuantPanels {
  PanelCode code;
  const char* panels;
  int64_t panel_bytes;
  int64_t blocks_per_super;
  int64_t super_bytes;
};

struct QuantJob : MatmulOutput {
  QuantPanels weights;
  int64_t num_blocks;  // cols / 32

  const float* x;  // [num_rows, cols]
  int64_t x_stride;
  // Stored column c multiplies x[column_order[c]]; null: in order.
  const int32_t* column_order;
  // Chunks of k, each the row tiles of x one after the other: for each block of
  // a tile
  //   [8][tile rows] dwords of codes, [tile rows] f32, [3][tile rows] i32
  // (kQuantBlockXDwords).
  char* packed_x;
  int64_t num_rows;
  int64_t num_tiles;
};

struct QuantKernels {
  int lanes;
  int max_tile_rows;
  int many_tile_rows;     // The most of a tile where there are many.
  int64_t scratch_bytes;  // Of a thread.
  // Rounds rows to 8 bits: the scale of 32 columns is max|x| / 127 in f32 and a
  // code x / scale, rounded to the nearest, ties to even. A block with a NaN or
  // an infinity has the scale NaN.
  void (*pack_x)(const QuantJob& job, int64_t tile);
  // Outputs of panels [panel_begin, panel_end) for row tiles [tile_begin,
  // tile_end). The arithmetic of one output element is one chain over the
  // blocks of k ascending, whatever the arguments.
  void (*compute)(const QuantJob& job, int64_t panel_begin, int64_t panel_end,
                  int64_t tile_begin, int64_t tile_end, char* scratch);
};

#if defined(__x86_64__)
QUIRE_DECLARE_ISA_TABLE(cpu_scalar, QuantKernels, kQuantKernels)
QUIRE_DECLARE_ISA_TABLE(cpu_avx2, QuantKernels, kQuantKernels)
QUIRE_DECLARE_ISA_TABLE(cpu_avx2_vnni, QuantKernels, kQuantKernels)
QUIRE_DECLARE_ISA_TABLE(cpu_avx512, QuantKernels, kQuantKernels)
QUIRE_DECLARE_ISA_TABLE(cpu_avx512_vnni, QuantKernels, kQuantKernels)
#else
QUIRE_DECLARE_ISA_TABLES(QuantKernels, kQuantKernels)
#endif

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_QUANT_KERNELS_H_
