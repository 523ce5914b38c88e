// Register tiles of the product with quantized weights, compiled once per
// instruction set (see simd.h).
//
// Codes of weights are unsigned and codes of x signed, as VPDPBUSD takes them.
// The products of 32 columns are summed in integers, exactly; an offset of the
// weights' codes is the integers' start, minus offset * (sum of x's codes).
// Then, in f32, for a block:
//   sum = [first sub-block] scale * integer  [- minimum * (sum of x's codes)]
//   acc += sum * (scale of x)
// Integers being exact, everything that rounds is in Finish and FinishFirst.
#include "kernels/cpu/quant_kernels.h"

#include "kernels/cpu/matmul_epilogue.h"
#include "kernels/cpu/quant_round_x.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_int8.h"

namespace quire {
namespace QUIRE_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
// 8 rows x 2 vectors of integers: 16 chains hide the 4 cycles of a dot product
// (Zen 5), and the end of a block overlaps with the next one's start better
// than with 14 rows (68 and 61 % of the peak).
constexpr int kTileRows = 8;
// With 7 the f32 sums fit into registers too, and with 6 some are left, in
// which the end of a block overlaps with the next one (73 and 76 %): better
// where two rows less in each tile do not matter.
constexpr int kManyTileRows = 6;
// So few rows keep their f32 sums in registers; others in L1, which costs a
// load and a store for every 8 dot products.
constexpr int kMaxRegisterRows = 7;
#elif defined(QUIRE_NEON)
constexpr int kTileRows = 8;
constexpr int kManyTileRows = 8;
constexpr int kMaxRegisterRows = 4;
#else
constexpr int kTileRows = 4;
constexpr int kManyTileRows = 4;
constexpr int kMaxRegisterRows = 4;
#endif

constexpr int kPanelWidth = 2 * kLanes;
// Blocks expanded at once: 512 columns, 16 KiB of codes with AVX-512. A
// multiple of the blocks in a super-block of 256 columns.
constexpr int64_t kChunkBlocks = 16;
constexpr int64_t kExpandedBlockBytes = kQuantBlockSteps * 2 * kVectorBytes;
// Weights are prefetched this far ahead where each is used once.
constexpr int64_t kPrefetchBytes = 8 << 10;
// Row tiles whose sums are kept at once.
constexpr int kGroupTiles = 96;

struct TileArgs {
  const QuantPanels* weights;
  const char* panel;  // Its first super-block.
  int64_t block_begin;
  int64_t num_blocks;
  const char* x;  // Of block_begin on.
  float* acc;     // [rows][kPanelWidth]
  bool is_first;  // Start from zero instead of acc.
  // What the codes were expanded to.
  const char* codes;    // [num_blocks] blocks
  const float* scales;  // [num_blocks][subs][kPanelWidth]
  const float* mins;    // The same.
  int offset_shift;
  // Each weight is used once: with each block one at next_weights is
  // prefetched, which moves on.
  bool is_stream;
  const char* next_weights;
  // Otherwise two lines of the next tile's x, if it is known, and
  // `num_weight_lines` of the weights after these.
  const char* next_x;
  int num_weight_lines;
  bool is_near;  // Weights into L1, not only L2.
};

constexpr int Log2(int value) { return value <= 1 ? 0 : 1 + Log2(value / 2); }

// Codes and scales right out of a panel.
template <PanelCode kCode>
struct PanelSource {
  static constexpr QuantLayout kLayout = LayoutOf(kCode);
  static constexpr int kSubs = kLayout.num_subs;
  static constexpr bool kHasMin = kLayout.min != QuantMin::kNone;
  static constexpr bool kIsWide = kLayout.is_wide;
  static constexpr int kFieldBytes = QuantFieldBytes(kLayout) * kPanelWidth;
  static constexpr int kCodeBytes = QuantCodeBytes(kLayout) * kPanelWidth;

  QUIRE_INLINE_METHOD explicit PanelSource(const TileArgs& args)
      : weights(args.weights),
        panel(args.panel),
        block_bytes(weights->super_bytes / weights->blocks_per_super) {}

  // block: from the start of the panel.
  QUIRE_INLINE_METHOD void Seek(int64_t, int64_t block) {
    if constexpr (kLayout.blocks_per_super > 0) {
      constexpr int64_t kBlocks = kLayout.blocks_per_super;
      fields = panel + block / kBlocks * (kFieldBytes + kBlocks * kCodeBytes);
      idx = block % kBlocks;
    } else {
      fields = panel + block / weights->blocks_per_super * weights->super_bytes;
      idx = block % weights->blocks_per_super;
    }
    codes = fields + kFieldBytes + idx * kCodeBytes;
  }

  // What a block and its share of the super-block's fields take. The fields'
  // lines all at once with the first block cost 4 threads a sixth of their
  // bandwidth (q4_k: 74 and not 90 GB/s of 89).
  static constexpr int kStreamBytes =
      kCodeBytes +
      kFieldBytes /
          (kLayout.blocks_per_super > 0 ? kLayout.blocks_per_super : 1);
  // Prefetches them at `next` and returns where the next block's begin.
  QUIRE_INLINE_METHOD const char* Prefetch(const char* next) const {
#pragma GCC unroll 20
    for (int offset = 0; offset < kStreamBytes; offset += 64) {
      __builtin_prefetch(next + offset);
    }
    return next + (kLayout.blocks_per_super > 0 ? kStreamBytes : block_bytes);
  }

  // Step 4 * kHalf + i: four columns of all channels.
  template <int kHalf>
  QUIRE_INLINE_METHOD void Codes(int i, U32& w0, U32& w1) const {
    const char* const low = codes + 2 * i * kVectorBytes;
    if constexpr (kLayout.code_bits == 8) {
      w0 = LoadBytes(low + kHalf * 8 * kVectorBytes);
      w1 = LoadBytes(low + kHalf * 8 * kVectorBytes + kVectorBytes);
      return;
    }
    if constexpr (kLayout.code_bits == 2 || kLayout.code_bits == 3) {
      TwoBits<kHalf, 0>(codes, i, w0, w1);
      if constexpr (kLayout.code_bits == 3) {
        U32 h0, h1;
        OneBit<kHalf, 2>(codes + 4 * kVectorBytes, i, h0, h1);
        w0 |= h0;
        w1 |= h1;
      }
      return;
    }
    w0 = (LoadBytes(low) >> (4 * kHalf)) & 0x0f0f0f0fu;
    w1 = (LoadBytes(low + kVectorBytes) >> (4 * kHalf)) & 0x0f0f0f0fu;
    const char* const high = codes + 8 * kVectorBytes;
    if constexpr (kLayout.code_bits == 5) {
      U32 h0, h1;
      OneBit<kHalf, 4>(high, i, h0, h1);
      w0 |= h0;
      w1 |= h1;
    } else if constexpr (kLayout.code_bits == 6) {
      U32 h0, h1;
      TwoBits<kHalf, 4>(high, i, h0, h1);
      w0 |= h0;
      w1 |= h1;
    }
    if constexpr (kLayout.table != 0) {
      w0 = LookUp(kQuantTables[kLayout.table - 1], w0);
      w1 = LookUp(kQuantTables[kLayout.table - 1], w1);
    }
  }

  // The bits of `mask` at bit `from` of each byte, moved to bit `to` by one
  // shift; what crosses into other bytes is masked away.
  static QUIRE_INLINE_METHOD U32 MoveBits(U32 v, uint32_t mask, int from,
                                          int to) {
    return (from <= to ? v << (to - from) : v >> (from - to)) &
           ((mask * 0x01010101u) << to);
  }
  template <int kHalf, int kTo>
  static QUIRE_INLINE_METHOD void TwoBits(const char* plane, int i, U32& w0,
                                          U32& w1) {
    const char* const p = plane + 2 * kHalf * kVectorBytes;
    w0 = MoveBits(LoadBytes(p), 3, 2 * i, kTo);
    w1 = MoveBits(LoadBytes(p + kVectorBytes), 3, 2 * i, kTo);
  }
  template <int kHalf, int kTo>
  static QUIRE_INLINE_METHOD void OneBit(const char* plane, int i, U32& w0,
                                         U32& w1) {
    w0 = MoveBits(LoadBytes(plane), 1, 4 * kHalf + i, kTo);
    w1 = MoveBits(LoadBytes(plane + kVectorBytes), 1, 4 * kHalf + i, kTo);
  }

  // Field `field` of `vector`.
  QUIRE_INLINE_METHOD const uint16_t* Half(int field, int vector) const {
    return reinterpret_cast<const uint16_t*>(
        fields + (field * kPanelWidth + vector * kLanes) * 2);
  }
  QUIRE_INLINE_METHOD const char* Byte(int64_t field, int vector) const {
    return fields + kLayout.num_halves * kPanelWidth * 2 + field * kPanelWidth +
           vector * kLanes;
  }

  QUIRE_INLINE_METHOD F32 Scale(int sub, int vector) const {
    if constexpr (kLayout.scale == QuantScale::kF32) {
      return Load(reinterpret_cast<const float*>(fields) + vector * kLanes);
    } else if constexpr (kLayout.scale == QuantScale::kBf16) {
      return LoadBf16(Half(0, vector));
    } else if constexpr (kLayout.scale == QuantScale::kF16) {
      return LoadF16(Half(0, vector));
    } else {
      const char* const byte = Byte(idx * kSubs + sub, vector);
      I32 factor;
      if constexpr (kLayout.scale == QuantScale::kSignedSub) {
        factor = LoadI8(byte);
      } else {
        factor = LoadU8(byte);
        if (kLayout.scale == QuantScale::kNibbleSub) factor &= 15;
      }
      return LoadF16(Half(0, vector)) * ToFloat(factor);
    }
  }

  QUIRE_INLINE_METHOD F32 Min(int sub, int vector) const {
    if constexpr (kLayout.min == QuantMin::kF16) {
      return -LoadF16(Half(1, vector));
    } else if constexpr (kLayout.min == QuantMin::kSub) {
      return LoadF16(Half(1, vector)) *
             ToFloat(LoadU8(Byte(8 * kSubs + idx * kSubs + sub, vector)));
    } else if constexpr (kLayout.min == QuantMin::kNibbleSub) {
      return LoadF16(Half(1, vector)) *
             ToFloat(LoadU8(Byte(idx * kSubs + sub, vector)) >> 4);
    } else if constexpr (kLayout.min == QuantMin::kZeroPoint) {
      return Scale(sub, vector) * LoadF16(Half(kLayout.num_halves - 1, vector));
    } else {
      return F32{};
    }
  }

  QUIRE_INLINE_METHOD int OffsetShift() const { return Log2(kLayout.offset); }

  const QuantPanels* weights;
  const char* panel;
  int64_t block_bytes;
  const char* fields = nullptr;  // Of the super-block.
  const char* codes = nullptr;   // Of the block.
  int64_t idx = 0;               // Of the block in the super-block.
};

// Codes of a byte each and scales in f32, as Expand leaves them.
template <int kNumSubs, bool kMinimum, bool kWide>
struct ExpandedSource {
  static constexpr int kSubs = kNumSubs;
  static constexpr bool kHasMin = kMinimum;
  static constexpr bool kIsWide = kWide;

  QUIRE_INLINE_METHOD explicit ExpandedSource(const TileArgs& args)
      : args(args) {}

  QUIRE_INLINE_METHOD void Seek(int64_t i, int64_t) {
    codes = args.codes + i * kExpandedBlockBytes;
    scales = args.scales + i * kSubs * kPanelWidth;
    mins = args.mins + i * kSubs * kPanelWidth;
  }
  QUIRE_INLINE_METHOD const char* Prefetch(const char* next) const {
    return next;
  }
  template <int kHalf>
  QUIRE_INLINE_METHOD void Codes(int i, U32& w0, U32& w1) {
    const char* const p = codes + (kHalf * 8 + 2 * i) * kVectorBytes;
    w0 = LoadBytes(p);
    w1 = LoadBytes(p + kVectorBytes);
  }
  QUIRE_INLINE_METHOD F32 Scale(int sub, int vector) const {
    return Load(scales + sub * kPanelWidth + vector * kLanes);
  }
  QUIRE_INLINE_METHOD F32 Min(int sub, int vector) const {
    return Load(mins + sub * kPanelWidth + vector * kLanes);
  }
  QUIRE_INLINE_METHOD int OffsetShift() const { return args.offset_shift; }

  const TileArgs& args;
  const char* codes = nullptr;
  const float* scales = nullptr;
  const float* mins = nullptr;
};

// Integer sums of 16 columns, on top of acc.
template <class Source, int kHalf, int kRows>
QUIRE_INLINE void Accumulate(Source& source, const int32_t* x,
                             I32 (&acc)[kRows][2]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    U32 w0, w1;
    source.template Codes<kHalf>(i, w0, w1);
    const int32_t* const step = x + (4 * kHalf + i) * kRows;
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const U32 xv = (U32)SetInt1(step[row]);
      acc[row][0] = DotBytes<Source::kIsWide>(acc[row][0], w0, xv);
      acc[row][1] = DotBytes<Source::kIsWide>(acc[row][1], w1, xv);
    }
  }
}

// sum: of the first sub-block, in f32.
template <class Source>
QUIRE_INLINE F32 FinishFirst(I32 acc, F32 scale, F32 min, F32 minus_x) {
  if constexpr (Source::kHasMin) {
    return Fma(ToFloat(acc), scale, minus_x * min);
  } else {
    return ToFloat(acc) * scale;
  }
}
template <class Source>
QUIRE_INLINE F32 FinishNext(F32 sum, I32 acc, F32 scale, F32 min, F32 minus_x) {
  if constexpr (Source::kHasMin) sum = Fma(minus_x, min, sum);
  return Fma(ToFloat(acc), scale, sum);
}

// The f32 sums of a tile: in registers where they fit, else in args.acc.
template <int kRows>
struct TileSums {
  static constexpr bool kInRegisters = kRows <= kMaxRegisterRows;

  QUIRE_INLINE_METHOD explicit TileSums(const TileArgs& args) : args(args) {
#pragma GCC unroll 16
    for (int i = 0; i < 2 * kRows; ++i) {
      if constexpr (kInRegisters) {
        kept[i] = F32{};
        if (!args.is_first) kept[i] = Load(args.acc + i * kLanes);
      } else if (args.is_first) {
        Store(args.acc + i * kLanes, F32{});
      }
    }
  }

  // += the sums of a row * scale
  QUIRE_INLINE_METHOD void Add(int row, F32 sum0, F32 sum1, F32 scale) {
    if constexpr (kInRegisters) {
      kept[2 * row] = Fma(sum0, scale, kept[2 * row]);
      kept[2 * row + 1] = Fma(sum1, scale, kept[2 * row + 1]);
    } else {
      float* const p = args.acc + row * kPanelWidth;
      Store(p, Fma(sum0, scale, Load(p)));
      Store(p + kLanes, Fma(sum1, scale, Load(p + kLanes)));
    }
  }

  QUIRE_INLINE_METHOD void Write() const {
    if constexpr (!kInRegisters) return;
#pragma GCC unroll 16
    for (int i = 0; i < 2 * kRows; ++i) Store(args.acc + i * kLanes, kept[i]);
  }

  // Not a copy of its pointer, through which compilers would take the sums into
  // registers and spill them.
  const TileArgs& args;
  F32 kept[2 * (kInRegisters ? kRows : 1)];
};

// The integers' start. minus_x: minus the sum of x's codes.
template <class Source>
QUIRE_INLINE void StartIntegers(int32_t minus_x, I32 shift, I32 (&acc)[2]) {
  acc[0] = acc[1] = I32{};
  if constexpr (!Source::kHasMin) {
    acc[0] = acc[1] = ShiftLeft(SetInt1(minus_x), shift);
  }
}

// Scale and minimum of a sub-block of both vectors.
template <class Source>
struct SubBlock {
  QUIRE_INLINE_METHOD SubBlock(const Source& source, int sub) {
    scale[0] = source.Scale(sub, 0);
    scale[1] = source.Scale(sub, 1);
    if constexpr (Source::kHasMin) {
      min[0] = source.Min(sub, 0);
      min[1] = source.Min(sub, 1);
    }
  }

  F32 scale[2];
  F32 min[2] = {};
};

// The end of the first half of a block with two sub-blocks: its sums, scaled,
// to `first`. A row at once, so that its second half can begin.
//   minus_x: of the first half; minus_next: of the second
template <class Source, int kRows>
QUIRE_INLINE void FinishFirstHalf(const Source& source, const int32_t* minus_x,
                                  const int32_t* minus_next, I32 shift,
                                  I32 (&acc)[kRows][2], float* first) {
  const SubBlock<Source> sub(source, 0);
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    const F32 minus = ToFloat(SetInt1(minus_x[row]));
    float* const sums = first + row * kPanelWidth;
    Store(sums,
          FinishFirst<Source>(acc[row][0], sub.scale[0], sub.min[0], minus));
    Store(sums + kLanes,
          FinishFirst<Source>(acc[row][1], sub.scale[1], sub.min[1], minus));
    StartIntegers<Source>(minus_next[row], shift, acc[row]);
  }
}

// The end of a block: its sums times the scales of x, on top of `sums`.
//   first: of FinishFirstHalf; unused with one sub-block
template <class Source, int kRows>
QUIRE_INLINE void FinishBlock(const Source& source, const int32_t* minus_x,
                              const float* x_scale, const float* first,
                              const I32 (&acc)[kRows][2],
                              TileSums<kRows>& sums) {
  const SubBlock<Source> sub(source, Source::kSubs - 1);
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    const F32 minus = ToFloat(SetInt1(minus_x[row]));
    F32 sum0, sum1;
    if constexpr (Source::kSubs == 2) {
      sum0 = FinishNext<Source>(Load(first + row * kPanelWidth), acc[row][0],
                                sub.scale[0], sub.min[0], minus);
      sum1 = FinishNext<Source>(Load(first + row * kPanelWidth + kLanes),
                                acc[row][1], sub.scale[1], sub.min[1], minus);
    } else {
      sum0 = FinishFirst<Source>(acc[row][0], sub.scale[0], sub.min[0], minus);
      sum1 = FinishFirst<Source>(acc[row][1], sub.scale[1], sub.min[1], minus);
    }
    sums.Add(row, sum0, sum1, Set1(x_scale[row]));
  }
}

template <class Source, int kRows>
void Tile(const TileArgs& args) {
  constexpr int kSubs = Source::kSubs;
  // Minus the sums of x's codes: of a block, or of its first and last half.
  constexpr int kMinusFirst = (kQuantBlockSteps + (kSubs == 2 ? 2 : 1)) * kRows;
  constexpr int kMinusLast = (kQuantBlockSteps + (kSubs == 2 ? 3 : 1)) * kRows;
  Source source(args);
  const I32 shift = SetInt1(source.OffsetShift());
  const int32_t* x = reinterpret_cast<const int32_t*>(args.x);
  const char* next_x = args.next_x;
  const char* next_weights = args.next_weights;
  TileSums<kRows> sums(args);
  alignas(64) float first[kSubs == 2 ? kRows * kPanelWidth : 1];
  for (int64_t i = 0; i < args.num_blocks; ++i) {
    source.Seek(i, args.block_begin + i);
    if (args.is_stream) {
      next_weights = source.Prefetch(next_weights);
    } else {
      __builtin_prefetch(next_x);
      __builtin_prefetch(next_x + 64);
      next_x += 128;
      for (int line = 0; line < args.num_weight_lines; ++line) {
        if (args.is_near) {
          __builtin_prefetch(next_weights);
        } else {
          __builtin_prefetch(next_weights, 0, 2);
        }
        next_weights += 64;
      }
    }
    I32 acc[kRows][2];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      StartIntegers<Source>(x[kMinusFirst + row], shift, acc[row]);
    }
    Accumulate<Source, 0, kRows>(source, x, acc);
    if constexpr (kSubs == 2) {
      FinishFirstHalf<Source, kRows>(source, x + kMinusFirst, x + kMinusLast,
                                     shift, acc, first);
    }
    Accumulate<Source, 1, kRows>(source, x, acc);
    FinishBlock<Source, kRows>(
        source, x + kMinusLast,
        reinterpret_cast<const float*>(x + kQuantBlockSteps * kRows), first,
        acc, sums);
    x += kQuantBlockXDwords * kRows;
  }
  sums.Write();
}

// Writes args.num_blocks blocks to codes, scales and mins.
template <PanelCode kCode>
void Expand(const TileArgs& args, char* codes, float* scales, float* mins) {
  using Source = PanelSource<kCode>;
  Source source(args);
  for (int64_t i = 0; i < args.num_blocks; ++i) {
    source.Seek(i, args.block_begin + i);
    for (int step = 0; step < 4; ++step) {
      U32 w0, w1;
      char* const out = codes + 2 * step * kVectorBytes;
      source.template Codes<0>(step, w0, w1);
      StoreBytes(out, w0);
      StoreBytes(out + kVectorBytes, w1);
      source.template Codes<1>(step, w0, w1);
      StoreBytes(out + 8 * kVectorBytes, w0);
      StoreBytes(out + 9 * kVectorBytes, w1);
    }
    codes += kExpandedBlockBytes;
    for (int sub = 0; sub < Source::kSubs; ++sub) {
      for (int vector = 0; vector < 2; ++vector) {
        Store(scales, source.Scale(sub, vector));
        scales += kLanes;
        if (!Source::kHasMin) continue;
        Store(mins, source.Min(sub, vector));
        mins += kLanes;
      }
    }
  }
}

using TileFunction = void (*)(const TileArgs& args);
using ExpandFunction = void (*)(const TileArgs& args, char* codes,
                                float* scales, float* mins);

struct TileTable {
  TileFunction entries[kTileRows + 1];
};
template <class Source, int... kRows>
constexpr TileTable MakeTileTable() {
  return {{nullptr, Tile<Source, kRows>...}};
}
template <class Source>
constexpr TileTable MakeAllRows() {
#if defined(__AVX512F__) || defined(QUIRE_NEON)
  return MakeTileTable<Source, 1, 2, 3, 4, 5, 6, 7, 8>();
#else
  return MakeTileTable<Source, 1, 2, 3, 4>();
#endif
}

constexpr TileTable kExpandedTables[] = {
    MakeAllRows<ExpandedSource<1, false, false>>(),
    MakeAllRows<ExpandedSource<1, false, true>>(),
    MakeAllRows<ExpandedSource<1, true, false>>(),
    MakeAllRows<ExpandedSource<2, false, false>>(),
    MakeAllRows<ExpandedSource<2, true, false>>(),
};
QUIRE_INLINE const TileTable& ExpandedTable(const QuantLayout& layout) {
  const bool has_min = layout.min != QuantMin::kNone;
  if (layout.num_subs == 2) return kExpandedTables[has_min ? 4 : 3];
  return kExpandedTables[has_min ? 2 : (layout.is_wide ? 1 : 0)];
}

// Tiles that take codes out of the planes in registers, where one row tile is
// all: with the others a batch of few rows costs a round trip of the codes
// through L1. The formats of most files have them for every number of rows.
template <PanelCode kCode>
constexpr TileTable MakeDirectTable() {
  if constexpr (kCode == PanelCode::kQ8_0 || kCode == PanelCode::kQ4_0 ||
                kCode == PanelCode::kQ4_K || kCode == PanelCode::kQ6_K) {
    return MakeAllRows<PanelSource<kCode>>();
  } else {
    return MakeTileTable<PanelSource<kCode>, 1, 2, 3, 4>();
  }
}
constexpr TileTable kDirectTables[kNumPanelCodes] = {
    MakeDirectTable<PanelCode::kQ8_0>(),
    MakeDirectTable<PanelCode::kQ4_0>(),
    MakeDirectTable<PanelCode::kQ4_1>(),
    MakeDirectTable<PanelCode::kQ5_0>(),
    MakeDirectTable<PanelCode::kQ5_1>(),
    MakeDirectTable<PanelCode::kIQ4_NL>(),
    MakeDirectTable<PanelCode::kMXFP4>(),
    MakeDirectTable<PanelCode::kQ2_K>(),
    MakeDirectTable<PanelCode::kQ3_K>(),
    MakeDirectTable<PanelCode::kQ4_K>(),
    MakeDirectTable<PanelCode::kQ5_K>(),
    MakeDirectTable<PanelCode::kQ6_K>(),
    MakeDirectTable<PanelCode::kIQ4_XS>(),
    MakeDirectTable<PanelCode::kInt4F16>(),
    MakeDirectTable<PanelCode::kInt4Bf16>(),
    MakeDirectTable<PanelCode::kInt4F32>(),
};

constexpr ExpandFunction kExpand[kNumPanelCodes] = {
    Expand<PanelCode::kQ8_0>,     Expand<PanelCode::kQ4_0>,
    Expand<PanelCode::kQ4_1>,     Expand<PanelCode::kQ5_0>,
    Expand<PanelCode::kQ5_1>,     Expand<PanelCode::kIQ4_NL>,
    Expand<PanelCode::kMXFP4>,    Expand<PanelCode::kQ2_K>,
    Expand<PanelCode::kQ3_K>,     Expand<PanelCode::kQ4_K>,
    Expand<PanelCode::kQ5_K>,     Expand<PanelCode::kQ6_K>,
    Expand<PanelCode::kIQ4_XS>,   Expand<PanelCode::kInt4F16>,
    Expand<PanelCode::kInt4Bf16>, Expand<PanelCode::kInt4F32>,
};

// ---------------------------------------------------------------- x

// Blocks [begin, begin + num_blocks) of a chunk of k.
struct ChunkRange {
  int64_t begin;
  int64_t num_blocks;
};
QUIRE_INLINE ChunkRange Chunk(const QuantJob& job, int64_t begin) {
  const int64_t rest = job.num_blocks - begin;
  return {begin, rest < kChunkBlocks ? rest : kChunkBlocks};
}

// A chunk of a row tile in packed x.
QUIRE_INLINE char* PackedX(const QuantJob& job, ChunkRange chunk,
                           TileRange range) {
  return job.packed_x +
         (chunk.begin * job.num_rows + range.first_row * chunk.num_blocks) *
             kQuantBlockXDwords * 4;
}

static_assert(kChunkBlocks % kLanes == 0);

void PackX(const QuantJob& job, int64_t tile) {
  const TileRange range = MatmulTile(job.num_rows, job.num_tiles, tile);
  for (int64_t begin = 0; begin < job.num_blocks; begin += kChunkBlocks) {
    const ChunkRange chunk = Chunk(job, begin);
    int32_t* const out = reinterpret_cast<int32_t*>(PackedX(job, chunk, range));
    for (int64_t row = 0; row < range.num_rows; ++row) {
      const float* const x = job.x + (range.first_row + row) * job.x_stride;
      // What comes next: the pieces of a row are too short for the hardware.
      const float* const next =
          row + 1 < range.num_rows
              ? x + job.x_stride + begin * kQuantBlockCols
              : job.x + range.first_row * job.x_stride +
                    (begin + chunk.num_blocks) * kQuantBlockCols;
      for (int64_t i = 0; i < chunk.num_blocks * kQuantBlockCols; i += 16) {
        __builtin_prefetch(next + i);
      }
      for (int64_t i = 0; i < chunk.num_blocks; i += kLanes) {
        const int64_t col = (begin + i) * kQuantBlockCols;
        const int64_t rest = chunk.num_blocks - i;
        const int num_blocks = static_cast<int>(rest < kLanes ? rest : kLanes);
        int32_t* const blocks_out =
            out + i * kQuantBlockXDwords * range.num_rows + row;
        if (job.column_order == nullptr && num_blocks == kLanes) {
          PackBlocks(x + col, num_blocks, range.num_rows, blocks_out);
          continue;
        }
        float gathered[kLanes * kQuantBlockCols] = {};
        for (int j = 0; j < num_blocks * kQuantBlockCols; ++j) {
          gathered[j] =
              x[job.column_order == nullptr ? col + j
                                            : job.column_order[col + j]];
        }
        PackBlocks(gathered, num_blocks, range.num_rows, blocks_out);
      }
    }
  }
}

// ---------------------------------------------------------------- compute

// Of one thread.
struct Scratch {
  char* codes;    // [kMaxPassPanels][kChunkBlocks] blocks
  float* scales;  // [kMaxPassPanels][kChunkBlocks][2][kPanelWidth]
  float* mins;
  float* acc;  // [kGroupTiles][kMaxPassPanels][kTileRows][kPanelWidth]
};
constexpr int64_t kScratchCodes = kChunkBlocks * kExpandedBlockBytes;
constexpr int64_t kScratchScales = kChunkBlocks * 2 * kPanelWidth;
constexpr int64_t kTileFloats = kTileRows * kPanelWidth;
constexpr int64_t kScratchBytes =
    kMaxPassPanels * (kScratchCodes + 2 * kScratchScales * 4) +
    kGroupTiles * kMaxPassPanels * kTileFloats * 4;

QUIRE_INLINE Scratch CutScratch(char* p) {
  Scratch scratch;
  scratch.codes = p;
  p += kMaxPassPanels * kScratchCodes;
  scratch.scales = reinterpret_cast<float*>(p);
  p += kMaxPassPanels * kScratchScales * 4;
  scratch.mins = reinterpret_cast<float*>(p);
  p += kMaxPassPanels * kScratchScales * 4;
  scratch.acc = reinterpret_cast<float*>(p);
  return scratch;
}

// Whether row tiles take the codes out of the panels themselves.
QUIRE_INLINE bool IsDirect(const QuantJob& job, const QuantLayout& layout) {
  // Scales of sub-blocks and minima cost a tile more than the codes: with many
  // tiles they are worth expanding.
  const bool has_plain_scales =
      layout.num_subs == 1 && layout.min == QuantMin::kNone;
  return kDirectTables[static_cast<int>(job.weights.code)].entries[kTileRows] !=
             nullptr &&
         (job.num_tiles < kManyTiles || has_plain_scales);
}

// Panels [panel, panel + num_panels) against row tiles [tile_begin, tile_end):
// chunks of k outside, so that weights come from memory once, prefetched by the
// tiles of the chunk before. Formats with tiles for any number of rows are read
// in place by each of them: taking codes out of the planes runs beside the dot
// products. Others are expanded, once for all tiles.
void ComputeGroup(const QuantJob& job, int64_t panel, int num_panels,
                  int64_t tile_begin, int64_t tile_end,
                  const Scratch& scratch) {
  const QuantPanels& weights = job.weights;
  const int code = static_cast<int>(weights.code);
  const QuantLayout& layout = LayoutOf(weights.code);
  const bool is_direct = IsDirect(job, layout);
  const TileTable& table =
      is_direct ? kDirectTables[code] : ExpandedTable(layout);
  const int64_t block_bytes = weights.super_bytes / weights.blocks_per_super;
  TileArgs args = {};
  args.weights = &weights;
  args.offset_shift = Log2(layout.offset);
  args.is_near = job.num_tiles < kManyTiles;
  for (int64_t begin = 0; begin < job.num_blocks; begin += kChunkBlocks) {
    const ChunkRange chunk = Chunk(job, begin);
    args.block_begin = begin;
    args.num_blocks = chunk.num_blocks;
    args.is_first = begin == 0;
    const bool is_last = begin + chunk.num_blocks == job.num_blocks;
    for (int i = 0; i < num_panels && !is_direct; ++i) {
      args.panel = weights.panels + (panel + i) * weights.panel_bytes;
      kExpand[code](args, scratch.codes + i * kScratchCodes,
                    scratch.scales + i * kScratchScales,
                    scratch.mins + i * kScratchScales);
    }
    args.num_weight_lines =
        static_cast<int>(block_bytes / 64 / (tile_end - tile_begin) + 1);
    float* acc = scratch.acc;
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const TileRange range = MatmulTile(job.num_rows, job.num_tiles, tile);
      const int64_t x_bytes =
          range.num_rows * chunk.num_blocks * kQuantBlockXDwords * 4;
      args.x = PackedX(job, chunk, range);
      if (is_last) PrefetchOutputs(job, panel, num_panels, range);
      for (int i = 0; i < num_panels; ++i) {
        args.panel = weights.panels + (panel + i) * weights.panel_bytes;
        args.codes = scratch.codes + i * kScratchCodes;
        args.scales = scratch.scales + i * kScratchScales;
        args.mins = scratch.mins + i * kScratchScales;
        // The next tile's x, or the same chunk's of the next group.
        args.next_x = args.x + x_bytes + i * (x_bytes / num_panels);
        // The next chunk, or the first one of the panels after these, which
        // are mostly this thread's, too.
        args.next_weights =
            args.panel +
            (is_last ? num_panels * weights.panel_bytes
                     : (begin + chunk.num_blocks) * block_bytes) +
            (tile - tile_begin) * chunk.num_blocks * args.num_weight_lines * 64;
        args.acc = acc;
        table.entries[range.num_rows](args);
        if (is_last) Epilogue(job, panel + i, range, acc);
        acc += kTileFloats;
      }
    }
  }
}

// All rows in one tile, codes right from the panels.
void ComputeDirect(const QuantJob& job, TileFunction tile, int64_t panel_begin,
                   int64_t panel_end) {
  alignas(64) float acc[kTileRows * kPanelWidth];
  const TileRange range = {0, job.num_rows};
  TileArgs args = {};
  args.weights = &job.weights;
  args.num_blocks = job.num_blocks;
  args.x = job.packed_x;
  args.acc = acc;
  args.is_first = true;
  args.is_stream = true;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    args.panel = job.weights.panels + panel * job.weights.panel_bytes;
    args.next_weights = args.panel + kPrefetchBytes;
    tile(args);
    Epilogue(job, panel, range, acc);
  }
}

void Compute(const QuantJob& job, int64_t panel_begin, int64_t panel_end,
             int64_t tile_begin, int64_t tile_end, char* scratch_memory) {
  if (job.num_tiles == 1) {
    const TileFunction tile =
        kDirectTables[static_cast<int>(job.weights.code)].entries[job.num_rows];
    if (tile != nullptr)
      return ComputeDirect(job, tile, panel_begin, panel_end);
  }
  const Scratch scratch = CutScratch(scratch_memory);
  const int64_t num_tiles = tile_end - tile_begin;
  const int64_t num_groups = (num_tiles + kGroupTiles - 1) / kGroupTiles;
  const int64_t pass_panels = num_tiles >= kManyTiles ? kMaxPassPanels : 1;
  for (int64_t panel = panel_begin; panel < panel_end; panel += pass_panels) {
    const int num_panels = static_cast<int>(
        panel_end - panel < pass_panels ? panel_end - panel : pass_panels);
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t first = tile_begin + group * num_tiles / num_groups;
      const int64_t last = tile_begin + (group + 1) * num_tiles / num_groups;
      ComputeGroup(job, panel, num_panels, first, last, scratch);
    }
  }
}

}  // namespace

const QuantKernels kQuantKernels = {
    kLanes, kTileRows, kManyTileRows, kScratchBytes, PackX, Compute,
};

}  // namespace QUIRE_ISA_NAMESPACE
}  // namespace quire
