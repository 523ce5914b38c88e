// Products of bf16 activations and e4m3 weights, compiled once per instruction
// set (see simd.h). Every e4m3 value is a bf16 value, so a product is exact in
// f32; scales are applied to sums. NaN codes are not looked at here: packing
// makes the scale of their group NaN.
#include "kernels/cpu/fp8_kernels.h"

#include "kernels/cpu/matmul_epilogue.h"
#include "kernels/cpu/simd.h"

namespace quire {
namespace QUIRE_ISA_NAMESPACE {
namespace {

// As the tiles of dense weights (matmul_kernels.cc).
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#elif defined(QUIRE_NEON)
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif

constexpr int kPanelWidth = 2 * kLanes;
constexpr int kStepBytes = 2 * kPanelWidth;
constexpr int kWideStepBytes = 4 * kPanelWidth;
constexpr int kTileFloats = kTileRows * kPanelWidth;

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr int kXStepBytes = 4;  // Dot products of pairs.
#else
constexpr int kXStepBytes = 8;
#endif

// 2 * kLanes codes as bf16. Exponent and mantissa go to their place and the
// bias is added; subnormals (codes 0 to 7, units of 2^-9) come from a table.
#if defined(__AVX512BF16__)
using Pairs = __m512bh;
QUIRE_INLINE Pairs Widen(const char* codes) {
  const __m512i table =
      _mm512_setr_epi32(0x3b000000, 0x3bc03b80, 0x3c203c00, 0x3c603c40, 0, 0, 0,
                        0, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512i bits =
      _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)codes));
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi16(0x7f));
  const __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4),
                                          _mm512_set1_epi16(0x3c00));
  const __mmask32 is_subnormal =
      _mm512_testn_epi16_mask(bits, _mm512_set1_epi16(0x78));
  const __m512i value =
      _mm512_mask_permutexvar_epi16(normal, is_subnormal, magnitude, table);
  // value | (bits << 8 & 0x8000)
  return (__m512bh)_mm512_ternarylogic_epi32(value, _mm512_slli_epi16(bits, 8),
                                             _mm512_set1_epi16(-0x8000), 0xf8);
}
QUIRE_INLINE Pairs LoadWide(const char* p) {
  return (__m512bh)_mm512_loadu_si512(p);
}
QUIRE_INLINE void StoreWide(char* p, Pairs v) {
  _mm512_storeu_si512(p, (__m512i)v);
}
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
using Pairs = bfloat16x8_t;
QUIRE_INLINE Pairs Widen(const char* codes) {
  const uint16x8_t table = {0,      0x3b00, 0x3b80, 0x3bc0,
                            0x3c00, 0x3c20, 0x3c40, 0x3c60};
  const uint16x8_t bits = vmovl_u8(vld1_u8((const uint8_t*)codes));
  const uint16x8_t magnitude = vandq_u16(bits, vdupq_n_u16(0x7f));
  const uint16x8_t normal =
      vaddq_u16(vshlq_n_u16(magnitude, 4), vdupq_n_u16(0x3c00));
  // The indices of the two bytes of entry `magnitude`.
  const uint16x8_t indices =
      vmlaq_n_u16(vdupq_n_u16(0x0100), magnitude, 0x0202);
  const uint16x8_t subnormal = vreinterpretq_u16_u8(
      vqtbl1q_u8(vreinterpretq_u8_u16(table), vreinterpretq_u8_u16(indices)));
  const uint16x8_t value =
      vbslq_u16(vcltq_u16(magnitude, vdupq_n_u16(8)), subnormal, normal);
  const uint16x8_t sign = vandq_u16(vshlq_n_u16(bits, 8), vdupq_n_u16(0x8000));
  return (bfloat16x8_t)vorrq_u16(value, sign);
}
QUIRE_INLINE Pairs LoadWide(const char* p) {
  return (bfloat16x8_t)vld1q_u8((const uint8_t*)p);
}
QUIRE_INLINE void StoreWide(char* p, Pairs v) {
  vst1q_u8((uint8_t*)p, (uint8x16_t)v);
}
#else
// As two vectors of f32: the even k and the odd ones.
struct Pairs {
  F32 even, odd;
};
QUIRE_INLINE F32 ToF32(U32 bits) {
  const U32 magnitude = bits & 0x7f;
  const U32 sign = (bits & 0x80) << 24;
  const U32 normal = (magnitude << 20) + (120u << 23);
  const U32 subnormal =
      (U32)(__builtin_convertvector((I32)magnitude, F32) * 0x1p-9f);
  return (F32)(sign | (magnitude >= 8 ? normal : subnormal));
}
QUIRE_INLINE Pairs Widen(const char* codes) {
  const U32 pairs = LoadU16(reinterpret_cast<const uint16_t*>(codes));
  return {ToF32(pairs & 0xff), ToF32(pairs >> 8)};
}
QUIRE_INLINE Pairs LoadWide(const char* p) {
  const U32 pairs = LoadPairs(reinterpret_cast<const uint16_t*>(p));
  return {EvenBf16(pairs), OddBf16(pairs)};
}
QUIRE_INLINE void StoreWide(char* p, Pairs v) {
  const U32 pairs = (U32)v.even >> 16 | ((U32)v.odd & 0xffff0000u);
  __builtin_memcpy(p, &pairs, sizeof(pairs));
}
#endif

// acc += the products of one step, for the two vectors of a panel.
template <int kRows>
QUIRE_INLINE void MultiplyStep(Pairs w0, Pairs w1, const char* x,
                               F32 (&acc)[kRows][2]) {
#if defined(__AVX512BF16__)
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    const __m512bh xv =
        (__m512bh)_mm512_set1_epi32(reinterpret_cast<const int32_t*>(x)[row]);
    acc[row][0] = _mm512_dpbf16_ps(acc[row][0], w0, xv);
    acc[row][1] = _mm512_dpbf16_ps(acc[row][1], w1, xv);
  }
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    const bfloat16x8_t xv =
        (bfloat16x8_t)vdupq_n_s32(reinterpret_cast<const int32_t*>(x)[row]);
    acc[row][0] = vbfdotq_f32(acc[row][0], w0, xv);
    acc[row][1] = vbfdotq_f32(acc[row][1], w1, xv);
  }
#else
  const float* const values = reinterpret_cast<const float*>(x);
  FmaRows(w0.even, w1.even, values, acc);
  FmaRows(w0.odd, w1.odd, values + kRows, acc);
#endif
}

struct TileArgs {
  const char* weights;  // Codes if direct, else bf16.
  const char* x;
  int64_t num_steps;
  bool is_first;         // Start from zero instead of acc.
  float* acc;            // [kRows][kPanelWidth]
  const char* prefetch;  // kStepBytes per step from here on.
};

// Storing the accumulators between blocks is exact.
template <int kRows, bool kIsDirect>
void Tile(const TileArgs& args) {
  F32 acc[kRows][2];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    const float* const from = args.acc + row * kPanelWidth;
    acc[row][0] = args.is_first ? F32{} : Load(from);
    acc[row][1] = args.is_first ? F32{} : Load(from + kLanes);
  }
  const char* weights = args.weights;
  const char* x = args.x;
  const char* prefetch = args.prefetch;
  for (int64_t step = args.num_steps; step > 0; --step) {
    __builtin_prefetch(prefetch);
    prefetch += kStepBytes;
    if constexpr (kIsDirect) {
      MultiplyStep(Widen(weights), Widen(weights + kStepBytes / 2), x, acc);
      weights += kStepBytes;
    } else {
      MultiplyStep(LoadWide(weights), LoadWide(weights + kWideStepBytes / 2), x,
                   acc);
      weights += kWideStepBytes;
    }
    x += kRows * kXStepBytes;
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    Store(args.acc + row * kPanelWidth, acc[row][0]);
    Store(args.acc + row * kPanelWidth + kLanes, acc[row][1]);
  }
}

using TileFunction = void (*)(const TileArgs& args);
template <bool kIsDirect, int... kRows>
struct TileTable {
  TileFunction entries[sizeof...(kRows) + 1] = {nullptr,
                                                Tile<kRows, kIsDirect>...};
};
template <bool kIsDirect>
#if defined(__AVX512F__)
using AllTiles =
    TileTable<kIsDirect, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>;
#elif defined(QUIRE_NEON)
using AllTiles = TileTable<kIsDirect, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
#else
using AllTiles = TileTable<kIsDirect, 1, 2, 3, 4, 5, 6>;
#endif
constexpr AllTiles<true> kDirectTiles;
constexpr AllTiles<false> kTiles;

void WidenBlock(const char* codes, int64_t num_steps, char* out) {
  for (int64_t i = 0; i < 2 * num_steps; ++i) {
    StoreWide(out, Widen(codes));
    codes += kStepBytes / 2;
    out += kWideStepBytes / 2;
  }
}

// total (+)= scale * acc, for the rows of a tile.
QUIRE_INLINE void AddGroup(const float* scales, const float* acc,
                           int64_t num_rows, bool is_first, float* total) {
  for (int64_t i = 0; i < 2 * num_rows; ++i) {
    const F32 scale = Load(scales + i % 2 * kLanes);
    const F32 sum = Load(acc + i * kLanes);
    Store(total + i * kLanes,
          is_first ? sum * scale : Fma(sum, scale, Load(total + i * kLanes)));
  }
}

// A single row tile reads weights once, from memory.
constexpr int64_t kPrefetchBytes = 4 << 10;
constexpr int kGroupTiles = 10;

// One panel against row tiles [tile_begin, tile_end), at most kGroupTiles.
//   total: [tiles][kTileFloats]
void ComputePanel(const Fp8Job& job, int64_t panel, int64_t tile_begin,
                  int64_t tile_end, float* total) {
  alignas(64) char wide[kFp8BlockSteps * kWideStepBytes];
  alignas(64) float acc[kGroupTiles * kTileFloats];
  const char* const codes = job.panels + panel * job.panel_bytes;
  const float* scales = job.scales + panel * job.num_groups * kPanelWidth;
  // One tile takes the codes where they are used: widening fills pipes that dot
  // products leave idle (14 rows, AVX-512: 1.03 ms for 16 Mi weights, 1.21 with
  // a block in L1; AVX2, 6 rows: 2.97 and 4.19). With more, a block widened
  // once serves all.
  const bool is_direct = tile_end - tile_begin == 1;
  const TileFunction* const tiles =
      is_direct ? kDirectTiles.entries : kTiles.entries;
  TileArgs args;
  int64_t step = 0;
  for (int64_t group = 0; group < job.num_groups; ++group) {
    int64_t group_end = (group + 1) * job.group_steps;
    if (group_end > job.num_steps) group_end = job.num_steps;
    args.is_first = true;
    // At least one block: no columns at all still give zeros.
    do {
      args.num_steps = group_end - step;
      if (args.num_steps > job.block_steps) args.num_steps = job.block_steps;
      const char* const block = codes + step * kStepBytes;
      args.weights = is_direct ? block : wide;
      args.prefetch =
          block + (is_direct ? kPrefetchBytes : args.num_steps * kStepBytes);
      if (!is_direct) WidenBlock(block, args.num_steps, wide);
      for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
        const TileRange range = MatmulTile(job.num_rows, job.num_tiles, tile);
        args.x = job.packed_x +
                 (step * job.num_rows + args.num_steps * range.first_row) *
                     kXStepBytes;
        args.acc = acc + (tile - tile_begin) * kTileFloats;
        tiles[range.num_rows](args);
      }
      args.is_first = false;
      step += args.num_steps;
    } while (step < group_end);
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t offset = (tile - tile_begin) * kTileFloats;
      AddGroup(scales, acc + offset,
               MatmulTile(job.num_rows, job.num_tiles, tile).num_rows,
               group == 0, total + offset);
    }
    scales += kPanelWidth;
  }
}

void Compute(const Fp8Job& job, int64_t panel_begin, int64_t panel_end,
             int64_t tile_begin, int64_t tile_end) {
  alignas(64) float total[kGroupTiles * kTileFloats];
  const int64_t num_tiles = tile_end - tile_begin;
  const int64_t num_groups = (num_tiles + kGroupTiles - 1) / kGroupTiles;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t first = tile_begin + group * num_tiles / num_groups;
      const int64_t last = tile_begin + (group + 1) * num_tiles / num_groups;
      ComputePanel(job, panel, first, last, total);
      for (int64_t tile = first; tile < last; ++tile) {
        Epilogue(job, panel, MatmulTile(job.num_rows, job.num_tiles, tile),
                 total + (tile - first) * kTileFloats);
      }
    }
  }
}

}  // namespace

const Fp8Kernels kFp8Kernels = {kLanes, kTileRows, kXStepBytes, Compute};

}  // namespace QUIRE_ISA_NAMESPACE
}  // namespace quire
