#include "kernels/cuda/quantized_linear.h"
#include "kernels/cuda/skinny_reduce.h"

namespace quire::cuda {
namespace {

constexpr int kStep = 128;  // Columns that a warp visits at once.
// Columns of a warp's turn, whatever the number of tokens: the order of the sum
// must not depend on it.
constexpr int kTurn = 2 * kStep;

// kGroups: how often within a step sums meet a scale; 0: only at the end.
template <QuantFormat kFormat, int kGroups>
struct SkinnyWeights {
  static constexpr bool kIsFp8 = kFormat == QuantFormat::kFp8;
  static constexpr bool kIsInt4 = kFormat == QuantFormat::kInt4;
  static constexpr int kLoads = kIsInt4 ? 1 : 2;  // Of 16 bytes of a row.
  static constexpr int kNumScales = kGroups > 0 ? kGroups : 1;

  simt::Bytes16 bytes[2][kLoads];  // Rows lane / 4 and lane / 4 + 8.
  float scales[2][kNumScales];
  uint32_t zeros[2];  // A byte each.

  SIMT_DEVICE void Load(const QuantizedWeight& weight, const int (&rows)[2],
                        int64_t row_bytes, int cols, int column) {
    const int quad = simt::ThreadX() % 4;
    SIMT_UNROLL
    for (int r = 0; r < 2; ++r) {
      const uint8_t* row = weight.data + rows[r] * row_bytes;
      SIMT_UNROLL
      for (int i = 0; i < kLoads; ++i) {
        // Beyond the columns there may be no bytes, or with integers zeros.
        const int at = column + i * 64 + (kIsFp8 ? quad * 16 : 0);
        bytes[r][i] = {{0, 0, 0, 0}};
        if (at >= cols) continue;
        bytes[r][i] = simt::LoadStream16(kIsFp8    ? row + at
                                         : kIsInt4 ? row + at / 2 + quad * 16
                                                   : row + at + quad * 16);
      }
      zeros[r] = 0;
      SIMT_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        const int first = column + g * (kStep / kNumScales);
        if (first >= cols) {
          scales[r][g] = 0;
          continue;
        }
        const int64_t at = first / weight.group_size * weight.scale_stride +
                           (rows[r] >> weight.scale_shift);
        scales[r][g] = LoadScale(weight, at);
        if constexpr (kIsInt4) zeros[r] |= LoadZero(weight, at) << (8 * g);
      }
    }
  }

  // Fragment h (0 or 1) of sub-step s (0 to 3), which is of 32 columns.
  template <DType kType>
  SIMT_DEVICE void Fragment(int s, int h, uint32_t (&a)[4]) const {
    SIMT_UNROLL
    for (int r = 0; r < 2; ++r) {
      if constexpr (kIsFp8) {
        const uint32_t four = bytes[r][s / 2].words[s % 2 * 2 + h];
        a[r] = Element<kType>::FromE4M3x2(four & 0xffff);
        a[r + 2] = Element<kType>::FromE4M3x2(four >> 16);
      } else if constexpr (!kIsInt4) {
        const uint32_t four = bytes[r][s / 2].words[s % 2 * 2 + h];
        a[r] = Int8Pair<kType>(four, 0);
        a[r + 2] = Int8Pair<kType>(four, 1);
      } else {
        const uint32_t zero =
            Int4Zero<kType>(zeros[r] >> (kGroups == 4 ? 8 * s : 0) & 0xff);
        a[r] = Int4Pair<kType>(bytes[r][0].words[s], 2 * h, zero);
        a[r + 2] = Int4Pair<kType>(bytes[r][0].words[s], 2 * h + 1, zero);
      }
    }
  }

  // The first of the eight columns that this lane has in sub-step s.
  static SIMT_DEVICE int Column(int s) {
    const int quad = simt::ThreadX() % 4;
    return kIsFp8 ? s / 2 * 64 + quad * 16 + s % 2 * 8 : s * 32 + quad * 8;
  }
};

// Of an SM: as many as spill nothing on any architecture.
constexpr int MinCtas(QuantFormat format, int num_groups, int num_tiles,
                      bool has_norm) {
  if (has_norm) return kNormCtasOfSm;
  const bool is_wide = format != QuantFormat::kInt4 || num_groups == 4;
  if (num_tiles == 1) return is_wide ? 2 : 3;
  if (num_tiles == 2) return is_wide ? 1 : 2;
  return num_tiles == 4 && num_groups < 4 ? 2 : 1;
}

constexpr int NormedPhaseOf(QuantFormat format) {
  return format == QuantFormat::kFp8 ? kNormedPhaseOfFp8 : kNormedPhase;
}

// Adds the products of the step's columns, from `k` on, that `weights` holds.
// `parts`: of the current scale's columns; zero before and after.
//   normed: x', a row behind every normed_bytes; with kHasNorm.
template <DType kType, QuantFormat kFormat, int kGroups, int kTiles,
          bool kHasNorm>
SIMT_DEVICE void MultiplyStep(const LinearArguments& linear,
                              const SkinnyWeights<kFormat, kGroups>& weights,
                              int k, const unsigned char* normed,
                              int64_t normed_bytes, float (&sums)[kTiles][4],
                              float (&parts)[kTiles][4]) {
  using Weights = SkinnyWeights<kFormat, kGroups>;
  const int group = simt::ThreadX() % 32 / 4;
  SIMT_UNROLL
  for (int s = 0; s < 4; ++s) {
    uint32_t a[2][4];
    weights.template Fragment<kType>(s, 0, a[0]);
    weights.template Fragment<kType>(s, 1, a[1]);
    const int column = k + Weights::Column(s);
    SIMT_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int token = tile * 8 + group;
      simt::Bytes16 b = {{0, 0, 0, 0}};
      if (token < linear.num_tokens && column < linear.cols) {
        if constexpr (kHasNorm) {
          b = simt::LoadShared16(normed + token * normed_bytes + column * 2);
        } else {
          b = simt::Load16(linear.x + token * linear.x_stride + column);
        }
      }
      auto& to = kGroups > 0 ? parts[tile] : sums[tile];
      Element<kType>::Mma(to, a[0], b.words[0], b.words[1]);
      Element<kType>::Mma(to, a[1], b.words[2], b.words[3]);
      if (kGroups == 0 || (s + 1) % (4 / Weights::kNumScales) != 0) continue;
      // Tile by tile: with a scale for every 32 columns no other tile's parts
      // have to be kept.
      const int g = s / (4 / Weights::kNumScales);
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) {
        sums[tile][i] += weights.scales[i / 2][g] * parts[tile][i];
        parts[tile][i] = 0;
      }
    }
  }
}

// kTiles: tiles of eight tokens. kUnroll: steps whose loads are in flight
// together. kHasNorm: as in skinny_linear.cc.
template <DType kType, QuantFormat kFormat, int kGroups, int kTiles,
          bool kHasNorm>
SIMT_KERNEL(kSkinnyWarps * 32, MinCtas(kFormat, kGroups, kTiles, kHasNorm))
QuantizedSkinnyKernel(const QuantizedLinearArguments arguments) {
  constexpr int kUnroll = kTiles <= 2 ? 2 : 1;
  constexpr int kScratch = kSkinnyWarps * kTiles * 128;
  static_assert(kScratch >= kNormScratch);
  SIMT_SHARED(float, scratch, kScratch*(kHasNorm ? 2 : 1));
  const LinearArguments& linear = arguments.linear;
  const QuantizedWeight& weight = arguments.weight;
  [[maybe_unused]] unsigned char* normed = nullptr;
  [[maybe_unused]] const int64_t normed_bytes =
      NormedRowBytes(linear.cols, NormedPhaseOf(kFormat));
  const int warp = simt::ThreadX() / 32, group = simt::ThreadX() % 32 / 4;
  const int first_k = warp * kTurn;

  SkinnyWeights<kFormat, kGroups> weights[kUnroll];
  const auto load = [&](int first_row, int k) {
    const int last_row = linear.rows - 1, row = first_row + group;
    const int rows[2] = {row < last_row ? row : last_row,
                         row + 8 < last_row ? row + 8 : last_row};
    const int64_t row_bytes = RowBytesOf(kFormat, linear.cols);
    SIMT_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      weights[u].Load(weight, rows, row_bytes, linear.cols, k + u * kStep);
    }
  };
  int first_row = static_cast<int>(simt::CtaX()) * 16;
  load(first_row, first_k);
  // The weights never depend on the previous kernel: they are on their way
  // while it ends.
  simt::WaitForPrevious();
  if constexpr (kHasNorm) {
    SIMT_DYNAMIC_SHARED(memory);
    normed = memory;
    NormIntoShared<kType>(linear.norm, normed, normed_bytes, scratch);
  }

  for (int turn = 0;; ++turn) {
    float sums[kTiles][4], parts[kTiles][4];
    SIMT_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) sums[tile][i] = parts[tile][i] = 0;
    }
    for (int piece = 0;; ++piece) {
      constexpr int kPieces = kTurn / (kUnroll * kStep);
      const int k = piece / kPieces * kSkinnyWarps * kTurn + first_k +
                    piece % kPieces * kUnroll * kStep;
      if (k >= linear.cols) break;  // Later pieces lie further on.
      if (piece > 0) load(first_row, k);
      SIMT_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        MultiplyStep<kType, kFormat, kGroups, kTiles, kHasNorm>(
            linear, weights[u], k + u * kStep, normed, normed_bytes, sums,
            parts);
      }
    }
    const int next_row = first_row + static_cast<int>(simt::NumCtasX()) * 16;
    const bool is_last = !kHasNorm || next_row >= linear.rows;
    if (is_last) {
      simt::LaunchNext();
    } else {
      load(next_row, first_k);
    }
    FinishSkinny<kType>(
        linear, first_row, sums, scratch + (kHasNorm ? turn % 2 * kScratch : 0),
        [&](int row) { return kGroups > 0 ? 1.0f : LoadScale(weight, row); });
    if (is_last) break;
    first_row = next_row;
  }
}

template <DType kType, QuantFormat kFormat, int kGroups>
bool LaunchForTokens(const QuantizedLinearArguments& arguments,
                     simt::Stream stream) {
  simt::LaunchShape shape = {
      .num_ctas_x = static_cast<uint32_t>((arguments.linear.rows + 15) / 16),
      .num_threads = kSkinnyWarps * 32,
      .waits_for_previous = true};
  if (arguments.linear.has_norm) {
    SetNormShape(arguments.linear, NormedPhaseOf(kFormat), &shape);
    return simt::Launch(
        &QuantizedSkinnyKernel<kType, kFormat, kGroups, 1, true>, shape, stream,
        arguments);
  }
  const int num_tokens = arguments.linear.num_tokens;
  return simt::Launch(
      num_tokens <= 8
          ? &QuantizedSkinnyKernel<kType, kFormat, kGroups, 1, false>
      : num_tokens <= 16
          ? &QuantizedSkinnyKernel<kType, kFormat, kGroups, 2, false>
      : num_tokens <= 32
          ? &QuantizedSkinnyKernel<kType, kFormat, kGroups, 4, false>
          : &QuantizedSkinnyKernel<kType, kFormat, kGroups, 8, false>,
      shape, stream, arguments);
}

template <DType kType>
bool LaunchOfType(const QuantizedLinearArguments& arguments,
                  simt::Stream stream) {
  const QuantizedWeight& weight = arguments.weight;
  if (weight.format == QuantFormat::kFp8) {
    return weight.group_size == 0
               ? LaunchForTokens<kType, QuantFormat::kFp8, 0>(arguments, stream)
               : LaunchForTokens<kType, QuantFormat::kFp8, 1>(arguments,
                                                              stream);
  }
  if (weight.format == QuantFormat::kQ8_0) {
    return LaunchForTokens<kType, QuantFormat::kQ8_0, 4>(arguments, stream);
  }
  return weight.group_size % kStep == 0
             ? LaunchForTokens<kType, QuantFormat::kInt4, 1>(arguments, stream)
             : LaunchForTokens<kType, QuantFormat::kInt4, 4>(arguments, stream);
}

}  // namespace

bool LaunchSkinnyQuantizedLinear(const QuantizedLinearArguments& arguments,
                                 simt::Stream stream) {
  const LinearArguments& linear = arguments.linear;
  if (IsRefusedBySkinny(linear) ||
      IsRefusedFormat(arguments.weight, linear.cols)) {
    return false;
  }
  return linear.dtype == DType::kBF16
             ? LaunchOfType<DType::kBF16>(arguments, stream)
             : LaunchOfType<DType::kF16>(arguments, stream);
}

}  // namespace quire::cuda
