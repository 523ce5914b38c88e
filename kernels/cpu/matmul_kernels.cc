// Register tiles of the packed matrix product, compiled once per instruction
// set (see simd.h).
#include "kernels/cpu/matmul_kernels.h"

#include "kernels/cpu/matmul_epilogue.h"
#include "kernels/cpu/simd.h"

namespace quire {
namespace QUIRE_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
// 14 rows x 2 vectors of accumulators, 2 of weights and 1 broadcast: 31 of 32
// registers.
constexpr int kTileRows = 14;
#elif defined(QUIRE_NEON)
constexpr int kTileRows = 12;  // 24 + 2 + 3 of 32 registers.
#else
constexpr int kTileRows = 6;  // 12 + 2 + 1 of 16 registers.
#endif

constexpr int kPanelWidth = 2 * kLanes;
// Squares of kLanes rows that hold a row tile.
constexpr int kTransposed = (kTileRows + kLanes - 1) / kLanes;

// What a tile function works on: `num_steps` steps of one panel for kRows rows.
struct TileArgs {
  const char* panel;
  const char* x;  // [num_steps][kRows] elements or pairs.
  int64_t num_steps;
  float* acc;     // [kRows][kPanelWidth]
  bool is_first;  // Start from zero instead of acc.
  // Of the weights that come next: kLines cache lines per step from here on,
  // or, with kLines == 1, one every prefetch_stride bytes.
  const char* prefetch;
  int64_t prefetch_stride;
};

// Accumulators live in registers during a call and in L1 between calls: storing
// them is exact, so blocking over k does not change a result.
template <int kRows>
QUIRE_INLINE void LoadTile(const TileArgs& args, F32 (&acc)[kRows][2]) {
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    acc[row][0] = acc[row][1] = F32{};
  }
  if (args.is_first) return;
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    acc[row][0] = Load(args.acc + row * kPanelWidth);
    acc[row][1] = Load(args.acc + row * kPanelWidth + kLanes);
  }
}

template <int kRows>
QUIRE_INLINE void StoreTile(const TileArgs& args, const F32 (&acc)[kRows][2]) {
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    Store(args.acc + row * kPanelWidth, acc[row][0]);
    Store(args.acc + row * kPanelWidth + kLanes, acc[row][1]);
  }
}

template <int kLines>
QUIRE_INLINE void Prefetch(const char*& p, int64_t stride) {
  if constexpr (kLines >= 1) __builtin_prefetch(p);
  if constexpr (kLines >= 2) __builtin_prefetch(p + 64);
  p += kLines == 1 ? stride : kLines * 64;
}

// One k per step; x in f32.
template <PanelFormat kFormat, int kRows, int kLines>
void FloatTile(const TileArgs& args) {
  F32 acc[kRows][2];
  LoadTile(args, acc);
  const char* panel = args.panel;
  const char* prefetch = args.prefetch;
  const int64_t stride = args.prefetch_stride;
  const float* x = reinterpret_cast<const float*>(args.x);
  for (int64_t step = args.num_steps; step > 0; --step) {
    F32 w0, w1;
    if constexpr (kFormat == PanelFormat::kF32) {
      const float* w = reinterpret_cast<const float*>(panel);
      w0 = Load(w);
      w1 = Load(w + kLanes);
      panel += kPanelWidth * 4;
    } else {
      const uint16_t* w = reinterpret_cast<const uint16_t*>(panel);
      w0 = LoadF16(w);
      w1 = LoadF16(w + kLanes);
      panel += kPanelWidth * 2;
    }
    Prefetch<kLines>(prefetch, stride);
    FmaRows(w0, w1, x, acc);
    x += kRows;
  }
  StoreTile(args, acc);
}

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define QUIRE_NATIVE_BF16 1  // Dot products of pairs.
#endif

#if defined(__AVX512BF16__)
// Two k per step; x in pairs of bf16.
template <int kRows, int kLines>
void Bf16Tile(const TileArgs& args) {
  F32 acc[kRows][2];
  LoadTile(args, acc);
  const char* panel = args.panel;
  const char* prefetch = args.prefetch;
  const int64_t stride = args.prefetch_stride;
  const int32_t* x = reinterpret_cast<const int32_t*>(args.x);
  for (int64_t step = args.num_steps; step > 0; --step) {
    const __m512bh w0 = (__m512bh)_mm512_loadu_si512(panel);
    const __m512bh w1 = (__m512bh)_mm512_loadu_si512(panel + 64);
    panel += 128;
    Prefetch<kLines>(prefetch, stride);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const __m512bh xv = (__m512bh)_mm512_set1_epi32(x[row]);
      acc[row][0] = _mm512_dpbf16_ps(acc[row][0], w0, xv);
      acc[row][1] = _mm512_dpbf16_ps(acc[row][1], w1, xv);
    }
    x += kRows;
  }
  StoreTile(args, acc);
}
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
// Two k per step; x in pairs of bf16, four rows to a vector. BFDOT rounds to
// odd and takes subnormals for zero (Arm ARM, FPDot without FEAT_EBF16).
template <int kRows, int kLines>
void Bf16Tile(const TileArgs& args) {
  F32 acc[kRows][2];
  LoadTile(args, acc);
  const char* panel = args.panel;
  const char* prefetch = args.prefetch;
  const int64_t stride = args.prefetch_stride;
  const int32_t* x = reinterpret_cast<const int32_t*>(args.x);
  for (int64_t step = args.num_steps; step > 0; --step) {
    const bfloat16x8_t w0 = (bfloat16x8_t)vld1q_u8((const uint8_t*)panel);
    const bfloat16x8_t w1 = (bfloat16x8_t)vld1q_u8((const uint8_t*)panel + 16);
    panel += 32;
    Prefetch<kLines>(prefetch, stride);
    int row = 0;
#define QUIRE_DOT(lane)                                                     \
  acc[row + lane][0] = vbfdotq_laneq_f32(acc[row + lane][0], w0, xv, lane); \
  acc[row + lane][1] = vbfdotq_laneq_f32(acc[row + lane][1], w1, xv, lane)
#pragma GCC unroll 16
    for (; row + 4 <= kRows; row += 4) {
      const bfloat16x8_t xv = (bfloat16x8_t)vld1q_s32(x + row);
      QUIRE_DOT(0);
      QUIRE_DOT(1);
      QUIRE_DOT(2);
      QUIRE_DOT(3);
    }
#pragma GCC unroll 16
    for (; row < kRows; ++row) {
      const bfloat16x8_t xv = (bfloat16x8_t)vdupq_n_s32(x[row]);
      QUIRE_DOT(0);
    }
#undef QUIRE_DOT
    x += kRows;
  }
  StoreTile(args, acc);
}
#else
// Two k per step; x: for each step kRows even and then kRows odd elements, f32
// holding values already rounded to bf16.
template <int kRows, int kLines>
void Bf16Tile(const TileArgs& args) {
  F32 acc[kRows][2];
  LoadTile(args, acc);
  const char* panel = args.panel;
  const char* prefetch = args.prefetch;
  const int64_t stride = args.prefetch_stride;
  const float* x = reinterpret_cast<const float*>(args.x);
  for (int64_t step = args.num_steps; step > 0; --step) {
    const uint16_t* w = reinterpret_cast<const uint16_t*>(panel);
    F32 w0 = EvenBf16(LoadPairs(w));
    F32 w1 = EvenBf16(LoadPairs(w + 2 * kLanes));
    Prefetch<kLines>(prefetch, stride);
    FmaRows(w0, w1, x, acc);
    // Loaded again: one register less to keep.
    w0 = OddBf16(LoadPairs(w));
    w1 = OddBf16(LoadPairs(w + 2 * kLanes));
    panel += kPanelWidth * 4;
    FmaRows(w0, w1, x + kRows, acc);
    x += 2 * kRows;
  }
  StoreTile(args, acc);
}
#endif

using TileFunction = void (*)(const TileArgs& args);

// Entry [l][r] handles r rows and prefetches l lines per step.
struct TileTable {
  TileFunction entries[3][kTileRows + 1];
};
template <PanelFormat kFormat, int kRows, int kLines>
constexpr TileFunction SelectTile() {
  if constexpr (kFormat == PanelFormat::kBf16Pairs) {
    return Bf16Tile<kRows, kLines>;
  } else {
    return FloatTile<kFormat, kRows, kLines>;
  }
}
template <PanelFormat kFormat, int... kRows>
constexpr TileTable MakeTileTable() {
  return {{{nullptr, SelectTile<kFormat, kRows, 0>()...},
           {nullptr, SelectTile<kFormat, kRows, 1>()...},
           {nullptr, SelectTile<kFormat, kRows, 2>()...}}};
}
template <PanelFormat kFormat>
constexpr TileTable MakeFormatTable() {
#if defined(__AVX512F__)
  return MakeTileTable<kFormat, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
                       14>();
#elif defined(QUIRE_NEON)
  return MakeTileTable<kFormat, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>();
#else
  return MakeTileTable<kFormat, 1, 2, 3, 4, 5, 6>();
#endif
}
constexpr TileTable kTileTables[kNumPanelFormats] = {
    MakeFormatTable<PanelFormat::kF32>(),
    MakeFormatTable<PanelFormat::kF16>(),
    MakeFormatTable<PanelFormat::kBf16Pairs>(),
};
#if defined(QUIRE_NATIVE_BF16)
constexpr int kBf16XStepBytes = 4;  // A pair of bf16.
#else
constexpr int kBf16XStepBytes = 8;  // A pair of f32.
#endif
constexpr int kXStepBytes[kNumPanelFormats] = {4, 4, kBf16XStepBytes};
constexpr int kPanelStepBytes[kNumPanelFormats] = {
    kPanelWidth * 4, kPanelWidth * 2, kPanelWidth * 4};

// Blocks of steps that row tiles take in turn; none spans two segments.
struct StepBlock {
  int segment;
  int64_t begin;
  int64_t end;
  bool begins_segment;
  bool ends_segment;
};

// At least one block of each segment: no columns at all still give zeros.
QUIRE_INLINE int64_t BlocksPerSegment(const MatmulJob& job) {
  const int64_t steps = job.num_steps / job.num_segments;
  return steps <= job.block_steps
             ? 1
             : (steps + job.block_steps - 1) / job.block_steps;
}

QUIRE_INLINE StepBlock BlockOf(const MatmulJob& job, int64_t blocks_per_segment,
                               int64_t block) {
  const int64_t steps = job.num_steps / job.num_segments;
  StepBlock result;
  result.segment = static_cast<int>(block / blocks_per_segment);
  const int64_t part = block % blocks_per_segment;
  const int64_t segment_end = (result.segment + 1) * steps;
  result.begin = result.segment * steps + part * job.block_steps;
  result.end = result.begin + job.block_steps;
  if (result.end > segment_end) result.end = segment_end;
  result.begins_segment = part == 0;
  result.ends_segment = part + 1 == blocks_per_segment;
  return result;
}

// Where the rows of a tile begin within the block of packed x.
QUIRE_INLINE char* PackedX(const MatmulJob& job, TileRange range,
                           const StepBlock& block) {
  const int64_t x_step_bytes = kXStepBytes[static_cast<int>(job.format)];
  return job.packed_x + (block.begin * job.num_rows +
                         (block.end - block.begin) * range.first_row) *
                            x_step_bytes;
}

QUIRE_INLINE U32 RoundToBf16(F32 v) {
  const U32 bits = (U32)v;
  const U32 rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const I32 is_nan = (I32)((bits & 0x7fffffff) > 0x7f800000);
  return is_nan ? bits | 0x400000 : rounded;  // In the upper half.
}

// `count` (at most two vectors' worth for native bf16, else one) elements of x
// as kLanes elements or pairs in the format that the tiles read.
QUIRE_INLINE U32 LoadX(PanelFormat format, const float* x, int64_t count) {
  const F32 low = count >= kLanes ? Load(x) : LoadPartial(x, count);
  if (format != PanelFormat::kBf16Pairs) return (U32)low;
#if defined(QUIRE_NATIVE_BF16)
  F32 high = {};
  if (count >= 2 * kLanes) {
    high = Load(x + kLanes);
  } else if (count > kLanes) {
    high = LoadPartial(x + kLanes, count - kLanes);
  }
#if defined(__AVX512BF16__)
  return (U32)_mm512_cvtne2ps_pbh(high, low);
#else
  return (U32)vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(low), high);
#endif
#else
  return RoundToBf16(low) & 0xffff0000u;
#endif
}

// Packs a tile, square by square: kLanes elements of each row, transposed in
// registers.
void PackX(const MatmulJob& job, int64_t tile) {
  const TileRange range = MatmulTile(job.num_rows, job.num_tiles, tile);
  const bool is_bf16 = job.format == PanelFormat::kBf16Pairs;
#if defined(QUIRE_NATIVE_BF16)
  const int64_t k_per_lane = is_bf16 ? 2 : 1;
#else
  constexpr int64_t k_per_lane = 1;
#endif
  const int64_t lanes_per_step = (is_bf16 ? 2 : 1) / k_per_lane;
  const int64_t rows = range.num_rows;
  const float* const x = job.x + range.first_row * job.x_stride;
  const int64_t blocks_per_segment = BlocksPerSegment(job);
  const int64_t num_blocks = blocks_per_segment * job.num_segments;
  for (int64_t i_block = 0; i_block < num_blocks; ++i_block) {
    const StepBlock block = BlockOf(job, blocks_per_segment, i_block);
    float* out = reinterpret_cast<float*>(PackedX(job, range, block));
    // In units of packed 32-bit values of one row.
    const int64_t begin = block.begin * lanes_per_step;
    const int64_t end = block.end * lanes_per_step;
    for (int64_t i = begin; i < end; i += kLanes) {
      const int64_t count = end - i < kLanes ? end - i : kLanes;
      const int64_t k = i * k_per_lane;
      // Beyond the columns (the missing half of a last pair) there are zeros.
      int64_t num_k = count * k_per_lane;
      if (num_k > job.cols - k) num_k = job.cols - k;
      if (rows == 1) {
        StorePartial(out, (F32)LoadX(job.format, x + k, num_k), count);
        out += count;
        continue;
      }
      U32 square[kTransposed][kLanes];
      for (int part = 0; part < kTransposed; ++part) {
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
          const int64_t row = part * kLanes + r;
          square[part][r] =
              row < rows ? LoadX(job.format, x + row * job.x_stride + k, num_k)
                         : U32{};
        }
        Transpose(square[part]);
      }
      for (int64_t j = 0; j < count; ++j) {
        for (int part = 0; part < kTransposed; ++part) {
          int64_t num_rows = rows - part * kLanes;
          if (num_rows > kLanes) num_rows = kLanes;
          if (num_rows <= 0) continue;
          StorePartial(out + part * kLanes, (F32)square[part][j], num_rows);
        }
        out += rows;
      }
    }
  }
}

// With a single row tile each weight is used once; prefetched this far ahead.
constexpr int64_t kPrefetchBytes = 8 << 10;
// Row tiles whose accumulators (1.75 KiB a panel with AVX-512) are kept at
// once, in L2: enough for 512 rows, so that panels longer than L2 come from L3
// once and not for every group.
constexpr int kGroupTiles = 40;
// With many row tiles, the last passes over a block that prefetch the next one:
// late, for x goes through L2 meanwhile, and so many that memory keeps up.
constexpr int kPrefetchPasses = 4;

// Sums of segments that wait for their neighbours: of one segment, of two, of
// four, each with room for the accumulators of a group.
constexpr int kSumLevels = 3;
static_assert(kMaxSegments == 1 << kSumLevels);
constexpr int kSegmentedGroupTiles = kGroupTiles / (1 + kSumLevels);
constexpr int kTileFloats = kTileRows * kPanelWidth;

// What is done with the finished sum of a segment: it is added to those of the
// same size before it, as a binary counter carries, and, but for the last one,
// put aside.
//   acc: [num_rows][kPanelWidth]; levels: where the sums of this tile lie, one
//   `stride` after the other.
QUIRE_INLINE void FinishSegment(const MatmulJob& job, int64_t panel,
                                int64_t num_rows, int segment, float* acc,
                                float* levels, int64_t stride) {
  const int64_t size = num_rows * kPanelWidth;
  if (segment == 0 && job.segment_bias != nullptr) {
    const float* const bias = job.segment_bias + panel * kPanelWidth;
    for (int64_t row = 0; row < num_rows; ++row) {
      float* const sums = acc + row * kPanelWidth;
      Store(sums, Load(sums) + Load(bias));
      Store(sums + kLanes, Load(sums + kLanes) + Load(bias + kLanes));
    }
  }
  int level = 0;
  for (; (segment >> level) & 1; ++level) {
    const float* const left = levels + level * stride;
    for (int64_t i = 0; i < size; i += kLanes) {
      Store(acc + i, Load(left + i) + Load(acc + i));
    }
  }
  if (segment + 1 == job.num_segments) return;
  float* const to = levels + level * stride;
  for (int64_t i = 0; i < size; i += kLanes) Store(to + i, Load(acc + i));
}

// Panels [panel, panel + num_panels) against row tiles [tile_begin, tile_end):
// blocks of k outside, so that weights come from memory once. Some passes over
// a block each prefetch a share of the next one, or of the first one of the
// panels after these: memory stays busy while the row tiles compute.
//   acc: room for the accumulators of the group; with several segments 1 +
//   kSumLevels times.
void ComputeGroup(const MatmulJob& job, int64_t panel, int num_panels,
                  int64_t tile_begin, int64_t tile_end, bool prefetch_next,
                  float* acc) {
  const int format = static_cast<int>(job.format);
  const int64_t step_bytes = kPanelStepBytes[format];
  const int64_t num_tiles = tile_end - tile_begin;
  const int lines_per_step = step_bytes / 64;
  // With few tiles memory is the limit: the first passes, a line a step each.
  const bool has_many_tiles = num_tiles >= kManyTiles;
  const int64_t num_shares = !has_many_tiles || num_tiles < kPrefetchPasses
                                 ? lines_per_step
                                 : kPrefetchPasses;
  const int64_t first_share_pass = has_many_tiles ? num_tiles - num_shares : 0;
  const int64_t acc_size = num_tiles * num_panels * kTileFloats;
  TileArgs args;
  const int64_t blocks_per_segment = BlocksPerSegment(job);
  const int64_t num_blocks = blocks_per_segment * job.num_segments;
  for (int64_t i_block = 0; i_block < num_blocks; ++i_block) {
    const StepBlock block = BlockOf(job, blocks_per_segment, i_block);
    args.num_steps = block.end - block.begin;
    args.is_first = block.begins_segment;
    const bool is_last = i_block + 1 == num_blocks;
    const bool prefetch = prefetch_next || !is_last;
    // From args.panel; blocks are alike but for the last one.
    const int64_t next_block =
        is_last ? num_panels * job.panel_bytes - block.begin * step_bytes
                : args.num_steps * step_bytes;
    args.acc = acc;
    for (int64_t pass = 0; pass < num_tiles; ++pass) {
      const TileRange range =
          MatmulTile(job.num_rows, job.num_tiles, tile_begin + pass);
      args.x = PackedX(job, range, block);
      if (is_last && num_tiles > 1) {
        PrefetchOutputs(job, panel, num_panels, range);
      }
      const int64_t share = pass - first_share_pass;
      for (int i = 0; i < num_panels; ++i) {
        args.panel = job.panels + (panel + i) * job.panel_bytes +
                     block.begin * step_bytes;
        int lines = 0;
        if (num_tiles == 1) {
          lines = lines_per_step;
          args.prefetch = args.panel + kPrefetchBytes;
          args.prefetch_stride = 64;
        } else if (prefetch && share >= 0 && share < num_shares) {
          lines = 1;
          args.prefetch_stride = step_bytes / num_shares;
          args.prefetch = args.panel + next_block +
                          share * args.num_steps * args.prefetch_stride;
        }
        kTileTables[format].entries[lines][range.num_rows](args);
        if (block.ends_segment && job.num_segments > 1) {
          FinishSegment(job, panel + i, range.num_rows, block.segment, args.acc,
                        args.acc + acc_size, acc_size);
        }
        if (is_last) Epilogue(job, panel + i, range, args.acc);
        args.acc += kTileFloats;
      }
    }
  }
}

void Compute(const MatmulJob& job, int64_t panel_begin, int64_t panel_end,
             int64_t tile_begin, int64_t tile_end) {
  alignas(64) float acc[kGroupTiles * kMaxPassPanels * kTileFloats];
  const int64_t num_tiles = tile_end - tile_begin;
  const int64_t group_tiles =
      job.num_segments > 1 ? kSegmentedGroupTiles : kGroupTiles;
  const int64_t num_groups = (num_tiles + group_tiles - 1) / group_tiles;
  const int64_t pass_panels = num_tiles >= kManyTiles ? kMaxPassPanels : 1;
  for (int64_t panel = panel_begin; panel < panel_end; panel += pass_panels) {
    const int num_panels = static_cast<int>(
        panel_end - panel < pass_panels ? panel_end - panel : pass_panels);
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t first = tile_begin + group * num_tiles / num_groups;
      const int64_t last = tile_begin + (group + 1) * num_tiles / num_groups;
      // The next panels are mostly this thread's, too.
      ComputeGroup(job, panel, num_panels, first, last, last == tile_end, acc);
    }
  }
}

template <F32 (*kFunction)(F32)>
void Map(const float* x, float* y, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t count = size - i < kLanes ? size - i : kLanes;
    StorePartial(y + i, kFunction(LoadPartial(x + i, count)), count);
  }
}

}  // namespace

const MatmulKernels kMatmulKernels = {
    kLanes,
    {kPanelStepBytes[0], kPanelStepBytes[1], kPanelStepBytes[2]},
    {kTileRows, kTileRows, kTileRows},
    {kXStepBytes[0], kXStepBytes[1], kXStepBytes[2]},
    PackX,
    Compute,
    Map<Exp>,
    Map<Tanh>,
    Map<GeluErf>,
};

}  // namespace QUIRE_ISA_NAMESPACE
}  // namespace quire
