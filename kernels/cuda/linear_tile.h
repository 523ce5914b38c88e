// What the linear layers of many tokens share: CTA tiles of 128 tokens by 128
// rows, whose depth is 64 bytes of each; a warp takes 64 tokens by 32 rows.
#ifndef QUIRE_KERNELS_CUDA_LINEAR_TILE_H_
#define QUIRE_KERNELS_CUDA_LINEAR_TILE_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {

struct LinearTile {
  static constexpr int kTokens = 128;
  static constexpr int kRows = 128;
  static constexpr int kDepthBytes = 64;
  static constexpr int kChunks = kDepthBytes / 16;
  static constexpr int kNumStages = 4;
  static constexpr int kWarpsOfTokens = 2;
  static constexpr int kWarpsOfRows = 4;
  static constexpr int kThreads = 32 * kWarpsOfTokens * kWarpsOfRows;
  static constexpr int kBytes = 128 * kDepthBytes;  // Of one operand.

  // Rows of 64 bytes: two fill the banks once, so the row pair selects the
  // chunk.
  static SIMT_DEVICE unsigned char* Chunk(unsigned char* tile, int row,
                                          int chunk) {
    const int phase =
        HasPlantedBug(PlantedBug::kTiledNoSwizzle) ? 0 : row / 2 % kChunks;
    return tile + (row * kChunks + (chunk ^ phase)) * 16;
  }

  // Bytes [k, k + 64) of rows [first_row, +128) of a matrix; zeros outside it.
  static SIMT_DEVICE void Load(const void* matrix, int64_t stride_bytes,
                               int num_rows, int64_t row_bytes, int first_row,
                               int64_t k, unsigned char* tile) {
    const auto* from = static_cast<const unsigned char*>(matrix);
    for (int i = simt::ThreadX(); i < 128 * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const bool is_valid =
          first_row + row < num_rows && k + chunk * 16 < row_bytes;
      simt::CpAsync16(
          Chunk(tile, row, chunk),
          is_valid ? from + (first_row + row) * stride_bytes + k + chunk * 16
                   : from,
          is_valid);
    }
  }

  using Sums = float[4][4][4];
  static SIMT_DEVICE void Clear(Sums& sums) {
    SIMT_UNROLL
    for (int m = 0; m < 4; ++m) {
      SIMT_UNROLL
      for (int n = 0; n < 4; ++n) {
        sums[m][n][0] = sums[m][n][1] = sums[m][n][2] = sums[m][n][3] = 0;
      }
    }
  }

  static SIMT_DEVICE int WarpToken() {
    return simt::ThreadX() / 32 % kWarpsOfTokens * 64;
  }
  static SIMT_DEVICE int WarpRow() {
    return simt::ThreadX() / 32 / kWarpsOfTokens * 32;
  }

  // sums += x w^T over a tile's depth. mma(c, a, b0, b1): of 32 bytes of depth.
  // kUnrolls: false saves registers.
  template <bool kUnrolls = true, typename Mma>
  static SIMT_DEVICE void Multiply(unsigned char* x_tile,
                                   unsigned char* weight_tile, Sums& sums,
                                   const Mma& mma) {
    if constexpr (kUnrolls) {
      SIMT_UNROLL
      for (int k = 0; k < kDepthBytes / 32; ++k) {
        MultiplyStep(x_tile, weight_tile, k, sums, mma);
      }
    } else {
      SIMT_NO_UNROLL
      for (int k = 0; k < kDepthBytes / 32; ++k) {
        MultiplyStep(x_tile, weight_tile, k, sums, mma);
      }
    }
  }
  template <typename Mma>
  static SIMT_DEVICE void MultiplyStep(unsigned char* x_tile,
                                       unsigned char* weight_tile, int k,
                                       Sums& sums, const Mma& mma) {
    const int lane = simt::ThreadX() % 32;
    uint32_t a[4][4], b[2][4];
    SIMT_UNROLL
    for (int m = 0; m < 4; ++m) {
      simt::LdMatrixX4(a[m], Chunk(x_tile, WarpToken() + m * 16 + lane % 16,
                                   k * 2 + lane / 16));
    }
    SIMT_UNROLL
    for (int n = 0; n < 2; ++n) {
      simt::LdMatrixX4(
          b[n],
          Chunk(weight_tile, WarpRow() + n * 16 + lane % 8 + lane / 16 * 8,
                k * 2 + lane / 8 % 2));
    }
    SIMT_UNROLL
    for (int m = 0; m < 4; ++m) {
      SIMT_UNROLL
      for (int n = 0; n < 4; ++n) {
        mma(sums[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
      }
    }
  }

  struct alignas(8) Pair {  // Moves in one instruction.
    float x, y;
  };

  // Of `memory` below.
  static constexpr size_t kFinishBytes =
      size_t{kThreads / 32} * 32 * 32 * sizeof(float);

  // The outputs of a warp's sums. scale_of(token, row): a factor of the sum.
  // memory: kFinishBytes of shared memory that no thread needs otherwise any
  // more, nor asynchronous copies write. The sums pass through it, so that the
  // epilogue is in the code once instead of 64 times (a minute of ptxas for
  // each architecture), and consecutive lanes store consecutive columns.
  template <DType kType, typename Scale>
  static SIMT_DEVICE void Finish(const LinearArguments& arguments,
                                 int first_token, int first_row,
                                 const Sums& sums, unsigned char* memory,
                                 const Scale& scale_of) {
    const int lane = simt::ThreadX() % 32;
    float* staged =
        reinterpret_cast<float*>(memory) + simt::ThreadX() / 32 * 32 * 32;
    // Stores are of pairs of rows, half a warp at a time: four tokens by four
    // pairs, whose banks the token tells apart. Loads are of 32 rows of a
    // token, or, gated, 2 x 8 of each of two: no conflicts either.
    const auto place = [staged](int token, int row) {
      return staged + token * 32 +
             (HasPlantedBug(PlantedBug::kTiledFinishesInOneBank)
                  ? row
                  : row ^ token % 4 * 8);
    };
    const LinearEpilogue& epilogue = arguments.epilogue;
    // Gated: eight rows of the gate, then the eight of up that belong to them.
    const bool is_gated = IsGated(epilogue.activation);
    const int num_columns = is_gated ? 16 : 32;
    simt::SyncThreads();  // Everybody has left the tiles.
    SIMT_UNROLL
    for (int half = 0; half < 2; ++half) {
      SIMT_UNROLL
      for (int m = 0; m < 2; ++m) {
        SIMT_UNROLL
        for (int n = 0; n < 4; ++n) {
          SIMT_UNROLL
          for (int i = 0; i < 2; ++i) {
            simt::StoreShared(
                reinterpret_cast<Pair*>(
                    place(m * 16 + lane / 4 + i * 8, n * 8 + lane % 4 * 2)),
                Pair{sums[half * 2 + m][n][2 * i],
                     sums[half * 2 + m][n][2 * i + 1]});
          }
        }
      }
      simt::SyncWarp();
      SIMT_NO_UNROLL
      for (int i = lane; i < 32 * num_columns; i += 32) {
        const int staged_token = i / num_columns, c = i % num_columns;
        const int staged_row = is_gated ? c / 8 * 16 + c % 8 : c;
        const int token = first_token + WarpToken() + half * 32 + staged_token;
        const int row = first_row + WarpRow() + staged_row;
        if (token >= arguments.num_tokens || row >= arguments.rows) continue;
        float sum = simt::LoadShared(place(staged_token, staged_row)) *
                    scale_of(token, row);
        float up = 0;
        if (epilogue.bias) sum += epilogue.bias[row];
        if (is_gated) {
          up = simt::LoadShared(place(staged_token, staged_row + 8)) *
               scale_of(token, row + 8);
          if (HasPlantedBug(PlantedBug::kTiledSwapsGateAndUp)) {
            const float gate = sum;
            sum = up;
            up = gate;
          }
          if (epilogue.bias) up += epilogue.bias[row + 8];
        }
        FinishLinear<kType>(epilogue, sum, up, token,
                            is_gated ? row / 16 * 8 + row % 8 : row,
                            arguments.out_stride, arguments.out);
      }
      simt::SyncWarp();
    }
  }

  static simt::LaunchShape Shape(const LinearArguments& arguments,
                                 size_t shared_bytes) {
    return {.num_ctas_x =
                static_cast<uint32_t>((arguments.rows + kRows - 1) / kRows),
            .num_ctas_y = static_cast<uint32_t>(
                (arguments.num_tokens + kTokens - 1) / kTokens),
            .num_threads = kThreads,
            .dynamic_shared_bytes = shared_bytes,
            .waits_for_previous = true};
  }
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_LINEAR_TILE_H_
