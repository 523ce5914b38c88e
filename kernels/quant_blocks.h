// Where the fields lie in the blocks of 256 columns: for both directions of
// kernels/quant_codec.h, and for backends that repack blocks.
#ifndef QUIRE_KERNELS_QUANT_BLOCKS_H_
#define QUIRE_KERNELS_QUANT_BLOCKS_H_

#include <cstdint>
#include <cstring>

#include "kernels/dtype.h"

namespace quire {

// Values of the 16 codes of IQ4_NL and IQ4_XS.
inline constexpr int8_t kIq4Values[16] = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// Twice the values of the 16 codes of e2m1.
inline constexpr int8_t kE2M1Values[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                           0, -1, -2, -3, -4, -6, -8, -12};

// Half of the e8m0 number: 2^(bits - 128).
inline float HalfOfE8M0(uint8_t bits) {
  // The two smallest are subnormal.
  return std::bit_cast<float>(bits < 2 ? 0x00200000u << bits
                                       : uint32_t{bits - 1u} << 23);
}

inline uint16_t LoadU16(const uint8_t* from) {
  uint16_t value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline uint32_t LoadU32(const uint8_t* from) {
  uint32_t value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline float LoadHalf(const uint8_t* from) {
  return HalfToFloat(LoadU16(from));
}

inline void StoreHalf(float value, uint8_t* to) {
  const uint16_t bits = FloatToHalf(value);
  std::memcpy(to, &bits, sizeof(bits));
}

// Q4_K and Q5_K: eight scales and eight mins of six bits in 12 bytes.
//   bytes 0-3: scale 0-3; bytes 4-7: min 0-3, in the low six bits each;
//   bytes 8-11: low four bits of scale 4-7, then of min 4-7;
//   the top two bits of bytes 0-7 are the top bits of scale and min 4-7.
struct ScaleMin {
  uint8_t scale = 0;
  uint8_t min = 0;
};

inline ScaleMin UnpackScaleMin(const uint8_t* packed, int i) {
  if (i < 4) {
    return {static_cast<uint8_t>(packed[i] & 63),
            static_cast<uint8_t>(packed[i + 4] & 63)};
  }
  return {
      static_cast<uint8_t>((packed[i + 4] & 15) | (packed[i - 4] >> 6 << 4)),
      static_cast<uint8_t>((packed[i + 4] >> 4) | (packed[i] >> 6 << 4))};
}

// Requires: the 12 bytes were zero before the first.
inline void PackScaleMin(ScaleMin value, int i, uint8_t* packed) {
  if (i < 4) {
    packed[i] |= value.scale;
    packed[i + 4] |= value.min;
    return;
  }
  packed[i + 4] |= static_cast<uint8_t>((value.scale & 15) | value.min << 4);
  packed[i - 4] |= static_cast<uint8_t>(value.scale >> 4 << 6);
  packed[i] |= static_cast<uint8_t>(value.min >> 4 << 6);
}

// Q3_K: sixteen scales of six bits in 12 bytes: low four bits in bytes 0-7 (0
// to 7 in the low halves), top two bits in bytes 8-11. Stored with 32 added.
inline int UnpackQ3KScale(const uint8_t* packed, int i) {
  const int low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
  const int high = (packed[8 + i % 4] >> (2 * (i / 4))) & 3;
  return (low | high << 4) - 32;
}

inline void PackQ3KScale(int scale, int i, uint8_t* packed) {
  const int stored = scale + 32;
  packed[i % 8] |= static_cast<uint8_t>((stored & 15) << (i < 8 ? 0 : 4));
  packed[8 + i % 4] |= static_cast<uint8_t>((stored >> 4) << (2 * (i / 4)));
}

// Offsets in the blocks of 256 columns.
struct Q2KLayout {
  static constexpr int kScales = 0, kCodes = 16, kD = 80, kDMin = 82;
};
struct Q3KLayout {
  static constexpr int kHigh = 0, kCodes = 32, kScales = 96, kD = 108;
};
struct Q4KLayout {
  static constexpr int kD = 0, kDMin = 2, kScales = 4, kCodes = 16;
};
struct Q5KLayout {
  static constexpr int kD = 0, kDMin = 2, kScales = 4, kHigh = 16, kCodes = 48;
};
struct Q6KLayout {
  static constexpr int kLow = 0, kHigh = 128, kScales = 192, kD = 208;
};
struct Iq4XsLayout {
  static constexpr int kD = 0, kScalesHigh = 2, kScalesLow = 4, kCodes = 8;
};

}  // namespace quire

#endif  // QUIRE_KERNELS_QUANT_BLOCKS_H_
