#include "kernels/cuda/linear.h"

namespace quire::cuda {
namespace {

constexpr int kTokens = 128;
constexpr int kRows = 128;
constexpr int kDepth = 32;
constexpr int kChunks = kDepth / 8;  // Of 16 bytes in a tile's row.
constexpr int kNumStages = 4;
constexpr int kWarpsOfTokens = 2;
constexpr int kWarpsOfRows = 4;
constexpr int kThreads = 32 * kWarpsOfTokens * kWarpsOfRows;
constexpr int kTileElements = (kTokens + kRows) * kDepth;
constexpr size_t kSharedBytes =
    size_t{kNumStages} * kTileElements * sizeof(uint16_t);
static_assert(kSharedBytes >= kTokens * kRows * sizeof(float));

// Rows of 64 bytes: two fill the banks once, so the row pair selects the chunk.
SIMT_DEVICE uint16_t* Chunk(uint16_t* tile, int row, int chunk) {
  return tile + (row * kChunks + (chunk ^ (row / 2 % kChunks))) * 8;
}

// Elements [first_row, +128) x [k, +32) of a matrix; zeros outside it.
SIMT_DEVICE void LoadTile(const uint16_t* matrix, int64_t stride, int num_rows,
                          int cols, int first_row, int k, uint16_t* tile) {
  for (int i = simt::ThreadX(); i < 128 * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool is_valid = first_row + row < num_rows && k + chunk * 8 < cols;
    simt::CpAsync16(
        Chunk(tile, row, chunk),
        is_valid ? matrix + (first_row + row) * stride + k + chunk * 8 : matrix,
        is_valid);
  }
}

// A warp takes 64 tokens by 32 rows: four by four products m16n8.
template <DType kType>
SIMT_KERNEL(kThreads)
TiledLinearKernel(const LinearArguments arguments) {
  SIMT_DYNAMIC_SHARED(memory);
  auto* tiles = reinterpret_cast<uint16_t*>(memory);
  const int lane = simt::ThreadX() % 32, warp = simt::ThreadX() / 32;
  const int warp_token = warp % kWarpsOfTokens * 64;
  const int warp_row = warp / kWarpsOfTokens * 32;
  const int first_row = static_cast<int>(simt::CtaX()) * kRows;
  const int first_token = static_cast<int>(simt::CtaY()) * kTokens;
  const int num_steps = (arguments.cols + kDepth - 1) / kDepth;
  simt::WaitForPrevious();
  simt::LaunchNext();

  const auto load = [&](int step) {
    // A group is committed for every step, also an empty one, so that the
    // number of pending groups stays the same.
    if (step < num_steps) {
      uint16_t* tile = tiles + step % kNumStages * kTileElements;
      LoadTile(arguments.x, arguments.x_stride, arguments.num_tokens,
               arguments.cols, first_token, step * kDepth, tile);
      LoadTile(arguments.weight, arguments.cols, arguments.rows, arguments.cols,
               first_row, step * kDepth, tile + kTokens * kDepth);
    }
    simt::CpAsyncCommit();
  };
  float sums[4][4][4];
  SIMT_UNROLL
  for (int m = 0; m < 4; ++m) {
    SIMT_UNROLL
    for (int n = 0; n < 4; ++n) {
      sums[m][n][0] = sums[m][n][1] = sums[m][n][2] = sums[m][n][3] = 0;
    }
  }
  SIMT_UNROLL
  for (int step = 0; step < kNumStages - 1; ++step) load(step);
  for (int step = 0; step < num_steps; ++step) {
    simt::CpAsyncWait<kNumStages - 2>();
    // Everybody's copies are there, and everybody has left the stage that the
    // next load fills.
    simt::SyncThreads();
    load(step + kNumStages - 1);
    uint16_t* x_tile = tiles + step % kNumStages * kTileElements;
    uint16_t* weight_tile = x_tile + kTokens * kDepth;
    SIMT_UNROLL
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t a[4][4], b[2][4];
      SIMT_UNROLL
      for (int m = 0; m < 4; ++m) {
        simt::LdMatrixX4(a[m], Chunk(x_tile, warp_token + m * 16 + lane % 16,
                                     k * 2 + lane / 16));
      }
      SIMT_UNROLL
      for (int n = 0; n < 2; ++n) {
        simt::LdMatrixX4(
            b[n],
            Chunk(weight_tile, warp_row + n * 16 + lane % 8 + lane / 16 * 8,
                  k * 2 + lane / 8 % 2));
      }
      SIMT_UNROLL
      for (int m = 0; m < 4; ++m) {
        SIMT_UNROLL
        for (int n = 0; n < 4; ++n) {
          Element<kType>::Mma(sums[m][n], a[m], b[n / 2][n % 2 * 2],
                              b[n / 2][n % 2 * 2 + 1]);
        }
      }
    }
  }
  simt::CpAsyncWait<0>();

  // The sums of a warp pass through shared memory, so that the epilogue is in
  // the code once instead of 64 times (a minute of ptxas for each
  // architecture), and consecutive lanes store consecutive columns.
  simt::SyncThreads();
  float* staged = reinterpret_cast<float*>(memory) + warp * 64 * 32;
  const auto place = [](int token, int row) {
    return token * 32 + (row ^ token % 8 * 4);  // Few bank conflicts.
  };
  SIMT_UNROLL
  for (int m = 0; m < 4; ++m) {
    SIMT_UNROLL
    for (int n = 0; n < 4; ++n) {
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) {
        staged[place(m * 16 + lane / 4 + i / 2 * 8,
                     n * 8 + lane % 4 * 2 + i % 2)] = sums[m][n][i];
      }
    }
  }
  simt::SyncWarp();
  const LinearEpilogue& epilogue = arguments.epilogue;
  // Gated: eight rows of the gate, then the eight of up that belong to them.
  const bool is_gated = IsGated(epilogue.activation);
  const int num_columns = is_gated ? 16 : 32;
  SIMT_NO_UNROLL
  for (int i = lane; i < 64 * num_columns; i += 32) {
    const int staged_token = i / num_columns, c = i % num_columns;
    const int staged_row = is_gated ? c / 8 * 16 + c % 8 : c;
    const int token = first_token + warp_token + staged_token;
    const int row = first_row + warp_row + staged_row;
    if (token >= arguments.num_tokens || row >= arguments.rows) continue;
    float sum = staged[place(staged_token, staged_row)], up = 0;
    if (epilogue.bias) sum += epilogue.bias[row];
    if (is_gated) {
      up = staged[place(staged_token, staged_row + 8)];
      if (epilogue.bias) up += epilogue.bias[row + 8];
    }
    FinishLinear<kType>(epilogue, sum, up, token,
                        is_gated ? row / 16 * 8 + row % 8 : row,
                        arguments.out_stride, arguments.out);
  }
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
      {.num_ctas_x =
           static_cast<uint32_t>((arguments.rows + kRows - 1) / kRows),
       .num_ctas_y = static_cast<uint32_t>(
           (arguments.num_tokens + kTokens - 1) / kTokens),
       .num_threads = kThreads,
       .dynamic_shared_bytes = kSharedBytes,
       .waits_for_previous = true},
      stream, arguments);
}

}  // namespace quire::cuda
