// Random weights in any format, for tests and benchmarks.
#ifndef QUIRE_KERNELS_RANDOM_WEIGHTS_H_
#define QUIRE_KERNELS_RANDOM_WEIGHTS_H_

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/quant_format.h"

namespace quire {

// Owns the memory behind `part`. Movable: the memory stays where it is.
struct RandomWeights {
  WeightPart part;
  std::vector<uint8_t> data;
  std::vector<uint16_t> scales;  // f16; of kFp8 f32, two entries each.
  std::vector<uint8_t> zeros;
  std::vector<int32_t> column_order;
};

// [rows, cols] in `format`: every bit of the codes and of the scales of
// sub-blocks random, the scales of blocks between 2^-8 and 2^-6 with either
// sign, so that values are below about 16 and all finite.
//   group_size: of kInt4 (f16 scales).
//   has_column_order: kInt4 with a random permutation.
// Requires: cols is a multiple of the format's block; not kDense.
RandomWeights MakeRandomWeights(QuantFormat format, int64_t rows, int64_t cols,
                                uint64_t seed, int group_size = 128,
                                bool has_column_order = false);

// The same block with all codes zero: what is left is the minimum (negative),
// or minus the offset.
void ClearCodes(QuantFormat format, uint8_t* block);

}  // namespace quire

#endif  // QUIRE_KERNELS_RANDOM_WEIGHTS_H_
