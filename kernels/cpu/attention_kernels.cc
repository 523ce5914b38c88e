// Tiles of paged attention, compiled once per instruction set (see simd.h).
//
// Online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867, Algorithm 3,
// applied to tiles as in FlashAttention (Dao et al. 2022, arXiv:2205.14135,
// Algorithm 1). Splits along the context are merged as in Flash-Decoding (Dao
// et al. 2023), here always, so that one thread computes the same bits as many.
#include "kernels/cpu/attention_kernels.h"

#include "kernels/cpu/simd.h"

namespace quire {
namespace QUIRE_ISA_NAMESPACE {
namespace {

// Rows x 2 vectors of accumulators, 2 operands and 1 broadcast, as in
// matmul_kernels.cc.
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif
constexpr int kPanelWidth = 2 * kLanes;
static_assert(kAttentionTile % kPanelWidth == 0);
static_assert(kTileRows <= 16);

constexpr float kMinusInfinity = -__builtin_inff();

struct RowTile {
  int first;
  int size;
};
// An even split into the fewest tiles.
QUIRE_INLINE RowTile GetRowTile(int num_rows, int num_tiles, int tile) {
  const int base = num_rows / num_tiles;
  const int extra = num_rows % num_tiles;
  return {tile * base + (tile < extra ? tile : extra),
          base + (tile < extra ? 1 : 0)};
}

// scores[r][p] = sum over d of q[d][r] * kt[d][p], d ascending, for the first
// `num_positions` (rounded up to panels) positions.
//   q: [head_dim][kRows]; kt: [head_dim][kAttentionTile]
//   scores: [kRows][kAttentionTile]
template <int kRows>
void ScoreTile(const float* q, const float* kt, int head_dim, int num_positions,
               float* scores) {
  for (int p = 0; p < num_positions; p += kPanelWidth) {
    F32 acc[kRows][2] = {};
    const float* qp = q;
    const float* kp = kt + p;
    for (int d = 0; d < head_dim; ++d) {
      const F32 k0 = Load(kp);
      const F32 k1 = Load(kp + kLanes);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const F32 qv = Set1(qp[row]);
        acc[row][0] = Fma(k0, qv, acc[row][0]);
        acc[row][1] = Fma(k1, qv, acc[row][1]);
      }
      qp += kRows;
      kp += kAttentionTile;
    }
    for (int row = 0; row < kRows; ++row) {
      Store(scores + row * kAttentionTile + p, acc[row][0]);
      Store(scores + row * kAttentionTile + p + kLanes, acc[row][1]);
    }
  }
}

// out[r][d] = out[r][d] * correction[r] + sum over p of probs[r][p] * v[p][d],
// p ascending.
//   probs: [kRows][kAttentionTile]; v: [num_positions][padded_dim]
//   out: [kRows][padded_dim]
template <int kRows>
void ValueTile(const float* probs, const float* v, int num_positions,
               int padded_dim, const float* correction, float* out) {
  for (int d = 0; d < padded_dim; d += kPanelWidth) {
    F32 acc[kRows][2];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const F32 factor = Set1(correction[row]);
      acc[row][0] = Load(out + row * padded_dim + d) * factor;
      acc[row][1] = Load(out + row * padded_dim + d + kLanes) * factor;
    }
    const float* vp = v + d;
    for (int p = 0; p < num_positions; ++p) {
      const F32 v0 = Load(vp);
      const F32 v1 = Load(vp + kLanes);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const F32 prob = Set1(probs[row * kAttentionTile + p]);
        acc[row][0] = Fma(v0, prob, acc[row][0]);
        acc[row][1] = Fma(v1, prob, acc[row][1]);
      }
      vp += padded_dim;
    }
    for (int row = 0; row < kRows; ++row) {
      Store(out + row * padded_dim + d, acc[row][0]);
      Store(out + row * padded_dim + d + kLanes, acc[row][1]);
    }
  }
}

using ScoreFunction = void (*)(const float* q, const float* kt, int head_dim,
                               int num_positions, float* scores);
using ValueFunction = void (*)(const float* probs, const float* v,
                               int num_positions, int padded_dim,
                               const float* correction, float* out);
struct TileTable {
  ScoreFunction score[kTileRows + 1];  // Entry r handles r rows.
  ValueFunction value[kTileRows + 1];
};
template <int... kRows>
constexpr TileTable MakeTileTable() {
  return {{nullptr, ScoreTile<kRows>...}, {nullptr, ValueTile<kRows>...}};
}
#if defined(__AVX512F__)
constexpr TileTable kTiles =
    MakeTileTable<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>();
#else
constexpr TileTable kTiles = MakeTileTable<1, 2, 3, 4, 5, 6>();
#endif

// Where the pieces of a thread's scratch lie.
struct Scratch {
  float* q;       // Row tiles of [head_dim][tile rows].
  float* kt;      // [head_dim][kAttentionTile]
  float* v;       // [kAttentionTile][padded_dim]
  float* scores;  // [kTileRows][kAttentionTile]
  float* sums;    // [num_rows][kLanes]: sums of probabilities by lane.
  float* partial;
  float* total;
};
Scratch DivideScratch(float* p, int64_t num_rows, int64_t padded_dim) {
  Scratch s;
  s.kt = p;
  s.v = s.kt + kAttentionTile * padded_dim;
  s.scores = s.v + kAttentionTile * padded_dim;
  s.sums = s.scores + 16 * kAttentionTile;
  s.q = s.sums + num_rows * 16;
  s.partial = s.q + num_rows * padded_dim;
  s.total = s.partial + PartialFloats(num_rows, padded_dim);
  return s;
}

template <KvFormat kFormat>
QUIRE_INLINE F32 LoadKv(const char* p, int64_t i) {
  if constexpr (kFormat == KvFormat::kF32) {
    return Load(reinterpret_cast<const float*>(p) + i);
  } else if constexpr (kFormat == KvFormat::kF16) {
    return LoadF16(reinterpret_cast<const uint16_t*>(p) + i);
  } else {
    return LoadBf16(reinterpret_cast<const uint16_t*>(p) + i);
  }
}

// The first n elements of a row; reads nothing beyond them.
template <KvFormat kFormat>
QUIRE_INLINE F32 LoadKvPartial(const char* p, int64_t i, int64_t n) {
  constexpr int kSize = kFormat == KvFormat::kF32 ? 4 : 2;
  alignas(64) char copy[kLanes * kSize] = {};
  __builtin_memcpy(copy, p + i * kSize, n * kSize);
  return LoadKv<kFormat>(copy, 0);
}

// Loads the positions [begin, end) of the tile at `tile_start` as f32: K
// transposed, V as it is; zeros elsewhere, because a masked position is
// multiplied by a probability of zero and must be finite.
template <KvFormat kFormat>
void LoadTile(const AttentionJob& job, const AttentionItem& item,
              int64_t tile_start, int64_t begin, int64_t end, float* kt,
              float* v) {
  constexpr int kSize = kFormat == KvFormat::kF32 ? 4 : 2;
  const int64_t dim = job.head_dim;
  const int64_t head_elements = job.block_size * dim;
  for (int i = 0; i < kAttentionTile; ++i) {
    const int64_t position = tile_start + i;
    float* const v_row = v + i * job.padded_dim;
    if (position < begin || position >= end) {
      for (int64_t d = 0; d < dim; ++d) kt[d * kAttentionTile + i] = 0.0f;
      for (int64_t d = 0; d < job.padded_dim; d += kLanes) {
        Store(v_row + d, F32{});
      }
      continue;
    }
    const int64_t block = item.block_table[position / job.block_size];
    const int64_t k_offset = block * job.block_stride +
                             item.kv_head * head_elements +
                             position % job.block_size * dim;
    const char* const k = job.kv + k_offset * kSize;
    const char* const v_src = k + job.num_kv_heads * head_elements * kSize;
    for (int64_t d = 0; d < job.padded_dim; d += kLanes) {
      const int64_t count = dim - d;
      F32 k_part = {};
      F32 v_part = {};
      if (count >= kLanes) {
        k_part = LoadKv<kFormat>(k, d);
        v_part = LoadKv<kFormat>(v_src, d);
      } else if (count > 0) {
        k_part = LoadKvPartial<kFormat>(k, d, count);
        v_part = LoadKvPartial<kFormat>(v_src, d, count);
      }
      Store(v_row + d, v_part);
      for (int lane = 0; lane < kLanes && lane < count; ++lane) {
        kt[(d + lane) * kAttentionTile + i] = k_part[lane];
      }
    }
  }
}

// Positions of a tile that a query row may see.
struct Visible {
  int begin;
  int end;
};
QUIRE_INLINE Visible VisibleRange(const AttentionJob& job, int64_t position,
                                  int64_t tile_start) {
  int64_t begin =
      job.sliding_window > 0 ? position - job.sliding_window + 1 : 0;
  begin -= tile_start;
  int64_t end = position + 1 - tile_start;
  if (begin < 0) begin = 0;
  if (end > kAttentionTile) end = kAttentionTile;
  return {static_cast<int>(begin), static_cast<int>(end)};
}

QUIRE_INLINE I32 Iota() {
  I32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// Turns one row of scores into probabilities relative to the new maximum.
// Returns the factor that the older sums must be multiplied with.
QUIRE_INLINE float SoftmaxRow(const AttentionJob& job, Visible visible,
                              float* scores, float* max, float* sums) {
  constexpr int kVectors = kAttentionTile / kLanes;
  F32 s[kVectors];
  const I32 iota = Iota();
  F32 max_vector = Set1(kMinusInfinity);
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) {
    F32 v = Load(scores + i * kLanes) * job.scale;
    if (job.softcap > 0) v = Tanh(v / job.softcap) * job.softcap;
    const I32 index = iota + i * kLanes;
    const I32 is_visible = (index >= visible.begin) & (index < visible.end);
    s[i] = is_visible ? v : Set1(kMinusInfinity);
    max_vector = Max(max_vector, s[i]);
  }
  const float old_max = *max;
  const float tile_max = MaxLane(max_vector);
  const float new_max = tile_max > old_max ? tile_max : old_max;
  // Every visible score is -infinity: subtract nothing, and get zeros.
  const float base = new_max == kMinusInfinity ? 0.0f : new_max;
  const float factor = Exp(Set1(old_max - base))[0];
  F32 sum = {};
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) {
    const F32 p = Exp(s[i] - base);
    Store(scores + i * kLanes, p);
    sum += p;
  }
  Store(sums, Load(sums) * factor + sum);
  *max = new_max;
  return factor;
}

void LoadQueries(const AttentionJob& job, const AttentionItem& item,
                 int num_rows, int num_tiles, float* q) {
  const int group = job.num_heads / job.num_kv_heads;
  for (int tile = 0; tile < num_tiles; ++tile) {
    const RowTile range = GetRowTile(num_rows, num_tiles, tile);
    float* const packed = q + range.first * job.head_dim;
    for (int r = 0; r < range.size; ++r) {
      const int row = range.first + r;
      const float* const src = job.q +
                               (item.first_token + row / group) * job.q_stride +
                               (item.kv_head * group + row % group) *
                                   static_cast<int64_t>(job.head_dim);
      for (int d = 0; d < job.head_dim; ++d) {
        packed[d * range.size + r] = src[d];
      }
    }
  }
}

// All query rows against the tile in scratch.
void ProcessTile(const AttentionJob& job, const AttentionItem& item,
                 int64_t tile_start, int num_rows, int num_tiles,
                 const Scratch& scratch, float* partial) {
  const int group = job.num_heads / job.num_kv_heads;
  float* const max = partial + static_cast<int64_t>(num_rows) * job.padded_dim;
  for (int tile = 0; tile < num_tiles; ++tile) {
    const RowTile range = GetRowTile(num_rows, num_tiles, tile);
    // Later tokens see further; with a window, earlier ones see further back.
    const int64_t first = item.first_position + range.first / group;
    const int64_t last =
        item.first_position + (range.first + range.size - 1) / group;
    const int begin = VisibleRange(job, first, tile_start).begin;
    const int end = VisibleRange(job, last, tile_start).end;
    if (begin >= end) continue;
    kTiles.score[range.size](scratch.q + range.first * job.head_dim, scratch.kt,
                             job.head_dim, end, scratch.scores);
    float correction[kTileRows];
    for (int r = 0; r < range.size; ++r) {
      const int row = range.first + r;
      const Visible visible =
          VisibleRange(job, item.first_position + row / group, tile_start);
      correction[r] =
          SoftmaxRow(job, visible, scratch.scores + r * kAttentionTile,
                     &max[row], scratch.sums + row * kLanes);
    }
    kTiles.value[range.size](
        scratch.scores, scratch.v, end, job.padded_dim, correction,
        partial + static_cast<int64_t>(range.first) * job.padded_dim);
  }
}

int NumRows(const AttentionJob& job, const AttentionItem& item) {
  return item.num_tokens * (job.num_heads / job.num_kv_heads);
}

void ComputeSplitInto(const AttentionJob& job, const AttentionItem& item,
                      int64_t split, const Scratch& scratch, float* partial) {
  const int num_rows = NumRows(job, item);
  const int num_tiles = (num_rows + kTileRows - 1) / kTileRows;
  const int64_t sum_floats = static_cast<int64_t>(num_rows) * job.padded_dim;
  float* const max = partial + sum_floats;
  for (int64_t i = 0; i < sum_floats; i += kLanes) Store(partial + i, F32{});
  for (int row = 0; row < num_rows; ++row) {
    max[row] = kMinusInfinity;
    Store(scratch.sums + row * kLanes, F32{});
  }
  int64_t begin = 0;
  if (job.sliding_window > 0) {
    begin = item.first_position - job.sliding_window + 1;
    if (begin < 0) begin = 0;
  }
  const int64_t end = item.first_position + item.num_tokens;
  for (int64_t tile_start = split * kAttentionSplit;
       tile_start < (split + 1) * kAttentionSplit && tile_start < end;
       tile_start += kAttentionTile) {
    if (tile_start + kAttentionTile <= begin) continue;
    switch (job.kv_format) {
      case KvFormat::kF32:
        LoadTile<KvFormat::kF32>(job, item, tile_start, begin, end, scratch.kt,
                                 scratch.v);
        break;
      case KvFormat::kF16:
        LoadTile<KvFormat::kF16>(job, item, tile_start, begin, end, scratch.kt,
                                 scratch.v);
        break;
      case KvFormat::kBf16:
        LoadTile<KvFormat::kBf16>(job, item, tile_start, begin, end, scratch.kt,
                                  scratch.v);
        break;
    }
    ProcessTile(job, item, tile_start, num_rows, num_tiles, scratch, partial);
  }
  for (int row = 0; row < num_rows; ++row) {
    max[num_rows + row] = SumLanes(Load(scratch.sums + row * kLanes));
  }
}

void ClearTotal(const AttentionJob& job, int num_rows, float* total) {
  const int64_t sum_floats = static_cast<int64_t>(num_rows) * job.padded_dim;
  for (int64_t i = 0; i < sum_floats; i += kLanes) Store(total + i, F32{});
  for (int row = 0; row < num_rows; ++row) {
    total[sum_floats + row] = kMinusInfinity;
    total[sum_floats + num_rows + row] = 0.0f;
  }
}

// total = merge of total and partial.
void AddPartial(const AttentionJob& job, int num_rows, const float* partial,
                float* total) {
  const int64_t sum_floats = static_cast<int64_t>(num_rows) * job.padded_dim;
  for (int row = 0; row < num_rows; ++row) {
    float* const max = total + sum_floats + row;
    const float partial_max = partial[sum_floats + row];
    // Nothing was visible: leave the total as it is, to the bit.
    if (partial_max == kMinusInfinity) continue;
    const float new_max = partial_max > *max ? partial_max : *max;
    const F32 old_factor = Exp(Set1(*max - new_max));
    const F32 new_factor = Exp(Set1(partial_max - new_max));
    *max = new_max;
    float* const sum = max + num_rows;
    *sum = *sum * old_factor[0] +
           partial[sum_floats + num_rows + row] * new_factor[0];
    const int64_t offset = static_cast<int64_t>(row) * job.padded_dim;
    for (int d = 0; d < job.padded_dim; d += kLanes) {
      Store(total + offset + d, Fma(Load(partial + offset + d), new_factor,
                                    Load(total + offset + d) * old_factor));
    }
  }
}

void WriteOutput(const AttentionJob& job, const AttentionItem& item,
                 int num_rows, const float* total) {
  const int group = job.num_heads / job.num_kv_heads;
  const int64_t sum_floats = static_cast<int64_t>(num_rows) * job.padded_dim;
  for (int row = 0; row < num_rows; ++row) {
    float* const out = job.out +
                       (item.first_token + row / group) * job.out_stride +
                       (item.kv_head * group + row % group) *
                           static_cast<int64_t>(job.head_dim);
    const F32 sum = Set1(total[sum_floats + num_rows + row]);
    for (int d = 0; d < job.head_dim; d += kLanes) {
      // + 0: a sum that underflowed to -0 must not differ from one that a
      // further zero was added to.
      const F32 v =
          Load(total + static_cast<int64_t>(row) * job.padded_dim + d) / sum +
          0.0f;
      if (job.head_dim - d >= kLanes) {
        Store(out + d, v);
      } else {
        StorePartial(out + d, v, job.head_dim - d);
      }
    }
  }
}

void ComputeSplit(const AttentionJob& job, const AttentionItem& item,
                  int64_t split, float* scratch_floats, float* partial) {
  const int num_rows = NumRows(job, item);
  const Scratch scratch =
      DivideScratch(scratch_floats, num_rows, job.padded_dim);
  LoadQueries(job, item, num_rows, (num_rows + kTileRows - 1) / kTileRows,
              scratch.q);
  ComputeSplitInto(job, item, split, scratch, partial);
}

void MergeSplits(const AttentionJob& job, const AttentionItem& item,
                 int64_t num_splits, const float* partials,
                 float* scratch_floats) {
  const int num_rows = NumRows(job, item);
  const Scratch scratch =
      DivideScratch(scratch_floats, num_rows, job.padded_dim);
  ClearTotal(job, num_rows, scratch.total);
  for (int64_t split = 0; split < num_splits; ++split) {
    AddPartial(job, num_rows,
               partials + split * PartialFloats(num_rows, job.padded_dim),
               scratch.total);
  }
  WriteOutput(job, item, num_rows, scratch.total);
}

void ComputeAll(const AttentionJob& job, const AttentionItem& item,
                int64_t split_begin, int64_t split_end, float* scratch_floats) {
  const int num_rows = NumRows(job, item);
  const Scratch scratch =
      DivideScratch(scratch_floats, num_rows, job.padded_dim);
  LoadQueries(job, item, num_rows, (num_rows + kTileRows - 1) / kTileRows,
              scratch.q);
  ClearTotal(job, num_rows, scratch.total);
  for (int64_t split = split_begin; split < split_end; ++split) {
    ComputeSplitInto(job, item, split, scratch, scratch.partial);
    AddPartial(job, num_rows, scratch.partial, scratch.total);
  }
  WriteOutput(job, item, num_rows, scratch.total);
}

}  // namespace

const AttentionKernels kAttentionKernels = {
    kLanes,
    ComputeSplit,
    MergeSplits,
    ComputeAll,
};

}  // namespace QUIRE_ISA_NAMESPACE
}  // namespace quire
