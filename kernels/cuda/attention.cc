#include "kernels/cuda/attention.h"

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/attention_warpgroup.h"
#include "kernels/cuda/element.h"
#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {
namespace {

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
  static constexpr int kKvRowBytes = kHeadDim * kKvBytes;
  static constexpr int kKvTileBytes = kKeys * kKvRowBytes;
  static SIMT_DEVICE unsigned char* KvPlace(unsigned char* tile, int row,
                                            int chunk) {
    return Chunk<kKvChunks>(tile, row, chunk);
  }
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
    const float base = accumulator.Raise(half, larger, [&](float factor) {
      accumulator.ScaleOut(half, factor);
    });
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
  const Fragments<L::kKvChunks> fragments(
      keys, first_key + lane % 8 + lane / 16 * 8, lane / 8 % 2);
  // With the queries in registers k is known; otherwise some steps at a time
  // keep loads from taking registers ahead.
  constexpr int kUnroll = L::kKeepsQueries ? kSteps : 4;
  SIMT_NO_UNROLL
  for (int first_k = 0; first_k < kSteps; first_k += kUnroll) {
    SIMT_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const int k = first_k + u;
      const auto load = [&](int n, uint32_t(&b)[4]) {
        simt::LdMatrixX4(b, fragments.Of(n, k));
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
  const Fragments<L::kKvChunks> fragments(values, first_key + lane % 16,
                                          lane / 16);
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
      simt::LdMatrixX4Transposed(b, fragments.Of(n, d));
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
SIMT_DEVICE void Attend(const KernelArguments& arguments, const TaskView& view,
                        unsigned char* memory) {
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
  const SeenKeys seen_first = SeenBy(arguments, view, view.task.first_row);
  const SeenKeys seen_last = SeenBy(arguments, view, last_row);
  const int end = seen_last.end;

  LoadQueries<L>(arguments, view, queries);
  // By the tile's first position. Neighbours lie in different buffers.
  const auto keys_of = [&](int first) {
    const unsigned tile = static_cast<unsigned>(first) / L::kKeys;
    return tiles + tile % L::kNumBuffers * (2 * L::kKvTileBytes);
  };
  const auto load = [&](int first) {
    unsigned char* keys = keys_of(first);
    LoadKeys<L>(arguments, view, first, end, keys, keys + L::kKvTileBytes);
    simt::CpAsyncCommit();
  };
  Accumulator<kHeadDim> accumulator;
  accumulator.Clear();
  uint32_t kept[L::kKeepsQueries ? kHeadDim / 16 : 1][4];
  const Fragments<L::kQueryChunks> query_fragments(
      queries, warp_row * 16 + lane % 16, lane / 16);
  const auto load_query = [&](int k, uint32_t(&fragment)[4]) {
    simt::LdMatrixX4(fragment, query_fragments.Of(0, k));
  };
  const auto query = [&](int k, uint32_t(&fragment)[4]) {
    if constexpr (L::kKeepsQueries) {
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) fragment[i] = kept[k][i];
    } else {
      load_query(k, fragment);
    }
  };

  load(view.task.kv_begin);
  for (int first = view.task.kv_begin; first < end; first += L::kKeys) {
    const int next = first + L::kKeys;
    if (L::kNumBuffers > 1 && next < end) {
      load(next);
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
    if (L::kKeepsQueries && first == view.task.kv_begin) {
      SIMT_UNROLL
      for (int k = 0; k < kHeadDim / 16; ++k) {
        load_query(k, kept[L::kKeepsQueries ? k : 0]);
      }
    }
    unsigned char* keys = keys_of(first);
    const int first_key = warp_key * L::kKeysOfWarp;
    float scores[L::kKeysOfWarp / 8][4];
    Scores<L, kType>(keys, first_key, query, scores);
    // Most tiles are seen as a whole by every row.
    const bool is_masked = first < seen_last.begin || next > seen_first.end;
    Softmax<L>(arguments, view, first + first_key, warp_row, is_masked, scores,
               accumulator, [&](int half, float factor) {
                 accumulator.ScaleOut(half, factor);
               });
    AddValues<L, kType>(keys + L::kKvTileBytes, first_key, scores, accumulator);
    if (!HasPlantedBug(PlantedBug::kAttentionNoBarrierBeforeLoad)) {
      simt::SyncThreads();
    }
    if (L::kNumBuffers == 1 && next < end) load(next);
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

// Three decodes of 128 dimensions need 207 KiB of shared memory: sm_90 and 100
// have 228 in each multiprocessor, the others at most 164.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000)
inline constexpr int kDecodeCtasPerSm = 3;
#else
inline constexpr int kDecodeCtasPerSm = 2;
#endif

// CTAs that a multiprocessor should hold: with a fourth prefill of 64
// dimensions, the registers do not suffice.
template <int kHeadDim, AttentionTile kTile>
inline constexpr int kCtasPerSm =
    kHeadDim == 64 && kTile == AttentionTile::kPrefill   ? 3
    : kHeadDim == 128 && kTile == AttentionTile::kDecode ? kDecodeCtasPerSm
                                                         : 256 / kHeadDim;

template <int kHeadDim, DType kType, DType kKv, AttentionTile kTile>
SIMT_KERNEL((Layout<kHeadDim, kTile, kKv>::kNumThreads),
            (kCtasPerSm<kHeadDim, kTile>))
AttentionKernel(const KernelArguments arguments) {
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

// One CTA per (tile, row of it), one thread per dimension. A lane of each warp
// takes a part's maximum: the factors of all are known before the sums grow,
// part by part.
template <int kHeadDim, DType kType, AttentionTile kTile>
SIMT_DEVICE void Merge(const KernelArguments& arguments,
                       const AttentionMerge& merge,
                       const AttentionSequence& sequence) {
  constexpr int kRows = AttentionTileRows(kTile);
  constexpr int kPartsAtOnce = 32;
  const int group = arguments.group;
  const int row = merge.first_row + static_cast<int>(simt::CtaY());
  if (row >= sequence.num_tokens * group) return;
  const int d = simt::ThreadX(), lane = d % 32;
  const int64_t first_slot = int64_t{merge.first_part} * kRows + simt::CtaY();
  const auto* stats =
      reinterpret_cast<const FloatPair*>(arguments.partial_stats) + first_slot;
  const float* partial = arguments.partial_out + first_slot * kHeadDim + d;
  const int num_parts =
      merge.num_parts -
      (HasPlantedBug(PlantedBug::kAttentionMergesOnePartTooFew) ? 1 : 0);
  float maximum = -INFINITY, sum = 0, out = 0;
  for (int first = 0; first < num_parts; first += kPartsAtOnce) {
    // Calls visit(i) for the parts first + i, and some more: few parts, as most
    // sequences have, should not take the time of many.
    const auto for_each = [&](const auto& visit) {
      SIMT_UNROLL
      for (int i = 0; i < kPartsAtOnce; i += 8) {
        if (first + i >= num_parts) break;
        SIMT_UNROLL
        for (int j = i; j < i + 8; ++j) visit(j);
      }
    };
    FloatPair own = {-INFINITY, 0};
    if (first + lane < num_parts) own = stats[(first + lane) * kRows];
    float values[kPartsAtOnce];  // All on their way before the first is used.
    for_each([&](int i) {
      values[i] = first + i < num_parts
                      ? partial[(first + i) * int64_t{kRows * kHeadDim}]
                      : 0.0f;
    });
    float larger = fmaxf(maximum, own.x);
    SIMT_UNROLL
    for (int i = 1; i < kPartsAtOnce; i *= 2) {
      const float other = simt::Shuffle(larger, (lane - i) & 31);
      if (lane >= i) larger = fmaxf(larger, other);
    }
    const float before = simt::Shuffle(larger, (lane - 1) & 31);
    const float mine = simt::Exp2((lane > 0 ? before : maximum) - larger);
    const float theirs = simt::Exp2(own.x - larger);
    const float their_sum = simt::Product(own.y, theirs);
    // Not of parts whose keys the row does not see.
    const uint32_t seen = simt::Ballot(own.x != -INFINITY);
    maximum = simt::Shuffle(larger, 31);
    for_each([&](int i) {
      const float factor = simt::Shuffle(mine, i);
      const float with_sum = sum * factor + simt::Shuffle(their_sum, i);
      const float with_out =
          out * factor + simt::Product(values[i], simt::Shuffle(theirs, i));
      const bool is_seen = seen & 1u << i;
      sum = is_seen ? with_sum : sum;
      out = is_seen ? with_out : out;
    });
  }
  if (d >= arguments.shape.head_dim) return;
  const int token = sequence.first_token + row / group;
  const int head = merge.kv_head * group + row % group;
  static_cast<uint16_t*>(
      arguments.out)[(int64_t{token} * arguments.shape.num_heads + head) *
                         arguments.shape.head_dim +
                     d] = Element<kType>::FromFloat(out / sum);
}

template <int kHeadDim, DType kType, AttentionTile kTile>
SIMT_KERNEL(kHeadDim)
MergeKernel(const KernelArguments arguments) {
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
bool LaunchWith(const KernelArguments& arguments, simt::Stream stream) {
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
bool LaunchForHeadDim(const KernelArguments& arguments, simt::Stream stream) {
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
bool LaunchTile(const KernelArguments& arguments, AttentionTile tile,
                simt::Stream stream) {
  return tile == AttentionTile::kPrefill
             ? LaunchForHeadDim<kType, kKv, AttentionTile::kPrefill>(arguments,
                                                                     stream)
             : LaunchForHeadDim<kType, kKv, AttentionTile::kDecode>(arguments,
                                                                    stream);
}

template <DType kType>
bool LaunchOfType(const KernelArguments& arguments, AttentionTile tile,
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

bool HasWarpgroupTile(int head_dim, DType dtype, DType kv_dtype) {
  const int padded = PaddedHeadDim(head_dim);
  return (padded == 64 || padded == 128) && kv_dtype == dtype;
}

int64_t AttentionPartialFloats(const AttentionShape& shape, AttentionTile tile,
                               int num_parts) {
  return int64_t{num_parts} * AttentionTileRows(tile) *
         (PaddedHeadDim(shape.head_dim) + 2);
}

bool LaunchAttention(const AttentionArguments& given, AttentionTile tile,
                     simt::Stream stream) {
  const AttentionShape& shape = given.shape;
  const auto block_size = static_cast<unsigned>(shape.block_size);
  if (!std::has_single_bit(block_size)) return false;
  KernelArguments arguments = {given};
  arguments.group = shape.num_heads / shape.num_kv_heads;
  arguments.log2_block_size = std::countr_zero(block_size);
  arguments.row_bytes =
      shape.head_dim * static_cast<int>(DTypeSize(arguments.kv_dtype));
  const int64_t values_offset =
      int64_t{shape.num_kv_heads} * shape.block_size * arguments.row_bytes;
  if (2 * values_offset > std::numeric_limits<int>::max()) return false;
  arguments.values_offset = static_cast<int>(values_offset);
  arguments.block_bytes = 2 * arguments.values_offset;
  arguments.head_bytes = shape.block_size * arguments.row_bytes;
  if (arguments.dtype != DType::kBF16 && arguments.dtype != DType::kF16) {
    return false;
  }
  if (tile == AttentionTile::kWarpgroup) {
    return HasWarpgroupTile(shape.head_dim, arguments.dtype,
                            arguments.kv_dtype) &&
           arguments.num_merges == 0 &&
           LaunchWarpgroupAttention(arguments, stream);
  }
  if (arguments.dtype == DType::kBF16) {
    return LaunchOfType<DType::kBF16>(arguments, tile, stream);
  }
  return LaunchOfType<DType::kF16>(arguments, tile, stream);
}

}  // namespace quire::cuda
