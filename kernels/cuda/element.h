// The 16-bit float formats, so that one kernel serves both.
#ifndef QUIRE_KERNELS_CUDA_ELEMENT_H_
#define QUIRE_KERNELS_CUDA_ELEMENT_H_

#include <cstdint>

#include "kernels/cuda/simt/simt.h"
#include "kernels/dtype.h"

namespace quire::cuda {

// kType: kBF16 or kF16.
template <DType kType>
struct Element {
  static SIMT_DEVICE float ToFloat(uint16_t bits) {
    if constexpr (kType == DType::kBF16) return Bf16ToFloat(bits);
    return simt::F16ToFloat(bits);
  }
  static SIMT_DEVICE uint16_t FromFloat(float value) {
    return static_cast<uint16_t>(Pack(value, 0.0f));
  }
  // Two values, the first in the low half.
  static SIMT_DEVICE uint32_t Pack(float low, float high) {
    if constexpr (kType == DType::kBF16) return simt::PackBf16(low, high);
    return simt::PackF16(low, high);
  }
  // Two values of e4m3 in the low half, widened: exact.
  static SIMT_DEVICE uint32_t FromE4M3x2(uint32_t pair) {
    if constexpr (kType == DType::kBF16) return simt::E4M3x2ToBf16x2(pair);
    return simt::E4M3x2ToF16x2(pair);
  }
  // a - b, two values.
  static SIMT_DEVICE uint32_t Subtract(uint32_t a, uint32_t b) {
    if constexpr (kType == DType::kBF16) return simt::SubtractBf16x2(a, b);
    return simt::SubtractF16x2(a, b);
  }
  static SIMT_DEVICE void Mma(float (&c)[4], const uint32_t (&a)[4],
                              uint32_t b0, uint32_t b1) {
    if constexpr (kType == DType::kBF16) {
      simt::MmaBf16(c, a, b0, b1);
    } else {
      simt::MmaF16(c, a, b0, b1);
    }
  }
  template <bool kTransposed, bool kAccumulates, int kNumTiles>
  static SIMT_DEVICE void Wgmma(float (&c)[kNumTiles][4],
                                const uint32_t (&a)[4], simt::SharedMatrix b) {
    if constexpr (kType == DType::kBF16) {
      simt::WgmmaBf16<kTransposed, kAccumulates>(c, a, b);
    } else {
      simt::WgmmaF16<kTransposed, kAccumulates>(c, a, b);
    }
  }
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_ELEMENT_H_
