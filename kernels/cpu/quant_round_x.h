// How x is rounded to 8 bits for products with quantized weights
// (quant_matmul.h), for the instruction set this translation unit is compiled
// for: see simd.h.
#ifndef QUIRE_KERNELS_CPU_QUANT_ROUND_X_H_
#define QUIRE_KERNELS_CPU_QUANT_ROUND_X_H_

#include <stdint.h>

#include "kernels/cpu/quant_layout.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_int8.h"

namespace quire {
namespace QUIRE_ISA_NAMESPACE {

struct MaxOf {
  QUIRE_INLINE_METHOD U32 operator()(U32 a, U32 b) const {
    return a > b ? a : b;
  }
};
struct SumOf {
  QUIRE_INLINE_METHOD U32 operator()(U32 a, U32 b) const { return a + b; }
};

// Lane i of the result is all lanes of v[i], reduced; v is used up.
template <int kDistance = 1, class Op>
QUIRE_INLINE U32 ReduceEach(U32 (&v)[kLanes], Op op) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i += 2 * kDistance) {
    SwapGroups<kDistance>(v[i], v[i + kDistance], AllLanes());
    v[i] = op(v[i], v[i + kDistance]);
  }
  if constexpr (2 * kDistance < kLanes) return ReduceEach<2 * kDistance>(v, op);
  return v[0];
}

typedef int8_t I8 __attribute__((vector_size(kLanes)));

constexpr int kBlockVectors = kQuantBlockCols / kLanes;

// What becomes of kLanes blocks of one row; a lane is a block.
struct BlockRounding {
  F32 scale;    // NaN if an element is not finite.
  F32 inverse;  // Zero where all codes are zero.
  bool has_non_finite;
};

QUIRE_INLINE BlockRounding RoundingOf(const float* x) {
  U32 max[kLanes];
#pragma GCC unroll 16
  for (int block = 0; block < kLanes; ++block) {
    max[block] = U32{};
#pragma GCC unroll 8
    for (int i = 0; i < kBlockVectors; ++i) {
      const F32 v = Load(x + block * kQuantBlockCols + i * kLanes);
      max[block] = MaxOf()(max[block], (U32)v & 0x7fffffffu);
    }
  }
  const U32 bits = ReduceEach(max, MaxOf());
  // Smaller blocks count as zero: the inverse would overflow.
  const U32 is_zero = (U32)(bits < 0x0d800000u);        // 2^-100
  const U32 is_non_finite = (U32)(bits > 0x7f7fffffu);  // NaNs too.
  BlockRounding result;
  result.scale = (F32)(((U32)((F32)bits / 127.0f) & ~is_zero) | is_non_finite);
  result.inverse =
      (F32)((U32)(127.0f / (F32)bits) & ~(is_zero | is_non_finite));
  uint32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= is_non_finite[i];
  result.has_non_finite = any != 0;
  return result;
}

// Codes of one vector.
QUIRE_INLINE I32 RoundVector(const float* x, float inverse,
                             bool has_non_finite) {
  // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
  const F32 shifted = Load(x) * Set1(inverse) + Set1(0x1.8p23f);
  const I32 code = (I32)shifted - 0x4b400000;
  return has_non_finite && inverse == 0.0f ? I32{} : code;
}

// kLanes blocks of one row to `num_blocks` of them at out, whose entries are
// `stride` dwords apart and whose blocks kQuantBlockXDwords * stride.
//   x: [kLanes * 32]
QUIRE_INLINE void PackBlocks(const float* x, int num_blocks, int64_t stride,
                             int32_t* out) {
  const BlockRounding rounding = RoundingOf(x);
  float scale[kLanes], inverse[kLanes];
  Store(scale, rounding.scale);
  Store(inverse, rounding.inverse);
  U32 sums[2][kLanes];
  int8_t codes[kLanes][kQuantBlockCols];
#pragma GCC unroll 16
  for (int block = 0; block < kLanes; ++block) {
    sums[0][block] = sums[1][block] = U32{};
#pragma GCC unroll 8
    for (int i = 0; i < kBlockVectors; ++i) {
      const I32 code = RoundVector(x + block * kQuantBlockCols + i * kLanes,
                                   inverse[block], rounding.has_non_finite);
      sums[i * 2 / kBlockVectors][block] += (U32)code;
      const I8 bytes = __builtin_convertvector(code, I8);
      __builtin_memcpy(codes[block] + i * kLanes, &bytes, sizeof(bytes));
    }
  }
  int32_t minus[2][kLanes];
  for (int half = 0; half < 2; ++half) {
    StoreBytes(reinterpret_cast<char*>(minus[half]),
               U32{} - ReduceEach(sums[half], SumOf()));
  }
  for (int block = 0; block < num_blocks; ++block) {
#pragma GCC unroll 8
    for (int step = 0; step < kQuantBlockSteps; ++step) {
      __builtin_memcpy(out + step * stride, codes[block] + 4 * step, 4);
    }
    __builtin_memcpy(out + kQuantBlockSteps * stride, scale + block, 4);
    const int32_t first = minus[0][block];
    const int32_t last = minus[1][block];
    out[(kQuantBlockSteps + 1) * stride] = first + last;
    out[(kQuantBlockSteps + 2) * stride] = first;
    out[(kQuantBlockSteps + 3) * stride] = last;
    out += kQuantBlockXDwords * stride;
  }
}

}  // namespace QUIRE_ISA_NAMESPACE
}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_QUANT_ROUND_X_H_
