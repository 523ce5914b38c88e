// Register tiles of the packed matrix product, compiled once per instruction
// set (see simd.h).
#include "kernels/cpu/matmul_kernels.h"

#include "kernels/cpu/simd.h"

namespace quire {
namespace QUIRE_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
// 14 rows x 2 vectors of accumulators, 2 of weights and 1 broadcast: 31 of 32
// registers.
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;  // 12 + 2 + 1 of 16 registers.
#endif

constexpr int kPanelWidth = 2 * kLanes;

// Round to nearest even; a NaN stays a NaN. As FloatToBf16 in kernels/dtype.h.
QUIRE_INLINE uint32_t RoundToBf16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

QUIRE_INLINE void StoreTile(const F32* acc, int num_rows, float* out) {
  for (int i = 0; i < 2 * num_rows; ++i) Store(out + i * kLanes, acc[i]);
}

// One k per step; x: [num_steps][kRows] f32.
template <PanelFormat kFormat, int kRows>
void FloatTile(const char* panel, const char* x, int64_t num_steps,
               float* out) {
  F32 acc[kRows][2] = {};
  const float* xp = reinterpret_cast<const float*>(x);
  for (int64_t step = 0; step < num_steps; ++step) {
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
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const F32 xv = Set1(xp[row]);
      acc[row][0] = Fma(w0, xv, acc[row][0]);
      acc[row][1] = Fma(w1, xv, acc[row][1]);
    }
    xp += kRows;
  }
  StoreTile(&acc[0][0], kRows, out);
}

#if defined(__AVX512BF16__)
// Two k per step; x: [num_steps][kRows] pairs of bf16.
template <int kRows>
void Bf16Tile(const char* panel, const char* x, int64_t num_steps, float* out) {
  __m512 acc[kRows][2];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    acc[row][0] = acc[row][1] = _mm512_setzero_ps();
  }
  const int32_t* xp = reinterpret_cast<const int32_t*>(x);
  for (int64_t step = 0; step < num_steps; ++step) {
    const __m512bh w0 = (__m512bh)_mm512_loadu_si512(panel);
    const __m512bh w1 = (__m512bh)_mm512_loadu_si512(panel + 64);
    panel += 128;
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const __m512bh xv = (__m512bh)_mm512_set1_epi32(xp[row]);
      acc[row][0] = _mm512_dpbf16_ps(acc[row][0], w0, xv);
      acc[row][1] = _mm512_dpbf16_ps(acc[row][1], w1, xv);
    }
    xp += kRows;
  }
  for (int row = 0; row < kRows; ++row) {
    _mm512_storeu_ps(out + row * kPanelWidth, acc[row][0]);
    _mm512_storeu_ps(out + row * kPanelWidth + kLanes, acc[row][1]);
  }
}
#else
// x: [2 * num_steps][kRows] f32 holding values already rounded to bf16; even k
// and then odd k of a pair.
template <int kRows>
void Bf16Tile(const char* panel, const char* x, int64_t num_steps, float* out) {
  F32 acc[kRows][2] = {};
  const float* xp = reinterpret_cast<const float*>(x);
  for (int64_t step = 0; step < num_steps; ++step) {
    const uint16_t* w = reinterpret_cast<const uint16_t*>(panel);
    const U32 pairs0 = LoadPairs(w);
    const U32 pairs1 = LoadPairs(w + 2 * kLanes);
    panel += kPanelWidth * 4;
    F32 w0 = EvenBf16(pairs0);
    F32 w1 = EvenBf16(pairs1);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const F32 xv = Set1(xp[row]);
      acc[row][0] = Fma(w0, xv, acc[row][0]);
      acc[row][1] = Fma(w1, xv, acc[row][1]);
    }
    w0 = OddBf16(pairs0);
    w1 = OddBf16(pairs1);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const F32 xv = Set1(xp[kRows + row]);
      acc[row][0] = Fma(w0, xv, acc[row][0]);
      acc[row][1] = Fma(w1, xv, acc[row][1]);
    }
    xp += 2 * kRows;
  }
  StoreTile(&acc[0][0], kRows, out);
}
#endif

using TileFunction = void (*)(const char* panel, const char* x,
                              int64_t num_steps, float* out);

// Entry r handles r rows.
template <PanelFormat kFormat, int... kRows>
constexpr auto MakeTileTable() {
  struct Table {
    TileFunction entries[sizeof...(kRows) + 1];
  };
  if constexpr (kFormat == PanelFormat::kBf16Pairs) {
    return Table{{nullptr, Bf16Tile<kRows>...}};
  } else {
    return Table{{nullptr, FloatTile<kFormat, kRows>...}};
  }
}
template <PanelFormat kFormat>
constexpr auto MakeAllTiles() {
  if constexpr (kTileRows == 14) {
    return MakeTileTable<kFormat, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
                         14>();
  } else {
    return MakeTileTable<kFormat, 1, 2, 3, 4, 5, 6>();
  }
}
constexpr auto kF32Tiles = MakeAllTiles<PanelFormat::kF32>();
constexpr auto kF16Tiles = MakeAllTiles<PanelFormat::kF16>();
constexpr auto kBf16Tiles = MakeAllTiles<PanelFormat::kBf16Pairs>();

TileFunction GetTileFunction(PanelFormat format, int64_t num_rows) {
  switch (format) {
    case PanelFormat::kF32:
      return kF32Tiles.entries[num_rows];
    case PanelFormat::kF16:
      return kF16Tiles.entries[num_rows];
    case PanelFormat::kBf16Pairs:
      break;
  }
  return kBf16Tiles.entries[num_rows];
}

void PackX(const MatmulJob& job, int64_t tile) {
  const TileRange range = MatmulTile(job, tile);
  const int64_t rows = range.num_rows;
  char* const packed = job.packed_x + range.first_row * job.packed_row_bytes;
  for (int64_t row = 0; row < rows; ++row) {
    const float* const x = job.x + (range.first_row + row) * job.x_stride;
    if (job.format != PanelFormat::kBf16Pairs) {
      float* const out = reinterpret_cast<float*>(packed) + row;
      for (int64_t k = 0; k < job.cols; ++k) out[k * rows] = x[k];
      continue;
    }
    uint32_t* const out = reinterpret_cast<uint32_t*>(packed) + row;
#if defined(__AVX512BF16__)
    for (int64_t step = 0; step < job.cols / 2; ++step) {
      out[step * rows] = RoundToBf16(x[2 * step]) | RoundToBf16(x[2 * step + 1])
                                                        << 16;
    }
    if (job.cols % 2 != 0) {
      out[job.cols / 2 * rows] = RoundToBf16(x[job.cols - 1]);
    }
#else
    for (int64_t k = 0; k < job.cols; ++k) {
      out[k * rows] = RoundToBf16(x[k]) << 16;
    }
    if (job.cols % 2 != 0) out[job.cols * rows] = 0;
#endif
  }
}

QUIRE_INLINE F32 Activate(MatmulActivation activation, F32 v) {
  switch (activation) {
    case MatmulActivation::kGelu:
      return GeluTanh(v);
    case MatmulActivation::kRelu:
      // NaN stays NaN: the comparison is false.
      return v < 0.0f ? Set1(0.0f) : v;
    default:
      return v;
  }
}

// Writes one vector of outputs, `count` lanes of it, with the residual.
QUIRE_INLINE void StoreOutputs(const MatmulJob& job, int64_t row,
                               int64_t channel, int64_t count, F32 v) {
  if (count <= 0) return;
  float* const out = job.out + row * job.out_stride + channel;
  const float* const residual =
      job.residual == nullptr
          ? nullptr
          : job.residual + row * job.residual_stride + channel;
  if (count >= kLanes) {
    if (residual != nullptr) v += Load(residual);
    Store(out, v);
  } else {
    if (residual != nullptr) v += LoadPartial(residual, count);
    StorePartial(out, v, count);
  }
}

void Epilogue(const MatmulJob& job, int64_t panel, TileRange range,
              const float* acc) {
  F32 bias0 = {};
  F32 bias1 = {};
  if (job.bias != nullptr) {
    bias0 = Load(job.bias + panel * kPanelWidth);
    bias1 = Load(job.bias + panel * kPanelWidth + kLanes);
  }
  const F32 scale = Set1(job.out_scale);
  for (int64_t i = 0; i < range.num_rows; ++i) {
    const int64_t row = range.first_row + i;
    const F32 v0 = (Load(acc + i * kPanelWidth) + bias0) * scale;
    const F32 v1 = (Load(acc + i * kPanelWidth + kLanes) + bias1) * scale;
    if (job.is_gated) {
      const int64_t channel = panel * kLanes;
      const int64_t count = job.num_outputs - channel;
      if (job.activation == MatmulActivation::kSwiGlu) {
        StoreOutputs(job, row, channel, count, Silu(v0) * v1);
      } else if (job.activation == MatmulActivation::kGeGlu) {
        StoreOutputs(job, row, channel, count, GeluTanh(v0) * v1);
      } else {
        StoreOutputs(job, row, channel, count, Activate(job.activation, v0));
        StoreOutputs(job, row, job.num_outputs + channel, count,
                     Activate(job.activation, v1));
      }
      continue;
    }
    const int64_t channel = panel * kPanelWidth;
    const int64_t count = job.num_outputs - channel;
    StoreOutputs(job, row, channel, count, Activate(job.activation, v0));
    StoreOutputs(job, row, channel + kLanes, count - kLanes,
                 Activate(job.activation, v1));
  }
}

void Compute(const MatmulJob& job, int64_t panel_begin, int64_t panel_end,
             int64_t tile_begin, int64_t tile_end) {
  alignas(64) float acc[kTileRows * kPanelWidth];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const char* const weights = job.panels + panel * job.panel_bytes;
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const TileRange range = MatmulTile(job, tile);
      GetTileFunction(job.format, range.num_rows)(
          weights, job.packed_x + range.first_row * job.packed_row_bytes,
          job.num_steps, acc);
      Epilogue(job, panel, range, acc);
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

#if defined(__AVX512BF16__)
constexpr int kBf16StepBytes = 4;  // A pair of bf16.
#else
constexpr int kBf16StepBytes = 8;  // A pair of f32.
#endif

}  // namespace

const MatmulKernels kMatmulKernels = {
    kLanes,
    {kTileRows, kTileRows, kTileRows},
    {4, 4, kBf16StepBytes},
    PackX,
    Compute,
    Map<Exp>,
    Map<Tanh>,
};

}  // namespace QUIRE_ISA_NAMESPACE
}  // namespace quire
