// One vector of f32 and the few operations on it that the kernels need, for the
// instruction set this translation unit is compiled for.
//
// Included only by the *_kernels.cc files, which Bazel compiles once per
// instruction set with QUIRE_ISA_NAMESPACE defined. Everything here is always
// inlined and lives in that namespace, and no header with inline functions of
// other namespaces is included beside it: otherwise the linker might keep an
// AVX-512 copy of a function that the baseline code calls.
//
// Compiled with -ffp-contract=off: a multiply-add is fused only where Fma says
// so, so that every template instance rounds alike.
#ifndef QUIRE_KERNELS_CPU_SIMD_H_
#define QUIRE_KERNELS_CPU_SIMD_H_

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// NEON with dot products; __ARM_FEATURE_BF16_VECTOR_ARITHMETIC is checked by
// itself.
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define QUIRE_NEON 1
#endif

#define QUIRE_INLINE static inline __attribute__((always_inline))
#define QUIRE_INLINE_METHOD inline __attribute__((always_inline))

namespace quire {
namespace QUIRE_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // Any machine with 16-byte vectors.
#endif

typedef float F32 __attribute__((vector_size(kLanes * 4)));
typedef int32_t I32 __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U32 __attribute__((vector_size(kLanes * 4)));
typedef uint16_t U16 __attribute__((vector_size(kLanes * 2)));

QUIRE_INLINE F32 Set1(float value) { return value - F32{}; }
QUIRE_INLINE I32 SetInt1(int32_t value) { return value - I32{}; }

QUIRE_INLINE F32 Load(const float* p) {
#if defined(QUIRE_NEON)
  return vld1q_f32(p);  // g++ 12 makes two scalar loads of the copy below.
#else
  F32 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
#endif
}
QUIRE_INLINE void Store(float* p, F32 v) {
#if defined(QUIRE_NEON)
  vst1q_f32(p, v);
#else
  __builtin_memcpy(p, &v, sizeof(v));
#endif
}

// The first n lanes (0 <= n <= kLanes); the others are zero and their memory is
// not touched.
QUIRE_INLINE F32 LoadPartial(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps((1u << n) - 1, p);
#else
  F32 v = {};
  for (int i = 0; i < kLanes; ++i) v[i] = i < n ? p[i] : 0.0f;
  return v;
#endif
}
QUIRE_INLINE void StorePartial(float* p, F32 v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (1u << n) - 1, v);
#elif defined(__AVX2__)
  const __m256i iota = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i count = _mm256_set1_epi32(static_cast<int>(n));
  _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(count, iota), v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// a * b + c; one rounding where the CPU has FMA, two on the scalar ISA.
QUIRE_INLINE F32 Fma(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(QUIRE_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// acc[row] = w * x[row] + acc[row] for the two vectors of a panel.
template <int kRows>
QUIRE_INLINE void FmaRows(F32 w0, F32 w1, const float* x,
                          F32 (&acc)[kRows][2]) {
  int row = 0;
#if defined(QUIRE_NEON)
  // One load for four rows: ld1r would take a vector pipe beside the load.
#pragma GCC unroll 16
  for (; row + 4 <= kRows; row += 4) {
    const F32 xv = Load(x + row);
    acc[row][0] = vfmaq_laneq_f32(acc[row][0], w0, xv, 0);
    acc[row][1] = vfmaq_laneq_f32(acc[row][1], w1, xv, 0);
    acc[row + 1][0] = vfmaq_laneq_f32(acc[row + 1][0], w0, xv, 1);
    acc[row + 1][1] = vfmaq_laneq_f32(acc[row + 1][1], w1, xv, 1);
    acc[row + 2][0] = vfmaq_laneq_f32(acc[row + 2][0], w0, xv, 2);
    acc[row + 2][1] = vfmaq_laneq_f32(acc[row + 2][1], w1, xv, 2);
    acc[row + 3][0] = vfmaq_laneq_f32(acc[row + 3][0], w0, xv, 3);
    acc[row + 3][1] = vfmaq_laneq_f32(acc[row + 3][1], w1, xv, 3);
  }
#endif
#pragma GCC unroll 16
  for (; row < kRows; ++row) {
    const F32 xv = Set1(x[row]);
    acc[row][0] = Fma(w0, xv, acc[row][0]);
    acc[row][1] = Fma(w1, xv, acc[row][1]);
  }
}

QUIRE_INLINE F32 Max(F32 a, F32 b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;  // Of NaNs, b: as the x86 instructions.
#endif
}

QUIRE_INLINE float MaxLane(F32 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#else
  float result = v[0];
  for (int i = 1; i < kLanes; ++i) result = result > v[i] ? result : v[i];
  return result;
#endif
}

// In a fixed order: pairs at distance kLanes / 2, then half of that, ...
QUIRE_INLINE float SumLanes(F32 v) {
  float lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// kLanes consecutive 16-bit values, zero-extended.
QUIRE_INLINE U32 LoadU16(const uint16_t* p) {
#if defined(__AVX512F__)
  return (U32)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (U32)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(QUIRE_NEON)
  return vmovl_u16(vld1_u16(p));
#else
  U16 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, U32);
#endif
}

QUIRE_INLINE F32 LoadBf16(const uint16_t* p) { return (F32)(LoadU16(p) << 16); }

QUIRE_INLINE F32 LoadF16(const uint16_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(QUIRE_NEON)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  // Exponent and mantissa shifted into place stand for value * 2^-112, which
  // the multiplication restores exactly, subnormals included; infinity and NaN
  // (all ones in the exponent) need the f32 exponent set by hand.
  const U32 half = LoadU16(p);
  const U32 sign = (half & 0x8000) << 16;
  const U32 magnitude = (half & 0x7fff) << 13;
  const U32 finite = (U32)((F32)magnitude * 0x1p112f);
  const U32 special = magnitude | 0x7f800000;
  return (F32)(sign | (magnitude >= 0x0f800000 ? special : finite));
#endif
}

QUIRE_INLINE F32 LoadI8AsF32(const int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  I32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = p[i];
  return __builtin_convertvector(v, F32);
#endif
}

// kLanes values of e4m3 (kernels/dtype.h).
QUIRE_INLINE F32 LoadE4M3(const uint8_t* p) {
#if defined(__AVX512F__)
  const U32 bits =
      (U32)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  const U32 bits =
      (U32)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  U32 bits;
  for (int i = 0; i < kLanes; ++i) bits[i] = p[i];
#endif
  // Exponent and mantissa shifted into place stand for value * 2^-120, which
  // the multiplication restores exactly; subnormals (exponent 0, units of 2^-9)
  // are converted, because some CPUs multiply subnormal f32 slowly.
  const U32 magnitude = bits & 0x7f;
  const U32 sign = (bits & 0x80) << 24;
  const U32 normal = (magnitude << 20) + (120u << 23);
  const U32 subnormal =
      (U32)(__builtin_convertvector((I32)magnitude, F32) * 0x1p-9f);
  const U32 finite = magnitude >= 8 ? normal : subnormal;
  return (F32)(sign | (magnitude == 0x7f ? U32{} + 0x7fc00000u : finite));
}

// Bf16 pairs: 2 * kLanes values; the even ones (low halves) or the odd ones.
QUIRE_INLINE U32 LoadPairs(const uint16_t* p) {
#if defined(QUIRE_NEON)
  return (U32)vld1q_u16(p);
#else
  U32 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
#endif
}
QUIRE_INLINE F32 EvenBf16(U32 pairs) { return (F32)(pairs << 16); }
QUIRE_INLINE F32 OddBf16(U32 pairs) { return (F32)(pairs & 0xffff0000u); }

template <int... kLane>
struct LaneList {};
#if defined(__AVX512F__)
using AllLanes = LaneList<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif defined(__AVX2__)
using AllLanes = LaneList<0, 1, 2, 3, 4, 5, 6, 7>;
#else
using AllLanes = LaneList<0, 1, 2, 3>;
#endif

// Swaps the odd kDistance-wide groups of a with the even ones of b.
template <int kDistance, int... kLane>
QUIRE_INLINE void SwapGroups(U32& a, U32& b, LaneList<kLane...>) {
  const U32 low = __builtin_shufflevector(
      a, b, ((kLane & kDistance) != 0 ? kLanes + kLane - kDistance : kLane)...);
  const U32 high = __builtin_shufflevector(
      a, b, ((kLane & kDistance) != 0 ? kLanes + kLane : kLane + kDistance)...);
  a = low;
  b = high;
}

// v as a square matrix, row i in v[i], becomes its transpose: log2(kLanes)
// rounds of exchanges at growing distance.
template <int kDistance = 1>
QUIRE_INLINE void Transpose(U32 (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kDistance) == 0) {
      SwapGroups<kDistance>(v[i], v[i + kDistance], AllLanes());
    }
  }
  if constexpr (2 * kDistance < kLanes) Transpose<2 * kDistance>(v);
}

// exp(x), error below 2 ulp; exp(0) is exactly 1; 0 below -86.9 (no subnormal
// results), infinity above 88.72; NaN stays NaN.
// Range reduction by Cody & Waite 1980 and the polynomial of Cephes' expf
// (Moshier): x = n ln 2 + r, |r| <= ln 2 / 2.
QUIRE_INLINE F32 Exp(F32 x) {
  // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
  const F32 shifter = Set1(0x1.8p23f);
  const F32 shifted = Fma(x, Set1(1.44269504088896341f), shifter);
  const F32 n = shifted - shifter;
  F32 r = Fma(n, Set1(-0.693359375f), x);  // 9 bits: exact products.
  r = Fma(n, Set1(2.12194440e-4f), r);
  F32 p = Set1(1.9875691500e-4f);
  p = Fma(p, r, Set1(1.3981999507e-3f));
  p = Fma(p, r, Set1(8.3334519073e-3f));
  p = Fma(p, r, Set1(4.1665795894e-2f));
  p = Fma(p, r, Set1(1.6666665459e-1f));
  p = Fma(p, r, Set1(5.0000001201e-1f));
  p = Fma(p, r * r, r) + 1.0f;
  // 2^(n - 1) from the bits of `shifted`: n = 128 would overflow.
  const F32 scale = (F32)(((U32)shifted << 23) + 0x3f000000u);
  const F32 y = p * scale * 2.0f;
  const F32 no_underflow = x < -86.9f ? Set1(0.0f) : y;
  return x > 88.72f ? Set1(__builtin_inff()) : no_underflow;
}

// tanh(x) with an error of a few ulp: Cephes' tanhf (Moshier).
QUIRE_INLINE F32 Tanh(F32 x) {
  const F32 magnitude = (F32)((U32)x & 0x7fffffffu);
  const F32 z = x * x;
  F32 p = Set1(-5.70498872745e-3f);
  p = Fma(p, z, Set1(2.06390887954e-2f));
  p = Fma(p, z, Set1(-5.37397155531e-2f));
  p = Fma(p, z, Set1(1.33314422036e-1f));
  p = Fma(p, z, Set1(-3.33332819422e-1f));
  const F32 small = Fma(p * z, x, x);
  const F32 large = 1.0f - 2.0f / (Exp(magnitude + magnitude) + 1.0f);
  const F32 signed_large = (F32)((U32)large | ((U32)x & 0x80000000u));
  return magnitude < 0.625f ? small : signed_large;
}

// x * sigmoid(x). Elfwing et al. 2017, arXiv:1702.03118.
QUIRE_INLINE F32 Silu(F32 x) { return x / (1.0f + Exp(-x)); }

// Hendrycks & Gimpel 2016, arXiv:1606.08415, the tanh form:
// 0.5 x (1 + tanh(u)) = x * sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
QUIRE_INLINE F32 GeluTanh(F32 x) {
  const F32 cubic = Fma(x * x * x, Set1(0.044715f), x);
  return x / (1.0f + Exp(cubic * -1.5957691216057308f));
}

// Exact GELU: x Phi(x), Phi the distribution function of the normal
// distribution. The tail of Phi by Hastings' formula (Abramowitz & Stegun 1964,
// 26.2.17), whose error is below 7.5e-8; with that of the arithmetic the result
// is within 4e-7 |x|.
QUIRE_INLINE F32 GeluErf(F32 x) {
  const F32 magnitude = (F32)((U32)x & 0x7fffffffu);
  const F32 t = 1.0f / Fma(magnitude, Set1(0.2316419f), Set1(1.0f));
  F32 p = Set1(1.330274429f);
  p = Fma(p, t, Set1(-1.821255978f));
  p = Fma(p, t, Set1(1.781477937f));
  p = Fma(p, t, Set1(-0.356563782f));
  p = Fma(p, t, Set1(0.319381530f));
  // 1 / sqrt(2 pi).
  const F32 density = Exp(x * x * -0.5f) * 0.3989422804f;
  const F32 tail = p * t * density;
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

}  // namespace QUIRE_ISA_NAMESPACE
}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_SIMD_H_
