// How quantized weights lie in memory after packing. Plain data only: see
// simd.h.
//
// A panel holds `width` = 2 * lanes output channels as the panels of dense
// weights do (matmul_kernels.h). Along k it is a sequence of super-blocks, each
//   [halves][width] 16-bit fields: scale, then minimum
//   [bytes][width] 8-bit fields: scales of sub-blocks, then their minima
//   blocks of 32 columns, each the codes of `width` channels:
// planes of 32-bit lanes, one lane a channel, two vectors of `lanes` each. With
// c[k] the code of column k of the block and b a byte of a lane:
//   8 bits: [8][width] lanes, lane i:  byte b = c[4 i + b]
//   else planes of the low bits, then the next ones, as the format has them:
//   4-bit plane [4][width], lane i:    byte b = c[4 i + b] | c[16 + 4 i + b] <<
//   4 2-bit plane [2][width], lane h:    byte b = sum_i c[16 h + 4 i + b] << 2
//   i 1-bit plane [1][width]:            byte b = sum_hi c[16 h + 4 i + b]
//                                               << (4 h + i)
// so that steps 0 to 3 of a block (four columns each) come out of the planes by
// one shift and mask, and steps 4 to 7 by another.
#ifndef QUIRE_KERNELS_CPU_QUANT_LAYOUT_H_
#define QUIRE_KERNELS_CPU_QUANT_LAYOUT_H_

#include <stdint.h>

namespace quire {

// Columns that share a scale of x, and of most formats.
constexpr int kQuantBlockCols = 32;
constexpr int kQuantBlockSteps = 8;
// Dwords of packed x for a block of one row: 8 of codes, the scale (f32), and
// minus the sums of the codes (i32): of all, of the first and of the last 16.
constexpr int kQuantBlockXDwords = 12;

enum class PanelCode : int {
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kIQ4_NL,
  kMXFP4,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_XS,
  // kInt4 by the type of its scales.
  kInt4F16,
  kInt4Bf16,
  kInt4F32,
};
constexpr int kNumPanelCodes = 16;

enum class QuantScale : int {
  kF16,          // scale
  kBf16,         // scale
  kF32,          // scale, in two 16-bit fields
  kUnsignedSub,  // scale (f16) * u8 of the sub-block
  kSignedSub,    // scale (f16) * i8 of the sub-block
  kNibbleSub,    // scale (f16) * low nibble of the sub-block
};

enum class QuantMin : int {
  kNone,
  kF16,        // value = scale * code + minimum
  kSub,        // minimum (f16) * u8 of the sub-block
  kNibbleSub,  // minimum (f16) * high nibble of the sub-block
  kZeroPoint,  // value = scale * (code - zero), zero in f16
};

// value = scale * (code - offset), or scale * code - minimum.
struct QuantLayout {
  int code_bits;
  int num_subs;          // Scales in 32 columns: 1, or 2 of 16 columns each.
  int blocks_per_super;  // 0: as the weight says (groups of kInt4).
  int num_halves;
  int num_bytes;
  QuantScale scale;
  QuantMin min;
  int offset;    // A power of two; 0 with a minimum.
  bool is_wide;  // Codes exceed 127.
  // Codes are table[nibble], already offset. 0: no; 1: IQ4; 2: MXFP4.
  int table;
};

constexpr QuantLayout kQuantLayouts[kNumPanelCodes] = {
    {8, 1, 1, 1, 0, QuantScale::kF16, QuantMin::kNone, 128, true, 0},
    {4, 1, 1, 1, 0, QuantScale::kF16, QuantMin::kNone, 8, false, 0},
    {4, 1, 1, 2, 0, QuantScale::kF16, QuantMin::kF16, 0, false, 0},
    {5, 1, 1, 1, 0, QuantScale::kF16, QuantMin::kNone, 16, false, 0},
    {5, 1, 1, 2, 0, QuantScale::kF16, QuantMin::kF16, 0, false, 0},
    {4, 1, 1, 1, 0, QuantScale::kF16, QuantMin::kNone, 128, true, 1},
    {4, 1, 1, 1, 0, QuantScale::kBf16, QuantMin::kNone, 16, false, 2},
    {2, 2, 8, 2, 16, QuantScale::kNibbleSub, QuantMin::kNibbleSub, 0, false, 0},
    {3, 2, 8, 1, 16, QuantScale::kSignedSub, QuantMin::kNone, 4, false, 0},
    {4, 1, 8, 2, 16, QuantScale::kUnsignedSub, QuantMin::kSub, 0, false, 0},
    {5, 1, 8, 2, 16, QuantScale::kUnsignedSub, QuantMin::kSub, 0, false, 0},
    {6, 2, 8, 1, 16, QuantScale::kSignedSub, QuantMin::kNone, 32, false, 0},
    {4, 1, 8, 1, 8, QuantScale::kSignedSub, QuantMin::kNone, 128, true, 1},
    {4, 1, 0, 2, 0, QuantScale::kF16, QuantMin::kZeroPoint, 0, false, 0},
    {4, 1, 0, 2, 0, QuantScale::kBf16, QuantMin::kZeroPoint, 0, false, 0},
    {4, 1, 0, 3, 0, QuantScale::kF32, QuantMin::kZeroPoint, 0, false, 0},
};

// The values of the 16 codes plus the layout's offset. IQ4: ggml's
// kvalues_iq4nl; MXFP4: twice the values of e2m1 (OCP Microscaling
// formats 1.0).
constexpr uint8_t kQuantTables[2][16] = {
    {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241},
    {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4},
};

#define QUIRE_QUANT_INLINE static inline __attribute__((always_inline))

QUIRE_QUANT_INLINE constexpr const QuantLayout& LayoutOf(PanelCode code) {
  return kQuantLayouts[static_cast<int>(code)];
}
// Bytes of the codes of a block, of one channel.
QUIRE_QUANT_INLINE constexpr int QuantCodeBytes(const QuantLayout& layout) {
  return 4 * layout.code_bits;
}
// Bytes of the fields of a super-block, of one channel.
QUIRE_QUANT_INLINE constexpr int QuantFieldBytes(const QuantLayout& layout) {
  return 2 * layout.num_halves + layout.num_bytes;
}

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_QUANT_LAYOUT_H_
