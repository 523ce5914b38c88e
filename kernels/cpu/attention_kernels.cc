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

template <KvFormat kFormat>
constexpr int kElementBytes =
    kFormat == KvFormat::kF32                                 ? 4
    : kFormat == KvFormat::kF16 || kFormat == KvFormat::kBf16 ? 2
                                                              : 1;

template <KvFormat kFormat>
QUIRE_INLINE F32 LoadKv(const char* p, int64_t i) {
  if constexpr (kFormat == KvFormat::kF32) {
    return Load(reinterpret_cast<const float*>(p) + i);
  } else if constexpr (kFormat == KvFormat::kF16) {
    return LoadF16(reinterpret_cast<const uint16_t*>(p) + i);
  } else if constexpr (kFormat == KvFormat::kBf16) {
    return LoadBf16(reinterpret_cast<const uint16_t*>(p) + i);
  } else if constexpr (kFormat == KvFormat::kF8) {
    return LoadE4M3(reinterpret_cast<const uint8_t*>(p) + i);
  } else {
    return LoadI8AsF32(reinterpret_cast<const int8_t*>(p) + i);
  }
}

// The first n elements of a row; reads nothing beyond them.
template <KvFormat kFormat>
QUIRE_INLINE F32 LoadKvPartial(const char* p, int64_t i, int64_t n) {
  constexpr int kSize = kElementBytes<kFormat>;
  alignas(64) char copy[kLanes * kSize] = {};
  __builtin_memcpy(copy, p + i * kSize, n * kSize);
  return LoadKv<kFormat>(copy, 0);
}

// K and V of a tile by groups of kLanes positions: K element d of group g is
// the vector at k[g] + d * k_stride, V of its position j the row at v[g] + j *
// v_stride. In the cache itself, or widened to f32 in the scratch.
constexpr int kNumGroups = kAttentionTile / kLanes;
struct TileGroups {
  const char* k[kNumGroups];
  const char* v[kNumGroups];
  int64_t k_stride;  // Bytes.
  int64_t v_stride;
};

// scores[r][p] = sum over d of q[d][r] * k[d][p], d ascending, for the first
// `num_positions` (rounded up to panels) positions.
//   q: [head_dim][kRows]; scores: [kRows][kAttentionTile]
template <KvFormat kFormat, int kRows>
void ScoreTile(const float* q, const TileGroups& tile, int head_dim,
               int num_positions, float* scores) {
  for (int p = 0; p < num_positions; p += kPanelWidth) {
    F32 acc[kRows][2] = {};
    const float* qp = q;
    const char* k0 = tile.k[p / kLanes];
    const char* k1 = tile.k[p / kLanes + 1];
    for (int d = 0; d < head_dim; ++d) {
      FmaRows(LoadKv<kFormat>(k0, 0), LoadKv<kFormat>(k1, 0), qp, acc);
      qp += kRows;
      k0 += tile.k_stride;
      k1 += tile.k_stride;
    }
    for (int row = 0; row < kRows; ++row) {
      Store(scores + row * kAttentionTile + p, acc[row][0]);
      Store(scores + row * kAttentionTile + p + kLanes, acc[row][1]);
    }
  }
}

// out[r][d] = out[r][d] * correction[r] + sum over p of probs[r][p] * v[p][d],
// p ascending.
//   probs: [kRows][kAttentionTile]; out: [kRows][padded_dim]
template <KvFormat kFormat, int kRows>
void ValueTile(const float* probs, const TileGroups& tile, int num_positions,
               int padded_dim, const float* correction, float* out) {
  for (int d = 0; d < padded_dim; d += kPanelWidth) {
    F32 acc[kRows][2];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const F32 factor = Set1(correction[row]);
      acc[row][0] = Load(out + row * padded_dim + d) * factor;
      acc[row][1] = Load(out + row * padded_dim + d + kLanes) * factor;
    }
    for (int p = 0; p < num_positions; p += kLanes) {
      const char* v = tile.v[p / kLanes];
      const int end = num_positions - p < kLanes ? num_positions : p + kLanes;
      for (int i = p; i < end; ++i) {
        const F32 v0 = LoadKv<kFormat>(v, d);
        const F32 v1 = LoadKv<kFormat>(v, d + kLanes);
#pragma GCC unroll 16
        for (int row = 0; row < kRows; ++row) {
          const F32 prob = Set1(probs[row * kAttentionTile + i]);
          acc[row][0] = Fma(v0, prob, acc[row][0]);
          acc[row][1] = Fma(v1, prob, acc[row][1]);
        }
        v += tile.v_stride;
      }
    }
    for (int row = 0; row < kRows; ++row) {
      Store(out + row * padded_dim + d, acc[row][0]);
      Store(out + row * padded_dim + d + kLanes, acc[row][1]);
    }
  }
}

using ScoreFunction = void (*)(const float* q, const TileGroups& tile,
                               int head_dim, int num_positions, float* scores);
using ValueFunction = void (*)(const float* probs, const TileGroups& tile,
                               int num_positions, int padded_dim,
                               const float* correction, float* out);
struct TileTable {
  ScoreFunction score[kTileRows + 1];  // Entry r handles r rows.
  ValueFunction value[kTileRows + 1];
};
template <KvFormat kFormat, int... kRows>
constexpr TileTable MakeTileTable() {
  return {{nullptr, ScoreTile<kFormat, kRows>...},
          {nullptr, ValueTile<kFormat, kRows>...}};
}
// Up to this many query rows a tile is read from the cache as it is; for more
// it is widened once. Where both are possible they compute the same bits.
constexpr int kMaxDirectRows = kTileRows < 8 ? kTileRows : 8;
template <KvFormat kFormat>
constexpr TileTable MakeFormatTable() {
#if defined(__AVX512F__) || defined(QUIRE_NEON)
  if constexpr (kFormat != KvFormat::kF32) {
    return MakeTileTable<kFormat, 1, 2, 3, 4, 5, 6, 7, 8>();
  } else {
    return MakeTileTable<kFormat, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
#if defined(__AVX512F__)
                         ,
                         13, 14
#endif
                         >();
  }
#else
  return MakeTileTable<kFormat, 1, 2, 3, 4, 5, 6>();
#endif
}
constexpr TileTable kTiles[kNumKvFormats] = {
    MakeFormatTable<KvFormat::kF32>(),  MakeFormatTable<KvFormat::kF16>(),
    MakeFormatTable<KvFormat::kBf16>(), MakeFormatTable<KvFormat::kF8>(),
    MakeFormatTable<KvFormat::kI8>(),
};

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

// A tile of positions in the cache.
struct Tile {
  // Of each position: K's first element (the others are block_size further
  // each), V's row. Null where invisible.
  const char* k[kAttentionTile];
  const char* v[kAttentionTile];
  // kI8: scales, zero where invisible.
  float k_scales[kAttentionTile];
  float v_scales[kAttentionTile];
};

int ElementBytes(const AttentionJob& job) {
  return job.kv_format == KvFormat::kF32 ? 4
         : job.kv_format == KvFormat::kF16 || job.kv_format == KvFormat::kBf16
             ? 2
             : 1;
}

// Finds the tile at `tile_start`; positions in [begin, end) are visible.
void FindTile(const AttentionJob& job, const AttentionItem& item,
              int64_t tile_start, int64_t begin, int64_t end, Tile* tile) {
  const int element_bytes = ElementBytes(job);
  const bool has_scales = job.kv_format == KvFormat::kI8;
  const int64_t row_bytes = static_cast<int64_t>(job.head_dim) * element_bytes;
  const int64_t scales_offset = job.block_size * row_bytes;
  const int64_t head_bytes =
      scales_offset + (has_scales ? job.block_size * 4 : 0);
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
    const char* v = nullptr;
    if (is_used) {
      k = job.kv + item.block_table[block_idx] * job.block_bytes +
          2 * item.kv_head * head_bytes;
      v = k + head_bytes;
      if (has_scales) {
        const int64_t offset = scales_offset + slot * 4;
        __builtin_memcpy(tile->k_scales + i, k + offset, count * 4);
        __builtin_memcpy(tile->v_scales + i, v + offset, count * 4);
      }
      k += slot * element_bytes;
      v += slot * row_bytes;
    }
    for (int64_t j = 0; j < count; ++j, ++i) {
      const bool is_visible = position + j >= begin && position + j < end;
      tile->k[i] = is_visible ? k + j * element_bytes : nullptr;
      tile->v[i] = is_visible ? v + j * row_bytes : nullptr;
      if (has_scales && !is_visible) tile->k_scales[i] = tile->v_scales[i] = 0;
    }
    ++block_idx;
    slot = 0;
  }
}

// Asks for a tile's K and V.
void PrefetchTile(const AttentionJob& job, const Tile& tile) {
  const int64_t row_bytes =
      static_cast<int64_t>(job.head_dim) * ElementBytes(job);
  const int64_t k_stride =
      static_cast<int64_t>(job.block_size) * ElementBytes(job);
  if (k_stride >= 64) {
    // Positions of a block share the lines of an element.
    const int64_t step = 64 / ElementBytes(job);
    for (int64_t i = 0; i < kAttentionTile; i += step) {
      if (tile.k[i] == nullptr) continue;
      for (int64_t d = 0; d < job.head_dim; ++d) {
        __builtin_prefetch(tile.k[i] + d * k_stride);
      }
    }
  } else {
    for (int64_t i = 0; i < kAttentionTile; i += job.block_size) {
      if (tile.k[i] == nullptr) continue;
      const int64_t num_bytes = job.head_dim * k_stride;
      for (int64_t j = 0; j < num_bytes; j += 64) {
        __builtin_prefetch(tile.k[i] + j);
      }
    }
  }
  for (int i = 0; i < kAttentionTile; ++i) {
    if (tile.v[i] == nullptr) continue;
    for (int64_t j = 0; j < row_bytes; j += 64) {
      __builtin_prefetch(tile.v[i] + j);
    }
  }
}

// Whether whole groups can be read from the cache, which needs them in one
// block, no padding of the rows of V, and no invisible position before the end
// (V of an invisible one may be anything, also NaN).
bool IsDirect(const AttentionJob& job, int num_rows, int64_t tile_start,
              int64_t begin) {
  return num_rows <= kMaxDirectRows && job.block_size % kLanes == 0 &&
         job.head_dim == job.padded_dim && tile_start >= begin;
}

// The groups of a tile in the cache. Those that the end cuts off are not used,
// but may be loaded beside one that is.
void GroupsInCache(const AttentionJob& job, const Tile& tile,
                   TileGroups* groups) {
  groups->k_stride = static_cast<int64_t>(job.block_size) * ElementBytes(job);
  groups->v_stride = static_cast<int64_t>(job.head_dim) * ElementBytes(job);
  for (int g = 0; g < kNumGroups; ++g) {
    const int from = tile.k[g * kLanes] != nullptr ? g * kLanes : 0;
    groups->k[g] = tile.k[from];
    groups->v[g] = tile.v[from];
  }
}

// Widens a tile to f32 in the scratch: V is zero where invisible (there it is
// multiplied by a probability of zero and must be finite); scores of invisible
// positions are replaced, whatever K is.
//   kt: [head_dim][kAttentionTile]; v: [kAttentionTile][padded_dim]
template <KvFormat kFormat>
void WidenTile(const AttentionJob& job, const Tile& tile, float* kt, float* v) {
  constexpr int kSize = kElementBytes<kFormat>;
  const int64_t dim = job.head_dim;
  const int64_t k_stride = static_cast<int64_t>(job.block_size) * kSize;
  const bool has_whole_groups = job.block_size % kLanes == 0;
  for (int i = 0; i < kAttentionTile; i += kLanes) {
    const char* group = nullptr;
    for (int j = 0; j < kLanes; ++j) {
      const char* const k = tile.k[i + j];
      if (k == nullptr) continue;
      if (has_whole_groups) {
        group = k - j * kSize;
        break;
      }
      for (int64_t d = 0; d < dim; ++d) {
        kt[d * kAttentionTile + i + j] =
            LoadKvPartial<kFormat>(k + d * k_stride, 0, 1)[0];
      }
    }
    if (group != nullptr) {
      for (int64_t d = 0; d < dim; ++d) {
        Store(kt + d * kAttentionTile + i,
              LoadKv<kFormat>(group + d * k_stride, 0));
      }
    }
    for (int j = i; j < i + kLanes; ++j) {
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

using WidenFunction = void (*)(const AttentionJob& job, const Tile& tile,
                               float* kt, float* v);
constexpr WidenFunction kWiden[kNumKvFormats] = {
    WidenTile<KvFormat::kF32>, WidenTile<KvFormat::kF16>,
    WidenTile<KvFormat::kBf16>, WidenTile<KvFormat::kF8>,
    WidenTile<KvFormat::kI8>};

void GroupsInScratch(const AttentionJob& job, const Scratch& scratch,
                     TileGroups* groups) {
  groups->k_stride = kAttentionTile * 4;
  groups->v_stride = static_cast<int64_t>(job.padded_dim) * 4;
  for (int g = 0; g < kNumGroups; ++g) {
    groups->k[g] = reinterpret_cast<const char*>(scratch.kt + g * kLanes);
    groups->v[g] = reinterpret_cast<const char*>(scratch.v) +
                   g * kLanes * groups->v_stride;
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

// Turns the scores of a row tile into probabilities relative to the new maxima,
// times the scales of V.
//   scores: [range.size][kAttentionTile]; max, sums: of the tile's first row
//   correction: the factors that the older sums of each row are due.
void SoftmaxTile(const AttentionJob& job, const AttentionItem& item,
                 const Tile& tile, int64_t tile_start, RowTile range,
                 float* scores, float* max, float* sums, float* correction) {
  constexpr int kVectors = kAttentionTile / kLanes;
  const int group = job.num_heads / job.num_kv_heads;
  const bool has_scales = job.kv_format == KvFormat::kI8;
  const I32 iota = Iota();
  float base[16] = {};
  alignas(64) float change[16] = {};
  for (int r = 0; r < range.size; ++r) {
    const Visible visible = VisibleRange(
        job, item.first_position + (range.first + r) / group, tile_start);
    float* const row = scores + r * kAttentionTile;
    F32 s[kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) {
      s[i] = Load(row + i * kLanes);
      if (has_scales) s[i] *= Load(tile.k_scales + i * kLanes);
      s[i] *= job.scale;
    }
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
      const F32 weight = has_scales ? p * Load(tile.v_scales + i * kLanes) : p;
      Store(row + i * kLanes, weight);
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

// All query rows against a tile.
//   format: of what `groups` points to.
void ProcessTile(const AttentionJob& job, const AttentionItem& item,
                 const Tile& tile, const TileGroups& groups, KvFormat format,
                 int64_t tile_start, int num_rows, int num_tiles,
                 const Scratch& scratch, float* partial) {
  const TileTable& functions = kTiles[static_cast<int>(format)];
  const int group = job.num_heads / job.num_kv_heads;
  float* const max = partial + static_cast<int64_t>(num_rows) * job.padded_dim;
  for (int row_tile = 0; row_tile < num_tiles; ++row_tile) {
    const RowTile range = GetRowTile(num_rows, num_tiles, row_tile);
    // Later tokens see further; with a window, earlier ones see further back.
    const int64_t first = item.first_position + range.first / group;
    const int64_t last =
        item.first_position + (range.first + range.size - 1) / group;
    const int begin = VisibleRange(job, first, tile_start).begin;
    const int end = VisibleRange(job, last, tile_start).end;
    if (begin >= end) continue;
    functions.score[range.size](scratch.q + range.first * job.head_dim, groups,
                                job.head_dim, end, scratch.scores);
    alignas(64) float correction[16];
    SoftmaxTile(job, item, tile, tile_start, range, scratch.scores,
                max + range.first, scratch.sums + range.first * kLanes,
                correction);
    functions.value[range.size](
        scratch.scores, groups, end, job.padded_dim, correction,
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
  Tile tiles[2];
  FindTile(job, item, tile_start, begin, tiles_end, &tiles[0]);
  for (int current = 0; tile_start < tiles_end;
       tile_start += kAttentionTile, current ^= 1) {
    const Tile& tile = tiles[current];
    Tile& next = tiles[current ^ 1];
    FindTile(job, item, tile_start + kAttentionTile, begin, tiles_end, &next);
    PrefetchTile(job, next);
    TileGroups groups;
    KvFormat format = job.kv_format;
    if (IsDirect(job, num_rows, tile_start, begin)) {
      GroupsInCache(job, tile, &groups);
    } else {
      kWiden[static_cast<int>(format)](job, tile, scratch.kt, scratch.v);
      GroupsInScratch(job, scratch, &groups);
      format = KvFormat::kF32;
    }
    ProcessTile(job, item, tile, groups, format, tile_start, num_rows,
                num_tiles, scratch, partial);
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
