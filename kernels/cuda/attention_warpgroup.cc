// Shah et al. 2024, arXiv:2407.08608 (FlashAttention-3), section 3.2 and
// Algorithm 2: the products of one tile's queries and keys are under way while
// the tile before it is multiplied by its values, and a softmax runs beside the
// latter. Section 3.1: two warpgroups take turns, so that one's softmax falls
// into the time of the other's products; in step, both would leave the tensor
// cores idle. All warps load, by cp.async: a paged cache has no rectangle for
// the bulk copies of tensors.
//
// What a multiprocessor reads of the cache bounds the tile from below: 64 keys
// and values of 128 dimensions are 32 KiB for 4.2 Mflop with 128 rows, half of
// that with 64 rows, at 4096 flop a clock and some 30 bytes of L2.
#include "kernels/cuda/attention_warpgroup.h"

#include "kernels/cuda/element.h"
#include "kernels/cuda/planted_bug.h"

namespace quire::cuda {
namespace {

constexpr int kPanelBytes = 128;  // Of a row: 64 dimensions, one swizzle.

template <int kHeadDim>
struct Layout {
  static constexpr bool kIsFp8 = false;
  static constexpr int kRows = AttentionTileRows(AttentionTile::kWarpgroup);
  static constexpr int kNumThreads = 2 * kRows;  // Warps of 16 rows.
  static constexpr int kKeys = 64;
  static constexpr int kKeysOfWarp = kKeys;
  static constexpr int kQueryChunks = kHeadDim / 8;
  static constexpr int kKvChunks = kHeadDim / 8;
  static constexpr int kKvRowBytes = kPanelBytes;
  static constexpr int kKvPanelBytes = kKeys * kPanelBytes;
  static constexpr int kKvTileBytes =
      kHeadDim * 2 / kPanelBytes * kKvPanelBytes;
  static constexpr int kQueryBytes = kRows * kHeadDim * 2;
  // Tiles of keys, and as many of values. Queries lie where the last ones will:
  // they move to registers first.
  static constexpr int kStages = 3;
  static constexpr size_t kSharedBytes = 2 * kStages * kKvTileBytes;
  static_assert(kQueryBytes == 2 * kKvTileBytes);
  static_assert(kSharedBytes <= simt::kMaxSharedBytes);
  // With 64 dimensions two CTAs share a multiprocessor: one multiplies while
  // the other starts or stores. Each has 48 KiB of its 228 (and 1 that is
  // reserved), half of its registers (128 a thread), and 16 of its 64 barriers,
  // because ptxas does not see which. With 128, accumulators and queries are
  // twice as many registers, and one CTA has more than half.
  static constexpr int kMinCtas = 128 / kHeadDim;
  static_assert(kMinCtas * (kSharedBytes + 1024) <= (228 << 10));

  // SharedMatrix, in panels one after the other.
  static SIMT_DEVICE unsigned char* KvPlace(unsigned char* tile, int row,
                                            int chunk) {
    const int phase =
        HasPlantedBug(PlantedBug::kWarpgroupNoSwizzle) ? 0 : row & 7;
    return tile + chunk / 8 * kKvPanelBytes + row * kPanelBytes +
           (chunk % 8 ^ phase) * 16;
  }
};

template <int kHeadDim, DType kType>
SIMT_DEVICE void Attend(const KernelArguments& arguments, const TaskView& view,
                        unsigned char* memory) {
  using L = Layout<kHeadDim>;
  using E = Element<kType>;
  constexpr int kStageBytes = 2 * L::kKvTileBytes;  // Keys, then values.
  unsigned char* queries = memory + (L::kStages - 1) * kStageBytes;
  const int lane = simt::ThreadX() % 32, warp = simt::ThreadX() / 32;
  const int warpgroup = warp / 4;

  const int last_row = (view.task.first_row + L::kRows < view.num_rows
                            ? view.task.first_row + L::kRows
                            : view.num_rows) -
                       1;
  const SeenKeys seen_first = SeenBy(arguments, view, view.task.first_row);
  const SeenKeys seen_last = SeenBy(arguments, view, last_row);
  const int begin = view.task.kv_begin, end = seen_last.end;
  const int num_tiles = (end - begin + L::kKeys - 1) / L::kKeys;

  const auto keys_of = [&](int tile) {
    const int num_stages =
        HasPlantedBug(PlantedBug::kWarpgroupTwoStages) ? 2 : L::kStages;
    return memory + tile % num_stages * kStageBytes;
  };
  const auto values_of = [&](int tile) {
    return keys_of(tile) + L::kKvTileBytes;
  };
  const auto load_keys = [&](int tile) {
    LoadKeys<L, KvPart::kKeys>(arguments, view, begin + tile * L::kKeys, end,
                               keys_of(tile), nullptr);
  };
  // What iteration `tile` of the loop multiplies by.
  const auto load = [&](int tile) {
    if (tile + 1 < num_tiles) load_keys(tile + 1);
    if (tile < num_tiles) {
      LoadKeys<L, KvPart::kValues>(arguments, view, begin + tile * L::kKeys,
                                   end, nullptr, values_of(tile));
    }
    simt::CpAsyncCommit();
  };
  // What this thread has loaded is there for products.
  const auto wait_for_copies = [&](auto wait) {
    if (!HasPlantedBug(PlantedBug::kWarpgroupNoWaitForCopies)) wait();
    if (!HasPlantedBug(PlantedBug::kWarpgroupNoProxyFence)) {
      simt::FenceProxyAsync();
    }
  };
  // To multiply: the other warpgroup has begun its products and has those
  // before, and what it has loaded for this turn is there.
  const auto take_turn = [&] {
    wait_for_copies([] { simt::CpAsyncWait<0>(); });
    if (!HasPlantedBug(PlantedBug::kWarpgroupNoTurns)) {
      simt::SyncNamed(1 + warpgroup, L::kNumThreads);
    }
  };
  const auto give_turn = [&] {
    if (!HasPlantedBug(PlantedBug::kWarpgroupNoTurns)) {
      simt::ArriveNamed(2 - warpgroup, L::kNumThreads);
    }
  };

  uint32_t q[kHeadDim / 16][4];
  float scores[L::kKeys / 8][4];
  uint32_t probabilities[L::kKeys / 16][4];
  float factors[2];  // Of Accumulator::Raise.
  Accumulator<kHeadDim> accumulator;
  accumulator.Clear();
  const auto multiply_keys = [&](int tile) {
    const simt::SharedMatrix all =
        simt::SwizzledMatrix(keys_of(tile), 16, 8 * kPanelBytes);
    SIMT_UNROLL
    for (int k = 0; k < kHeadDim / 16; ++k) {
      const simt::SharedMatrix some =
          all.At(k / 4 * L::kKvPanelBytes + k % 4 * 32);
      if (k == 0) {
        E::template Wgmma<false, false>(scores, q[k], some);
      } else {
        E::template Wgmma<false, true>(scores, q[k], some);
      }
    }
    simt::WgmmaCommit();
  };
  const auto multiply_values = [&](int tile) {
    const simt::SharedMatrix all = simt::SwizzledMatrix(
        values_of(tile), L::kKvPanelBytes, 8 * kPanelBytes);
    SIMT_UNROLL
    for (int k = 0; k < L::kKeys / 16; ++k) {
      E::template Wgmma<true, true>(accumulator.out, probabilities[k],
                                    all.At(k * 16 * kPanelBytes));
    }
    simt::WgmmaCommit();
  };
  const auto softmax = [&](int tile) {
    const int first = begin + tile * L::kKeys;
    // Most tiles are seen as a whole by every row.
    const bool is_masked =
        first < seen_last.begin || first + L::kKeys > seen_first.end;
    Softmax<L>(arguments, view, first, warp, is_masked, scores, accumulator,
               [&](int half, float factor) { factors[half] = factor; });
  };
  const auto keep_probabilities = [&] {
    SIMT_UNROLL
    for (int k = 0; k < L::kKeys / 16; ++k) {
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float(&pair)[4] = scores[2 * k + i / 2];
        probabilities[k][i] = E::Pack(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
      }
    }
  };

  LoadQueries<L>(arguments, view, queries);
  load_keys(0);
  simt::CpAsyncCommit();
  load(0);
  wait_for_copies([] { simt::CpAsyncWait<1>(); });
  if (!HasPlantedBug(PlantedBug::kWarpgroupNoBarrierBeforeQueries)) {
    simt::SyncThreads();
  }
  const Fragments<L::kQueryChunks> fragments(queries, warp * 16 + lane % 16,
                                             lane / 16);
  SIMT_UNROLL
  for (int k = 0; k < kHeadDim / 16; ++k) {
    simt::LdMatrixX4(q[k], fragments.Of(0, k));
  }
  simt::WgmmaFence(q);
  multiply_keys(0);
  if (!HasPlantedBug(PlantedBug::kWarpgroupNoBarrierAfterQueries)) {
    simt::SyncThreads();
  }
  // The second warpgroup is half an iteration behind: for a turn of the first
  // one it loads before its own turn that precedes it.
  if (warpgroup == 1) {
    load(1);
    if (!HasPlantedBug(PlantedBug::kWarpgroupGivesBeforeItsCopies)) {
      wait_for_copies([] { simt::CpAsyncWait<1>(); });
    }
    give_turn();
  }
  simt::WgmmaWait<0>(scores);
  softmax(0);
  keep_probabilities();
  for (int tile = 0; tile + 1 < num_tiles; ++tile) {
    const int next_load =
        tile + 1 +
        (HasPlantedBug(PlantedBug::kWarpgroupLoadsTooLate) ? 0 : warpgroup);
    if (HasPlantedBug(PlantedBug::kWarpgroupLoadsTooEarly)) load(next_load);
    if (HasPlantedBug(PlantedBug::kWarpgroupGivesTooEarly)) give_turn();
    take_turn();
    simt::WgmmaFence(probabilities, accumulator.out);
    multiply_keys(tile + 1);
    multiply_values(tile);
    if (!HasPlantedBug(PlantedBug::kWarpgroupGivesTooEarly)) give_turn();
    // Turn t multiplies by keys t + 1 and values t. Behind it the first
    // warpgroup overwrites what turn t - 2 has read, the second what turn t - 1
    // has; that the other one gave it this turn says that it has waited for
    // these. With two stages it would be what turn t reads.
    if (!HasPlantedBug(PlantedBug::kWarpgroupLoadsTooEarly)) load(next_load);
    if (!HasPlantedBug(PlantedBug::kWarpgroupReadsScoresTooEarly)) {
      simt::WgmmaWait<1>(scores);
    }
    softmax(tile + 1);
    if (HasPlantedBug(PlantedBug::kWarpgroupKeepsProbabilitiesTooEarly)) {
      keep_probabilities();
    }
    // The softmax is for the time until then.
    simt::WgmmaWaitAfter<0>(scores, arguments.shape.softcap > 0,
                            accumulator.out);
    // Maxima rarely grow after the first tiles.
    if (simt::Ballot(factors[0] != 1.0f || factors[1] != 1.0f) != 0) {
      accumulator.ScaleOut(0, factors[0]);
      accumulator.ScaleOut(1, factors[1]);
    }
    keep_probabilities();
  }
  take_turn();
  simt::WgmmaFence(probabilities, accumulator.out);
  multiply_values(num_tiles - 1);
  if (warpgroup == 0 ||
      HasPlantedBug(PlantedBug::kWarpgroupGivesOneTurnTooMany)) {
    give_turn();
  }
  simt::WgmmaWait<0>(accumulator.out);

  SIMT_UNROLL
  for (int half = 0; half < 2; ++half) {
    accumulator.sum[half] += simt::ShuffleXor(accumulator.sum[half], 1);
    accumulator.sum[half] += simt::ShuffleXor(accumulator.sum[half], 2);
  }
  StoreResults<L, kType>(arguments, view, warp, accumulator);
}

template <int kHeadDim, DType kType>
SIMT_KERNEL((Layout<kHeadDim>::kNumThreads), (Layout<kHeadDim>::kMinCtas))
WarpgroupAttentionKernel(const KernelArguments arguments) {
  SIMT_DYNAMIC_SHARED(memory);
  simt::WaitForPrevious();
  simt::LaunchNext();
  const AttentionWork work = WorkOf(arguments);
  const int i = simt::CtaX();
  if (i >= work.num_tasks) return;
  Attend<kHeadDim, kType>(arguments, ViewTask(arguments, work, i), memory);
}

template <int kHeadDim, DType kType>
bool LaunchWith(const KernelArguments& arguments, simt::Stream stream) {
  using L = Layout<kHeadDim>;
  return arguments.num_tasks == 0 ||
         simt::Launch(&WarpgroupAttentionKernel<kHeadDim, kType>,
                      {.num_ctas_x = static_cast<uint32_t>(arguments.num_tasks),
                       .num_threads = L::kNumThreads,
                       .dynamic_shared_bytes = L::kSharedBytes,
                       .waits_for_previous = true},
                      stream, arguments);
}

template <DType kType>
bool LaunchOfType(const KernelArguments& arguments, simt::Stream stream) {
  return PaddedHeadDim(arguments.shape.head_dim) == 64
             ? LaunchWith<64, kType>(arguments, stream)
             : LaunchWith<128, kType>(arguments, stream);
}

}  // namespace

bool LaunchWarpgroupAttention(const KernelArguments& arguments,
                              simt::Stream stream) {
  return arguments.dtype == DType::kBF16
             ? LaunchOfType<DType::kBF16>(arguments, stream)
             : LaunchOfType<DType::kF16>(arguments, stream);
}

}  // namespace quire::cuda
