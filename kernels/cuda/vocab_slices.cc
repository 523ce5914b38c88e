#include "kernels/cuda/vocab_slices.h"

#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/sampling_kernels.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;

struct MergeArguments {
  SampleArguments sample;
  SliceRecord* own = nullptr;
  const SliceRecord* all = nullptr;
  int32_t num_ranks = 0;
};

// One warp for each row of logits: the tiles of the slice.
SIMT_KERNEL(32)
MergeTilesKernel(const MergeArguments arguments) {
  const bool is_early = HasPlantedBug(PlantedBug::kSliceTilesBeforeWait);
  if (!is_early) simt::WaitForPrevious();
  if (!is_early) simt::LaunchNext();
  const SampleArguments& a = arguments.sample;
  const int64_t logit = simt::CtaX();
  const int32_t row_idx = a.logit_rows[logit];
  const bool is_padding = row_idx < 0 || a.rows[row_idx].slot < 0;
  uint64_t best = 0;
  float max = -INFINITY;
  uint32_t num_bad = 0;
  double sum = 0;
  const int lane = simt::ThreadX();
  if (!is_padding) {
    const SamplingWorkspace w =
        SamplingWorkspaceAt(a.workspace, a.num_logits, a.num_ids, nullptr);
    const TileResult* tiles = w.tiles + logit * w.num_tiles;
    const int64_t num_tiles =
        w.num_tiles -
        (HasPlantedBug(PlantedBug::kSliceLosesTheLastTile) ? 1 : 0);
    for (int t = lane; t < num_tiles; t += 32) {
      best = TakeMax()(best, tiles[t].best);
      max = TakeMax()(max, tiles[t].max);
      num_bad += tiles[t].non_finite;
    }
    best = WarpReduce(best, TakeMax());
    max = WarpReduce(max, TakeMax());
    num_bad = simt::ReduceAdd(num_bad);
    for (int t = lane; t < num_tiles; t += 32) {
      sum += tiles[t].sum * std::exp(static_cast<double>(tiles[t].max) - max);
    }
    sum = WarpReduce(sum, TakeSum());
  }
  if (is_early) simt::WaitForPrevious();
  if (lane != 0) return;
  SliceRecord record;
  record.best = best;
  record.sum = sum;
  record.max = max;
  record.logit =
      best == 0 ? 0.0f
                : a.logits[logit * a.logits_stride + IdOf(best) - a.first_id];
  record.non_finite = num_bad > 0;
  record.padding = 0;
  arguments.own[logit] = record;
}

// What `rank` says of a row of logits.
SIMT_DEVICE const SliceRecord& RecordOf(const MergeArguments& arguments,
                                        int rank, int64_t logit) {
  if (HasPlantedBug(PlantedBug::kSliceRecordsByRow)) {
    return arguments.all[logit * arguments.num_ranks + rank];
  }
  if (HasPlantedBug(PlantedBug::kSliceRecordsOfOneRank)) rank = 0;
  return arguments.all[int64_t{rank} * arguments.sample.num_logits + logit];
}

// One warp for each row of logits, though a thread would do: ranks are few.
SIMT_KERNEL(32)
MergeRanksKernel(const MergeArguments arguments) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  const SampleArguments& a = arguments.sample;
  const int64_t logit = simt::CtaX();
  const int32_t row_idx = a.logit_rows[logit];
  if (row_idx < 0 || simt::ThreadX() != 0) return;
  const SamplingRow row = a.rows[row_idx];
  if (row.slot < 0) return;
  uint64_t best = 0;
  float max = -INFINITY, drawn = 0;
  bool is_bad = false;
  for (int rank = 0; rank < arguments.num_ranks; ++rank) {
    const SliceRecord& record = RecordOf(arguments, rank, logit);
    is_bad |= record.non_finite != 0;
    max = TakeMax()(max, record.max);
    if (record.best > best) {
      best = record.best;
      drawn = record.logit;
    }
  }
  const bool is_masked = best == 0 || best >> 32 == kKeyOfMinusInfinity;
  const SamplingWorkspace w =
      SamplingWorkspaceAt(a.workspace, a.num_logits, a.num_ids, nullptr);
  w.filters[logit].faults = is_bad      ? kNonFiniteRow
                            : is_masked ? kAllMaskedRow
                                        : 0;
  a.tokens[logit] = is_bad || best == 0 ? 0 : IdOf(best);
  if (a.slots[row.slot].num_logprobs < 0) return;
  if (is_bad) {
    a.logprobs[logit] = 0.0f;
    return;
  }
  double sum = 0;
  for (int rank = 0; rank < arguments.num_ranks; ++rank) {
    const SliceRecord& record = RecordOf(arguments, rank, logit);
    sum += record.sum * std::exp(static_cast<double>(record.max) - max);
  }
  a.logprobs[logit] =
      static_cast<float>(static_cast<double>(drawn) - max - std::log(sum));
}

SIMT_KERNEL(kThreads)
JoinSlicesKernel(const JoinSlicesArguments a) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t row = simt::CtaY();
  const int64_t id = int64_t{simt::CtaX()} * kThreads + simt::ThreadX();
  if (id >= a.vocab_size && !HasPlantedBug(PlantedBug::kJoinSlicesNoGuard)) {
    return;
  }
  const int64_t rank = id / a.slice_size;
  const int64_t num_ranks = (a.vocab_size + a.slice_size - 1) / a.slice_size;
  const int64_t slice = HasPlantedBug(PlantedBug::kJoinSlicesByRow)
                            ? row * num_ranks + rank
                            : rank * a.num_rows + row;
  a.whole[row * a.vocab_size + id] =
      a.slices[slice * a.slice_size + id % a.slice_size];
}

}  // namespace

bool LaunchSampleSlice(const SampleArguments& arguments, SliceRecord* records,
                       simt::Stream stream) {
  if (arguments.num_logits == 0) return true;
  MergeArguments merge;
  merge.sample = arguments;
  merge.own = records;
  return LaunchSamplingProcess(arguments, stream) &&
         simt::Launch(
             &MergeTilesKernel,
             {.num_ctas_x = static_cast<uint32_t>(arguments.num_logits),
              .num_threads = 32,
              .waits_for_previous = true},
             stream, merge);
}

bool LaunchSampleRecords(const SampleArguments& arguments,
                         const SliceRecord* records, int num_ranks,
                         simt::Stream stream) {
  MergeArguments merge;
  merge.sample = arguments;
  merge.all = records;
  merge.num_ranks = num_ranks;
  if (arguments.num_logits > 0 &&
      !simt::Launch(&MergeRanksKernel,
                    {.num_ctas_x = static_cast<uint32_t>(arguments.num_logits),
                     .num_threads = 32,
                     .waits_for_previous = true},
                    stream, merge)) {
    return false;
  }
  return LaunchSamplingFinish(arguments, stream);
}

bool LaunchJoinSlices(const JoinSlicesArguments& arguments,
                      simt::Stream stream) {
  if (arguments.num_rows == 0) return true;
  return simt::Launch(&JoinSlicesKernel,
                      {.num_ctas_x = static_cast<uint32_t>(
                           (arguments.vocab_size + kThreads - 1) / kThreads),
                       .num_ctas_y = static_cast<uint32_t>(arguments.num_rows),
                       .num_threads = kThreads,
                       .waits_for_previous = true},
                      stream, arguments);
}

}  // namespace quire::cuda
