#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/quantized_linear.h"
#include "kernels/cuda/skinny_reduce.h"

namespace quire::cuda {
namespace {

constexpr int kStep = kScaleCols;  // Columns that a warp visits at once.
// Columns of a warp's turn, whatever the number of tokens: the order of the sum
// must not depend on it.
constexpr int kTurn = 2 * kStep;

// Where a lane reads in sixteen rows: its own are lane / 4 and lane / 4 + 8, or
// the last one.
template <QuantFormat kFormat, int kScales>
struct SkinnyRows {
  static constexpr bool kIsFp8 = kFormat == QuantFormat::kFp8;

  const uint8_t* data;  // The first row; of integers, what the lane has of it.
  int to_second;        // Bytes from there to the second row.
  int last_offset;      // Of a load from a row.
  int last_step;
  int64_t first_scale;  // Of integers, at column 0.
  int row_blocks[2];    // In blocks of fp8; of all lanes.

  SIMT_DEVICE SkinnyRows(const QuantizedWeight& weight, int num_rows, int cols,
                         int first_row) {
    const int lane = simt::ThreadX() % 32;
    const int last_row = num_rows - 1, row = first_row + lane / 4;
    const int first = row < last_row ? row : last_row;
    const int second = row + 8 < last_row ? row + 8 : last_row;
    const int64_t row_bytes = RowBytesOf(kFormat, cols);
    data = weight.data + first * row_bytes + (kIsFp8 ? 0 : lane % 4 * 16);
    to_second = (second - first) * static_cast<int>(row_bytes);
    last_offset = static_cast<int>(row_bytes) - (kIsFp8 ? 16 : 64);
    last_step = (cols - 1) / kStep;
    if constexpr (kScales > 0 && !kIsFp8) {
      first_scale = PlaceOfScale(row, 0, cols, kStep / kScales);
    }
    row_blocks[0] = first_row / 8;
    row_blocks[1] = (first_row + 8 < num_rows ? first_row + 8 : first_row) / 8;
  }
};

// kNum neighbours, in one load.
template <typename T, int kNum>
struct alignas(sizeof(T) * kNum) Neighbours {
  T values[kNum];
};
template <typename T, int kNum>
SIMT_DEVICE void LoadNeighbours(const void* from, T (&values)[kNum]) {
  const auto loaded = *static_cast<const Neighbours<T, kNum>*>(from);
  SIMT_UNROLL
  for (int i = 0; i < kNum; ++i) values[i] = loaded.values[i];
}

// kScales: of a row in a step; 0: one scale, at the end. The loads of a piece
// are all under way before anything waits for one: no address depends on
// another load, none is behind a branch, and numbers are widened at their use.
// Beyond the columns the last ones are repeated, which x multiplies by zeros.
template <QuantFormat kFormat, int kScales>
struct SkinnyWeights {
  static constexpr bool kIsFp8 = kFormat == QuantFormat::kFp8;
  static constexpr bool kIsInt4 = kFormat == QuantFormat::kInt4;
  static constexpr int kLoads = kIsInt4 ? 1 : 2;  // Of 16 bytes of a row.
  static constexpr int kNumScales = kScales > 0 ? kScales : 1;
  using Rows = SkinnyRows<kFormat, kScales>;

  simt::Bytes16 bytes[2][kLoads];  // Rows lane / 4 and lane / 4 + 8.
  // Of the two rows: halves of a word, or in blocks of fp8 words.
  uint32_t scales[kIsFp8 ? 2 : kNumScales];
  uint32_t tails[kNumScales];
  uint32_t zeros[kNumScales];  // Two bytes of every group, in fewer words.

  SIMT_DEVICE void LoadBytes(const Rows& rows, int column) {
    SIMT_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int at = (kIsInt4 ? column / 2 : column) + i * 64 +
                     (kIsFp8 ? FirstColumn() : 0);
      const int offset = at < rows.last_offset ? at : rows.last_offset;
      SIMT_UNROLL
      for (int r = 0; r < 2; ++r) {
        bytes[r][i] =
            simt::LoadStream16(rows.data + r * rows.to_second + offset);
      }
    }
  }

  SIMT_DEVICE void LoadScales(const QuantizedWeight& weight, const Rows& rows,
                              int column) {
    if constexpr (kScales == 0) return;
    int step =
        column / kStep < rows.last_step ? column / kStep : rows.last_step;
    if (HasPlantedBug(PlantedBug::kQuantizedScaleOfTheNextGroup) && step > 0) {
      --step;
    }
    if constexpr (kIsFp8) {
      SIMT_UNROLL
      for (int r = 0; r < 2; ++r) {
        scales[r] = std::bit_cast<uint32_t>(
            BlockScale(weight, rows.row_blocks[r], step));
      }
    } else {
      const int64_t at = rows.first_scale + step * (16 * kScales);
      LoadNeighbours(static_cast<const uint16_t*>(weight.scales) + at, scales);
      if constexpr (kIsInt4) {
        SIMT_UNROLL
        for (int i = 0; i < kScales; ++i) {
          tails[i] = 0;
          zeros[i] = 0x08080808;
        }
        if (weight.scale_tails) LoadNeighbours(weight.scale_tails + at, tails);
        if (HasZeros(weight)) {
          const uint8_t* from = weight.zeros + at;
          if constexpr (kScales == 1) {
            zeros[0] = *reinterpret_cast<const uint16_t*>(from);
          } else {
            uint32_t words[kScales / 2];
            LoadNeighbours(from, words);
            SIMT_UNROLL
            for (int i = 0; i < kScales / 2; ++i) zeros[i] = words[i];
          }
        }
      }
    }
  }

  // Of row r (0 or 1) in columns s * 32 onwards.
  SIMT_DEVICE float Scale(const QuantizedWeight& weight, int r, int s) const {
    if constexpr (kIsFp8) return std::bit_cast<float>(scales[r]);
    const int g = s * kNumScales / 4;
    return WidenScale<kFormat>(weight, scales[g], tails[g], r);
  }
  template <DType kType>
  SIMT_DEVICE uint32_t Zero(int r, int s) const {
    const int g = s * kNumScales / 4;
    return Int4Zero<kType>(zeros[g / 2], g % 2 * 2 + r);
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
        const uint32_t zero = Zero<kType>(r, s);
        a[r] = Int4Pair<kType>(bytes[r][0].words[s], 2 * h, zero);
        a[r + 2] = Int4Pair<kType>(bytes[r][0].words[s], 2 * h + 1, zero);
      }
    }
  }

  // The first of the eight columns that this lane has in sub-step 0, and that
  // of sub-step s from there.
  static SIMT_DEVICE int FirstColumn() {
    return simt::ThreadX() % 4 * (kIsFp8 ? 16 : 8);
  }
  static constexpr int Offset(int s) {
    return kIsFp8 ? s / 2 * 64 + s % 2 * 8 : s * 32;
  }
};

// Of an SM: as many as spill nothing on any architecture.
constexpr int MinCtas(QuantFormat format, int num_scales, int num_tiles,
                      bool has_norm) {
  if (has_norm) return kNormCtasOfSm;
  const bool is_wide = format != QuantFormat::kInt4 || num_scales > 1;
  if (num_tiles == 1) return is_wide ? 2 : 3;
  if (num_tiles == 2) return is_wide ? 1 : 2;
  return num_tiles == 4 && num_scales < 2 ? 2 : 1;
}

constexpr int NormedPhaseOf(QuantFormat format) {
  return format == QuantFormat::kFp8 ? kNormedPhaseOfFp8 : kNormedPhase;
}

// Adds the products of the step's columns, from `k` on, that `weights` holds.
// `parts`: of the current scale's columns; zero before and after.
//   normed: x', a row behind every normed_bytes; with kHasNorm.
template <DType kType, QuantFormat kFormat, int kScales, int kTiles,
          bool kHasNorm>
SIMT_DEVICE void MultiplyStep(const QuantizedLinearArguments& arguments,
                              const SkinnyWeights<kFormat, kScales>& weights,
                              int k, const unsigned char* normed,
                              int64_t normed_bytes, float (&sums)[kTiles][4],
                              float (&parts)[kTiles][4]) {
  using Weights = SkinnyWeights<kFormat, kScales>;
  // In x: 32 bits hold it, and 64 for each tile are too many registers.
  using Place = std::conditional_t<kTiles == 1, int64_t, uint32_t>;
  const LinearArguments& linear = arguments.linear;
  const int group = simt::ThreadX() % 32 / 4;
  const int column = k + Weights::FirstColumn();
  const int num_left = linear.cols - column;
  SIMT_UNROLL
  for (int s = 0; s < 4; ++s) {
    uint32_t a[2][4];
    weights.template Fragment<kType>(s, 0, a[0]);
    weights.template Fragment<kType>(s, 1, a[1]);
    SIMT_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int token = tile * 8 + group;
      simt::Bytes16 b = {{0, 0, 0, 0}};
      // Not &&, of which nvcc makes branches.
      if ((token < linear.num_tokens) & (Weights::Offset(s) < num_left)) {
        if constexpr (kHasNorm) {
          b = simt::LoadShared16(normed + token * normed_bytes +
                                 (column + Weights::Offset(s)) * 2);
        } else {
          b = simt::Load16(
              linear.x + static_cast<Place>(token * linear.x_stride + column) +
              Weights::Offset(s));
        }
      }
      auto& to = kScales > 0 ? parts[tile] : sums[tile];
      Element<kType>::Mma(to, a[0], b.words[0], b.words[1]);
      Element<kType>::Mma(to, a[1], b.words[2], b.words[3]);
      if constexpr (kScales > 0) {
        if (kScales == 1 && s < 3) continue;
        // Tile by tile: with a scale for every 32 columns no other tile's parts
        // have to be kept.
        SIMT_UNROLL
        for (int i = 0; i < 4; ++i) {
          sums[tile][i] +=
              weights.Scale(arguments.weight, i / 2, s) * parts[tile][i];
          parts[tile][i] = 0;
        }
      }
    }
  }
}

// kTiles: tiles of eight tokens. kUnroll: steps whose loads are in flight
// together. kHasNorm: as in skinny_linear.cc.
template <DType kType, QuantFormat kFormat, int kScales, int kTiles,
          bool kHasNorm>
SIMT_KERNEL(kSkinnyWarps * 32, MinCtas(kFormat, kScales, kTiles, kHasNorm))
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
  const int first_k = static_cast<int>(simt::ThreadX() / 32) * kTurn;

  using Weights = SkinnyWeights<kFormat, kScales>;
  Weights weights[kUnroll];
  const auto load = [&](const typename Weights::Rows& rows, int k) {
    SIMT_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      weights[u].LoadBytes(rows, k + u * kStep);
    }
    SIMT_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      weights[u].LoadScales(weight, rows, k + u * kStep);
    }
  };
  int first_row = static_cast<int>(simt::CtaX()) * 16;
  typename Weights::Rows rows(weight, linear.rows, linear.cols, first_row);
  load(rows, first_k);
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
      if (piece > 0) load(rows, k);
      SIMT_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        MultiplyStep<kType, kFormat, kScales, kTiles, kHasNorm>(
            arguments, weights[u], k + u * kStep, normed, normed_bytes, sums,
            parts);
      }
    }
    const int next_row = first_row + static_cast<int>(simt::NumCtasX()) * 16;
    const bool is_last = !kHasNorm || next_row >= linear.rows;
    if (is_last) {
      simt::LaunchNext();
    } else {
      rows = {weight, linear.rows, linear.cols, next_row};
      load(rows, first_k);
    }
    FinishSkinny<kType>(
        linear, first_row, sums, scratch + (kHasNorm ? turn % 2 * kScratch : 0),
        [&](int row) { return kScales > 0 ? 1.0f : RowScale(weight, row); });
    if (is_last) break;
    first_row = next_row;
  }
}

template <DType kType, QuantFormat kFormat, int kScales>
bool LaunchForTokens(const QuantizedLinearArguments& arguments,
                     simt::Stream stream) {
  simt::LaunchShape shape = {
      .num_ctas_x = static_cast<uint32_t>((arguments.linear.rows + 15) / 16),
      .num_threads = kSkinnyWarps * 32,
      .waits_for_previous = true};
  if (arguments.linear.has_norm) {
    SetNormShape(arguments.linear, NormedPhaseOf(kFormat), &shape);
    return simt::Launch(
        &QuantizedSkinnyKernel<kType, kFormat, kScales, 1, true>, shape, stream,
        arguments);
  }
  const int num_tokens = arguments.linear.num_tokens;
  return simt::Launch(
      num_tokens <= 8
          ? &QuantizedSkinnyKernel<kType, kFormat, kScales, 1, false>
      : num_tokens <= 16
          ? &QuantizedSkinnyKernel<kType, kFormat, kScales, 2, false>
      : num_tokens <= 32
          ? &QuantizedSkinnyKernel<kType, kFormat, kScales, 4, false>
          : &QuantizedSkinnyKernel<kType, kFormat, kScales, 8, false>,
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
  switch (weight.group_size) {
    case 32:
      return LaunchForTokens<kType, QuantFormat::kInt4, 4>(arguments, stream);
    case 64:
      return LaunchForTokens<kType, QuantFormat::kInt4, 2>(arguments, stream);
    default:
      return LaunchForTokens<kType, QuantFormat::kInt4, 1>(arguments, stream);
  }
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
