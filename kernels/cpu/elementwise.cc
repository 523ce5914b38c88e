#include "kernels/cpu/elementwise.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace quire {
namespace {

struct ElementwiseKernels {
  void (*add_rows)(const float*, const float*, float*, float*, int64_t);
  void (*rms_norm)(const float*, const float*, float, float, int64_t, float*);
  void (*layer_norm)(const float*, const float*, const float*, float, int64_t,
                     float*);
  void (*rope)(const float*, int, bool, float*);
  void (*to_bf16)(const float*, int64_t, uint16_t*);
  void (*to_f16)(const float*, int64_t, uint16_t*);
  float (*to_i8)(const float*, int64_t, int8_t*);
  void (*softcap)(float, int64_t, float*);
  void (*scale_add)(float, const float*, int64_t, float*);
};

#define QUIRE_ROW_KERNELS "kernels/cpu/elementwise.inc"
#include "kernels/cpu/row_isas.inc"

}  // namespace

void NormRow(Isa isa, const NormSpec& norm, int64_t cols, const float* x,
             const float* residual, float* residual_out, float* out) {
  const ElementwiseKernels& kernels = RowKernelsFor(isa);
  const float* y = x;
  if (residual != nullptr) {
    kernels.add_rows(x, residual, residual_out, out, cols);
    y = out;
  } else if (residual_out != nullptr && residual_out != x) {
    std::memcpy(residual_out, x, cols * sizeof(float));
  }
  switch (norm.kind) {
    case NormSpec::Kind::kNone:
      if (y != out) std::memmove(out, y, cols * sizeof(float));
      return;
    case NormSpec::Kind::kRms:
      kernels.rms_norm(y, norm.weight.row<const float>(0), norm.eps,
                       norm.weight_offset, cols, out);
      return;
    case NormSpec::Kind::kLayer:
      kernels.layer_norm(
          y, norm.weight.row<const float>(0),
          norm.bias.empty() ? nullptr : norm.bias.row<const float>(0), norm.eps,
          cols, out);
      return;
  }
}

void RopeHead(Isa isa, const float* table_row, int rotary_dim, bool interleaved,
              float* head) {
  RowKernelsFor(isa).rope(table_row, rotary_dim, interleaved, head);
}

void ConvertRow(Isa isa, const float* in, int64_t count, DType dtype,
                void* out) {
  switch (dtype) {
    case DType::kBF16:
      RowKernelsFor(isa).to_bf16(in, count, static_cast<uint16_t*>(out));
      return;
    case DType::kF16:
      RowKernelsFor(isa).to_f16(in, count, static_cast<uint16_t*>(out));
      return;
    case DType::kF8E4M3:
      for (int64_t i = 0; i < count; ++i) {
        static_cast<uint8_t*>(out)[i] = FloatToE4M3(in[i]);
      }
      return;
    case DType::kF32:
    default:
      std::memcpy(out, in, count * sizeof(float));
      return;
  }
}

float QuantizeRow(Isa isa, const float* in, int64_t count, int8_t* out) {
  return RowKernelsFor(isa).to_i8(in, count, out);
}

void SoftcapRow(Isa isa, float cap, int64_t count, float* x) {
  RowKernelsFor(isa).softcap(cap, count, x);
}

void ScaleAddRow(Isa isa, float scale, const float* addend, int64_t count,
                 float* out) {
  RowKernelsFor(isa).scale_add(scale, addend, count, out);
}

}  // namespace quire
