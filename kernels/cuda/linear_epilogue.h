// What follows the products of a linear layer, in registers: shared by the
// kernels for few and for many tokens.
#ifndef QUIRE_KERNELS_CUDA_LINEAR_EPILOGUE_H_
#define QUIRE_KERNELS_CUDA_LINEAR_EPILOGUE_H_

#include <cstdint>

#include "kernels/cuda/element.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {

// As Epilogue::Activation in kernels/backend.h.
enum class LinearActivation : uint8_t {
  kNone,
  kSwiGlu,
  kGeGlu,
  kGelu,
  kRelu,
  kGeGluErf,
  kGeluErf,
};

inline constexpr bool IsGated(LinearActivation activation) {
  return activation == LinearActivation::kSwiGlu ||
         activation == LinearActivation::kGeGlu ||
         activation == LinearActivation::kGeGluErf;
}

// out = activation(product + bias) * scale + residual, or with f32 output
// softcap(product * scale): logits.
struct LinearEpilogue {
  const float* bias = nullptr;         // [rows]
  const uint16_t* residual = nullptr;  // [num_tokens, residual_stride]
  int64_t residual_stride = 0;
  float scale = 1.0f;
  float softcap = 0.0f;
  LinearActivation activation = LinearActivation::kNone;
  bool is_out_f32 = false;
};

SIMT_DEVICE float GeluTanh(float x) {
  // sqrt(2 / pi); Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2.
  return 0.5f * x *
         (1.0f + simt::Tanh(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

// x Phi(x), Phi the distribution function of the normal distribution: exact
// GELU. The tail of Phi by Hastings' formula (Abramowitz & Stegun 1964,
// 26.2.17), whose error is below 7.5e-8, about a rounding of Phi; erff would
// cost the kernels registers.
SIMT_DEVICE float GeluErf(float x) {
  const float magnitude = fabsf(x);
  const float t = 1.0f / (1.0f + 0.2316419f * magnitude);
  float p = 1.330274429f;
  p = p * t - 1.821255978f;
  p = p * t + 1.781477937f;
  p = p * t - 0.356563782f;
  p = p * t + 0.319381530f;
  // 1 / sqrt(2 pi).
  const float tail =
      0.3989422804f * simt::Exp(-0.5f * magnitude * magnitude) * (p * t);
  return x * (x < 0 ? tail : 1.0f - tail);
}

SIMT_DEVICE float GatedValue(LinearActivation activation, float gate,
                             float up) {
  if (activation == LinearActivation::kSwiGlu) {
    return gate / (1.0f + simt::Exp(-gate)) * up;
  }
  if (activation == LinearActivation::kGeGluErf) return GeluErf(gate) * up;
  return GeluTanh(gate) * up;
}

// Finishes output column `column` of `token` from its sum (and, gated, that of
// its up row).
template <DType kType>
SIMT_DEVICE void FinishLinear(const LinearEpilogue& epilogue, float sum,
                              float up, int64_t token, int column,
                              int64_t out_stride, void* out) {
  float value = sum;
  if (IsGated(epilogue.activation)) {
    value = GatedValue(epilogue.activation, sum, up);
  } else if (epilogue.activation == LinearActivation::kGelu) {
    value = GeluTanh(value);
  } else if (epilogue.activation == LinearActivation::kGeluErf) {
    value = GeluErf(value);
  } else if (epilogue.activation == LinearActivation::kRelu) {
    value = fmaxf(value, 0.0f);
  }
  value *= epilogue.scale;
  if (epilogue.residual) {
    value += Element<kType>::ToFloat(
        epilogue.residual[token * epilogue.residual_stride + column]);
  }
  if (epilogue.softcap > 0) {
    value = epilogue.softcap * simt::Tanh(value / epilogue.softcap);
  }
  if (epilogue.is_out_f32) {
    static_cast<float*>(out)[token * out_stride + column] = value;
  } else {
    static_cast<uint16_t*>(out)[token * out_stride + column] =
        Element<kType>::FromFloat(value);
  }
}

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_LINEAR_EPILOGUE_H_
