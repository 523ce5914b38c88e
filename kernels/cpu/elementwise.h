// The operations of one row that are not products: norms, RoPE, conversion to
// the KV dtype, soft-capping. Vectorized for each instruction set; a row's
// result depends on the row only, and is the same on all of them.
// Thread-safe: pure functions.
#ifndef QUIRE_KERNELS_CPU_ELEMENTWISE_H_
#define QUIRE_KERNELS_CPU_ELEMENTWISE_H_

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

namespace quire {

// y = x + residual; residual_out = y; out = norm(y), accumulated in f32.
//   x, residual, residual_out, out: [cols], f32. residual and residual_out may
//   be null. out may alias x; residual_out may alias residual or x.
//   norm.weight, norm.bias: [1, cols], f32.
void NormRow(Isa isa, const NormSpec& norm, int64_t cols, const float* x,
             const float* residual, float* residual_out, float* out);

// Rotates the first rotary_dim elements of a head in place.
//   table_row: rotary_dim / 2 cosines, then as many sines.
void RopeHead(Isa isa, const float* table_row, int rotary_dim, bool interleaved,
              float* head);

// out = in rounded to `dtype` (f32, f16, bf16 or fp8_e4m3).
void ConvertRow(Isa isa, const float* in, int64_t count, DType dtype,
                void* out);

// out = in / scale, rounded, as kernels/backend.h says of kI8; returns scale.
float QuantizeRow(Isa isa, const float* in, int64_t count, int8_t* out);

// x = cap * tanh(x / cap). The error is a few 2^-24 of cap.
void SoftcapRow(Isa isa, float cap, int64_t count, float* x);

// out = scale * out (+ addend, unless null).
void ScaleAddRow(Isa isa, float scale, const float* addend, int64_t count,
                 float* out);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_ELEMENTWISE_H_
