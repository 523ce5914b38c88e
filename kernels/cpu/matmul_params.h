// The arguments of a product with packed weights.
#ifndef QUIRE_KERNELS_CPU_MATMUL_PARAMS_H_
#define QUIRE_KERNELS_CPU_MATMUL_PARAMS_H_

#include <algorithm>
#include <cstdint>

#include "engine/base/thread_pool.h"
#include "kernels/backend.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/matmul_output.h"

namespace quire {

// out = activation(x W^T + bias) * out_scale + residual.
struct MatmulParams {
  const float* x = nullptr;  // [num_rows, weight.cols], f32
  int64_t x_stride = 0;
  int64_t num_rows = 0;
  // [num_rows, weight.rows], f32; half as many columns if gated (IsGated).
  // Must not overlap x.
  float* out = nullptr;
  int64_t out_stride = 0;
  // Gated ones require kGateUp weights.
  Epilogue::Activation activation = Epilogue::Activation::kNone;
  const float* residual = nullptr;  // Shaped as out, may be out; null: none.
  int64_t residual_stride = 0;
  float out_scale = 1.0f;
};

// The rows of x in the layout (and precision) that the kernels read, and memory
// for each thread. Not thread-safe: one Matmul at a time. Grows if a call needs
// more than announced.
class MatmulScratch {
 public:
  explicit MatmulScratch(int64_t max_rows, int64_t max_cols,
                         int64_t thread_bytes = 0)
      : packed_x_(max_rows * (max_cols + 1) * 4), threads_(thread_bytes) {}

  char* PackedX(int64_t num_bytes) { return AtLeast(packed_x_, num_bytes); }
  // For all threads together.
  char* Threads(int64_t num_bytes) { return AtLeast(threads_, num_bytes); }

 private:
  static char* AtLeast(AlignedBuffer& buffer, int64_t num_bytes) {
    if (buffer.num_bytes() < num_bytes) buffer = AlignedBuffer(num_bytes);
    return buffer.data();
  }
  AlignedBuffer packed_x_;
  AlignedBuffer threads_;
};

inline MatmulActivation ToKernelActivation(Epilogue::Activation activation) {
  switch (activation) {
    case Epilogue::Activation::kNone:
      break;
    case Epilogue::Activation::kSwiGlu:
      return MatmulActivation::kSwiGlu;
    case Epilogue::Activation::kGeGlu:
      return MatmulActivation::kGeGlu;
    case Epilogue::Activation::kGelu:
      return MatmulActivation::kGelu;
    case Epilogue::Activation::kRelu:
      return MatmulActivation::kRelu;
    case Epilogue::Activation::kGeGluErf:
      return MatmulActivation::kGeGluErf;
    case Epilogue::Activation::kGeluErf:
      return MatmulActivation::kGeluErf;
  }
  return MatmulActivation::kNone;
}

// Work items: panels_per_chunk panels by a part of the row tiles. All panels of
// the first part, then those of the next: a thread begins with a part of x that
// it has packed itself and, mostly, keeps in its own cache.
struct WorkSplit {
  int64_t panels_per_chunk;
  int64_t num_tile_parts;
  int64_t max_run;  // Items that a thread takes at once.
};

inline WorkSplit SplitWork(int64_t num_panels, int64_t num_tiles,
                           int num_threads) {
  if (num_tiles < kManyTiles) {
    // Memory is the limit. The chunks of a thread follow each other, so they
    // may be short: a slow thread holds the others up by no more than one.
    return {std::max<int64_t>(1, num_panels / (64 * num_threads)), 1, 1};
  }
  // Arithmetic is: panels that share a pass over x. Where panels are few, each
  // thread has a part of x, of at least 8 row tiles; where they are many, the
  // threads share the weights instead, which would else come to each of them.
  const int64_t num_parts =
      num_panels < 32 * num_threads
          ? std::clamp<int64_t>(num_tiles / 8, 1, num_threads)
          : 1;
  return {1, num_parts, kMaxPassPanels};
}

// Runs compute(panel_begin, panel_end, tile_begin, tile_end) for all items of
// `split`, on the pool's threads.
template <typename Compute>
void RunSplit(ThreadPool& pool, const WorkSplit& split, int64_t num_panels,
              int64_t num_tiles, const Compute& compute) {
  const int64_t num_chunks =
      (num_panels + split.panels_per_chunk - 1) / split.panels_per_chunk;
  const int64_t num_parts = split.num_tile_parts;
  pool.ParallelForStreams(
      num_chunks * num_parts, split.max_run,
      [&](int64_t begin, int64_t end, int) {
        while (begin < end) {
          const int64_t part = begin / num_chunks;
          const int64_t chunk = begin % num_chunks;
          const int64_t count = std::min(end - begin, num_chunks - chunk);
          compute(
              chunk * split.panels_per_chunk,
              std::min((chunk + count) * split.panels_per_chunk, num_panels),
              part * num_tiles / num_parts, (part + 1) * num_tiles / num_parts);
          begin += count;
        }
      });
}

// The row of a matrix of `rows` in a lane of a panel of 2 * lanes channels, or
// -1 for padding. Gated: `lanes` channels of gate, then the same of up.
inline int64_t RowOfLane(int64_t rows, bool is_gated, int lanes, int64_t panel,
                         int64_t lane) {
  if (!is_gated) {
    const int64_t row = panel * 2 * lanes + lane;
    return row < rows ? row : -1;
  }
  const int64_t channel = panel * lanes + lane % lanes;
  if (channel >= rows / 2) return -1;
  return channel + (lane < lanes ? 0 : rows / 2);
}
inline int64_t NumPanels(int64_t rows, bool is_gated, int lanes) {
  return is_gated ? (rows / 2 + lanes - 1) / lanes
                  : (rows + 2 * lanes - 1) / (2 * lanes);
}

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_MATMUL_PARAMS_H_
