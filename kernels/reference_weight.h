// Weights as the reference backend keeps them, and the rounding points of their
// products. For kernels/reference.cc alone.
#ifndef QUIRE_KERNELS_REFERENCE_WEIGHT_H_
#define QUIRE_KERNELS_REFERENCE_WEIGHT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/reference.h"

namespace quire::reference {

class ReferenceWeight : public PackedWeight {
 public:
  double at(int64_t row, int64_t col) const { return values[row * cols + col]; }

  std::vector<float> values;  // [rows, cols]
  std::vector<float> bias;    // [rows] or empty.
  // How x' is rounded, for consecutive rows.
  struct Part {
    enum class Input { kPlain, kBf16, kInt8 };
    int64_t num_rows = 0;
    Input input = Input::kPlain;
    bool rounds_weights = false;        // To bf16.
    std::vector<int32_t> column_order;  // kInt8: of the blocks; empty: as x'.
  };
  std::vector<Part> parts;

  // As a GPU computes steps of more than kMaxPlainTokens: either x' in e4m3, as
  // RoundToE4M3 takes it, or other values; empty: the same.
  bool rounds_many_to_e4m3 = false;
  int group_size = 0;
  float input_scale = 0.0f;
  std::vector<float> values_of_many;
};

std::unique_ptr<ReferenceWeight> PackWeight(
    const LinearSpec& spec, QuantizedProducts quantized_products,
    const ReferenceOptions& options);

// x' W^T + bias of one row, before any activation.
//   num_tokens: of the step.
std::vector<double> Product(const std::vector<double>& x, size_t num_tokens,
                            const ReferenceWeight& weight);

}  // namespace quire::reference

#endif  // QUIRE_KERNELS_REFERENCE_WEIGHT_H_
