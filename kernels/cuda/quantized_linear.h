// Linear layers whose weights are in fp8 (e4m3), in eight bits (GGUF's Q8_0) or
// in four (as are those of Q4_0).
//
// Few tokens: as kernels/cuda/linear.h, with the weights widened in registers.
// Elements are exact in 16 bits (fp8 values, integers below 17); a group's
// scale multiplies its sum in f32, so no weight is ever rounded.
//
// Many tokens: fp8 weights meet x rounded to e4m3 (LaunchQuantizeRows) on
// tensor cores of 8 bits, from compute capability 8.9 on; by a library where
// that is faster (large_linear.h), else here. With a scale per row both scales
// multiply the finished sums; with blocks of 128 x 128 (DeepSeek-V3,
// arXiv:2412.19437, section 3.3.2) x has a scale for every 128 columns, too,
// and each 128 columns' sums are scaled and added in f32: tensor cores keep
// fewer bits than f32 of a long sum in 8 bits. Otherwise a tile of the weights
// is widened into shared memory on its way, where elements with scales of
// groups or blocks are rounded to 16 bits.
#ifndef QUIRE_KERNELS_CUDA_QUANTIZED_LINEAR_H_
#define QUIRE_KERNELS_CUDA_QUANTIZED_LINEAR_H_

#include <bit>
#include <cstdint>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/dtype.h"
#include "kernels/quant_format.h"

namespace quire::cuda {

// Columns of four bits lie in blocks of this many.
inline constexpr int kInt4Block = 128;

// Where element `column` of a row of four bits is: nibble `nibble` (the lowest
// is 0) of 32-bit word `word` of the row. A block of 128 columns is 64 bytes:
// lane t of a quad has bytes 16 t to 16 t + 15, whose word w holds columns 32 w
// + 8 t onwards, those of even number in the low half: a shift by 4 p and one
// mask put columns 2 p and 2 p + 1 into the halves of a register.
struct Int4Place {
  int64_t word = 0;
  int nibble = 0;
};
constexpr Int4Place PlaceOfInt4(int64_t column) {
  const int in_block = static_cast<int>(column % kInt4Block);
  const int w = in_block / 32, t = in_block / 8 % 4, i = in_block % 8;
  return {column / kInt4Block * 16 + t * 4 + w, i % 2 * 4 + i / 2};
}
constexpr int64_t Int4RowBytes(int64_t cols) {
  return (cols + kInt4Block - 1) / kInt4Block * (kInt4Block / 2);
}

// Where element `column` of a row of Q8_0 is: blocks of 64 columns, of which
// lane t of a quad has bytes 16 t to 16 t + 15: columns 8 t onwards, then 32 +
// 8 t onwards. So each step of 32 columns has one scale.
inline constexpr int kInt8Block = 64;
constexpr int64_t PlaceOfInt8(int64_t column) {
  const int64_t in_block = column % kInt8Block;
  return column - in_block + in_block / 8 % 4 * 16 + in_block / 32 * 8 +
         in_block % 8;
}
constexpr int64_t Int8RowBytes(int64_t cols) {
  return (cols + kInt8Block - 1) / kInt8Block * kInt8Block;
}

// Where the scale of a row's group is, with kInt4 and kQ8_0; zero points alike.
// Sixteen rows and 128 columns have theirs together, as the threads of few
// tokens read them: those of rows r and r + 8 are neighbours, group by group.
// One load gives a thread all of them that it needs for its 128 columns.
//   group_size: 32, 64 or 128. cols: of the weight.
inline constexpr int kScaleCols = 128;
constexpr int64_t NumScaleSquares(int64_t cols) {
  return (cols + kScaleCols - 1) / kScaleCols;
}
constexpr int64_t PlaceOfScale(int64_t row, int64_t column, int64_t cols,
                               int group_size) {
  const int64_t square = row / 16 * NumScaleSquares(cols) + column / kScaleCols;
  return (square * 8 + row % 8) * (2 * kScaleCols / group_size) +
         column % kScaleCols / group_size * 2 + row / 8 % 2;
}
constexpr int64_t NumScales(int64_t rows, int64_t cols, int group_size) {
  return (rows + 15) / 16 * NumScaleSquares(cols) * 16 *
         (kScaleCols / group_size);
}

// Device memory; pointers are aligned to 16 bytes. Rows are in the order that
// LinearArguments::weight describes.
struct QuantizedWeight {
  QuantFormat format = QuantFormat::kFp8;  // Or kInt4, or kQ8_0.
  // kFp8: [rows, cols], columns a multiple of 16. kInt4: [rows, Int4RowBytes].
  // kQ8_0: [rows, Int8RowBytes], columns a multiple of 32.
  const uint8_t* data = nullptr;
  // kFp8: f32, [rows], or with group_size 128 element (column / 128) *
  // scale_stride + row / 8. kInt4 and kQ8_0: 16 bits, at PlaceOfScale.
  const void* scales = nullptr;
  // kInt4: f16, bf16, or f32, whose upper halves are `scales`. kQ8_0: f16.
  DType scale_dtype = DType::kF32;
  const uint16_t* scale_tails = nullptr;  // kInt4, f32: the lower halves.
  // kInt4, at PlaceOfScale: what is subtracted from elements. Null: 8.
  const uint8_t* zeros = nullptr;
  int scale_stride = 0;  // kFp8 with group_size 128.
  // kFp8: 0 (a scale for each row) or 128. kInt4: 32, 64 or 128; groups of
  // other sizes repeat their scales. kQ8_0: 32.
  int group_size = 0;
};

struct QuantizedLinearArguments {
  LinearArguments linear;  // Without a weight. `dtype` is that of x.
  QuantizedWeight weight;
  // For LaunchTiledFp8Linear: x in e4m3, [num_tokens, cols], and its scales.
  const uint8_t* x_fp8 = nullptr;
  const float* x_scales = nullptr;  // As QuantizeRowsArguments::scales.
};

// False if a launch is refused. Skinny: up to kMaxSkinnyTokens.
bool LaunchSkinnyQuantizedLinear(const QuantizedLinearArguments& arguments,
                                 simt::Stream stream);
// x in 16 bits; the weights are widened.
bool LaunchTiledQuantizedLinear(const QuantizedLinearArguments& arguments,
                                simt::Stream stream);
// x in e4m3 with the weights' group_size, weights in kFp8. Requires: compute
// capability 8.9.
bool LaunchTiledFp8Linear(const QuantizedLinearArguments& arguments,
                          simt::Stream stream);

// out[t] = e4m3(x[t] / scale), saturating, with a scale for each row or, with
// group_size 128, for every 128 columns of a row: input_scale, or if that is 0
// the largest magnitude / 448 (1 for zeros).
struct QuantizeRowsArguments {
  DType dtype = DType::kBF16;   // Or f16.
  const uint16_t* x = nullptr;  // [num_tokens, x_stride]
  int64_t x_stride = 0;
  uint8_t* out = nullptr;   // [num_tokens, cols]
  float* scales = nullptr;  // [1 or ceil(cols / 128)][num_tokens]
  float input_scale = 0.0f;
  int group_size = 0;  // 0 or 128.
  int num_tokens = 0;
  int cols = 0;  // A multiple of 8.
};
bool LaunchQuantizeRows(const QuantizeRowsArguments& arguments,
                        simt::Stream stream);

// out[t][c] = x[t][order[c]], 16 bits.
struct PermuteColumnsArguments {
  const uint16_t* x = nullptr;  // [num_tokens, x_stride]
  int64_t x_stride = 0;
  const int32_t* order = nullptr;  // [cols]
  uint16_t* out = nullptr;         // [num_tokens, cols]
  int num_tokens = 0;
  int cols = 0;
};
bool LaunchPermuteColumns(const PermuteColumnsArguments& arguments,
                          simt::Stream stream);

// ---- For the kernels.

// kFp8: of a row; of rows 8 row_block onwards and columns 128 block onwards.
SIMT_DEVICE float RowScale(const QuantizedWeight& weight, int row) {
  return static_cast<const float*>(weight.scales)[row];
}
SIMT_DEVICE float BlockScale(const QuantizedWeight& weight, int row_block,
                             int block) {
  return static_cast<const float*>(
      weight.scales)[block * weight.scale_stride + row_block];
}

// kInt4 and kQ8_0: the half that `half` names of two scales, without a branch.
template <QuantFormat kFormat>
SIMT_DEVICE float WidenScale(const QuantizedWeight& weight, uint32_t scales,
                             uint32_t tails, int half) {
  const float of_f16 = simt::F16ToFloat(scales >> (16 * half) & 0xffff);
  if constexpr (kFormat == QuantFormat::kQ8_0) return of_f16;
  const float of_f32 = std::bit_cast<float>(
      simt::PermuteBytes(tails, scales, half == 0 ? 0x5410 : 0x7632));
  return weight.scale_dtype == DType::kF16 ? of_f16 : of_f32;
}

// Bytes of a row.
SIMT_DEVICE int64_t RowBytesOf(QuantFormat format, int cols) {
  return format == QuantFormat::kFp8    ? int64_t{cols}
         : format == QuantFormat::kInt4 ? Int4RowBytes(cols)
                                        : Int8RowBytes(cols);
}
inline bool IsRefusedFormat(const QuantizedWeight& weight, int cols) {
  switch (weight.format) {
    case QuantFormat::kFp8:
      return cols % 16 != 0 ||
             (weight.group_size != 0 && weight.group_size != 128);
    case QuantFormat::kInt4:
      return (weight.group_size != 32 && weight.group_size != 64 &&
              weight.group_size != 128) ||
             (weight.scale_dtype == DType::kF32) !=
                 (weight.scale_tails != nullptr);
    case QuantFormat::kQ8_0:
      return cols % 32 != 0 || weight.group_size != 32 ||
             weight.scale_dtype != DType::kF16;
    default:
      return true;
  }
}

// Signed bytes 2 p and 2 p + 1 of `four`: exact. With the sign flipped a byte
// is the value plus 128: in f16 the low bits of 1024 plus that; bf16, which has
// too few bits for this, is the upper half of f32, where the same is done.
template <DType kType>
SIMT_DEVICE uint32_t Int8Pair(uint32_t four, int p) {
  const uint32_t biased = HasPlantedBug(PlantedBug::kQuantizedInt8Unsigned)
                              ? four
                              : four ^ 0x80808080;
  if constexpr (kType == DType::kF16) {
    const uint32_t pair =
        simt::PermuteBytes(biased, 0x64646464, p == 0 ? 0x4140 : 0x4342);
    return simt::SubtractF16x2(pair, 0x64806480);  // 1152
  }
  constexpr float kBias = 8388608.0f + 128.0f;  // 2^23: bits 0x4b000000.
  const float low = std::bit_cast<float>(simt::PermuteBytes(
                        biased, 0x4b000000, p == 0 ? 0x7440 : 0x7442)) -
                    kBias;
  const float high = std::bit_cast<float>(simt::PermuteBytes(
                         biased, 0x4b000000, p == 0 ? 0x7441 : 0x7443)) -
                     kBias;
  return simt::PermuteBytes(std::bit_cast<uint32_t>(low),
                            std::bit_cast<uint32_t>(high), 0x7632);
}

SIMT_DEVICE bool HasZeros(const QuantizedWeight& weight) {
  return weight.zeros &&
         !HasPlantedBug(PlantedBug::kQuantizedForgetsZeroPoints);
}
// The number that byte `i` of `zeros`, a zero point, becomes beside elements as
// Int4Pair has them; in both halves. In bf16 the bits of 128 + n are those of
// 128 plus n, in f16 those of 1024 + n.
template <DType kType>
SIMT_DEVICE uint32_t Int4Zero(uint32_t zeros, int i) {
  constexpr uint32_t kBase = kType == DType::kBF16 ? 0x43 : 0x64;
  return simt::PermuteBytes(zeros, kBase, 0x4040 | i << 8 | i);
}
// Elements 2 p and 2 p + 1 of a word, less their zero point: exact.
template <DType kType>
SIMT_DEVICE uint32_t Int4Pair(uint32_t word, int p, uint32_t zero) {
  constexpr uint32_t kBase = kType == DType::kBF16 ? 0x43004300 : 0x64006400;
  return Element<kType>::Subtract(
      simt::MaskAndSet(word >> (4 * p), 0x000f000f, kBase), zero);
}

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_QUANTIZED_LINEAR_H_
