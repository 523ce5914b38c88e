// What happens to the sums of a packed matrix product on their way out, and how
// the rows of x are cut into tiles. Plain data only: see simd.h.
#ifndef QUIRE_KERNELS_CPU_MATMUL_OUTPUT_H_
#define QUIRE_KERNELS_CPU_MATMUL_OUTPUT_H_

#include <stdint.h>

namespace quire {

// As Epilogue::Activation in kernels/backend.h.
enum class MatmulActivation : int {
  kNone,
  kSwiGlu,
  kGeGlu,
  kGelu,
  kRelu,
  kGeGluErf,
  kGeluErf,
};

// From this many row tiles on, arithmetic and not memory is the limit: a block
// of a row tile, in L1, then meets the blocks of several panels, in L2, which
// divides the traffic of x (from L3: it is larger than L2) by as many.
constexpr int kManyTiles = 6;
constexpr int kMaxPassPanels = 4;

struct MatmulOutput {
  const float* bias;    // [num_panels][2 * lanes], or null.
  int64_t num_outputs;  // Channels; per half if is_gated.
  bool is_gated;
  float* out;
  int64_t out_stride;
  MatmulActivation activation;
  const float* residual;  // Or null; may alias out.
  int64_t residual_stride;
  float out_scale;
};

// Rows of tile `tile`: an even split, so that no tile is left with one row.
struct TileRange {
  int64_t first_row;
  int64_t num_rows;
};
static inline __attribute__((always_inline)) TileRange MatmulTile(
    int64_t num_rows, int64_t num_tiles, int64_t tile) {
  const int64_t base = num_rows / num_tiles;
  const int64_t extra = num_rows % num_tiles;
  const int64_t first = tile * base + (tile < extra ? tile : extra);
  return {first, base + (tile < extra ? 1 : 0)};
}

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_MATMUL_OUTPUT_H_
