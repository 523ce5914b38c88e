// What fp8_matmul.cc and its per-instruction-set units share. Plain data only:
// see simd.h.
#ifndef QUIRE_KERNELS_CPU_FP8_KERNELS_H_
#define QUIRE_KERNELS_CPU_FP8_KERNELS_H_

#include <stdint.h>

#include "kernels/cpu/isa_dispatch.h"
#include "kernels/cpu/matmul_output.h"

namespace quire {

// Panels as those of bf16 (PanelFormat::kBf16Pairs in matmul_kernels.h) with
// e4m3 in the place of bf16: a step is [2 * lanes][2] codes of k, k + 1.

// Steps that are widened to bf16 at once: 16 KiB with AVX-512, beside which the
// rows of x fit into L1.
constexpr int kFp8BlockSteps = 128;

struct Fp8Job : MatmulOutput {
  const char* panels;
  int64_t panel_bytes;
  int64_t num_steps;
  // f32 [num_panels][num_groups][2 * lanes]: of `group_steps` steps each, the
  // last group perhaps shorter.
  const float* scales;
  int64_t num_groups;
  int64_t group_steps;  // A multiple of block_steps.

  // As MatmulKernels::pack_x leaves it for kBf16Pairs.
  const char* packed_x;
  int64_t block_steps;  // At most kFp8BlockSteps.
  int64_t num_rows;
  int64_t num_tiles;
};

struct Fp8Kernels {
  int lanes;
  int max_tile_rows;
  int packed_x_step_bytes;  // Per row.
  // Outputs of panels [panel_begin, panel_end) for row tiles [tile_begin,
  // tile_end). The arithmetic of one output element is the same whatever the
  // arguments: a chain over the k of each group, and one over the groups.
  void (*compute)(const Fp8Job& job, int64_t panel_begin, int64_t panel_end,
                  int64_t tile_begin, int64_t tile_end);
};

QUIRE_DECLARE_ISA_TABLES(Fp8Kernels, kFp8Kernels)

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_FP8_KERNELS_H_
