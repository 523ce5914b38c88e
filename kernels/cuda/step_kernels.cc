#include "kernels/cuda/step_kernels.h"

#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;

simt::LaunchShape Shape(int64_t num_items, int num_ctas_y = 1) {
  return {.num_ctas_x =
              static_cast<uint32_t>((num_items + kThreads - 1) / kThreads),
          .num_ctas_y = static_cast<uint32_t>(num_ctas_y),
          .num_threads = kThreads,
          .waits_for_previous = true};
}

SIMT_KERNEL(kThreads)
BeginStepKernel(const BeginStepArguments arguments) {
  const int i = simt::CtaX() * kThreads + simt::ThreadX();
  const bool is_early = HasPlantedBug(PlantedBug::kBeginStepBeforeWait);
  if (!is_early) simt::WaitForPrevious();
  if (!is_early) simt::LaunchNext();
  if (i < arguments.num_entries) {
    const BlockTableEntry entry = arguments.entries[i];
    arguments.block_tables[entry.index] = entry.block;
  }
  const int num_tokens = HasPlantedBug(PlantedBug::kBeginStepStopsAtTheEntries)
                             ? arguments.num_entries
                             : arguments.num_tokens;
  if (i < num_tokens && arguments.token_ids[i] < 0) {
    const int32_t slot = HasPlantedBug(PlantedBug::kBeginStepTokenOfTheNextSlot)
                             ? -arguments.token_ids[i]
                             : ~arguments.token_ids[i];
    arguments.token_ids[i] = arguments.last_tokens[slot];
  }
  if (is_early) simt::WaitForPrevious();
}

SIMT_KERNEL(kThreads)
MeanPoolKernel(const MeanPoolArguments arguments) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t cols = arguments.cols;
  const int64_t c = simt::CtaX() * kThreads + simt::ThreadX();
  if (c >= cols && !HasPlantedBug(PlantedBug::kMeanPoolNoGuard)) return;
  const PoolRow row = arguments.rows[simt::CtaY()];
  if (row.slot < 0) return;
  double* stored = arguments.sums + row.slot * cols + c;
  const bool starts = row.num_pooled_tokens == 0 &&
                      !HasPlantedBug(PlantedBug::kMeanPoolKeepsSums);
  double sum = starts ? 0.0 : *stored;
  for (int64_t t = 0; t < row.num_tokens; ++t) {
    sum += static_cast<double>(arguments.x[(row.first_token + t) * cols + c]);
  }
  *stored = sum;
  if (row.result >= 0) {
    const double count =
        row.num_tokens + (HasPlantedBug(PlantedBug::kMeanPoolCountsTheChunk)
                              ? 0
                              : row.num_pooled_tokens);
    arguments.out[row.result * cols + c] = static_cast<float>(sum / count);
  }
}

}  // namespace

bool LaunchBeginStep(const BeginStepArguments& arguments, simt::Stream stream) {
  const int num_items = arguments.num_entries > arguments.num_tokens
                            ? arguments.num_entries
                            : arguments.num_tokens;
  if (num_items == 0) return true;
  return simt::Launch(&BeginStepKernel, Shape(num_items), stream, arguments);
}

bool LaunchMeanPool(const MeanPoolArguments& arguments, simt::Stream stream) {
  if (arguments.num_rows == 0) return true;
  return simt::Launch(&MeanPoolKernel,
                      Shape(arguments.cols, arguments.num_rows), stream,
                      arguments);
}

}  // namespace quire::cuda
