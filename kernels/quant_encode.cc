// QuantizeBlocks of kernels/quant_codec.h.
//
// The five simple formats do what their reference does. The others minimize the
// squared error of a block: candidates for a group's scale around the one that
// spans its values, each followed by the least-squares scale for the codes it
// gives; then the scales of the groups are rounded together, corrected one by
// one, and the block's own scales are fitted to the codes.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "engine/base/status.h"
#include "kernels/quant_blocks.h"
#include "kernels/quant_codec.h"

namespace quire {
namespace {

inline float RoundClamp(float v, float low, float high) {
  v = v > low ? v : low;
  v = v < high ? v : high;
  return (v + 12582912.0f) - 12582912.0f;
}

// Inverse for scaling to codes: 0 for a scale of 0.
inline float InverseOf(float scale) {
  return scale != 0.0f ? 1.0f / scale : 0.0f;
}

// A float as the code it is, for any bits of the float.
inline int CodeOf(float v, float low, float high) {
  return static_cast<int>(RoundClamp(v, low, high));
}

// ------------------------------------------------------- reference rounding

// Truncates; NaN gives 0.
inline int Truncate(float v, int max) {
  return v > 0.0f ? static_cast<int>(std::min(v, static_cast<float>(max))) : 0;
}

// The value of largest magnitude, with its sign; the first of equals.
float LargestMagnitude(const float* x, int n) {
  float largest = 0.0f;
  float magnitude = 0.0f;
  for (int i = 0; i < n; ++i) {
    if (std::abs(x[i]) > magnitude) {
      magnitude = std::abs(x[i]);
      largest = x[i];
    }
  }
  return largest;
}

void PackNibbles(const uint8_t* codes, uint8_t* out) {
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
  }
}

void PackFifthBits(const uint8_t* codes, uint8_t* out) {
  uint32_t high = 0;
  for (int i = 0; i < 32; ++i) high |= uint32_t{codes[i] >> 4 & 1u} << i;
  std::memcpy(out, &high, sizeof(high));
}

void EncodeQ8_0(const float* x, uint8_t* out) {
  float magnitude = 0.0f;
  for (int i = 0; i < 32; ++i) {
    magnitude = std::max(magnitude, std::abs(x[i]));
  }
  const float d = magnitude / 127.0f;
  const float inverse = InverseOf(d);
  StoreHalf(d, out);
  for (int i = 0; i < 32; ++i) {
    // roundf: halves away from zero. |v| < 2^22, so the sum is exact enough to
    // truncate: v + 0.5 rounds up to an integer only where v is one ulp below
    // a half, and then |v| would have to be below 0.5.
    const float v = std::abs(x[i]) * inverse;
    const float whole = static_cast<float>(Truncate(v, 127));
    const int code = static_cast<int>(whole) + (v - whole >= 0.5f ? 1 : 0);
    const int clamped = std::min(code, 127);
    out[2 + i] = static_cast<uint8_t>(x[i] < 0.0f ? -clamped : clamped);
  }
}

// Codes 0 to 2 * half - 1 for x / d + half, where d maps the value of largest
// magnitude to code 0.
void CodesFromSigned(const float* x, int half, uint8_t* out, uint8_t* codes) {
  const float d = LargestMagnitude(x, 32) / static_cast<float>(-half);
  const float inverse = InverseOf(d);
  const float offset = static_cast<float>(half) + 0.5f;
  StoreHalf(d, out);
  for (int i = 0; i < 32; ++i) {
    codes[i] =
        static_cast<uint8_t>(Truncate(x[i] * inverse + offset, 2 * half - 1));
  }
}

void CodesFromMin(const float* x, int max_code, uint8_t* out, uint8_t* codes) {
  float low = x[0];
  float high = x[0];
  for (int i = 1; i < 32; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  const float d = (high - low) / static_cast<float>(max_code);
  const float inverse = InverseOf(d);
  StoreHalf(d, out);
  StoreHalf(low, out + 2);
  for (int i = 0; i < 32; ++i) {
    codes[i] =
        static_cast<uint8_t>(Truncate((x[i] - low) * inverse + 0.5f, max_code));
  }
}

void EncodeQ4_0(const float* x, uint8_t* out) {
  uint8_t codes[32];
  CodesFromSigned(x, 8, out, codes);
  PackNibbles(codes, out + 2);
}

void EncodeQ4_1(const float* x, uint8_t* out) {
  uint8_t codes[32];
  CodesFromMin(x, 15, out, codes);
  PackNibbles(codes, out + 4);
}

void EncodeQ5_0(const float* x, uint8_t* out) {
  uint8_t codes[32];
  CodesFromSigned(x, 16, out, codes);
  PackFifthBits(codes, out + 2);
  PackNibbles(codes, out + 6);
}

void EncodeQ5_1(const float* x, uint8_t* out) {
  uint8_t codes[32];
  CodesFromMin(x, 31, out, codes);
  PackFifthBits(codes, out + 4);
  PackNibbles(codes, out + 8);
}

float RoundToHalf(float value) { return HalfToFloat(FloatToHalf(value)); }

// IQ4_NL: the code nearest to v in [i / 2 - 128, i / 2 - 127.5): the bounds
// between values are multiples of a half.
constexpr std::array<uint8_t, 512> kNearestIq4Code = [] {
  std::array<uint8_t, 512> table = {};
  for (int i = 0; i < 512; ++i) {
    const double v = i * 0.5 - 128.0 + 0.25;
    double best = 1e9;
    for (int code = 0; code < 16; ++code) {
      const double distance =
          v > kIq4Values[code] ? v - kIq4Values[code] : kIq4Values[code] - v;
      if (distance < best) {
        best = distance;
        table[i] = static_cast<uint8_t>(code);
      }
    }
  }
  return table;
}();
constexpr std::array<float, 512> kNearestIq4 = [] {
  std::array<float, 512> table = {};
  for (int i = 0; i < 512; ++i) table[i] = kIq4Values[kNearestIq4Code[i]];
  return table;
}();

// ------------------------------------------------------------------ searches

namespace baseline {
#define QUIRE_TARGET
#include "kernels/quant_search.inc"
#undef QUIRE_TARGET
}  // namespace baseline

#if defined(__x86_64__)
namespace avx2 {
#define QUIRE_TARGET __attribute__((target("avx2")))
#include "kernels/quant_search.inc"
#undef QUIRE_TARGET
}  // namespace avx2
#endif

// Code of the nearest e2m1 value; v in units of the table, which holds doubled
// values.
uint8_t NearestE2M1(float v) {
  // Bounds between 0, 1, 2, 3, 4, 6, 8, 12 are multiples of a half.
  static constexpr std::array<uint8_t, 25> kNearest = [] {
    std::array<uint8_t, 25> table = {};
    for (int i = 0; i < 25; ++i) {
      const double at = i * 0.5 + 0.25;
      for (uint8_t code = 1; code < 8; ++code) {
        if (at > (kE2M1Values[code - 1] + kE2M1Values[code]) / 2.0) {
          table[i] = code;
        }
      }
    }
    return table;
  }();
  const float magnitude = std::abs(v) * 2.0f;
  const uint8_t code =
      kNearest[static_cast<int>(magnitude < 24.0f ? magnitude : 24.0f)];
  return v < 0.0f && code != 0 ? code | 8 : code;
}

void EncodeMXFP4(const float* x, uint8_t* out) {
  const float magnitude = std::abs(LargestMagnitude(x, 32));
  // The exponent that puts the largest value into [4, 8) of e2m1's 6 (Rouhani
  // et al. 2023, arXiv:2310.10537, algorithm 1), and its neighbours.
  int first = 1;
  if (magnitude > 0.0f && std::isfinite(magnitude)) {
    first = std::ilogb(magnitude) - 2 + 127;
  }
  float best = INFINITY;
  uint8_t codes[32] = {};
  // From 1: the inverse of the smallest scale is no f32.
  int exponent = std::clamp(first, 1, 254);
  const int last = std::clamp(first + 1, 1, 254);
  for (int e = std::clamp(first - 1, 1, 254); e <= last; ++e) {
    const float scale = HalfOfE8M0(static_cast<uint8_t>(e));
    const float inverse = 1.0f / scale;
    float error = 0.0f;
    uint8_t candidate[32];
    for (int i = 0; i < 32; ++i) {
      candidate[i] = NearestE2M1(x[i] * inverse);
      const float difference = x[i] - scale * kE2M1Values[candidate[i]];
      error += difference * difference;
    }
    if (error < best) {
      best = error;
      exponent = e;
      std::memcpy(codes, candidate, sizeof(codes));
    }
  }
  out[0] = static_cast<uint8_t>(exponent);
  PackNibbles(codes, out + 1);
}

using Encode = void (*)(const float* x, uint8_t* out);

#if defined(__x86_64__)
#define QUIRE_SEARCH(name) \
  (__builtin_cpu_supports("avx2") ? avx2::name : baseline::name)
#else
#define QUIRE_SEARCH(name) baseline::name
#endif

Encode EncoderOf(QuantFormat format) {
  switch (format) {
    case QuantFormat::kQ4_0:
      return EncodeQ4_0;
    case QuantFormat::kQ4_1:
      return EncodeQ4_1;
    case QuantFormat::kQ5_0:
      return EncodeQ5_0;
    case QuantFormat::kQ5_1:
      return EncodeQ5_1;
    case QuantFormat::kQ8_0:
      return EncodeQ8_0;
    case QuantFormat::kIQ4_NL:
      return QUIRE_SEARCH(EncodeIQ4_NL);
    case QuantFormat::kMXFP4:
      return EncodeMXFP4;
    case QuantFormat::kQ2_K:
      return QUIRE_SEARCH(EncodeQ2_K);
    case QuantFormat::kQ3_K:
      return QUIRE_SEARCH(EncodeQ3_K);
    case QuantFormat::kQ4_K:
      return QUIRE_SEARCH(EncodeQ4_K);
    case QuantFormat::kQ5_K:
      return QUIRE_SEARCH(EncodeQ5_K);
    case QuantFormat::kQ6_K:
      return QUIRE_SEARCH(EncodeQ6_K);
    case QuantFormat::kIQ4_XS:
      return QUIRE_SEARCH(EncodeIQ4_XS);
    case QuantFormat::kDense:
    case QuantFormat::kFp8:
    case QuantFormat::kInt4:
      break;
  }
  return nullptr;
}

}  // namespace

void QuantizeBlocks(QuantFormat format, const float* values, int64_t cols,
                    uint8_t* out) {
  const Encode encode = EncoderOf(format);
  const QuantBlock block = QuantBlockOf(format);
  QUIRE_CHECK(encode != nullptr && cols % block.cols == 0);
  for (int64_t c = 0; c < cols; c += block.cols, out += block.bytes) {
    encode(values + c, out);
  }
}

}  // namespace quire
