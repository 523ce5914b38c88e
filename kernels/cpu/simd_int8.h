// Products of bytes for the kernels of quantized weights: what simd.h is for
// f32. Every function gives the same integers on every instruction set.
//
// Four bytes of k lie in one 32-bit lane, a lane is an output channel.
#ifndef QUIRE_KERNELS_CPU_SIMD_INT8_H_
#define QUIRE_KERNELS_CPU_SIMD_INT8_H_

#include <stdint.h>

#include "kernels/cpu/simd.h"

namespace quire {
namespace QUIRE_ISA_NAMESPACE {

constexpr int kVectorBytes = kLanes * 4;

QUIRE_INLINE U32 LoadBytes(const char* p) {
#if defined(QUIRE_NEON)
  return (U32)vld1q_u8((const uint8_t*)p);
#else
  U32 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
#endif
}
QUIRE_INLINE void StoreBytes(char* p, U32 v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

QUIRE_INLINE F32 ToFloat(I32 v) { return __builtin_convertvector(v, F32); }

// Each lane times a power of two. As an intrinsic: of `v << count` compilers
// make a scalar shift and a broadcast from a general register, which costs the
// vector units more (Zen 5).
QUIRE_INLINE I32 ShiftLeft(I32 v, I32 count) {
#if defined(__AVX512F__)
  return (I32)_mm512_sllv_epi32((__m512i)v, (__m512i)count);
#elif defined(__AVX2__)
  return (I32)_mm256_sllv_epi32((__m256i)v, (__m256i)count);
#else
  return v << count;
#endif
}

// kLanes bytes, widened.
QUIRE_INLINE I32 LoadU8(const char* p) {
#if defined(__AVX512F__)
  return (I32)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (I32)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  I32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = (uint8_t)p[i];
  return v;
#endif
}
QUIRE_INLINE I32 LoadI8(const char* p) {
#if defined(__AVX512F__)
  return (I32)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (I32)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  I32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = (int8_t)p[i];
  return v;
#endif
}

// Each lane plus the sum of the products of its four unsigned bytes of w with
// the four signed bytes of x. Exact: nothing saturates. kWide: bytes of w may
// exceed 127; of x none is -128.
template <bool kWide>
QUIRE_INLINE I32 DotBytes(I32 acc, U32 w, U32 x) {
#if defined(__AVX512VNNI__)
  return (I32)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x);
#elif defined(__AVX512F__)
  if constexpr (kWide) {
    // Pairs of products of 8 unsigned bits would saturate 16: widen first.
    const __m512i even = _mm512_madd_epi16(
        (__m512i)(w & 0x00ff00ffu),
        _mm512_srai_epi16(_mm512_slli_epi16((__m512i)x, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16((__m512i)w, 8),
                                          _mm512_srai_epi16((__m512i)x, 8));
    return acc + (I32)even + (I32)odd;
  } else {
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)w, (__m512i)x);
    return acc + (I32)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
  }
#elif defined(__AVXVNNI__)
  return (I32)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)w, (__m256i)x);
#elif defined(__AVX2__)
  if constexpr (kWide) {
    const __m256i even = _mm256_madd_epi16(
        (__m256i)(w & 0x00ff00ffu),
        _mm256_srai_epi16(_mm256_slli_epi16((__m256i)x, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16((__m256i)w, 8),
                                          _mm256_srai_epi16((__m256i)x, 8));
    return acc + (I32)even + (I32)odd;
  } else {
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)w, (__m256i)x);
    return acc + (I32)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  return vusdotq_s32(acc, (uint8x16_t)w, (int8x16_t)x);
#elif defined(QUIRE_NEON)
  if constexpr (kWide) {
    // SDOT takes signed bytes: w - 128, and twice 64 for the 128.
    const int8x16_t half = vdupq_n_s8(64);
    acc = vdotq_s32(acc, (int8x16_t)(w ^ 0x80808080u), (int8x16_t)x);
    acc = vdotq_s32(acc, half, (int8x16_t)x);
    return vdotq_s32(acc, half, (int8x16_t)x);
  } else {
    return vdotq_s32(acc, (int8x16_t)w, (int8x16_t)x);
  }
#elif defined(__SSE2__)
  const __m128i w_even = (__m128i)(w & 0x00ff00ffu);
  const __m128i w_odd = _mm_srli_epi16((__m128i)w, 8);
  const __m128i x_even = _mm_srai_epi16(_mm_slli_epi16((__m128i)x, 8), 8);
  const __m128i x_odd = _mm_srai_epi16((__m128i)x, 8);
  return acc + (I32)_mm_madd_epi16(w_even, x_even) +
         (I32)_mm_madd_epi16(w_odd, x_odd);
#else
  for (int byte = 0; byte < 4; ++byte) {
    const I32 w_byte = (I32)((w >> (8 * byte)) & 0xff);
    acc += w_byte * ((I32)(x << (24 - 8 * byte)) >> 24);
  }
  return acc;
#endif
}

// table[i] of every byte i < 16.
QUIRE_INLINE U32 LookUp(const uint8_t (&table)[16], U32 nibbles) {
#if defined(__AVX512BW__)
  const __m512i entries =
      _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
  return (U32)_mm512_shuffle_epi8(entries, (__m512i)nibbles);
#elif defined(__AVX2__)
  const __m256i entries =
      _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
  return (U32)_mm256_shuffle_epi8(entries, (__m256i)nibbles);
#elif defined(QUIRE_NEON)
  return (U32)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)nibbles);
#else
  uint8_t bytes[kVectorBytes];
  __builtin_memcpy(bytes, &nibbles, sizeof(bytes));
  for (int i = 0; i < kVectorBytes; ++i) bytes[i] = table[bytes[i]];
  U32 result;
  __builtin_memcpy(&result, bytes, sizeof(result));
  return result;
#endif
}

}  // namespace QUIRE_ISA_NAMESPACE
}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_SIMD_INT8_H_
