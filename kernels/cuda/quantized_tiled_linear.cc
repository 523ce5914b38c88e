#include <cmath>

#include "kernels/cuda/linear_tile.h"
#include "kernels/cuda/quantized_linear.h"

namespace quire::cuda {
namespace {

using T = LinearTile;

// ------------------------------------------------------- x in e4m3

constexpr size_t kFp8SharedBytes = size_t{T::kNumStages} * 2 * T::kBytes;

constexpr int kBlockCols = 128;  // That share a scale of blocks.

// sums += scales * parts of a block for what a thread sums: of eight tokens,
// and of four times eight rows, which share a scale each. parts become 0.
struct BlockScales {
  float of_token[4][2];

  // Those of the tokens are under way behind the products; registers for the
  // others, which always lie in L1, there are none on sm_90a.
  SIMT_DEVICE void Load(const QuantizedLinearArguments& arguments, int block,
                        int first_token) {
    const int num_tokens = arguments.linear.num_tokens;
    const float* x_scales = arguments.x_scales + int64_t{block} * num_tokens;
    SIMT_UNROLL
    for (int m = 0; m < 4; ++m) {
      SIMT_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int token = first_token + T::WarpToken() + m * 16 +
                          static_cast<int>(simt::ThreadX()) % 32 / 4 + i * 8;
        of_token[m][i] = token < num_tokens ? x_scales[token] : 0.0f;
      }
    }
  }

  SIMT_DEVICE void Add(const QuantizedLinearArguments& arguments, int block,
                       int first_row, T::Sums& parts, T::Sums& sums) const {
    const QuantizedWeight& weight = arguments.weight;
    SIMT_UNROLL
    for (int n = 0; n < 4; ++n) {
      const int row = first_row + T::WarpRow() + n * 8;
      const float of_rows = row < arguments.linear.rows
                                ? BlockScale(weight, row >> 3, block)
                                : 0.0f;
      SIMT_UNROLL
      for (int m = 0; m < 4; ++m) {
        SIMT_UNROLL
        for (int i = 0; i < 4; ++i) {
          sums[m][n][i] += of_token[m][i / 2] * of_rows * parts[m][n][i];
        }
      }
    }
    T::Clear(parts);
  }
};

template <DType kType, bool kHasBlocks>
SIMT_KERNEL(T::kThreads, 1)
Fp8LinearKernel(const QuantizedLinearArguments arguments) {
  SIMT_DYNAMIC_SHARED(memory);
  const LinearArguments& linear = arguments.linear;
  const QuantizedWeight& weight = arguments.weight;
  const int first_row = static_cast<int>(simt::CtaX()) * T::kRows;
  const int first_token = static_cast<int>(simt::CtaY()) * T::kTokens;
  const int num_steps = (linear.cols + T::kDepthBytes - 1) / T::kDepthBytes;
  simt::WaitForPrevious();
  simt::LaunchNext();

  const auto load = [&](int step) {
    if (step < num_steps) {
      unsigned char* tile = memory + step % T::kNumStages * 2 * T::kBytes;
      const int64_t k = int64_t{step} * T::kDepthBytes;
      T::Load(arguments.x_fp8, linear.cols, linear.num_tokens, linear.cols,
              first_token, k, tile);
      T::Load(weight.data, linear.cols, linear.rows, linear.cols, first_row, k,
              tile + T::kBytes);
    }
    simt::CpAsyncCommit();
  };
  constexpr int kStepsOfBlock = kBlockCols / T::kDepthBytes;
  T::Sums sums;
  [[maybe_unused]] T::Sums parts;
  [[maybe_unused]] BlockScales scales;
  T::Clear(sums);
  if constexpr (kHasBlocks) T::Clear(parts);
  SIMT_UNROLL
  for (int step = 0; step < T::kNumStages - 1; ++step) load(step);
  for (int step = 0; step < num_steps; ++step) {
    simt::CpAsyncWait<T::kNumStages - 2>();
    simt::SyncThreads();
    load(step + T::kNumStages - 1);
    if constexpr (kHasBlocks) {
      if (step % kStepsOfBlock == 0) {
        const int before =
            HasPlantedBug(PlantedBug::kFp8ScaleOfTheBlockBefore) && step > 0;
        scales.Load(arguments, step / kStepsOfBlock - before, first_token);
      }
    }
    unsigned char* tile = memory + step % T::kNumStages * 2 * T::kBytes;
    T::Multiply<!kHasBlocks>(
        tile, tile + T::kBytes, kHasBlocks ? parts : sums,
        [](float(&c)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) {
          simt::MmaE4M3(c, a, b0, b1);
        });
    if constexpr (kHasBlocks) {
      const bool is_last = step == num_steps - 1 &&
                           !HasPlantedBug(PlantedBug::kFp8LosesTheLastBlock);
      if (step % kStepsOfBlock == kStepsOfBlock - 1 || is_last) {
        scales.Add(arguments, step / kStepsOfBlock, first_row, parts, sums);
      }
    }
  }
  simt::CpAsyncWait<0>();
  T::Finish<kType>(
      linear, first_token, first_row, sums, memory, [&](int token, int row) {
        return kHasBlocks ? 1.0f
                          : arguments.x_scales[token] * RowScale(weight, row);
      });
}

constexpr int kQuantizeThreads = 256;

template <DType kType>
SIMT_KERNEL(kQuantizeThreads)
QuantizeRowsKernel(const QuantizeRowsArguments arguments) {
  SIMT_SHARED(float, largest_of_warp, kQuantizeThreads / 32);
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t token = simt::CtaX();
  const uint16_t* x = arguments.x + token * arguments.x_stride;
  float scale = arguments.input_scale;
  if (scale == 0) {
    float largest = 0;
    for (int c = simt::ThreadX() * 8; c < arguments.cols;
         c += kQuantizeThreads * 8) {
      const simt::Bytes16 bytes = simt::Load16(x + c);
      SIMT_UNROLL
      for (int i = 0; i < 8; ++i) {
        const uint16_t bits = bytes.words[i / 2] >> (i % 2 * 16) & 0x7fff;
        largest = fmaxf(largest, Element<kType>::ToFloat(bits));
      }
    }
    SIMT_UNROLL
    for (int i = 16; i > 0; i /= 2) {
      largest = fmaxf(largest, simt::ShuffleXor(largest, i));
    }
    if (simt::ThreadX() % 32 == 0)
      largest_of_warp[simt::ThreadX() / 32] = largest;
    if (!HasPlantedBug(PlantedBug::kQuantizeRowsNoBarrier)) {
      simt::SyncThreads();
    }
    for (int w = 0; w < kQuantizeThreads / 32; ++w) {
      largest = fmaxf(largest, largest_of_warp[w]);
    }
    scale = largest > 0 ? largest / 448.0f : 1.0f;
  }
  if (simt::ThreadX() == 0) arguments.scales[token] = scale;
  uint8_t* out = arguments.out + token * arguments.cols;
  for (int c = simt::ThreadX() * 8; c < arguments.cols;
       c += kQuantizeThreads * 8) {
    const simt::Bytes16 bytes = simt::Load16(x + c);
    uint32_t words[2] = {0, 0};
    SIMT_UNROLL
    for (int i = 0; i < 8; ++i) {
      const uint16_t bits = bytes.words[i / 2] >> (i % 2 * 16) & 0xffff;
      words[i / 4] |=
          uint32_t{simt::FloatToE4M3(Element<kType>::ToFloat(bits) / scale)}
          << (i % 4 * 8);
    }
    auto* to = reinterpret_cast<uint32_t*>(out + c);
    to[0] = words[0];
    to[1] = words[1];
  }
}

// A scale for every 128 columns: those of sixteen threads.
template <DType kType>
SIMT_KERNEL(kQuantizeThreads)
QuantizeGroupsKernel(const QuantizeRowsArguments arguments) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t token = simt::CtaX();
  const uint16_t* x = arguments.x + token * arguments.x_stride;
  // All lanes of a warp stay, for the shuffles.
  for (int first = 0; first < arguments.cols; first += kQuantizeThreads * 8) {
    const int c = first + static_cast<int>(simt::ThreadX()) * 8;
    const bool is_valid = c < arguments.cols;
    simt::Bytes16 bytes = {{0, 0, 0, 0}};
    if (is_valid) bytes = simt::Load16(x + c);
    float values[8], largest = 0;
    SIMT_UNROLL
    for (int i = 0; i < 8; ++i) {
      values[i] =
          Element<kType>::ToFloat(bytes.words[i / 2] >> (i % 2 * 16) & 0xffff);
      largest = fmaxf(largest, fabsf(values[i]));
    }
    const int first_partner =
        kBlockCols / 8 / 2 /
        (HasPlantedBug(PlantedBug::kQuantizeGroupsOfHalfTheSize) ? 2 : 1);
    SIMT_UNROLL
    for (int i = first_partner; i > 0; i /= 2) {
      largest = fmaxf(largest, simt::ShuffleXor(largest, i));
    }
    if (!is_valid) continue;
    const float scale = arguments.input_scale != 0 ? arguments.input_scale
                        : largest > 0              ? largest / 448.0f
                                                   : 1.0f;
    if (c % kBlockCols == 0) {
      arguments.scales[int64_t{c / kBlockCols} * arguments.num_tokens + token] =
          scale;
    }
    uint32_t words[2] = {0, 0};
    SIMT_UNROLL
    for (int i = 0; i < 8; ++i) {
      words[i / 4] |= uint32_t{simt::FloatToE4M3(values[i] / scale)}
                      << (i % 4 * 8);
    }
    auto* to =
        reinterpret_cast<uint32_t*>(arguments.out + token * arguments.cols + c);
    to[0] = words[0];
    to[1] = words[1];
  }
}

SIMT_KERNEL(kQuantizeThreads)
PermuteColumnsKernel(const PermuteColumnsArguments arguments) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t token = simt::CtaX();
  const int64_t x_stride = HasPlantedBug(PlantedBug::kPermuteStrideOfOut)
                               ? arguments.cols
                               : arguments.x_stride;
  const uint16_t* x = arguments.x + token * x_stride;
  uint16_t* out = arguments.out + token * arguments.cols;
  for (int c = simt::ThreadX(); c < arguments.cols; c += kQuantizeThreads) {
    if (HasPlantedBug(PlantedBug::kPermuteScatters)) {
      out[arguments.order[c]] = x[c];
      continue;
    }
    out[c] = x[arguments.order[c]];
  }
}

// ------------------------------------------------------- x in 16 bits

constexpr int kSuperCols = 128;  // Loaded at once by a thread.
constexpr int kStepCols = T::kDepthBytes / 2;

// Half of 128 columns of a row, as a thread holds them: in every step of 32
// columns, sixteen that are neighbours.
template <QuantFormat kFormat>
struct TiledWeights {
  static constexpr bool kIsFp8 = kFormat == QuantFormat::kFp8;
  static constexpr bool kIsInt4 = kFormat == QuantFormat::kInt4;
  static constexpr int kLoads = kIsInt4 ? 2 : 4;
  simt::Bytes16 bytes[kLoads];

  SIMT_DEVICE void Load(const uint8_t* row, int cols, int column) {
    const int half = simt::ThreadX() % 2;
    SIMT_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      bytes[i] = {{0, 0, 0, 0}};
      // Beyond the columns there may be no bytes, or with integers zeros.
      const int at = column + (kIsFp8    ? i * kStepCols + half * 16
                               : kIsInt4 ? 0
                                         : i / 2 * kInt8Block);
      if (at >= cols) continue;
      bytes[i] =
          simt::LoadStream16(kIsFp8    ? row + at
                             : kIsInt4 ? row + at / 2 + (half * 2 + i) * 16
                                       : row + at + (half * 2 + i % 2) * 16);
    }
  }

  // Columns 2 p and 2 p + 1 of eight: those of `chunk` (0 or 1) of step s.
  template <DType kType>
  SIMT_DEVICE uint32_t Pair(int s, int chunk, int p, uint32_t zero) const {
    if constexpr (kIsFp8) {
      const uint32_t four = bytes[s].words[chunk * 2 + p / 2];
      return Element<kType>::FromE4M3x2(four >> (p % 2 * 16) & 0xffff);
    } else if constexpr (kIsInt4) {
      return Int4Pair<kType>(bytes[chunk].words[s], p, zero);
    } else {
      const uint32_t four = bytes[s / 2 * 2 + chunk].words[s % 2 * 2 + p / 2];
      return Int8Pair<kType>(four, p % 2);
    }
  }
};

// Where the scales of a thread's row are.
struct RowScales {
  int first;  // Of columns 0 onwards.
  int num;    // Of 128 columns.
};

// Widens what the thread holds of step `step` (the `s`-th of its weights) into
// its two chunks of the tile's row.
template <DType kType, QuantFormat kFormat>
SIMT_DEVICE void WidenStep(const QuantizedWeight& weight,
                           const TiledWeights<kFormat>& weights,
                           const RowScales& scales, int step, int s,
                           unsigned char* weight_tile) {
  const int tile_row = simt::ThreadX() / 2, half = simt::ThreadX() % 2;
  const int super = step / (kSuperCols / kStepCols);
  float scale = 1;
  uint32_t zero = 0;
  if constexpr (kFormat != QuantFormat::kFp8) {
    const int at =
        scales.first + super * (16 * scales.num) + s * scales.num / 4 * 2;
    const uint32_t bits = static_cast<const uint16_t*>(weight.scales)[at];
    const uint32_t tail = weight.scale_tails ? weight.scale_tails[at] : 0;
    scale = WidenScale<kFormat>(weight, bits, tail, 0);
    if constexpr (kFormat == QuantFormat::kInt4) {
      zero = Int4Zero<kType>(HasZeros(weight) ? weight.zeros[at] : 8, 0);
    }
  } else if (weight.group_size > 0) {
    scale = BlockScale(weight, scales.first, super);
  }
  SIMT_UNROLL
  for (int chunk = 0; chunk < 2; ++chunk) {
    simt::Bytes16 wide;
    SIMT_UNROLL
    for (int p = 0; p < 4; ++p) {
      uint32_t pair = weights.template Pair<kType>(s, chunk, p, zero);
      if (weight.group_size > 0) {
        pair =
            Element<kType>::Pack(Element<kType>::ToFloat(pair & 0xffff) * scale,
                                 Element<kType>::ToFloat(pair >> 16) * scale);
      }
      wide.words[p] = pair;
    }
    simt::StoreShared16(T::Chunk(weight_tile, tile_row, half * 2 + chunk),
                        wide);
  }
}

template <DType kType, QuantFormat kFormat>
SIMT_KERNEL(T::kThreads, 1)
WideningLinearKernel(const QuantizedLinearArguments arguments) {
  using Weights = TiledWeights<kFormat>;
  SIMT_DYNAMIC_SHARED(memory);
  unsigned char* weight_tile = memory + T::kNumStages * T::kBytes;
  const LinearArguments& linear = arguments.linear;
  const QuantizedWeight& weight = arguments.weight;
  const int first_row = static_cast<int>(simt::CtaX()) * T::kRows;
  const int first_token = static_cast<int>(simt::CtaY()) * T::kTokens;
  const int num_steps = (linear.cols + kStepCols - 1) / kStepCols;
  const int tile_row = simt::ThreadX() / 2;
  const int row = first_row + tile_row < linear.rows ? first_row + tile_row
                                                     : linear.rows - 1;
  const uint8_t* row_data =
      weight.data + row * RowBytesOf(kFormat, linear.cols);
  RowScales scales = {row >> 3, 1};
  if constexpr (kFormat != QuantFormat::kFp8) {
    const int size = kFormat == QuantFormat::kQ8_0 ? 32 : weight.group_size;
    scales = {static_cast<int>(PlaceOfScale(row, 0, linear.cols, size)),
              kScaleCols / size};
  }
  Weights next;
  next.Load(row_data, linear.cols, 0);
  simt::WaitForPrevious();
  simt::LaunchNext();

  const auto load = [&](int step) {
    if (step < num_steps) {
      T::Load(linear.x, linear.x_stride * 2, linear.num_tokens,
              int64_t{linear.cols} * 2, first_token,
              int64_t{step} * T::kDepthBytes,
              memory + step % T::kNumStages * T::kBytes);
    }
    simt::CpAsyncCommit();
  };
  T::Sums sums;
  T::Clear(sums);
  SIMT_UNROLL
  for (int step = 0; step < T::kNumStages - 1; ++step) load(step);
  Weights weights = next;
  for (int super = 0; super * kSuperCols < linear.cols; ++super) {
    weights = next;
    next.Load(row_data, linear.cols, (super + 1) * kSuperCols);
    SIMT_UNROLL
    for (int s = 0; s < kSuperCols / kStepCols; ++s) {
      const int step = super * (kSuperCols / kStepCols) + s;
      if (step >= num_steps) break;
      simt::CpAsyncWait<T::kNumStages - 2>();
      // Everybody has left the last step: its stage and the weights' tile.
      if (!HasPlantedBug(PlantedBug::kWideningNoBarrierBeforeStore)) {
        simt::SyncThreads();
      }
      load(step + T::kNumStages - 1);
      WidenStep<kType, kFormat>(weight, weights, scales, step, s, weight_tile);
      if (!HasPlantedBug(PlantedBug::kWideningNoBarrierBeforeMultiply)) {
        simt::SyncThreads();
      }
      T::Multiply(memory + step % T::kNumStages * T::kBytes, weight_tile, sums,
                  [](float(&c)[4], const uint32_t(&a)[4], uint32_t b0,
                     uint32_t b1) { Element<kType>::Mma(c, a, b0, b1); });
    }
  }
  simt::CpAsyncWait<0>();
  T::Finish<kType>(
      linear, first_token, first_row, sums, memory, [&](int, int row) {
        return weight.group_size > 0 ? 1.0f : RowScale(weight, row);
      });
}

bool IsRefused(const QuantizedLinearArguments& arguments) {
  const LinearArguments& linear = arguments.linear;
  return linear.num_tokens < 1 ||
         IsRefusedFormat(arguments.weight, linear.cols) ||
         linear.cols % 8 != 0 ||
         (IsGated(linear.epilogue.activation) && linear.rows % 16 != 0);
}

template <DType kType>
bool LaunchWidening(const QuantizedLinearArguments& arguments,
                    simt::Stream stream) {
  return simt::Launch(
      arguments.weight.format == QuantFormat::kFp8
          ? &WideningLinearKernel<kType, QuantFormat::kFp8>
      : arguments.weight.format == QuantFormat::kInt4
          ? &WideningLinearKernel<kType, QuantFormat::kInt4>
          : &WideningLinearKernel<kType, QuantFormat::kQ8_0>,
      T::Shape(arguments.linear, size_t{T::kNumStages + 1} * T::kBytes), stream,
      arguments);
}

}  // namespace

bool LaunchTiledQuantizedLinear(const QuantizedLinearArguments& arguments,
                                simt::Stream stream) {
  if (IsRefused(arguments)) return false;
  return arguments.linear.dtype == DType::kBF16
             ? LaunchWidening<DType::kBF16>(arguments, stream)
             : LaunchWidening<DType::kF16>(arguments, stream);
}

bool LaunchTiledFp8Linear(const QuantizedLinearArguments& arguments,
                          simt::Stream stream) {
  const QuantizedWeight& weight = arguments.weight;
  const bool has_blocks = weight.group_size > 0;
  if (IsRefused(arguments) || weight.format != QuantFormat::kFp8 ||
      (has_blocks && weight.group_size != kBlockCols)) {
    return false;
  }
  const bool is_bf16 = arguments.linear.dtype == DType::kBF16;
  return simt::Launch(
      has_blocks ? is_bf16 ? &Fp8LinearKernel<DType::kBF16, true>
                           : &Fp8LinearKernel<DType::kF16, true>
      : is_bf16 ? &Fp8LinearKernel<DType::kBF16, false>
                 : &Fp8LinearKernel<DType::kF16, false>,
      T::Shape(arguments.linear, kFp8SharedBytes), stream, arguments);
}

bool LaunchQuantizeRows(const QuantizeRowsArguments& arguments,
                        simt::Stream stream) {
  const bool has_groups = arguments.group_size > 0;
  if (arguments.cols % 8 != 0 || arguments.num_tokens < 1 ||
      (has_groups && arguments.group_size != kBlockCols)) {
    return false;
  }
  const bool is_bf16 = arguments.dtype == DType::kBF16;
  return simt::Launch(
      has_groups ? is_bf16 ? &QuantizeGroupsKernel<DType::kBF16>
                           : &QuantizeGroupsKernel<DType::kF16>
      : is_bf16 ? &QuantizeRowsKernel<DType::kBF16>
                 : &QuantizeRowsKernel<DType::kF16>,
      {.num_ctas_x = static_cast<uint32_t>(arguments.num_tokens),
       .num_threads = kQuantizeThreads,
       .waits_for_previous = true},
      stream, arguments);
}

bool LaunchPermuteColumns(const PermuteColumnsArguments& arguments,
                          simt::Stream stream) {
  if (arguments.num_tokens < 1) return false;
  return simt::Launch(
      &PermuteColumnsKernel,
      {.num_ctas_x = static_cast<uint32_t>(arguments.num_tokens),
       .num_threads = kQuantizeThreads,
       .waits_for_previous = true},
      stream, arguments);
}

}  // namespace quire::cuda
