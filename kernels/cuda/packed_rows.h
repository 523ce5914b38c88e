// Rows of quantized weights in the layouts of kernels/cuda/quantized_linear.h,
// made by the host when a model is loaded. What a row has beyond its columns is
// zero. Bytes may lie at any alignment.
#ifndef QUIRE_KERNELS_CUDA_PACKED_ROWS_H_
#define QUIRE_KERNELS_CUDA_PACKED_ROWS_H_

#include <cstdint>

namespace quire::cuda {

// from: kInt4's cols / 2 bytes, the first column in the lower half of the
//   first. cols: a multiple of 8. out: [Int4RowBytes(cols)]
void PackInt4Row(const uint8_t* from, int64_t cols, uint8_t* out);

// kQ4_0, as four bits in groups of 32 with a zero point of 8.
//   from: blocks. cols: a multiple of 32. out: [Int4RowBytes(cols)]
void PackQ4Row(const uint8_t* from, int64_t cols, uint8_t* out);

// kQ8_0's elements. from: blocks. cols: a multiple of 32.
//   out: [Int8RowBytes(cols)]
void PackQ8Row(const uint8_t* from, int64_t cols, uint8_t* out);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_PACKED_ROWS_H_
