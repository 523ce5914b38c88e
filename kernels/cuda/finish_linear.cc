// What is before and behind the products of a library (large_linear.h).
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
template <DType kType, bool kHasScales>
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
  float scale = 1, up_scale = 1;
  if constexpr (kHasScales) {
    scale = sums.row_scales[weight_row];
    if (is_gated) up_scale = sums.row_scales[weight_row + 8];
  }
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
      const float of_token = kHasScales ? sums.x_scales[token] : 1.0f;
      sum[i] = from[0] * (of_token * scale) + bias;
      if (is_gated) up[i] = from[8] * (of_token * up_scale) + up_bias;
      if (HasPlantedBug(PlantedBug::kFinishLinearUpOfTheNextGroup)) {
        up[i] = from[16] * (of_token * up_scale) + up_bias;
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

SIMT_KERNEL(kThreads)
SpreadScalesKernel(const SpreadScalesArguments arguments) {
  // The launch before may still read what `out` was.
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int row = static_cast<int>(simt::CtaX() * kThreads + simt::ThreadX());
  const int64_t block = simt::CtaY();
  if (row >= arguments.num_rows) return;
  arguments.out[block * arguments.num_rows + row] =
      arguments.scales[block * arguments.scale_stride +
                       (arguments.first_row + row) / 8];
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
  const bool is_bf16 = arguments.dtype == DType::kBF16;
  return simt::Launch(
      sums.row_scales == nullptr
          ? is_bf16 ? &FinishLinearKernel<DType::kBF16, false>
                    : &FinishLinearKernel<DType::kF16, false>
      : is_bf16 ? &FinishLinearKernel<DType::kBF16, true>
                : &FinishLinearKernel<DType::kF16, true>,
      {.num_ctas_x = static_cast<uint32_t>(num_ctas_x),
       .num_ctas_y = static_cast<uint32_t>(std::clamp(
           kNumCtas / num_ctas_x, 1, static_cast<int>(arguments.num_tokens))),
       .num_threads = kThreads,
       .waits_for_previous = true},
      stream, arguments, sums);
}

bool LaunchSpreadScales(const SpreadScalesArguments& arguments,
                        simt::Stream stream) {
  if (arguments.num_rows < 1 || arguments.num_blocks < 1) return false;
  return simt::Launch(
      &SpreadScalesKernel,
      {.num_ctas_x = static_cast<uint32_t>((arguments.num_rows + kThreads - 1) /
                                           kThreads),
       .num_ctas_y = static_cast<uint32_t>(arguments.num_blocks),
       .num_threads = kThreads,
       .waits_for_previous = true},
      stream, arguments);
}

}  // namespace quire::cuda
