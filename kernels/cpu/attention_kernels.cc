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
#elif defined(QUIRE_NEON)
constexpr int kTileRows = 12;
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
      FmaRows(k0, k1, qp, acc);
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
#elif defined(QUIRE_NEON)
constexpr TileTable kTiles =
    MakeTileTable<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>();
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

// Where K and V of a tile's positions lie; null outside [begin, end).
struct TilePointers {
  const char* k[kAttentionTile];
  const char* v[kAttentionTile];
};
void FindTile(const AttentionJob& job, const AttentionItem& item,
              int64_t tile_start, int64_t begin, int64_t end, int element_bytes,
              TilePointers* pointers) {
  const int64_t row_bytes = static_cast<int64_t>(job.head_dim) * element_bytes;
  const int64_t head_bytes = job.block_size * row_bytes;
  // One division per tile, not per position.
  int64_t block_idx = tile_start / job.block_size;
  int64_t slot = tile_start % job.block_size;
  for (int i = 0; i < kAttentionTile;) {
    int64_t count = job.block_size - slot;
    if (count > kAttentionTile - i) count = kAttentionTile - i;
    const int64_t position = tile_start + i;
    // A block that is wholly invisible may not even have a table entry.
    const bool is_used = position < end && position + count > begin;
    const char* k = nullptr;
    if (is_used) {
      k = job.kv +
          item.block_table[block_idx] * job.block_stride * element_bytes +
          item.kv_head * head_bytes + slot * row_bytes;
    }
    for (int64_t j = 0; j < count; ++j, ++i) {
      const bool is_visible = position + j >= begin && position + j < end;
      pointers->k[i] = is_visible ? k + j * row_bytes : nullptr;
      pointers->v[i] =
          is_visible ? pointers->k[i] + job.num_kv_heads * head_bytes : nullptr;
    }
    ++block_idx;
    slot = 0;
  }
}

QUIRE_INLINE void PrefetchRow(const char* row, int64_t row_bytes) {
  if (row == nullptr) return;
  for (int64_t i = 0; i < row_bytes; i += 64) __builtin_prefetch(row + i);
}

// K of one group of kLanes positions as f32, transposed, into a column of kt.
// kAllVisible: no row is null.
template <KvFormat kFormat, bool kAllVisible>
void LoadKeys(int64_t dim, const char* const* rows, float* kt) {
  if (kFormat == KvFormat::kBf16 && dim % (2 * kLanes) == 0) {
    // Pairs travel as 32 bits: half the exchanges.
    for (int64_t d = 0; d < dim; d += 2 * kLanes) {
      U32 pairs[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        pairs[i] =
            kAllVisible || rows[i] != nullptr
                ? LoadPairs(reinterpret_cast<const uint16_t*>(rows[i]) + d)
                : U32{};
      }
      Transpose(pairs);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        float* const out = kt + (d + 2 * i) * kAttentionTile;
        Store(out, EvenBf16(pairs[i]));
        Store(out + kAttentionTile, OddBf16(pairs[i]));
      }
    }
    return;
  }
  for (int64_t d = 0; d < dim; d += kLanes) {
    const int64_t count = dim - d;
    U32 v[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (!kAllVisible && rows[i] == nullptr) {
        v[i] = U32{};
      } else if (count >= kLanes) {
        v[i] = (U32)LoadKv<kFormat>(rows[i], d);
      } else {
        v[i] = (U32)LoadKvPartial<kFormat>(rows[i], d, count);
      }
    }
    Transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i < count) Store(kt + (d + i) * kAttentionTile, (F32)v[i]);
    }
  }
}

// Loads a tile as f32: K transposed, V as it is, zero where invisible (there it
// is multiplied by a probability of zero and must be finite). `next` is
// prefetched meanwhile.
template <KvFormat kFormat>
void LoadTile(const AttentionJob& job, const TilePointers& tile,
              const TilePointers& next, float* kt, float* v) {
  constexpr int kSize = kFormat == KvFormat::kF32 ? 4 : 2;
  const int64_t dim = job.head_dim;
  for (int i = 0; i < kAttentionTile; i += kLanes) {
    int num_visible = 0;
    for (int j = i; j < i + kLanes; ++j) {
      num_visible += tile.k[j] != nullptr;
      PrefetchRow(next.k[j], dim * kSize);
    }
    // Scores of invisible positions are replaced, whatever K is.
    if (num_visible == kLanes) {
      LoadKeys<kFormat, true>(dim, tile.k + i, kt + i);
    } else if (num_visible > 0) {
      LoadKeys<kFormat, false>(dim, tile.k + i, kt + i);
    }
    for (int j = i; j < i + kLanes; ++j) {
      PrefetchRow(next.v[j], dim * kSize);
      float* const v_row = v + j * job.padded_dim;
      const char* const src = tile.v[j];
      int64_t d = 0;
      if (src != nullptr) {
        for (; d + kLanes <= dim; d += kLanes) {
          Store(v_row + d, LoadKv<kFormat>(src, d));
        }
        if (d < dim) {
          Store(v_row + d, LoadKvPartial<kFormat>(src, d, dim - d));
          d += kLanes;
        }
      }
      for (; d < job.padded_dim; d += kLanes) Store(v_row + d, F32{});
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

// Turns the scores of a row tile into probabilities relative to the new maxima.
//   scores: [range.size][kAttentionTile]; max, sums: of the tile's first row
//   correction: the factors that the older sums of each row are due.
void SoftmaxTile(const AttentionJob& job, const AttentionItem& item,
                 int64_t tile_start, RowTile range, float* scores, float* max,
                 float* sums, float* correction) {
  constexpr int kVectors = kAttentionTile / kLanes;
  const int group = job.num_heads / job.num_kv_heads;
  const I32 iota = Iota();
  float base[16] = {};
  alignas(64) float change[16] = {};
  for (int r = 0; r < range.size; ++r) {
    const Visible visible = VisibleRange(
        job, item.first_position + (range.first + r) / group, tile_start);
    float* const row = scores + r * kAttentionTile;
    F32 s[kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i)
      s[i] = Load(row + i * kLanes) * job.scale;
    if (job.softcap > 0) {
      for (F32& v : s) v = Tanh(v / job.softcap) * job.softcap;
    }
    if (visible.begin > 0 || visible.end < kAttentionTile) {
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) {
        const I32 index = iota + i * kLanes;
        const I32 is_visible = (index >= visible.begin) & (index < visible.end);
        s[i] = is_visible ? s[i] : Set1(kMinusInfinity);
      }
    }
    F32 max_vector = s[0];
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) {
      Store(row + i * kLanes, s[i]);
      max_vector = Max(max_vector, s[i]);
    }
    const float tile_max = MaxLane(max_vector);
    const float new_max = tile_max > max[r] ? tile_max : max[r];
    // Every visible score is -infinity: subtract nothing, and get zeros.
    base[r] = new_max == kMinusInfinity ? 0.0f : new_max;
    change[r] = max[r] - base[r];
    max[r] = new_max;
  }
  for (int r = 0; r < range.size; r += kLanes) {
    Store(correction + r, Exp(Load(change + r)));
  }
  for (int r = 0; r < range.size; ++r) {
    float* const row = scores + r * kAttentionTile;
    F32 sum = {};
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) {
      const F32 p = Exp(Load(row + i * kLanes) - base[r]);
      Store(row + i * kLanes, p);
      sum += p;
    }
    Store(sums + r * kLanes, Load(sums + r * kLanes) * correction[r] + sum);
  }
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
    alignas(64) float correction[16];
    SoftmaxTile(job, item, tile_start, range, scratch.scores, max + range.first,
                scratch.sums + range.first * kLanes, correction);
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
  int64_t tile_start = split * kAttentionSplit;
  if (tile_start < begin) tile_start = begin / kAttentionTile * kAttentionTile;
  int64_t tiles_end = (split + 1) * kAttentionSplit;
  if (tiles_end > end) tiles_end = end;
  const int element_bytes = job.kv_format == KvFormat::kF32 ? 4 : 2;
  TilePointers pointers[2];
  FindTile(job, item, tile_start, begin, tiles_end, element_bytes,
           &pointers[0]);
  for (int current = 0; tile_start < tiles_end;
       tile_start += kAttentionTile, current ^= 1) {
    const TilePointers& tile = pointers[current];
    TilePointers& next = pointers[current ^ 1];
    FindTile(job, item, tile_start + kAttentionTile, begin, tiles_end,
             element_bytes, &next);
    switch (job.kv_format) {
      case KvFormat::kF32:
        LoadTile<KvFormat::kF32>(job, tile, next, scratch.kt, scratch.v);
        break;
      case KvFormat::kF16:
        LoadTile<KvFormat::kF16>(job, tile, next, scratch.kt, scratch.v);
        break;
      case KvFormat::kBf16:
        LoadTile<KvFormat::kBf16>(job, tile, next, scratch.kt, scratch.v);
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
