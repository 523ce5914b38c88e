// Norms of activations: a kernel of their own, or the beginning of a linear
// layer (norm_row.h).
#ifndef QUIRE_KERNELS_CUDA_NORM_H_
#define QUIRE_KERNELS_CUDA_NORM_H_

#include <cstdint>

#include "kernels/cuda/simt/simt.h"
#include "kernels/dtype.h"

namespace quire::cuda {

// Activations are bf16 or f16 (`dtype`), aligned to 16 bytes; columns are a
// multiple of 8. False if the launch is refused.
// out = scale * norm(x + residual) + addend. The norm is as NormSpec in
// kernels/backend.h; weights and biases are f32, aligned to 16 bytes, too.
struct NormArguments {
  enum class Kind : uint8_t { kNone, kRms, kLayer };
  DType dtype = DType::kBF16;
  Kind kind = Kind::kRms;
  const float* weight = nullptr;  // [cols]
  const float* bias = nullptr;    // [cols], or null.
  float eps = 1e-5f;
  float weight_offset = 0.0f;
  float scale = 1.0f;
  const uint16_t* x = nullptr;         // [.., cols]
  const uint16_t* residual = nullptr;  // Added to x first; may be null.
  uint16_t* residual_out = nullptr;    // The sum; may be null, may alias.
  const uint16_t* addend = nullptr;    // As out; may be null, may alias out.
  uint16_t* out = nullptr;             // [num_tokens, cols]; may alias x.
  float* out_f32 = nullptr;            // In place of out.
  // The rows of x, residual and residual_out that become the rows of out, which
  // then aliases none of them; null: the first num_tokens.
  const int32_t* rows = nullptr;
  int num_tokens = 0;
  int cols = 0;
};
bool LaunchNorm(const NormArguments& arguments, simt::Stream stream);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_NORM_H_
