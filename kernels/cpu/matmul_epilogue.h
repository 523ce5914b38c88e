// The epilogue of the matrix products, for the instruction set this translation
// unit is compiled for: see simd.h.
#ifndef QUIRE_KERNELS_CPU_MATMUL_EPILOGUE_H_
#define QUIRE_KERNELS_CPU_MATMUL_EPILOGUE_H_

#include <stdint.h>

#include "kernels/cpu/matmul_output.h"
#include "kernels/cpu/simd.h"

namespace quire {
namespace QUIRE_ISA_NAMESPACE {

QUIRE_INLINE F32 Activate(MatmulActivation activation, F32 v) {
  switch (activation) {
    case MatmulActivation::kGelu:
      return GeluTanh(v);
    case MatmulActivation::kGeluErf:
      return GeluErf(v);
    case MatmulActivation::kRelu:
      // NaN stays NaN: the comparison is false.
      return v < 0.0f ? Set1(0.0f) : v;
    default:
      return v;
  }
}

// Writes one vector of outputs, `count` lanes of it, with the residual.
QUIRE_INLINE void StoreOutputs(const MatmulOutput& output, int64_t row,
                               int64_t channel, int64_t count, F32 v) {
  if (count <= 0) return;
  float* const out = output.out + row * output.out_stride + channel;
  const float* const residual =
      output.residual == nullptr
          ? nullptr
          : output.residual + row * output.residual_stride + channel;
  if (count >= kLanes) {
    if (residual != nullptr) v += Load(residual);
    Store(out, v);
  } else {
    if (residual != nullptr) v += LoadPartial(residual, count);
    StorePartial(out, v, count);
  }
}

// Bias, activation, scale and residual of a row tile of one panel.
//   acc: [range.num_rows][2 * kLanes]
QUIRE_INLINE void Epilogue(const MatmulOutput& output, int64_t panel,
                           TileRange range, const float* acc) {
  F32 bias0 = {};
  F32 bias1 = {};
  if (output.bias != nullptr) {
    bias0 = Load(output.bias + panel * 2 * kLanes);
    bias1 = Load(output.bias + panel * 2 * kLanes + kLanes);
  }
  const F32 scale = Set1(output.out_scale);
  for (int64_t i = 0; i < range.num_rows; ++i) {
    const int64_t row = range.first_row + i;
    const F32 v0 = Load(acc + i * 2 * kLanes) + bias0;
    const F32 v1 = Load(acc + i * 2 * kLanes + kLanes) + bias1;
    if (output.is_gated) {
      const int64_t channel = panel * kLanes;
      const int64_t count = output.num_outputs - channel;
      if (output.activation == MatmulActivation::kSwiGlu) {
        StoreOutputs(output, row, channel, count, Silu(v0) * v1 * scale);
      } else if (output.activation == MatmulActivation::kGeGlu) {
        StoreOutputs(output, row, channel, count, GeluTanh(v0) * v1 * scale);
      } else if (output.activation == MatmulActivation::kGeGluErf) {
        StoreOutputs(output, row, channel, count, GeluErf(v0) * v1 * scale);
      } else {
        StoreOutputs(output, row, channel, count,
                     Activate(output.activation, v0) * scale);
        StoreOutputs(output, row, output.num_outputs + channel, count,
                     Activate(output.activation, v1) * scale);
      }
      continue;
    }
    const int64_t channel = panel * 2 * kLanes;
    const int64_t count = output.num_outputs - channel;
    StoreOutputs(output, row, channel, count,
                 Activate(output.activation, v0) * scale);
    StoreOutputs(output, row, channel + kLanes, count - kLanes,
                 Activate(output.activation, v1) * scale);
  }
}

// Fetches what Epilogue is going to write and add for `num_panels` panels,
// while the sums are still being made.
QUIRE_INLINE void PrefetchOutputs(const MatmulOutput& output, int64_t panel,
                                  int num_panels, TileRange range) {
  const int64_t width = output.is_gated ? kLanes : 2 * kLanes;
  const int64_t channel = panel * width;
  const int64_t rest = output.num_outputs - channel;
  const int64_t count = rest < num_panels * width ? rest : num_panels * width;
  for (int64_t i = 0; i < range.num_rows; ++i) {
    const int64_t row = range.first_row + i;
    const float* const out = output.out + row * output.out_stride + channel;
    for (int64_t j = 0; j < count; j += 16) __builtin_prefetch(out + j, 1);
    if (output.residual == nullptr) continue;
    const float* const residual =
        output.residual + row * output.residual_stride + channel;
    for (int64_t j = 0; j < count; j += 16) __builtin_prefetch(residual + j);
  }
}

}  // namespace QUIRE_ISA_NAMESPACE
}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_MATMUL_EPILOGUE_H_
