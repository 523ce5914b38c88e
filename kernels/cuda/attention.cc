#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/element.h"
#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

template <AttentionTile kTile>
struct TileShape;
// Four warps of 16 rows each; every warp sees all keys of a tile.
template <>
struct TileShape<AttentionTile::kPrefill> {
  static constexpr int kWarpsOfRows = 4;
  static constexpr int kWarpsOfKeys = 1;
};
// One set of 16 rows; each warp takes a quarter of the keys.
template <>
struct TileShape<AttentionTile::kDecode> {
  static constexpr int kWarpsOfRows = 1;
  static constexpr int kWarpsOfKeys = 4;
};

// kKv: kF8E4M3, or else the queries' dtype.
template <int kHeadDim, AttentionTile kTile, DType kKv>
struct Layout {
  static constexpr bool kIsFp8 = kKv == DType::kF8E4M3;
  static constexpr int kKvBytes = kIsFp8 ? 1 : 2;  // Of an element.
  static constexpr int kWarpsOfRows = TileShape<kTile>::kWarpsOfRows;
  static constexpr int kWarpsOfKeys = TileShape<kTile>::kWarpsOfKeys;
  static constexpr int kRows = 16 * kWarpsOfRows;
  static constexpr int kNumThreads = 32 * kWarpsOfRows * kWarpsOfKeys;
  // Keys of a tile. With 256 dimensions two tiles of 32 keys and the queries
  // take 96 KiB; sm_86, 89 and 120 have 99.
  static constexpr int kKeys = kHeadDim > 128 && kWarpsOfKeys == 1 ? 32 : 64;
  static constexpr int kKeysOfWarp = kKeys / kWarpsOfKeys;
  // Of 16 bytes in a row.
  static constexpr int kQueryChunks = kHeadDim / 8;
  static constexpr int kKvChunks = kHeadDim * kKvBytes / 16;
  static constexpr int kKvTileBytes = kKeys * kHeadDim * kKvBytes;
  static constexpr size_t SharedBytes(int num_buffers) {
    return size_t{kRows} * kHeadDim * 2 +
           size_t{2} * num_buffers * kKvTileBytes;
  }
  // One buffer more would not fit for 256 dimensions of 16 bits, nor, on
  // sm_75, for 128: there a decode tile of 256 does not fit with one.
  static constexpr size_t kSharedBytes =
      SharedBytes(kHeadDim * kKvBytes > 256 && kKeys == 64 ? 1 : 2);
  static_assert(kSharedBytes <= 99 << 10);
  static constexpr size_t kSmallSharedBytes =
      kSharedBytes <= simt::kSmallSharedBytes ? kSharedBytes : SharedBytes(1);
  static_assert((kHeadDim > 128 && kTile == AttentionTile::kDecode) ||
                kSmallSharedBytes <= simt::kSmallSharedBytes);
  static constexpr int kNumBuffers =
      (SIMT_HAS_SMALL_SHARED ? kSmallSharedBytes : kSharedBytes) ==
              SharedBytes(1)
          ? 1
          : 2;
  // Queries stay in registers where those suffice.
  static constexpr bool kKeepsQueries = kHeadDim <= 128;
  // The warps' results are merged where the keys lay.
  static_assert(kWarpsOfKeys == 1 ||
                size_t{kRows} * (kHeadDim + 2 * kWarpsOfKeys) * 4 <=
                    size_t{2 * kNumBuffers} * kKvTileBytes);
};

// Chunk `chunk` of a row of kChunks. The place of a chunk is exclusive-ored
// with the row (rows shorter than all banks: with the row's group that fills
// them): eight rows of ldmatrix fall on eight groups of banks.
template <int kChunks>
SIMT_DEVICE unsigned char* Chunk(unsigned char* tile, int row, int chunk) {
  const int phase = HasPlantedBug(PlantedBug::kAttentionNoSwizzle) ? 0
                    : kChunks >= 8                                 ? row & 7
                                   : row / (8 / kChunks) & (kChunks - 1);
  return tile + (row * kChunks + (chunk ^ phase)) * 16;
}

// What a CTA knows of its task.
struct TaskView {
  AttentionTask task;
  AttentionSequence sequence;
  int group;     // Query heads per KV head.
  int num_rows;  // Packed queries of the sequence.
  int past;      // Positions before the first query.

  // The first position that packed query `row` does not see.
  SIMT_DEVICE int End(int row) const {
    int end = past + row / group + 1;
    if (HasPlantedBug(PlantedBug::kAttentionSeesTheFuture)) ++end;
    return end < task.kv_end ? end : task.kv_end;
  }
};

SIMT_DEVICE AttentionWork WorkOf(const AttentionArguments& arguments) {
  if (arguments.work) return *arguments.work;
  return {arguments.sequences, arguments.tasks, arguments.merges,
          arguments.num_tasks, arguments.num_merges};
}

SIMT_DEVICE TaskView ViewTask(const AttentionArguments& arguments,
                              const AttentionWork& work, int task_idx) {
  TaskView view;
  view.task = work.tasks[task_idx];
  view.sequence = work.sequences[view.task.sequence];
  view.group = arguments.shape.num_heads / arguments.shape.num_kv_heads;
  view.num_rows = view.sequence.num_tokens * view.group;
  view.past = view.sequence.seq_len - view.sequence.num_tokens;
  return view;
}

// An 8-bit K comes out of ldmatrix as four consecutive dimensions for each lane
// of a quad, where mma has dimensions 2t, 2t + 1, 2t + 8 and 2t + 9. A dot
// product does not care as long as the queries lie the same way: pairs of
// dimensions 0, 2, 4, 6 of sixteen in one chunk, 1, 3, 5, 7 in the next.
// Threads of a quarter warp come here with every other chunk: those of the
// upper eight write the second one first, into the banks that the others leave.
template <typename L>
SIMT_DEVICE void StorePairs(const simt::Bytes16& low, const simt::Bytes16& high,
                            unsigned char* tile, int row, int chunk) {
  simt::Bytes16 even = {
      {low.words[0], low.words[2], high.words[0], high.words[2]}};
  simt::Bytes16 odd = {
      {low.words[1], low.words[3], high.words[1], high.words[3]}};
  if (HasPlantedBug(PlantedBug::kAttentionFp8QueriesInOrder)) {
    even = low;
    odd = high;
  }
  const bool is_upper = L::kQueryChunks > 8 && chunk & 8;
  simt::StoreShared16(
      Chunk<L::kQueryChunks>(tile, row, chunk + (is_upper ? 1 : 0)),
      is_upper ? odd : even);
  simt::StoreShared16(
      Chunk<L::kQueryChunks>(tile, row, chunk + (is_upper ? 0 : 1)),
      is_upper ? even : odd);
}

template <typename L>
SIMT_DEVICE void LoadQueries(const AttentionArguments& arguments,
                             const TaskView& view, unsigned char* tile) {
  constexpr int kWidth = L::kIsFp8 ? 2 : 1;  // Chunks at a time.
  const int num_chunks = arguments.shape.head_dim / 8;
  const auto* q = static_cast<const uint16_t*>(arguments.q);
  for (int i = simt::ThreadX(); i < L::kRows * L::kQueryChunks / kWidth;
       i += L::kNumThreads) {
    const int row = i * kWidth / L::kQueryChunks;
    const int chunk = i * kWidth % L::kQueryChunks;
    const int packed = view.task.first_row + row;
    const bool is_valid = packed < view.num_rows && chunk < num_chunks;
    const int token =
        view.sequence.first_token + (is_valid ? packed / view.group : 0);
    const int head =
        view.task.kv_head * view.group +
        (is_valid && !HasPlantedBug(PlantedBug::kAttentionWrongHead)
             ? packed % view.group
             : 0);
    const uint16_t* from = q + token * arguments.q_stride +
                           head * arguments.shape.head_dim +
                           (is_valid ? chunk * 8 : 0);
    if constexpr (L::kIsFp8) {
      simt::Bytes16 low = {{0, 0, 0, 0}}, high = {{0, 0, 0, 0}};
      if (is_valid) {
        low = simt::Load16(from);
        high = simt::Load16(from + 8);
      }
      StorePairs<L>(low, high, tile, row, chunk);
    } else {
      simt::CpAsync16(Chunk<L::kQueryChunks>(tile, row, chunk), from, is_valid);
    }
  }
}

// Keys and values of positions [first, first + L::kKeys); those from `end` on
// become zeros.
template <typename L>
SIMT_DEVICE void LoadKeys(const AttentionArguments& arguments,
                          const TaskView& view, int first, int end,
                          unsigned char* keys, unsigned char* values) {
  const AttentionShape& shape = arguments.shape;
  const int row_bytes = shape.head_dim * L::kKvBytes;
  const int32_t* table =
      arguments.block_tables +
      view.sequence.block_table * arguments.block_table_stride;
  const auto* cache = static_cast<const unsigned char*>(arguments.kv_cache);
  const int64_t head_bytes = int64_t{shape.block_size} * row_bytes;
  const int64_t values_offset = shape.num_kv_heads * head_bytes;
  for (int i = simt::ThreadX(); i < L::kKeys * L::kKvChunks;
       i += L::kNumThreads) {
    const int row = i / L::kKvChunks, chunk = i % L::kKvChunks;
    const bool is_valid =
        (first + row < end ||
         (HasPlantedBug(PlantedBug::kAttentionReadsPastTheEnd) &&
          first + row < (end + shape.block_size - 1) / shape.block_size *
                            shape.block_size)) &&
        chunk * 16 < row_bytes;
    const int position = is_valid ? first + row : view.task.kv_begin;
    const int64_t block = table[position / shape.block_size];
    const unsigned char* from =
        cache + block * 2 * values_offset + view.task.kv_head * head_bytes +
        (HasPlantedBug(PlantedBug::kAttentionWrongOffsetInBlock)
             ? (position + 1) % shape.block_size
             : position % shape.block_size) *
            row_bytes +
        (is_valid ? chunk * 16 : 0);
    simt::CpAsync16(Chunk<L::kKvChunks>(keys, row, chunk), from, is_valid);
    simt::CpAsync16(Chunk<L::kKvChunks>(values, row, chunk),
                    from + values_offset, is_valid);
  }
  simt::CpAsyncCommit();
}

// What one lane holds of two rows of the running softmax: row lane / 4 of its
// warp's sixteen, and the one eight below.
template <int kHeadDim>
struct Accumulator {
  float out[kHeadDim / 8][4];
  float maximum[2];  // In units of log2.
  float sum[2];

  SIMT_DEVICE void Clear() {
    SIMT_UNROLL
    for (int i = 0; i < kHeadDim / 8; ++i) {
      out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0;
    }
    maximum[0] = maximum[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }

  // Makes `larger` the maximum of row `half`. The guard keeps a row that has
  // seen no key yet (-inf - -inf) at zero.
  SIMT_DEVICE float Rescale(int half, float larger) {
    const float base = larger == -INFINITY ? 0.0f : larger;
    const float factor = HasPlantedBug(PlantedBug::kAttentionForgetsRescale)
                             ? (maximum[half] == -INFINITY ? 0.0f : 1.0f)
                             : simt::Exp2(maximum[half] - base);
    maximum[half] = larger;
    sum[half] *= factor;
    SIMT_UNROLL
    for (int i = 0; i < kHeadDim / 8; ++i) {
      out[i][half * 2] *= factor;
      out[i][half * 2 + 1] *= factor;
    }
    return base;
  }
};

// Calls visit(d, x, y) with a lane's values of dimensions d and d + 1 of row
// `half`. The transposed load of an 8-bit V gives neighbouring dimensions; one
// goes to an even accumulator, the other to the next.
template <typename L, int kHeadDim, typename Visit>
SIMT_DEVICE void VisitPairs(Accumulator<kHeadDim>& accumulator, int half,
                            const Visit& visit) {
  const int quad = simt::ThreadX() % 4;
  SIMT_UNROLL
  for (int i = 0; i < kHeadDim / 8; i += 2) {
    float(&first)[4] = accumulator.out[i];
    float(&second)[4] = accumulator.out[i + 1];
    const int e = half * 2;
    if constexpr (L::kIsFp8) {
      visit(i * 8 + quad * 4, first[e], second[e]);
      visit(i * 8 + quad * 4 + 2, first[e + 1], second[e + 1]);
    } else {
      visit(i * 8 + quad * 2, first[e], first[e + 1]);
      visit(i * 8 + 8 + quad * 2, second[e], second[e + 1]);
    }
  }
}

// Scores of a tile become probabilities, with the running maximum and sum.
template <typename L, int kHeadDim>
SIMT_DEVICE void Softmax(const AttentionArguments& arguments,
                         const TaskView& view, int first_key, int warp_row,
                         float (&scores)[L::kKeysOfWarp / 8][4],
                         Accumulator<kHeadDim>& accumulator) {
  const AttentionShape& shape = arguments.shape;
  const int lane = simt::ThreadX() % 32;
  SIMT_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = view.task.first_row + warp_row * 16 + lane / 4 + half * 8;
    const int end = view.End(row);
    const int begin = shape.sliding_window > 0 ? view.past + row / view.group +
                                                     1 - shape.sliding_window
                                               : 0;
    float larger = accumulator.maximum[half];
    SIMT_UNROLL
    for (int n = 0; n < L::kKeysOfWarp / 8; ++n) {
      SIMT_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int key = first_key + n * 8 + lane % 4 * 2 + e;
        float& score = scores[n][half * 2 + e];
        score *= shape.scale;
        if (shape.softcap > 0) {
          score = shape.softcap * simt::Tanh(score / shape.softcap);
        }
        const int first_seen =
            HasPlantedBug(PlantedBug::kAttentionWindowTooWide) ? begin - 1
                                                               : begin;
        score = key >= first_seen && key < end ? score * kLog2E : -INFINITY;
        larger = fmaxf(larger, score);
      }
    }
    larger = fmaxf(larger, simt::ShuffleXor(larger, 1));
    larger = fmaxf(larger, simt::ShuffleXor(larger, 2));
    const float base = accumulator.Rescale(half, larger);
    float sum = 0;
    SIMT_UNROLL
    for (int n = 0; n < L::kKeysOfWarp / 8; ++n) {
      SIMT_UNROLL
      for (int e = 0; e < 2; ++e) {
        float& score = scores[n][half * 2 + e];
        score = simt::Exp2(score - base);
        sum += score;
      }
    }
    accumulator.sum[half] += sum;
  }
}

// Moves in one instruction.
struct alignas(8) FloatPair {
  float x, y;
};

// Merges the results of the warps that took different keys, in their order,
// into those of the first. The sum grows in shared memory, where it needs no
// registers beside the 128 that hold a warp's own 256 dimensions.
template <typename L, int kHeadDim>
SIMT_DEVICE void MergeWarps(int warp, Accumulator<kHeadDim>& accumulator,
                            float* scratch) {
  const int lane = simt::ThreadX() % 32;
  auto* stats = reinterpret_cast<FloatPair*>(scratch + L::kRows * kHeadDim);
  SIMT_UNROLL
  for (int half = 0; half < 2; ++half) {
    if (lane % 4 != 0) continue;
    simt::StoreShared(
        stats + warp * L::kRows + lane / 4 + half * 8,
        FloatPair{accumulator.maximum[half], accumulator.sum[half]});
  }
  if (!HasPlantedBug(PlantedBug::kAttentionMergesTooEarly)) {
    simt::SyncThreads();
  }
  SIMT_UNROLL
  for (int half = 0; half < 2; ++half) {
    FloatPair of_warp[L::kWarpsOfKeys];
    float larger = -INFINITY, sum = 0;
    SIMT_UNROLL
    for (int k = 0; k < L::kWarpsOfKeys; ++k) {
      of_warp[k] = simt::LoadShared(stats + k * L::kRows + lane / 4 + half * 8);
      larger = fmaxf(larger, of_warp[k].x);
    }
    const float base = accumulator.Rescale(half, larger);
    SIMT_UNROLL
    for (int k = 0; k < L::kWarpsOfKeys; ++k) {
      sum += of_warp[k].y * simt::Exp2(of_warp[k].x - base);
    }
    accumulator.sum[half] = sum;
  }
  // Rows are multiples of all banks. Half a warp moves a pair of each quad of
  // four rows: of bf16 pairs 0 to 3 of eight dimensions, of fp8 every other of
  // sixteen. The row moves them to four different places of the banks.
  const auto visit = [&](const auto& what) {
    SIMT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + half * 8;
      const int phase = HasPlantedBug(PlantedBug::kAttentionMergesInOneBank) ? 0
                        : L::kIsFp8 ? row % 2 * 2 + row / 2 % 2 * 16
                                    : row % 4 * 8;
      VisitPairs<L>(accumulator, half, [&](int d, float& x, float& y) {
        what(reinterpret_cast<FloatPair*>(scratch + row * kHeadDim +
                                          (d ^ phase)),
             x, y);
      });
    }
  };
  for (int k = 0; k < L::kWarpsOfKeys; ++k) {
    if (warp == k) {
      visit([&](FloatPair* sum, float& x, float& y) {
        FloatPair pair = {x, y};
        if (k > 0) {
          const FloatPair before = simt::LoadShared(sum);
          pair = {before.x + x, before.y + y};
        }
        simt::StoreShared(sum, pair);
      });
    }
    if (!HasPlantedBug(PlantedBug::kAttentionMergesAtOnce)) {
      simt::SyncThreads();
    }
  }
  if (warp == 0) {
    visit([](FloatPair* sum, float& x, float& y) {
      const FloatPair pair = simt::LoadShared(sum);
      x = pair.x;
      y = pair.y;
    });
  }
}

template <typename L, DType kType, int kHeadDim>
SIMT_DEVICE void StoreResults(const AttentionArguments& arguments,
                              const TaskView& view, int warp_row,
                              Accumulator<kHeadDim>& accumulator) {
  const int lane = simt::ThreadX() % 32;
  const int head_dim = arguments.shape.head_dim;
  SIMT_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row_of_tile = warp_row * 16 + lane / 4 + half * 8;
    const int row = view.task.first_row + row_of_tile;
    if (row >= view.num_rows) continue;
    if (view.task.part >= 0) {
      const int64_t slot = int64_t{view.task.part} * L::kRows + row_of_tile;
      if (lane % 4 == 0) {
        arguments.partial_stats[slot * 2] = accumulator.maximum[half];
        arguments.partial_stats[slot * 2 + 1] = accumulator.sum[half];
      }
      float* to = arguments.partial_out + slot * kHeadDim;
      VisitPairs<L>(accumulator, half, [&](int d, float& x, float& y) {
        to[d] = x;
        to[d + 1] = y;
      });
      continue;
    }
    const float inverse = 1.0f / accumulator.sum[half];
    const int token = view.sequence.first_token + row / view.group;
    const int head = view.task.kv_head * view.group + row % view.group;
    auto* to = static_cast<uint16_t*>(arguments.out) +
               (int64_t{token} * arguments.shape.num_heads + head) * head_dim;
    VisitPairs<L>(accumulator, half, [&](int d, float& x, float& y) {
      if (d >= head_dim) return;
      *reinterpret_cast<uint32_t*>(to + d) =
          Element<kType>::Pack(x * inverse, y * inverse);
    });
  }
}

// The scores of a warp's keys: q k^T.
//   query: fragments of all dimensions, or loaded by load_query.
template <typename L, DType kType, typename Query>
SIMT_DEVICE void Scores(unsigned char* keys, int first_key, const Query& query,
                        float (&scores)[L::kKeysOfWarp / 8][4]) {
  const int lane = simt::ThreadX() % 32;
  constexpr int kSteps = L::kKvChunks / 2;  // Of two chunks.
  SIMT_UNROLL
  for (int n = 0; n < L::kKeysOfWarp / 8; ++n) {
    scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0;
  }
  // With the queries in registers k is known; otherwise some steps at a time
  // keep loads from taking registers ahead.
  constexpr int kUnroll = L::kKeepsQueries ? kSteps : 4;
  SIMT_NO_UNROLL
  for (int first_k = 0; first_k < kSteps; first_k += kUnroll) {
    SIMT_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const int k = first_k + u;
      const auto load = [&](int n, uint32_t(&b)[4]) {
        simt::LdMatrixX4(
            b, Chunk<L::kKvChunks>(
                   keys, first_key + n * 16 + lane % 8 + lane / 16 * 8,
                   k * 2 + lane / 8 % 2));
      };
      if constexpr (L::kIsFp8) {
        // Each chunk is a k of sixteen.
        SIMT_UNROLL
        for (int n = 0; n < L::kKeysOfWarp / 16; ++n) {
          uint32_t b[4];
          load(n, b);
          SIMT_UNROLL
          for (int c = 0; c < 2; ++c) {
            uint32_t fragment[4];
            query(k * 2 + c, fragment);
            SIMT_UNROLL
            for (int i = 0; i < 2; ++i) {
              const uint32_t four = b[i * 2 + c];
              Element<kType>::Mma(scores[2 * n + i], fragment,
                                  Element<kType>::FromE4M3x2(four & 0xffff),
                                  Element<kType>::FromE4M3x2(four >> 16));
            }
          }
        }
      } else {
        uint32_t fragment[4];
        query(k, fragment);
        SIMT_UNROLL
        for (int n = 0; n < L::kKeysOfWarp / 16; ++n) {
          uint32_t b[4];
          load(n, b);
          Element<kType>::Mma(scores[2 * n], fragment, b[0], b[1]);
          Element<kType>::Mma(scores[2 * n + 1], fragment, b[2], b[3]);
        }
      }
    }
  }
}

// out += p v over a warp's keys.
template <typename L, DType kType, int kHeadDim>
SIMT_DEVICE void AddValues(unsigned char* values, int first_key,
                           const float (&scores)[L::kKeysOfWarp / 8][4],
                           Accumulator<kHeadDim>& accumulator) {
  const int lane = simt::ThreadX() % 32;
  SIMT_UNROLL
  for (int n = 0; n < L::kKeysOfWarp / 16; ++n) {
    const uint32_t a[4] = {
        Element<kType>::Pack(scores[2 * n][0], scores[2 * n][1]),
        Element<kType>::Pack(scores[2 * n][2], scores[2 * n][3]),
        Element<kType>::Pack(scores[2 * n + 1][0], scores[2 * n + 1][1]),
        Element<kType>::Pack(scores[2 * n + 1][2], scores[2 * n + 1][3])};
    SIMT_UNROLL
    for (int d = 0; d < L::kKvChunks / 2; ++d) {
      uint32_t b[4];
      simt::LdMatrixX4Transposed(
          b, Chunk<L::kKvChunks>(values, first_key + n * 16 + lane % 16,
                                 d * 2 + lane / 16));
      if constexpr (L::kIsFp8) {
        // A register holds two dimensions of two keys, key by key.
        SIMT_UNROLL
        for (int c = 0; c < 2; ++c) {
          const uint32_t order =
              HasPlantedBug(PlantedBug::kAttentionFp8KeysInterleaved) ? 0x3210
                                                                      : 0x3120;
          const uint32_t low = simt::PermuteBytes(b[c * 2], 0, order);
          const uint32_t high = simt::PermuteBytes(b[c * 2 + 1], 0, order);
          Element<kType>::Mma(accumulator.out[4 * d + 2 * c], a,
                              Element<kType>::FromE4M3x2(low & 0xffff),
                              Element<kType>::FromE4M3x2(high & 0xffff));
          Element<kType>::Mma(accumulator.out[4 * d + 2 * c + 1], a,
                              Element<kType>::FromE4M3x2(low >> 16),
                              Element<kType>::FromE4M3x2(high >> 16));
        }
      } else {
        Element<kType>::Mma(accumulator.out[2 * d], a, b[0], b[1]);
        Element<kType>::Mma(accumulator.out[2 * d + 1], a, b[2], b[3]);
      }
    }
  }
}

// One task, in the CTA's dynamic shared memory.
template <int kHeadDim, DType kType, DType kKv, AttentionTile kTile>
SIMT_DEVICE void Attend(const AttentionArguments& arguments,
                        const TaskView& view, unsigned char* memory) {
  using L = Layout<kHeadDim, kTile, kKv>;
  unsigned char* queries = memory;
  unsigned char* tiles = queries + L::kRows * kHeadDim * 2;
  const int lane = simt::ThreadX() % 32, warp = simt::ThreadX() / 32;
  const int warp_row = warp % L::kWarpsOfRows,
            warp_key = warp / L::kWarpsOfRows;

  const int last_row = (view.task.first_row + L::kRows < view.num_rows
                            ? view.task.first_row + L::kRows
                            : view.num_rows) -
                       1;
  const int end = view.End(last_row);
  const int num_tiles = (end - view.task.kv_begin + L::kKeys - 1) / L::kKeys;

  LoadQueries<L>(arguments, view, queries);
  const auto load = [&](int tile) {
    unsigned char* keys = tiles + tile % L::kNumBuffers * 2 * L::kKvTileBytes;
    LoadKeys<L>(arguments, view, view.task.kv_begin + tile * L::kKeys, end,
                keys, keys + L::kKvTileBytes);
  };
  Accumulator<kHeadDim> accumulator;
  accumulator.Clear();
  uint32_t kept[L::kKeepsQueries ? kHeadDim / 16 : 1][4];
  const auto load_query = [&](int k, uint32_t(&fragment)[4]) {
    simt::LdMatrixX4(fragment,
                     Chunk<L::kQueryChunks>(queries, warp_row * 16 + lane % 16,
                                            k * 2 + lane / 16));
  };
  const auto query = [&](int k, uint32_t(&fragment)[4]) {
    if constexpr (L::kKeepsQueries) {
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) fragment[i] = kept[k][i];
    } else {
      load_query(k, fragment);
    }
  };

  load(0);
  for (int tile = 0; tile < num_tiles; ++tile) {
    if (L::kNumBuffers > 1 && tile + 1 < num_tiles) {
      load(tile + 1);
      if (HasPlantedBug(PlantedBug::kAttentionWaitsForTooFewCopies)) {
        simt::CpAsyncWait<2>();
      } else {
        simt::CpAsyncWait<1>();
      }
    } else {
      simt::CpAsyncWait<0>();
    }
    if (!HasPlantedBug(PlantedBug::kAttentionNoBarrierAfterLoad)) {
      simt::SyncThreads();
    }
    if (L::kKeepsQueries && tile == 0) {
      SIMT_UNROLL
      for (int k = 0; k < kHeadDim / 16; ++k) {
        load_query(k, kept[L::kKeepsQueries ? k : 0]);
      }
    }
    unsigned char* keys = tiles + tile % L::kNumBuffers * 2 * L::kKvTileBytes;
    const int first_key = warp_key * L::kKeysOfWarp;
    float scores[L::kKeysOfWarp / 8][4];
    Scores<L, kType>(keys, first_key, query, scores);
    Softmax<L>(arguments, view,
               view.task.kv_begin + tile * L::kKeys + first_key, warp_row,
               scores, accumulator);
    AddValues<L, kType>(keys + L::kKvTileBytes, first_key, scores, accumulator);
    if (!HasPlantedBug(PlantedBug::kAttentionNoBarrierBeforeLoad)) {
      simt::SyncThreads();
    }
    if (L::kNumBuffers == 1 && tile + 1 < num_tiles) load(tile + 1);
  }
  SIMT_UNROLL
  for (int half = 0; half < 2; ++half) {
    accumulator.sum[half] += simt::ShuffleXor(accumulator.sum[half], 1);
    accumulator.sum[half] += simt::ShuffleXor(accumulator.sum[half], 2);
  }
  if constexpr (L::kWarpsOfKeys > 1) {
    MergeWarps<L>(warp_key, accumulator, reinterpret_cast<float*>(tiles));
    if (warp_key != 0) return;
  }
  StoreResults<L, kType>(arguments, view, warp_row, accumulator);
}

// CTAs that a multiprocessor should hold: with a fourth prefill of 64
// dimensions, the registers do not suffice.
template <int kHeadDim, AttentionTile kTile>
inline constexpr int kCtasPerSm =
    kHeadDim == 64 && kTile == AttentionTile::kPrefill ? 3 : 256 / kHeadDim;

template <int kHeadDim, DType kType, DType kKv, AttentionTile kTile>
SIMT_KERNEL((Layout<kHeadDim, kTile, kKv>::kNumThreads),
            (kCtasPerSm<kHeadDim, kTile>))
AttentionKernel(const AttentionArguments arguments) {
  SIMT_DYNAMIC_SHARED(memory);
  simt::WaitForPrevious();
  simt::LaunchNext();
  for (int i = simt::CtaX();; i += static_cast<int>(simt::NumCtasX())) {
    // Read anew each time: registers are scarce.
    const AttentionWork work = WorkOf(arguments);
    if (i >= work.num_tasks) return;
    Attend<kHeadDim, kType, kKv, kTile>(arguments, ViewTask(arguments, work, i),
                                        memory);
    // There are CTAs for all of these.
    if constexpr (kTile == AttentionTile::kPrefill) return;
    simt::SyncThreads();  // `memory`.
  }
}

// One CTA per (tile, row of it), one thread per dimension.
template <int kHeadDim, DType kType, AttentionTile kTile>
SIMT_DEVICE void Merge(const AttentionArguments& arguments,
                       const AttentionMerge& merge,
                       const AttentionSequence& sequence) {
  constexpr int kRows = AttentionTileRows(kTile);
  const int group = arguments.shape.num_heads / arguments.shape.num_kv_heads;
  const int row = merge.first_row + static_cast<int>(simt::CtaY());
  const int d = simt::ThreadX();
  if (row >= sequence.num_tokens * group || d >= arguments.shape.head_dim) {
    return;
  }
  float maximum = -INFINITY, sum = 0, out = 0;
  const int num_parts =
      merge.num_parts -
      (HasPlantedBug(PlantedBug::kAttentionMergesOnePartTooFew) ? 1 : 0);
  for (int part = 0; part < num_parts; ++part) {
    const int64_t slot =
        int64_t{merge.first_part + part} * kRows + simt::CtaY();
    const float other = arguments.partial_stats[slot * 2];
    if (other == -INFINITY) continue;  // The row sees none of these keys.
    const float larger = fmaxf(maximum, other);
    const float mine = simt::Exp2(maximum - larger);
    const float theirs = simt::Exp2(other - larger);
    maximum = larger;
    sum = sum * mine + arguments.partial_stats[slot * 2 + 1] * theirs;
    out = out * mine + arguments.partial_out[slot * kHeadDim + d] * theirs;
  }
  const int token = sequence.first_token + row / group;
  const int head = merge.kv_head * group + row % group;
  static_cast<uint16_t*>(
      arguments.out)[(int64_t{token} * arguments.shape.num_heads + head) *
                         arguments.shape.head_dim +
                     d] = Element<kType>::FromFloat(out / sum);
}

template <int kHeadDim, DType kType, AttentionTile kTile>
SIMT_KERNEL(kHeadDim)
MergeKernel(const AttentionArguments arguments) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  const AttentionWork work = WorkOf(arguments);
  for (int i = simt::CtaX(); i < work.num_merges;
       i += static_cast<int>(simt::NumCtasX())) {
    const AttentionMerge merge = work.merges[i];
    Merge<kHeadDim, kType, kTile>(arguments, merge,
                                  work.sequences[merge.sequence]);
  }
}

template <int kHeadDim, DType kType, DType kKv, AttentionTile kTile>
bool LaunchWith(const AttentionArguments& arguments, simt::Stream stream) {
  using L = Layout<kHeadDim, kTile, kKv>;
  if (arguments.num_tasks > 0 &&
      !simt::Launch(&AttentionKernel<kHeadDim, kType, kKv, kTile>,
                    {.num_ctas_x = static_cast<uint32_t>(arguments.num_tasks),
                     .num_threads = L::kNumThreads,
                     .dynamic_shared_bytes = L::kSharedBytes,
                     .small_shared_bytes = L::kSmallSharedBytes,
                     .waits_for_previous = true},
                    stream, arguments)) {
    return false;
  }
  return arguments.num_merges == 0 ||
         simt::Launch(
             &MergeKernel<kHeadDim, kType, kTile>,
             {.num_ctas_x = static_cast<uint32_t>(arguments.num_merges),
              .num_ctas_y = L::kRows,
              .num_threads = kHeadDim,
              .waits_for_previous = true},
             stream, arguments);
}

template <DType kType, DType kKv, AttentionTile kTile>
bool LaunchForHeadDim(const AttentionArguments& arguments,
                      simt::Stream stream) {
  switch (PaddedHeadDim(arguments.shape.head_dim)) {
    case 64:
      return LaunchWith<64, kType, kKv, kTile>(arguments, stream);
    case 128:
      return LaunchWith<128, kType, kKv, kTile>(arguments, stream);
    case 256:
      return LaunchWith<256, kType, kKv, kTile>(arguments, stream);
    default:
      return false;
  }
}

template <DType kType, DType kKv>
bool LaunchTile(const AttentionArguments& arguments, AttentionTile tile,
                simt::Stream stream) {
  return tile == AttentionTile::kPrefill
             ? LaunchForHeadDim<kType, kKv, AttentionTile::kPrefill>(arguments,
                                                                     stream)
             : LaunchForHeadDim<kType, kKv, AttentionTile::kDecode>(arguments,
                                                                    stream);
}

template <DType kType>
bool LaunchOfType(const AttentionArguments& arguments, AttentionTile tile,
                  simt::Stream stream) {
  if (arguments.kv_dtype == kType) {
    return LaunchTile<kType, kType>(arguments, tile, stream);
  }
  return arguments.kv_dtype == DType::kF8E4M3 &&
         arguments.shape.head_dim % 16 == 0 &&
         LaunchTile<kType, DType::kF8E4M3>(arguments, tile, stream);
}

}  // namespace

int PaddedHeadDim(int head_dim) {
  if (head_dim <= 0 || head_dim % 8 != 0) return 0;
  for (const int padded : {64, 128, 256}) {
    if (head_dim <= padded) return padded;
  }
  return 0;
}

int64_t AttentionPartialFloats(const AttentionShape& shape, AttentionTile tile,
                               int num_parts) {
  return int64_t{num_parts} * AttentionTileRows(tile) *
         (PaddedHeadDim(shape.head_dim) + 2);
}

bool LaunchAttention(const AttentionArguments& arguments, AttentionTile tile,
                     simt::Stream stream) {
  if (arguments.dtype == DType::kBF16) {
    return LaunchOfType<DType::kBF16>(arguments, tile, stream);
  }
  return arguments.dtype == DType::kF16 &&
         LaunchOfType<DType::kF16>(arguments, tile, stream);
}

}  // namespace quire::cuda
