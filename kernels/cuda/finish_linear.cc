#include <algorithm>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/planted_bug.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;
// CTAs of all columns together, about two waves of a large GPU: each takes
// every so many tokens.
constexpr int kNumCtas = 2048;
// Tokens whose sums a thread loads at a time.
constexpr int kUnroll = 4;

// A thread finishes one output column of some tokens: a warp reads and writes
// consecutive ones.
template <DType kType>
SIMT_KERNEL(kThreads)
FinishLinearKernel(const LinearArguments arguments, const SumsToFinish sums) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  const LinearEpilogue& epilogue = arguments.epilogue;
  const bool is_gated = IsGated(epilogue.activation);
  const int c = static_cast<int>(simt::CtaX() * kThreads + simt::ThreadX());
  const int row = is_gated ? c / 8 * 16 + c % 8 : c;
  if (row >= sums.num_rows &&
      !HasPlantedBug(PlantedBug::kFinishLinearNoGuard)) {
    return;
  }
  const int weight_row = sums.first_row + row;
  const int column =
      is_gated ? weight_row / 16 * 8 + weight_row % 8 : weight_row;
  float bias = 0, up_bias = 0;
  if (epilogue.bias) {
    bias = epilogue.bias[weight_row];
    if (is_gated) up_bias = epilogue.bias[weight_row + 8];
    if (HasPlantedBug(PlantedBug::kFinishLinearBiasOfThePiece)) {
      bias = epilogue.bias[row];
    }
  }
  const int64_t step = simt::NumCtasY();
  for (int64_t first = simt::CtaY(); first < arguments.num_tokens;
       first += kUnroll * step) {
    if (HasPlantedBug(PlantedBug::kFinishLinearLosesTheLastTokens) &&
        first + (kUnroll - 1) * step >= arguments.num_tokens) {
      break;
    }
    float sum[kUnroll] = {}, up[kUnroll] = {};
    SIMT_UNROLL
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t token = first + i * step;
      if (token >= arguments.num_tokens) continue;
      const float* from = sums.sums + token * sums.stride + row;
      sum[i] = from[0] + bias;
      if (is_gated) up[i] = from[8] + up_bias;
      if (HasPlantedBug(PlantedBug::kFinishLinearUpOfTheNextGroup)) {
        up[i] = from[16] + up_bias;
      }
    }
    SIMT_UNROLL
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t token = first + i * step;
      if (token >= arguments.num_tokens) continue;
      FinishLinear<kType>(epilogue, sum[i], up[i], token, column,
                          arguments.out_stride, arguments.out);
    }
  }
}

}  // namespace

bool LaunchFinishLinear(const LinearArguments& arguments,
                        const SumsToFinish& sums, simt::Stream stream) {
  const bool is_gated = IsGated(arguments.epilogue.activation);
  if (arguments.num_tokens < 1 || sums.num_rows < 1 ||
      (is_gated && (sums.first_row % 16 != 0 || sums.num_rows % 16 != 0))) {
    return false;
  }
  const int num_columns = is_gated ? sums.num_rows / 2 : sums.num_rows;
  const int num_ctas_x = (num_columns + kThreads - 1) / kThreads;
  return simt::Launch(
      arguments.dtype == DType::kBF16 ? &FinishLinearKernel<DType::kBF16>
                                      : &FinishLinearKernel<DType::kF16>,
      {.num_ctas_x = static_cast<uint32_t>(num_ctas_x),
       .num_ctas_y = static_cast<uint32_t>(std::clamp(
           kNumCtas / num_ctas_x, 1, static_cast<int>(arguments.num_tokens))),
       .num_threads = kThreads,
       .waits_for_previous = true},
      stream, arguments, sums);
}

}  // namespace quire::cuda
