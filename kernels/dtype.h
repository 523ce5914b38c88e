// Element types of tensors, and exact conversions between them and float.
#ifndef QUIRE_KERNELS_DTYPE_H_
#define QUIRE_KERNELS_DTYPE_H_

#include <bit>
#include <cstdint>

namespace quire {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kI32,
  kI8,
  kU8,
  kF8E4M3,  // 4 bits of exponent, 3 of mantissa, no infinity; at most 448.
};

constexpr int64_t DTypeSize(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kI8:
    case DType::kU8:
    case DType::kF8E4M3:
      return 1;
  }
  return 0;
}

constexpr bool IsFloatDType(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

// "f32", "f16", "bf16", "i32", "i8", "u8", "fp8_e4m3".
constexpr const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kI32:
      return "i32";
    case DType::kI8:
      return "i8";
    case DType::kU8:
      return "u8";
    case DType::kF8E4M3:
      return "fp8_e4m3";
  }
  return "?";
}

// bfloat16 and IEEE binary16 values travel as their 16 bits.
constexpr float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
constexpr uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

constexpr float HalfToFloat(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  const uint32_t mantissa = half & 0x3ff;
  if (exponent == 0x1f) {
    return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));
  }
  if (exponent != 0) {
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) |
                                (mantissa << 13));
  }
  // Zero and subnormals: mantissa * 2^-24 is exact in f32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

// Round to nearest, ties to even; overflow gives infinity.
constexpr uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  // 65520 and above round to infinity.
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude >= 0x38800000) {  // Normal in binary16: 2^-14 and above.
    const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    return sign | static_cast<uint16_t>((rounded - 0x38000000) >> 13);
  }
  // Adding 0.5 leaves the value in units of 2^-24, correctly rounded, in the
  // low bits of the mantissa.
  const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
  return sign |
         static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000);
}

// Micikevicius et al. 2022, "FP8 formats for deep learning", arXiv:2209.05433:
// bias 7, subnormals in units of 2^-9, NaN only where all other bits are set.
constexpr float E4M3ToFloat(uint8_t bits) {
  const uint32_t sign = uint32_t{bits & 0x80u} << 24;
  const uint32_t exponent = (bits >> 3) & 0xf;
  const uint32_t mantissa = bits & 0x7;
  if (exponent == 0xf && mantissa == 0x7) {
    return std::bit_cast<float>(sign | 0x7fc00000);
  }
  if (exponent != 0) {
    return std::bit_cast<float>(sign | ((exponent + 120) << 23) |
                                (mantissa << 20));
  }
  const float magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

// Round to nearest, ties to even; what is beyond 448 becomes 448 (as hardware
// conversions with saturation do); a NaN stays one.
constexpr uint8_t FloatToE4M3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7f;
  if (magnitude >= 0x43e00000) return sign | 0x7e;  // 448 and above.
  if (magnitude >= 0x3c800000) {                    // Normal: 2^-6 and above.
    const uint32_t rounded = magnitude + 0x7ffff + ((magnitude >> 20) & 1);
    return sign | static_cast<uint8_t>((rounded - 0x3c000000) >> 20);
  }
  // Adding 2^14 leaves the value in units of 2^-9, correctly rounded, in the
  // low bits of the mantissa.
  const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
  return sign | static_cast<uint8_t>(std::bit_cast<uint32_t>(shifted) -
                                     std::bit_cast<uint32_t>(0x1p14f));
}

}  // namespace quire

#endif  // QUIRE_KERNELS_DTYPE_H_
