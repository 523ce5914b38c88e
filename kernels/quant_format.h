// How the elements of a weight are encoded.
#ifndef QUIRE_KERNELS_QUANT_FORMAT_H_
#define QUIRE_KERNELS_QUANT_FORMAT_H_

#include <cstdint>

namespace quire {

enum class QuantFormat : uint8_t {
  kDense,  // Elements of the tensor's dtype: f32, f16 or bf16.
};

}  // namespace quire

#endif  // QUIRE_KERNELS_QUANT_FORMAT_H_
