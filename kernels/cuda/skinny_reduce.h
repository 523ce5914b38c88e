// The beginning and the end of a linear layer of few tokens: a norm of x, and
// the sums of a CTA's warps that become sixteen output rows.
#ifndef QUIRE_KERNELS_CUDA_SKINNY_REDUCE_H_
#define QUIRE_KERNELS_CUDA_SKINNY_REDUCE_H_

#include <cstdint>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/norm_row.h"
#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {

inline constexpr int kSkinnyWarps = 8;

static_assert(kSkinnyWarps * 32 == kNormThreads);

inline constexpr int kNormRowsAtOnce = 2;
inline constexpr int kNormPlacesAtOnce = 2;
inline constexpr int kNormScratch = kNormRowsAtOnce * (kNormThreads / 32);

// x' of all tokens into shared memory, rows at NormedRowBytes: what
// LaunchNorm would write, bit for bit. The caller has waited for the previous
// kernel; ends with a barrier.
//   scratch: shared floats, kNormScratch of them.
//   weights: loaded for the columns from 0 on; null: none are loaded yet.
template <DType kType>
SIMT_DEVICE void NormIntoShared(
    const NormArguments& norm, unsigned char* x, int64_t row_bytes,
    float* scratch, NormWeights<kNormPlacesAtOnce>* weights = nullptr) {
  constexpr int kRows = kNormRowsAtOnce, kPlaces = kNormPlacesAtOnce;
  for (int token = 0; token < norm.num_tokens; token += kRows) {
    const NormRows<kType, kRows, kPlaces> rows(norm, token, scratch);
    SIMT_NO_UNROLL
    for (int first = 0; first < norm.cols; first += kPlaces * kNormStep) {
      if (weights && weights->first() != first) weights->Load(norm, first);
      SIMT_UNROLL
      for (int p = 0; p < kPlaces; ++p) {
        const int c = first + p * kNormStep + simt::ThreadX() * 8;
        simt::Bytes16 loaded[kRows];  // From L1, the second time.
        rows.Visit(c, [&](int r) { loaded[r] = rows.LoadX(r, c); });
        rows.Visit(c, [&](int r) {
          float values[8];
          rows.AddResidual(r, c, loaded[r], values);
          if (simt::CtaX() == 0) rows.StoreSum(r, c, values);
          rows.Norm(r, c, values, weights ? weights->of_place(p) : nullptr);
          simt::StoreShared16(x + (token + r) * row_bytes + c * 2,
                              Pack<kType>(values));
        });
      }
    }
  }
  if (!HasPlantedBug(PlantedBug::kSkinnyNormNoBarrier)) simt::SyncThreads();
}

// The launch of a kernel that norms.
inline void SetNormShape(const LinearArguments& arguments, int phase,
                         simt::LaunchShape* shape) {
  const uint32_t num_ctas = static_cast<uint32_t>(arguments.num_ctas);
  if (num_ctas < shape->num_ctas_x) shape->num_ctas_x = num_ctas;
  shape->dynamic_shared_bytes = static_cast<size_t>(
      arguments.num_tokens * NormedRowBytes(arguments.cols, phase));
}

// Adds the warps' sums in their order and finishes the outputs.
//   scratch: [kSkinnyWarps * kTiles * 128], shared. Lanes touch consecutive
//     words of it: no bank conflicts.
//   accumulators: of mma m16n8: rows of the weight by eight tokens.
//   scale_of(row): a factor of the row's sum.
template <DType kType, int kTiles, typename Scale>
SIMT_DEVICE void FinishSkinny(const LinearArguments& arguments, int first_row,
                              const float (&accumulators)[kTiles][4],
                              float* scratch, const Scale& scale_of) {
  const int lane = simt::ThreadX() % 32, warp = simt::ThreadX() / 32;
  SIMT_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) {
      simt::StoreShared(scratch + ((warp * kTiles + tile) * 4 + i) * 32 + lane,
                        accumulators[tile][i]);
    }
  }
  if (!HasPlantedBug(PlantedBug::kSkinnyNoBarrierBeforeReduce)) {
    simt::SyncThreads();
  }
  const int num_warps =
      kSkinnyWarps -
      (HasPlantedBug(PlantedBug::kSkinnyReducesOneWarpTooFew) ? 1 : 0);
  // Entry (tile, i, lane): row lane / 4 + 8 (i / 2), token 2 (lane % 4) + i
  // % 2.
  const auto total = [&](int tile, int i, int from) {
    float sum = 0;
    for (int w = 0; w < num_warps; ++w) {
      sum +=
          simt::LoadShared(scratch + ((w * kTiles + tile) * 4 + i) * 32 + from);
    }
    return sum;
  };
  const LinearEpilogue& epilogue = arguments.epilogue;
  const bool is_gated = IsGated(epilogue.activation);
  for (int entry = simt::ThreadX(); entry < kTiles * 128;
       entry += kSkinnyWarps * 32) {
    const int tile = entry / 128, i = entry / 32 % 4, from = entry % 32;
    const int token = tile * 8 + from % 4 * 2 + i % 2;
    const int row = first_row + from / 4 + i / 2 * 8;
    if (token >= arguments.num_tokens || row >= arguments.rows) continue;
    if (is_gated && i >= 2) continue;
    float sum = total(tile, i, from) * scale_of(row);
    if (epilogue.bias) sum += epilogue.bias[row];
    float up = 0;
    if (is_gated) {
      up = total(tile, i + 2, from) * scale_of(row + 8);
      if (epilogue.bias) up += epilogue.bias[row + 8];
    }
    const int column = is_gated ? first_row / 2 + from / 4 : row;
    FinishLinear<kType>(epilogue, sum, up, token, column, arguments.out_stride,
                        arguments.out);
  }
}

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_SKINNY_REDUCE_H_
