#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_tile.h"

namespace quire::cuda {
namespace {

constexpr size_t kSharedBytes =
    size_t{LinearTile::kNumStages} * 2 * LinearTile::kBytes;
static_assert(kSharedBytes >= LinearTile::kFinishBytes);

template <DType kType>
SIMT_KERNEL(LinearTile::kThreads)
TiledLinearKernel(const LinearArguments arguments) {
  using T = LinearTile;
  SIMT_DYNAMIC_SHARED(memory);
  const int first_row = static_cast<int>(simt::CtaX()) * T::kRows;
  const int first_token = static_cast<int>(simt::CtaY()) * T::kTokens;
  const int64_t row_bytes = int64_t{arguments.cols} * 2;
  const int num_steps =
      static_cast<int>((row_bytes + T::kDepthBytes - 1) / T::kDepthBytes) -
      (HasPlantedBug(PlantedBug::kTiledLosesTheLastDepth) ? 1 : 0);
  simt::WaitForPrevious();
  simt::LaunchNext();

  const auto load = [&](int step) {
    // A group is committed for every step, also an empty one, so that the
    // number of pending groups stays the same.
    if (step < num_steps) {
      unsigned char* tile = memory + step % T::kNumStages * 2 * T::kBytes;
      const int64_t k = int64_t{step} * T::kDepthBytes;
      T::Load(arguments.x, arguments.x_stride * 2, arguments.num_tokens,
              row_bytes, first_token, k, tile);
      T::Load(arguments.weight, row_bytes, arguments.rows, row_bytes, first_row,
              k, tile + T::kBytes);
    }
    if (step < num_steps ||
        !HasPlantedBug(PlantedBug::kTiledForgetsAnEmptyGroup)) {
      simt::CpAsyncCommit();
    }
  };
  T::Sums sums;
  T::Clear(sums);
  SIMT_UNROLL
  for (int step = 0; step < T::kNumStages - 1; ++step) load(step);
  for (int step = 0; step < num_steps; ++step) {
    if (HasPlantedBug(PlantedBug::kTiledWaitsForTooFewCopies)) {
      simt::CpAsyncWait<T::kNumStages - 1>();
    } else {
      simt::CpAsyncWait<T::kNumStages - 2>();
    }
    // Everybody's copies are there, and everybody has left the stage that the
    // next load fills.
    if (!HasPlantedBug(PlantedBug::kTiledNoBarrier)) simt::SyncThreads();
    load(step + T::kNumStages - 1);
    unsigned char* tile = memory + step % T::kNumStages * 2 * T::kBytes;
    T::Multiply(tile, tile + T::kBytes, sums,
                [](float(&c)[4], const uint32_t(&a)[4], uint32_t b0,
                   uint32_t b1) { Element<kType>::Mma(c, a, b0, b1); });
  }
  simt::CpAsyncWait<0>();
  T::Finish<kType>(arguments, first_token, first_row, sums, memory,
                   [](int, int) { return 1.0f; });
}

}  // namespace

bool LaunchTiledLinear(const LinearArguments& arguments, simt::Stream stream) {
  if (arguments.num_tokens < 1 || arguments.cols % 8 != 0 ||
      (IsGated(arguments.epilogue.activation) && arguments.rows % 16 != 0)) {
    return false;
  }
  return simt::Launch(
      arguments.dtype == DType::kBF16 ? &TiledLinearKernel<DType::kBF16>
                                      : &TiledLinearKernel<DType::kF16>,
      LinearTile::Shape(arguments, kSharedBytes), stream, arguments);
}

}  // namespace quire::cuda
