#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/element.h"
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

template <int kHeadDim, AttentionTile kTile>
struct Layout {
  static constexpr int kWarpsOfRows = TileShape<kTile>::kWarpsOfRows;
  static constexpr int kWarpsOfKeys = TileShape<kTile>::kWarpsOfKeys;
  static constexpr int kRows = 16 * kWarpsOfRows;
  static constexpr int kNumThreads = 32 * kWarpsOfRows * kWarpsOfKeys;
  // Keys of a tile. With 256 dimensions two tiles of 32 keys and the queries
  // take 96 KiB; sm_86, 89 and 120 have 99.
  static constexpr int kKeys = kHeadDim > 128 && kWarpsOfKeys == 1 ? 32 : 64;
  static constexpr int kKeysOfWarp = kKeys / kWarpsOfKeys;
  static constexpr int kChunks = kHeadDim / 8;  // Of 16 bytes in a row.
  // One buffer more would not fit for 256 dimensions.
  static constexpr int kNumBuffers = kHeadDim > 128 && kKeys == 64 ? 1 : 2;
  // Queries stay in registers where those suffice.
  static constexpr bool kKeepsQueries = kHeadDim <= 128;
  static constexpr size_t kSharedBytes =
      size_t{kRows + 2 * kNumBuffers * kKeys} * kHeadDim * 2;
  static_assert(kSharedBytes <= 99 << 10);
  // The warps' results are merged where the keys lay.
  static_assert(kWarpsOfKeys == 1 ||
                size_t{kRows} * (kHeadDim + 2) * 4 <=
                    size_t{2 * kNumBuffers * kKeys} * kHeadDim * 2);
};

// Element (row, chunk * 8) of a tile whose 16-byte chunks are exclusive-ored
// with the row: eight rows of ldmatrix fall on eight groups of banks.
template <int kChunks>
SIMT_DEVICE uint16_t* Chunk(uint16_t* tile, int row, int chunk) {
  return tile + (row * kChunks + (chunk ^ (row & 7))) * 8;
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
    const int end = past + row / group + 1;
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

template <typename L>
SIMT_DEVICE void LoadQueries(const AttentionArguments& arguments,
                             const TaskView& view, uint16_t* tile) {
  const int num_chunks = arguments.shape.head_dim / 8;
  const auto* q = static_cast<const uint16_t*>(arguments.q);
  for (int i = simt::ThreadX(); i < L::kRows * L::kChunks;
       i += L::kNumThreads) {
    const int row = i / L::kChunks, chunk = i % L::kChunks;
    const int packed = view.task.first_row + row;
    const bool is_valid = packed < view.num_rows && chunk < num_chunks;
    const int token =
        view.sequence.first_token + (is_valid ? packed / view.group : 0);
    const int head =
        view.task.kv_head * view.group + (is_valid ? packed % view.group : 0);
    simt::CpAsync16(Chunk<L::kChunks>(tile, row, chunk),
                    q + token * arguments.q_stride +
                        head * arguments.shape.head_dim +
                        (is_valid ? chunk * 8 : 0),
                    is_valid);
  }
}

// Keys and values of positions [first, first + L::kKeys); those from `end` on
// become zeros.
template <typename L>
SIMT_DEVICE void LoadKeys(const AttentionArguments& arguments,
                          const TaskView& view, int first, int end,
                          uint16_t* keys, uint16_t* values) {
  const AttentionShape& shape = arguments.shape;
  const int num_chunks = shape.head_dim / 8;
  const int32_t* table =
      arguments.block_tables +
      view.sequence.block_table * arguments.block_table_stride;
  const auto* cache = static_cast<const uint16_t*>(arguments.kv_cache);
  const int64_t head_size = int64_t{shape.block_size} * shape.head_dim;
  const int64_t values_offset = shape.num_kv_heads * head_size;
  for (int i = simt::ThreadX(); i < L::kKeys * L::kChunks;
       i += L::kNumThreads) {
    const int row = i / L::kChunks, chunk = i % L::kChunks;
    const bool is_valid = first + row < end && chunk < num_chunks;
    const int position = is_valid ? first + row : view.task.kv_begin;
    const int64_t block = table[position / shape.block_size];
    const uint16_t* from = cache + block * 2 * values_offset +
                           view.task.kv_head * head_size +
                           position % shape.block_size * shape.head_dim +
                           (is_valid ? chunk * 8 : 0);
    simt::CpAsync16(Chunk<L::kChunks>(keys, row, chunk), from, is_valid);
    simt::CpAsync16(Chunk<L::kChunks>(values, row, chunk), from + values_offset,
                    is_valid);
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
    const float factor = simt::Exp2(maximum[half] - base);
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
        score = key >= begin && key < end ? score * kLog2E : -INFINITY;
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

// Merges the results of the warps that took different keys, in their order,
// into those of the first.
template <typename L, int kHeadDim>
SIMT_DEVICE void MergeWarps(int warp, Accumulator<kHeadDim>& accumulator,
                            float* scratch) {
  const int lane = simt::ThreadX() % 32;
  float* stats = scratch + L::kRows * kHeadDim;
  for (int k = 1; k < L::kWarpsOfKeys; ++k) {
    simt::SyncThreads();
    if (warp == k) {
      SIMT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = lane / 4 + half * 8;
        if (lane % 4 == 0) {
          stats[row * 2] = accumulator.maximum[half];
          stats[row * 2 + 1] = accumulator.sum[half];
        }
        SIMT_UNROLL
        for (int i = 0; i < kHeadDim / 8; ++i) {
          float* to = scratch + row * kHeadDim + i * 8 + lane % 4 * 2;
          to[0] = accumulator.out[i][half * 2];
          to[1] = accumulator.out[i][half * 2 + 1];
        }
      }
    }
    simt::SyncThreads();
    if (warp != 0) continue;
    SIMT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + half * 8;
      const float other = stats[row * 2];
      const float base =
          accumulator.Rescale(half, fmaxf(accumulator.maximum[half], other));
      const float factor = simt::Exp2(other - base);
      accumulator.sum[half] += stats[row * 2 + 1] * factor;
      SIMT_UNROLL
      for (int i = 0; i < kHeadDim / 8; ++i) {
        const float* from = scratch + row * kHeadDim + i * 8 + lane % 4 * 2;
        accumulator.out[i][half * 2] += from[0] * factor;
        accumulator.out[i][half * 2 + 1] += from[1] * factor;
      }
    }
  }
}

template <typename L, DType kType, int kHeadDim>
SIMT_DEVICE void StoreResults(const AttentionArguments& arguments,
                              const TaskView& view, int warp_row,
                              const Accumulator<kHeadDim>& accumulator) {
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
      SIMT_UNROLL
      for (int i = 0; i < kHeadDim / 8; ++i) {
        float* to =
            arguments.partial_out + slot * kHeadDim + i * 8 + lane % 4 * 2;
        to[0] = accumulator.out[i][half * 2];
        to[1] = accumulator.out[i][half * 2 + 1];
      }
      continue;
    }
    const float inverse = 1.0f / accumulator.sum[half];
    const int token = view.sequence.first_token + row / view.group;
    const int head = view.task.kv_head * view.group + row % view.group;
    auto* to = static_cast<uint16_t*>(arguments.out) +
               (int64_t{token} * arguments.shape.num_heads + head) * head_dim +
               lane % 4 * 2;
    SIMT_UNROLL
    for (int i = 0; i < kHeadDim / 8; ++i) {
      if (i * 8 >= head_dim) break;
      *reinterpret_cast<uint32_t*>(to + i * 8) =
          Element<kType>::Pack(accumulator.out[i][half * 2] * inverse,
                               accumulator.out[i][half * 2 + 1] * inverse);
    }
  }
}

// One task, in the CTA's dynamic shared memory.
template <int kHeadDim, DType kType, AttentionTile kTile>
SIMT_DEVICE void Attend(const AttentionArguments& arguments,
                        const TaskView& view, unsigned char* memory) {
  using L = Layout<kHeadDim, kTile>;
  auto* queries = reinterpret_cast<uint16_t*>(memory);
  uint16_t* tiles = queries + L::kRows * kHeadDim;
  constexpr int kTileSize = L::kKeys * kHeadDim;
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
    uint16_t* keys = tiles + tile % L::kNumBuffers * 2 * kTileSize;
    LoadKeys<L>(arguments, view, view.task.kv_begin + tile * L::kKeys, end,
                keys, keys + kTileSize);
  };
  Accumulator<kHeadDim> accumulator;
  accumulator.Clear();
  uint32_t query[L::kKeepsQueries ? kHeadDim / 16 : 1][4];
  const auto load_query = [&](int k, uint32_t(&fragment)[4]) {
    simt::LdMatrixX4(fragment,
                     Chunk<L::kChunks>(queries, warp_row * 16 + lane % 16,
                                       k * 2 + lane / 16));
  };

  load(0);
  for (int tile = 0; tile < num_tiles; ++tile) {
    if (L::kNumBuffers > 1 && tile + 1 < num_tiles) {
      load(tile + 1);
      simt::CpAsyncWait<1>();
    } else {
      simt::CpAsyncWait<0>();
    }
    simt::SyncThreads();
    if (L::kKeepsQueries && tile == 0) {
      SIMT_UNROLL
      for (int k = 0; k < kHeadDim / 16; ++k) {
        load_query(k, query[L::kKeepsQueries ? k : 0]);
      }
    }
    uint16_t* keys = tiles + tile % L::kNumBuffers * 2 * kTileSize;
    uint16_t* values = keys + kTileSize;
    const int first_key = warp_key * L::kKeysOfWarp;

    float scores[L::kKeysOfWarp / 8][4];
    SIMT_UNROLL
    for (int n = 0; n < L::kKeysOfWarp / 8; ++n) {
      scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0;
    }
    SIMT_UNROLL
    for (int k = 0; k < kHeadDim / 16; ++k) {
      if (!L::kKeepsQueries) load_query(k, query[0]);
      const uint32_t(&q)[4] = query[L::kKeepsQueries ? k : 0];
      SIMT_UNROLL
      for (int n = 0; n < L::kKeysOfWarp / 16; ++n) {
        uint32_t b[4];
        simt::LdMatrixX4(
            b, Chunk<L::kChunks>(keys,
                                 first_key + n * 16 + lane % 8 + lane / 16 * 8,
                                 k * 2 + lane / 8 % 2));
        Element<kType>::Mma(scores[2 * n], q, b[0], b[1]);
        Element<kType>::Mma(scores[2 * n + 1], q, b[2], b[3]);
      }
    }
    Softmax<L>(arguments, view,
               view.task.kv_begin + tile * L::kKeys + first_key, warp_row,
               scores, accumulator);
    SIMT_UNROLL
    for (int n = 0; n < L::kKeysOfWarp / 16; ++n) {
      const uint32_t a[4] = {
          Element<kType>::Pack(scores[2 * n][0], scores[2 * n][1]),
          Element<kType>::Pack(scores[2 * n][2], scores[2 * n][3]),
          Element<kType>::Pack(scores[2 * n + 1][0], scores[2 * n + 1][1]),
          Element<kType>::Pack(scores[2 * n + 1][2], scores[2 * n + 1][3])};
      SIMT_UNROLL
      for (int d = 0; d < kHeadDim / 16; ++d) {
        uint32_t b[4];
        simt::LdMatrixX4Transposed(
            b, Chunk<L::kChunks>(values, first_key + n * 16 + lane % 16,
                                 d * 2 + lane / 16));
        Element<kType>::Mma(accumulator.out[2 * d], a, b[0], b[1]);
        Element<kType>::Mma(accumulator.out[2 * d + 1], a, b[2], b[3]);
      }
    }
    simt::SyncThreads();
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

template <int kHeadDim, DType kType, AttentionTile kTile>
SIMT_KERNEL((Layout<kHeadDim, kTile>::kNumThreads))
AttentionKernel(const AttentionArguments arguments) {
  SIMT_DYNAMIC_SHARED(memory);
  simt::WaitForPrevious();
  simt::LaunchNext();
  const AttentionWork work = WorkOf(arguments);
  const int num_ctas = static_cast<int>(simt::NumCtasX());
  for (int i = simt::CtaX(); i < work.num_tasks; i += num_ctas) {
    Attend<kHeadDim, kType, kTile>(arguments, ViewTask(arguments, work, i),
                                   memory);
    if (i + num_ctas < work.num_tasks) simt::SyncThreads();  // `memory`.
  }
}

// One CTA per (tile, row of it), one thread per dimension.
template <int kHeadDim, DType kType, AttentionTile kTile>
SIMT_DEVICE void Merge(const AttentionArguments& arguments,
                       const AttentionMerge& merge,
                       const AttentionSequence& sequence) {
  constexpr int kRows = Layout<kHeadDim, kTile>::kRows;
  const int group = arguments.shape.num_heads / arguments.shape.num_kv_heads;
  const int row = merge.first_row + static_cast<int>(simt::CtaY());
  const int d = simt::ThreadX();
  if (row >= sequence.num_tokens * group || d >= arguments.shape.head_dim) {
    return;
  }
  float maximum = -INFINITY, sum = 0, out = 0;
  for (int part = 0; part < merge.num_parts; ++part) {
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

template <int kHeadDim, DType kType, AttentionTile kTile>
bool LaunchWith(const AttentionArguments& arguments, simt::Stream stream) {
  using L = Layout<kHeadDim, kTile>;
  if (arguments.num_tasks > 0 &&
      !simt::Launch(&AttentionKernel<kHeadDim, kType, kTile>,
                    {.num_ctas_x = static_cast<uint32_t>(arguments.num_tasks),
                     .num_threads = L::kNumThreads,
                     .dynamic_shared_bytes = L::kSharedBytes,
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

template <DType kType, AttentionTile kTile>
bool LaunchForHeadDim(const AttentionArguments& arguments,
                      simt::Stream stream) {
  switch (PaddedHeadDim(arguments.shape.head_dim)) {
    case 64:
      return LaunchWith<64, kType, kTile>(arguments, stream);
    case 128:
      return LaunchWith<128, kType, kTile>(arguments, stream);
    case 256:
      return LaunchWith<256, kType, kTile>(arguments, stream);
    default:
      return false;
  }
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
    return tile == AttentionTile::kPrefill
               ? LaunchForHeadDim<DType::kBF16, AttentionTile::kPrefill>(
                     arguments, stream)
               : LaunchForHeadDim<DType::kBF16, AttentionTile::kDecode>(
                     arguments, stream);
  }
  if (arguments.dtype == DType::kF16) {
    return tile == AttentionTile::kPrefill
               ? LaunchForHeadDim<DType::kF16, AttentionTile::kPrefill>(
                     arguments, stream)
               : LaunchForHeadDim<DType::kF16, AttentionTile::kDecode>(
                     arguments, stream);
  }
  return false;
}

}  // namespace quire::cuda
