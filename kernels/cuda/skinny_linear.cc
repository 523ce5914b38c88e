#include "kernels/cuda/linear.h"
#include "kernels/cuda/skinny_reduce.h"

namespace quire::cuda {
namespace {

constexpr int kNumWarps = kSkinnyWarps;
constexpr int kStep = 32;  // Columns of k that a warp visits at once.
// Columns of a warp's turn, whatever the number of tokens: the order of the sum
// must not depend on it.
constexpr int kTurn = 4 * kStep;

// Sixteen bytes of a row, zeros from `cols` on.
SIMT_DEVICE simt::Bytes16 LoadColumns(const uint16_t* row, int column, int cols,
                                      bool is_stream) {
  if (column >= cols) return {{0, 0, 0, 0}};
  return is_stream ? simt::LoadStream16(row + column)
                   : simt::Load16(row + column);
}

// kTiles: tiles of eight tokens. kUnroll: steps whose weight loads are in
// flight together; 16 rows x 32 columns x 2 bytes x 8 warps x kUnroll = 32 KiB
// at 4, what hides memory latency on an H100.
template <DType kType, int kTiles, int kUnroll>
SIMT_KERNEL(kNumWarps * 32)
SkinnyLinearKernel(const LinearArguments arguments) {
  SIMT_SHARED(float, scratch, kNumWarps* kTiles * 128);
  const int lane = simt::ThreadX() % 32, warp = simt::ThreadX() / 32;
  const int group = lane / 4, quad = lane % 4;
  const int first_row = static_cast<int>(simt::CtaX()) * 16;
  const int last_row = arguments.rows - 1;
  const int row0 = first_row + group < last_row ? first_row + group : last_row;
  const int row1 =
      first_row + group + 8 < last_row ? first_row + group + 8 : last_row;
  const uint16_t* weight0 =
      arguments.weight + int64_t{row0} * arguments.cols + quad * 8;
  const uint16_t* weight1 =
      arguments.weight + int64_t{row1} * arguments.cols + quad * 8;
  const int cols = arguments.cols - quad * 8;

  float accumulators[kTiles][4];
  SIMT_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    accumulators[tile][0] = accumulators[tile][1] = 0;
    accumulators[tile][2] = accumulators[tile][3] = 0;
  }
  bool has_waited = false;
  // k: of this warp's turns, in pieces of kUnroll steps.
  for (int piece = 0;; ++piece) {
    constexpr int kPieces = kTurn / (kUnroll * kStep);
    const int k = (piece / kPieces * kNumWarps + warp) * kTurn +
                  piece % kPieces * kUnroll * kStep;
    if (k >= arguments.cols) break;  // Later pieces lie further on.
    simt::Bytes16 a0[kUnroll], a1[kUnroll];
    SIMT_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      a0[u] = LoadColumns(weight0, k + u * kStep, cols, true);
      a1[u] = LoadColumns(weight1, k + u * kStep, cols, true);
    }
    if (!has_waited) {
      // The weights never depend on the previous kernel: they are on their way
      // while it ends.
      simt::WaitForPrevious();
      has_waited = true;
    }
    SIMT_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int token = tile * 8 + group;
      const bool is_valid =
          token <
          arguments.num_tokens -
              (HasPlantedBug(PlantedBug::kSkinnyLosesTheLastToken) ? 1 : 0);
      const uint16_t* x =
          arguments.x + (is_valid ? token : 0) * arguments.x_stride + quad * 8;
      SIMT_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        simt::Bytes16 b = LoadColumns(x, k + u * kStep, cols, false);
        SIMT_UNROLL
        for (int h = 0; h < 2; ++h) {
          const uint32_t a[4] = {a0[u].words[2 * h], a1[u].words[2 * h],
                                 a0[u].words[2 * h + 1],
                                 a1[u].words[2 * h + 1]};
          Element<kType>::Mma(accumulators[tile], a,
                              is_valid ? b.words[2 * h] : 0u,
                              is_valid ? b.words[2 * h + 1] : 0u);
        }
      }
    }
  }
  if (!has_waited) simt::WaitForPrevious();
  simt::LaunchNext();
  FinishSkinny<kType>(arguments, first_row, accumulators, scratch,
                      [](int) { return 1.0f; });
}

template <DType kType>
bool LaunchForTokens(const LinearArguments& arguments, simt::Stream stream) {
  const simt::LaunchShape shape = {
      .num_ctas_x = static_cast<uint32_t>((arguments.rows + 15) / 16),
      .num_threads = kNumWarps * 32,
      .waits_for_previous = true};
  // More tokens keep more sums: fewer loads in flight per warp, as more CTAs
  // would not fit otherwise.
  if (arguments.num_tokens <= 8) {
    return simt::Launch(&SkinnyLinearKernel<kType, 1, 4>, shape, stream,
                        arguments);
  }
  if (arguments.num_tokens <= 16) {
    return simt::Launch(&SkinnyLinearKernel<kType, 2, 4>, shape, stream,
                        arguments);
  }
  if (arguments.num_tokens <= 32) {
    return simt::Launch(&SkinnyLinearKernel<kType, 4, 2>, shape, stream,
                        arguments);
  }
  return simt::Launch(&SkinnyLinearKernel<kType, 8, 2>, shape, stream,
                      arguments);
}

}  // namespace

bool LaunchSkinnyLinear(const LinearArguments& arguments, simt::Stream stream) {
  if (arguments.num_tokens < 1 || arguments.num_tokens > kMaxSkinnyTokens ||
      arguments.cols % 8 != 0 ||
      (IsGated(arguments.epilogue.activation) && arguments.rows % 16 != 0)) {
    return false;
  }
  return arguments.dtype == DType::kBF16
             ? LaunchForTokens<DType::kBF16>(arguments, stream)
             : LaunchForTokens<DType::kF16>(arguments, stream);
}

}  // namespace quire::cuda
