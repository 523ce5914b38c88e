#include <algorithm>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/skinny_reduce.h"

namespace quire::cuda {
namespace {

constexpr int kNumWarps = kSkinnyWarps;
constexpr int kStep = 32;  // Columns of k that a warp visits at once.
// Columns of a warp's turn, whatever the number of tokens: the order of the sum
// must not depend on it.
constexpr int kTurn = 4 * kStep;

// What a lane holds of the weights of kUnroll steps: rows lane / 4 and lane / 4
// + 8 of sixteen, eight columns of each step; zeros from `cols` on.
template <int kUnroll>
struct SkinnyWeights {
  simt::Bytes16 row0[kUnroll], row1[kUnroll];

  static SIMT_DEVICE simt::Bytes16 LoadColumns(const uint16_t* row, int column,
                                               int cols) {
    if (column >= cols) return {{0, 0, 0, 0}};
    return simt::LoadStream16(row + column);
  }
  // Of columns [k, k + kUnroll * kStep).
  SIMT_DEVICE void Load(const LinearArguments& arguments, int first_row,
                        int k) {
    const int lane = simt::ThreadX() % 32;
    const int last_row = arguments.rows - 1, row = first_row + lane / 4;
    const uint16_t* from0 =
        arguments.weight +
        int64_t{row < last_row ? row : last_row} * arguments.cols;
    const uint16_t* from1 =
        arguments.weight +
        int64_t{row + 8 < last_row ? row + 8 : last_row} * arguments.cols;
    k += lane % 4 * 8;
    SIMT_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      row0[u] = LoadColumns(from0, k + u * kStep, arguments.cols);
      row1[u] = LoadColumns(from1, k + u * kStep, arguments.cols);
    }
  }
};

// Adds the products of the columns from `k` on that `weights` holds.
//   normed: x', a row behind every normed_bytes; with kHasNorm.
template <DType kType, int kTiles, int kUnroll, bool kHasNorm>
SIMT_DEVICE void MultiplyPiece(const LinearArguments& arguments,
                               const SkinnyWeights<kUnroll>& weights, int k,
                               const unsigned char* normed,
                               int64_t normed_bytes,
                               float (&accumulators)[kTiles][4]) {
  const int lane = simt::ThreadX() % 32;
  const int group = lane / 4, quad = lane % 4;
  SIMT_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    const int token = tile * 8 + group;
    const bool is_valid =
        token <
        arguments.num_tokens -
            (HasPlantedBug(PlantedBug::kSkinnyLosesTheLastToken) ? 1 : 0);
    SIMT_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const int column = k + u * kStep + quad * 8;
      simt::Bytes16 b = {{0, 0, 0, 0}};
      if (is_valid && column < arguments.cols) {
        if constexpr (kHasNorm) {
          // A quarter warp: 64 bytes of each of two rows; no conflicts.
          b = simt::LoadShared16(normed + token * normed_bytes + column * 2);
        } else {
          b = simt::Load16(arguments.x + token * arguments.x_stride + column);
        }
      }
      SIMT_UNROLL
      for (int h = 0; h < 2; ++h) {
        const uint32_t a[4] = {
            weights.row0[u].words[2 * h], weights.row1[u].words[2 * h],
            weights.row0[u].words[2 * h + 1], weights.row1[u].words[2 * h + 1]};
        Element<kType>::Mma(accumulators[tile], a, b.words[2 * h],
                            b.words[2 * h + 1]);
      }
    }
  }
}

// kTiles: tiles of eight tokens. kUnroll: steps whose weight loads are in
// flight together; 16 rows x 32 columns x 2 bytes x 8 warps x kUnroll = 32 KiB
// at 4, what hides memory latency on an H100. kHasNorm: x' is made here; the
// CTA goes from one group of sixteen rows to another, whose first weights are
// on their way before it finishes the last.
template <DType kType, int kTiles, int kUnroll, bool kHasNorm>
SIMT_KERNEL(kNumWarps * 32, kHasNorm ? kNormCtasOfSm : 1)
SkinnyLinearKernel(const LinearArguments arguments) {
  constexpr int kScratch = kNumWarps * kTiles * 128;
  static_assert(kScratch >= kNormScratch);
  // Two with a norm: the sums of one group are read while those of the next are
  // written.
  SIMT_SHARED(float, scratch, kScratch*(kHasNorm ? 2 : 1));
  [[maybe_unused]] unsigned char* normed = nullptr;
  [[maybe_unused]] const int64_t normed_bytes = NormedRowBytes(
      arguments.cols,
      HasPlantedBug(PlantedBug::kSkinnyNormNoPadding) ? 0 : kNormedPhase);
  const int first_k = static_cast<int>(simt::ThreadX() / 32) * kTurn;

  // The weights never depend on the previous kernel: they are on their way
  // while it ends. The next one may begin once every CTA of this one has, and
  // load its own on the SMs that are done with this one first.
  int first_row = static_cast<int>(simt::CtaX()) * 16;
  SkinnyWeights<kUnroll> weights;
  weights.Load(arguments, first_row, first_k);
  if constexpr (kHasNorm) {
    SIMT_DYNAMIC_SHARED(memory);
    normed = memory;
    NormWeights<kNormPlacesAtOnce> norm_weights;
    norm_weights.Load(arguments.norm, 0);
    const bool is_early = HasPlantedBug(PlantedBug::kSkinnyNormBeforeWait);
    if (!is_early) {
      simt::WaitForPrevious();
      simt::LaunchNext();
    }
    NormIntoShared<kType>(arguments.norm, normed, normed_bytes, scratch,
                          &norm_weights);
    if (is_early) simt::WaitForPrevious();
  } else {
    simt::WaitForPrevious();
    simt::LaunchNext();
  }

  for (int turn = 0;; ++turn) {
    float accumulators[kTiles][4];
    SIMT_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      accumulators[tile][0] = accumulators[tile][1] = 0;
      accumulators[tile][2] = accumulators[tile][3] = 0;
    }
    // k: of this warp's turns, in pieces of kUnroll steps.
    for (int piece = 0;; ++piece) {
      constexpr int kPieces = kTurn / (kUnroll * kStep);
      const int k = piece / kPieces * kNumWarps * kTurn + first_k +
                    piece % kPieces * kUnroll * kStep;
      if (k >= arguments.cols) break;  // Later pieces lie further on.
      if (piece > 0) weights.Load(arguments, first_row, k);
      MultiplyPiece<kType, kTiles, kUnroll, kHasNorm>(
          arguments, weights, k, normed, normed_bytes, accumulators);
    }
    const int next_row = first_row + static_cast<int>(simt::NumCtasX()) * 16;
    const bool is_last =
        !kHasNorm ||
        next_row >= arguments.rows -
                        (HasPlantedBug(PlantedBug::kSkinnyNormLosesTheLastRows)
                             ? 16
                             : 0);
    if (!is_last) weights.Load(arguments, next_row, first_k);
    const bool has_one = HasPlantedBug(PlantedBug::kSkinnyNormOneScratch);
    FinishSkinny<kType>(
        arguments, first_row, accumulators,
        scratch + (kHasNorm && !has_one ? turn % 2 * kScratch : 0),
        [](int) { return 1.0f; });
    if (is_last) break;
    first_row = next_row;
  }
}

template <DType kType>
bool LaunchForTokens(const LinearArguments& arguments, simt::Stream stream) {
  simt::LaunchShape shape = {
      .num_ctas_x = static_cast<uint32_t>((arguments.rows + 15) / 16),
      .num_threads = kNumWarps * 32,
      .waits_for_previous = true};
  if (arguments.has_norm) {
    SetNormShape(arguments, kNormedPhase, &shape);
    return simt::Launch(&SkinnyLinearKernel<kType, 1, 4, true>, shape, stream,
                        arguments);
  }
  // More tokens keep more sums: fewer loads in flight per warp, as more CTAs
  // would not fit otherwise.
  if (arguments.num_tokens <= 8) {
    return simt::Launch(&SkinnyLinearKernel<kType, 1, 4, false>, shape, stream,
                        arguments);
  }
  if (arguments.num_tokens <= 16) {
    return simt::Launch(&SkinnyLinearKernel<kType, 2, 4, false>, shape, stream,
                        arguments);
  }
  if (arguments.num_tokens <= 32) {
    return simt::Launch(&SkinnyLinearKernel<kType, 4, 2, false>, shape, stream,
                        arguments);
  }
  return simt::Launch(&SkinnyLinearKernel<kType, 8, 2, false>, shape, stream,
                      arguments);
}

}  // namespace

bool FitsSkinnyNorm(int num_tokens, int cols, int64_t shared_bytes_of_sm) {
  // 8 KiB of sums; a CTA costs 1 KiB more than it asks for.
  const int64_t most = std::min<int64_t>(
      simt::kMaxSharedBytes, shared_bytes_of_sm / kNormCtasOfSm - (9 << 10));
  return num_tokens <= kMaxNormTokens &&
         num_tokens * NormedRowBytes(cols, kNormedPhase) <= most;
}

int NumCtasOfSkinnyNorm(int rows, int num_sms) {
  const int num_groups = (rows + 15) / 16;
  const int most = std::max(num_sms * kNormCtasOfSm, 1);
  const int groups_of_cta = (num_groups + most - 1) / most;
  return (num_groups + groups_of_cta - 1) / groups_of_cta;
}

bool IsRefusedBySkinny(const LinearArguments& arguments) {
  const NormArguments& norm = arguments.norm;
  return arguments.num_tokens < 1 || arguments.num_tokens > kMaxSkinnyTokens ||
         arguments.cols % 8 != 0 ||
         (IsGated(arguments.epilogue.activation) && arguments.rows % 16 != 0) ||
         (arguments.has_norm &&
          (arguments.num_tokens > kMaxNormTokens || arguments.num_ctas < 1 ||
           norm.num_tokens != arguments.num_tokens ||
           norm.cols != arguments.cols || norm.dtype != arguments.dtype));
}

bool LaunchSkinnyLinear(const LinearArguments& arguments, simt::Stream stream) {
  if (IsRefusedBySkinny(arguments)) return false;
  return arguments.dtype == DType::kBF16
             ? LaunchForTokens<DType::kBF16>(arguments, stream)
             : LaunchForTokens<DType::kF16>(arguments, stream);
}

}  // namespace quire::cuda
