// What the kernels of attention share: where a task's queries and keys lie, how
// they come into shared memory, the running softmax, and how results leave.
//
// L, below, is the layout of a kernel's tiles:
//   kRows, kNumThreads, kKeys        of a CTA; rows are packed queries
//   kKeysOfWarp                      of the keys of a tile
//   kIsFp8                           the cache is e4m3
//   kQueryChunks, kKvChunks          of 16 bytes in a row
//   kKvRowBytes                      from a key in shared memory to the next
//   KvPlace(tile, row, chunk)        where a chunk of keys or values lies; it
//                                    repeats, but for the rows' bytes, after
//                                    eight rows
#ifndef QUIRE_KERNELS_CUDA_ATTENTION_TILE_H_
#define QUIRE_KERNELS_CUDA_ATTENTION_TILE_H_

#include <cmath>
#include <cstdint>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/element.h"
#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

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

// Chunk() of rows row + 16 n and of chunks first + 2 k, of which `first` is 0
// or 1. Sixteen rows further chunks lie alike, and 2 k has no bit of `first`:
// each place is one exclusive or away from the first one.
template <int kChunks>
class Fragments {
 public:
  SIMT_DEVICE Fragments(unsigned char* tile, int row, int first)
      : tile_(tile),
        offset_(static_cast<int>(Chunk<kChunks>(tile, row, first) - tile)) {}
  SIMT_DEVICE unsigned char* Of(int n, int k) const {
    return tile_ + (offset_ ^ k * 32) + n * (16 * kChunks * 16);
  }

 private:
  unsigned char* tile_;
  int offset_;
};

// The arguments, and what the host computes of them once.
struct KernelArguments : AttentionArguments {
  int group = 0;  // Query heads per KV head.
  int log2_block_size = 0;
  // Of the cache, in bytes:
  int row_bytes = 0;      // A position of one head.
  int head_bytes = 0;     // The positions of a block.
  int values_offset = 0;  // From a block's keys to its values.
  int block_bytes = 0;
};

// What a CTA knows of its task.
struct TaskView {
  AttentionTask task;
  AttentionSequence sequence;
  int num_rows;     // Packed queries of the sequence.
  int past;         // Positions before the first query.
  int first_block;  // In the block tables.
};

// The positions that a query sees: [begin, end).
struct SeenKeys {
  int begin, end;
};

// What packed query `row` sees; a division.
SIMT_DEVICE SeenKeys SeenBy(const KernelArguments& arguments,
                            const TaskView& view, int row) {
  const int window = arguments.shape.sliding_window;
  int end = view.past + row / arguments.group + 1;
  const int begin = window > 0 ? end - window : 0;
  if (HasPlantedBug(PlantedBug::kAttentionSeesTheFuture)) ++end;
  return {
      HasPlantedBug(PlantedBug::kAttentionWindowTooWide) ? begin - 1 : begin,
      end < view.task.kv_end ? end : view.task.kv_end};
}

SIMT_DEVICE AttentionWork WorkOf(const KernelArguments& arguments) {
  if (arguments.work) return *arguments.work;
  return {arguments.sequences, arguments.tasks, arguments.merges,
          arguments.num_tasks, arguments.num_merges};
}

SIMT_DEVICE TaskView ViewTask(const KernelArguments& arguments,
                              const AttentionWork& work, int task_idx) {
  TaskView view;
  view.task = work.tasks[task_idx];
  view.sequence = work.sequences[view.task.sequence];
  view.num_rows = view.sequence.num_tokens * arguments.group;
  view.past = view.sequence.seq_len - view.sequence.num_tokens;
  view.first_block = static_cast<int>(view.sequence.block_table *
                                      arguments.block_table_stride);
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
  // Word by word: a choice between the two as a whole is one of addresses, and
  // puts them into local memory.
  simt::Bytes16 first, second;
  SIMT_UNROLL
  for (int i = 0; i < 4; ++i) {
    first.words[i] = is_upper ? odd.words[i] : even.words[i];
    second.words[i] = is_upper ? even.words[i] : odd.words[i];
  }
  simt::StoreShared16(
      Chunk<L::kQueryChunks>(tile, row, chunk + (is_upper ? 1 : 0)), first);
  simt::StoreShared16(
      Chunk<L::kQueryChunks>(tile, row, chunk + (is_upper ? 0 : 1)), second);
}

template <typename L>
SIMT_DEVICE void LoadQueries(const KernelArguments& arguments,
                             const TaskView& view, unsigned char* tile) {
  constexpr int kWidth = L::kIsFp8 ? 2 : 1;  // Chunks at a time.
  constexpr int kRowsAtOnce = L::kNumThreads * kWidth / L::kQueryChunks;
  const int head_dim = arguments.shape.head_dim;
  const int chunk = simt::ThreadX() * kWidth % L::kQueryChunks;
  const auto* q = static_cast<const uint16_t*>(arguments.q) +
                  view.sequence.first_token * arguments.q_stride +
                  view.task.kv_head * arguments.group * head_dim;
  for (int row = simt::ThreadX() * kWidth / L::kQueryChunks; row < L::kRows;
       row += kRowsAtOnce) {
    const int packed = view.task.first_row + row;
    const bool is_valid = packed < view.num_rows && chunk * 8 < head_dim;
    const int token = is_valid ? packed / arguments.group : 0;
    const int head = is_valid && !HasPlantedBug(PlantedBug::kAttentionWrongHead)
                         ? packed - token * arguments.group
                         : 0;
    const uint16_t* from = q + token * arguments.q_stride + head * head_dim +
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

enum class KvPart : uint8_t { kKeys, kValues, kBoth };

// Keys, values or both of positions [first, first + L::kKeys); those from `end`
// on become zeros. A thread takes the same chunk of every few rows.
template <typename L, KvPart kPart = KvPart::kBoth>
SIMT_DEVICE void LoadKeys(const KernelArguments& arguments,
                          const TaskView& view, int first, int end,
                          unsigned char* keys, unsigned char* values) {
  constexpr int kRowsAtOnce = L::kNumThreads / L::kKvChunks;
  constexpr int kNumLoads = L::kKeys / kRowsAtOnce;
  constexpr int kBatch = kNumLoads < 4 ? kNumLoads : 4;
  static_assert(kNumLoads % kBatch == 0);
  const int last_in_block = arguments.shape.block_size - 1;
  if (HasPlantedBug(PlantedBug::kAttentionReadsPastTheEnd)) {
    end = (end + last_in_block) & ~last_in_block;
  }
  const int first_row = simt::ThreadX() / L::kKvChunks;
  const int chunk = simt::ThreadX() % L::kKvChunks;
  const bool is_chunk = chunk * 16 < arguments.row_bytes;
  // Of the positions from the thread's first one on.
  const int num_valid = (is_chunk ? end : first) - (first + first_row);
  const auto position_of = [first_position = first + first_row,
                            last = end - 1](int i) {
    const int position = first_position + i * kRowsAtOnce;
    return position < last ? position : last;
  };
  // A number: of pointers the compiler adds the kernel's argument last, to each
  // copy's anew.
  const uint64_t cache = reinterpret_cast<uint64_t>(arguments.kv_cache) +
                         int64_t{view.task.kv_head} * arguments.head_bytes +
                         (is_chunk ? chunk * 16 : 0);
  // KvPlace() of row `i` of the thread. It repeats after eight rows of the
  // tile: the rest is a constant, which takes no instruction.
  constexpr int kPeriod = kRowsAtOnce < 8 ? 8 / kRowsAtOnce : 1;
  const auto place = [&](unsigned char* tile, int i) {
    return L::KvPlace(tile, first_row + i % kPeriod * kRowsAtOnce, chunk) +
           (i - i % kPeriod) * kRowsAtOnce * L::kKvRowBytes;
  };
  // The blocks of some rows at a time: copies keep their order, so that the
  // loads would wait for each other.
  SIMT_UNROLL
  for (int batch = 0; batch < kNumLoads; batch += kBatch) {
    int32_t blocks[kBatch];
    SIMT_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int block = position_of(batch + i) >> arguments.log2_block_size;
      blocks[i] = arguments.block_tables[view.first_block + block];
    }
    SIMT_UNROLL
    for (int i = batch; i < batch + kBatch; ++i) {
      const bool is_valid = i * kRowsAtOnce < num_valid;
      int in_block = position_of(i);
      if (HasPlantedBug(PlantedBug::kAttentionWrongOffsetInBlock)) ++in_block;
      in_block &= last_in_block;
      const auto* from = reinterpret_cast<const unsigned char*>(
          cache + int64_t{blocks[i - batch]} * arguments.block_bytes +
          int64_t{in_block} * arguments.row_bytes);
      if (kPart != KvPart::kValues) {
        simt::CpAsync16(place(keys, i), from, is_valid);
      }
      if (kPart != KvPart::kKeys) {
        simt::CpAsync16(place(values, i), from + arguments.values_offset,
                        is_valid);
      }
    }
  }
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
  //   scale(factor): does to `out` what this does to `sum`, now or later.
  template <typename Scale>
  SIMT_DEVICE float Raise(int half, float larger, const Scale& scale) {
    const float base = larger == -INFINITY ? 0.0f : larger;
    const float factor = HasPlantedBug(PlantedBug::kAttentionForgetsRescale)
                             ? (maximum[half] == -INFINITY ? 0.0f : 1.0f)
                             : simt::Exp2(maximum[half] - base);
    maximum[half] = larger;
    sum[half] *= factor;
    scale(factor);
    return base;
  }
  SIMT_DEVICE void ScaleOut(int half, float factor) {
    SIMT_UNROLL
    for (int i = 0; i < kHeadDim / 8; ++i) {
      out[i][half * 2] *= factor;
      out[i][half * 2 + 1] *= factor;
    }
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

// Products of queries and keys become probabilities, with the running maximum
// and sum.
//   is_masked: whether some row of the tile may not see some key.
//   scale(half, factor): of Accumulator::Raise.
template <typename L, int kHeadDim, typename Scale>
SIMT_DEVICE void Softmax(const KernelArguments& arguments, const TaskView& view,
                         int first_key, int warp_row, bool is_masked,
                         float (&scores)[L::kKeysOfWarp / 8][4],
                         Accumulator<kHeadDim>& accumulator,
                         const Scale& scale) {
  const int lane = simt::ThreadX() % 32;
  const AttentionShape& shape = arguments.shape;
  const auto for_each = [&](int half, const auto& visit) {
    SIMT_UNROLL
    for (int n = 0; n < L::kKeysOfWarp / 8; ++n) {
      SIMT_UNROLL
      for (int e = 0; e < 2; ++e) {
        visit(scores[n][half * 2 + e], n * 8 + e);
      }
    }
  };
  float factor = shape.scale;
  if (shape.softcap > 0) {
    factor = shape.softcap;
    SIMT_UNROLL
    for (int half = 0; half < 2; ++half) {
      for_each(half, [&](float& score, int /*key*/) {
        score = simt::Tanh(simt::Product(score, shape.scale) / shape.softcap);
      });
    }
  }
  // Rounded twice, and not as part of `score - base`: a score has the same bits
  // in tiles with a mask and without.
  SIMT_UNROLL
  for (int half = 0; half < 2; ++half) {
    for_each(half, [&](float& score, int /*key*/) {
      score = simt::Product(simt::Product(score, factor), kLog2E);
    });
  }
  if (is_masked) {
    SIMT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const SeenKeys seen =
          SeenBy(arguments, view,
                 view.task.first_row + warp_row * 16 + lane / 4 + half * 8);
      const int begin = seen.begin - first_key - lane % 4 * 2;
      const int end = seen.end - first_key - lane % 4 * 2;
      for_each(half, [&](float& score, int key) {
        if (key < begin || key >= end) score = -INFINITY;
      });
    }
  }
  SIMT_UNROLL
  for (int half = 0; half < 2; ++half) {
    float larger = accumulator.maximum[half];
    for_each(half,
             [&](float& score, int /*key*/) { larger = fmaxf(larger, score); });
    larger = fmaxf(larger, simt::ShuffleXor(larger, 1));
    larger = fmaxf(larger, simt::ShuffleXor(larger, 2));
    const float base = accumulator.Raise(
        half, larger, [&](float factor) { scale(half, factor); });
    float sum = 0;
    for_each(half, [&](float& score, int /*key*/) {
      score = simt::Exp2(score - base);
      sum += score;
    });
    accumulator.sum[half] += sum;
  }
}
// Moves in one instruction.
struct alignas(8) FloatPair {
  float x, y;
};
template <typename L, DType kType, int kHeadDim>
SIMT_DEVICE void StoreResults(const KernelArguments& arguments,
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
        reinterpret_cast<FloatPair*>(arguments.partial_stats)[slot] = {
            accumulator.maximum[half], accumulator.sum[half]};
      }
      float* to = arguments.partial_out + slot * kHeadDim;
      VisitPairs<L>(accumulator, half, [&](int d, float& x, float& y) {
        to[d] = x;
        to[d + 1] = y;
      });
      continue;
    }
    const float inverse = 1.0f / accumulator.sum[half];
    const int token = view.sequence.first_token + row / arguments.group;
    const int head =
        view.task.kv_head * arguments.group + row % arguments.group;
    auto* to = static_cast<uint16_t*>(arguments.out) +
               (int64_t{token} * arguments.shape.num_heads + head) * head_dim;
    VisitPairs<L>(accumulator, half, [&](int d, float& x, float& y) {
      if (d >= head_dim) return;
      *reinterpret_cast<uint32_t*>(to + d) =
          Element<kType>::Pack(x * inverse, y * inverse);
    });
  }
}

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_ATTENTION_TILE_H_
