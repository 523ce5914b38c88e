#include "kernels/reference_weight.h"

#include <algorithm>
#include <utility>

#include "engine/base/status.h"
#include "kernels/quant_codec.h"
#include "kernels/reference_math.h"

namespace quire::reference {
namespace {

// kernels/backend.h, "Quantized weights on a GPU".
constexpr size_t kMaxPlainTokens = 64;

ReferenceWeight::Part RoundingOf(const LinearSpec& spec, const WeightPart& part,
                                 QuantizedProducts quantized_products) {
  using Input = ReferenceWeight::Part::Input;
  ReferenceWeight::Part rounding;
  rounding.num_rows = part.rows();
  if (part.format == QuantFormat::kDense) {
    if (part.data.dtype == DType::kBF16) rounding.input = Input::kBf16;
    return rounding;
  }
  if (quantized_products == QuantizedProducts::kExact) return rounding;
  rounding.input = Input::kInt8;
  for (const WeightPart& other : spec.parts) {
    if (spec.kind == LinearKind::kGateUp &&
        (other.format != part.format || other.group_size != part.group_size ||
         other.scales.dtype != part.scales.dtype)) {
      rounding.input = Input::kBf16;
    }
  }
  const bool fits_panels = rounding.input == Input::kInt8;
  if (part.format == QuantFormat::kFp8) {
    rounding.input = Input::kBf16;
    rounding.rounds_weights = !fits_panels || part.group_size % 2 != 0;
    return rounding;
  }
  if (part.format == QuantFormat::kInt4 &&
      (part.group_size % 32 != 0 || part.cols() % part.group_size != 0)) {
    rounding.input = Input::kBf16;
  }
  rounding.rounds_weights = rounding.input == Input::kBf16;
  if (!part.column_order.empty()) {
    const int32_t* const order = part.column_order.row<const int32_t>(0);
    rounding.column_order.assign(order, order + part.cols());
  }
  return rounding;
}

// Whether a GPU multiplies by these parts as they are; others it decodes.
bool IsKeptOnGpu(const LinearSpec& spec) {
  const WeightPart& first = spec.parts[0];
  if (spec.kind == LinearKind::kVocab) return false;
  for (const WeightPart& part : spec.parts) {
    if (part.format != first.format || part.group_size != first.group_size) {
      return false;
    }
  }
  return first.format == QuantFormat::kFp8
             ? first.cols() % 16 == 0 &&
                   (first.group_size == 0 || first.group_size == 128)
         : first.format == QuantFormat::kInt4
             ? first.group_size % 32 == 0
             : first.format == QuantFormat::kQ8_0 ||
                   first.format == QuantFormat::kQ4_0;
}

// What a GPU makes of quantized weights.
void RoundAsGpu(const LinearSpec& spec, const ReferenceOptions& options,
                ReferenceWeight& weight) {
  const WeightPart& first = spec.parts[0];
  if (first.format == QuantFormat::kDense) return;
  const bool is_kept = IsKeptOnGpu(spec);
  const bool is_kept_fp8 = is_kept && first.format == QuantFormat::kFp8;
  // A row's scale multiplies its sums: no weight is rounded.
  if (is_kept_fp8 && !options.multiplies_in_fp8 && first.group_size == 0) {
    return;
  }
  if (is_kept_fp8 && options.multiplies_in_fp8) {
    weight.rounds_many_to_e4m3 = true;
    weight.group_size = first.group_size;
    weight.input_scale = first.input_scale;
    for (const WeightPart& part : spec.parts) {
      weight.input_scale =
          part.input_scale == 0.0f || weight.input_scale == 0.0f
              ? 0.0f
              : std::max(weight.input_scale, part.input_scale);
    }
    return;
  }
  std::vector<float>& rounded = is_kept ? weight.values_of_many : weight.values;
  rounded = weight.values;
  for (float& value : rounded) value = Round(*options.activations, value);
}

}  // namespace

std::unique_ptr<ReferenceWeight> PackWeight(
    const LinearSpec& spec, QuantizedProducts quantized_products,
    const ReferenceOptions& options) {
  QUIRE_CHECK(!spec.parts.empty());
  auto weight = std::make_unique<ReferenceWeight>();
  weight->kind = spec.kind;
  weight->cols = spec.parts[0].cols();
  for (const WeightPart& part : spec.parts) {
    QUIRE_CHECK(part.cols() == weight->cols);
    weight->rows += part.rows();
    ReferenceWeight::Part rounding = RoundingOf(spec, part, quantized_products);
    std::vector<float> values(weight->cols);
    for (int64_t row = 0; row < part.rows(); ++row) {
      DequantizeRow(part, row, values.data());
      for (float& value : values) {
        if (rounding.rounds_weights) value = Bf16ToFloat(FloatToBf16(value));
      }
      weight->values.insert(weight->values.end(), values.begin(), values.end());
    }
    weight->parts.push_back(std::move(rounding));
  }
  if (options.activations.has_value()) {
    RoundAsGpu(spec, options, *weight);
  }
  for (int64_t row = 0; !spec.bias.empty() && row < weight->rows; ++row) {
    weight->bias.push_back(static_cast<float>(Load(spec.bias, 0, row)));
  }
  weight->num_bytes = weight->values.size() * sizeof(float);
  return weight;
}

std::vector<double> Product(const std::vector<double>& x, size_t num_tokens,
                            const ReferenceWeight& weight) {
  using Input = ReferenceWeight::Part::Input;
  const bool is_many = num_tokens > kMaxPlainTokens;
  const std::vector<float>& values = is_many && !weight.values_of_many.empty()
                                         ? weight.values_of_many
                                         : weight.values;
  std::vector<double> out;
  out.reserve(weight.rows);
  for (const ReferenceWeight::Part& part : weight.parts) {
    std::vector<double> input = x;
    if (part.input == Input::kBf16) {
      for (double& value : input) value = Round(DType::kBF16, value);
    } else if (part.input == Input::kInt8) {
      input = RoundToInt8(x, part.column_order);
    } else if (is_many && weight.rounds_many_to_e4m3) {
      input = RoundToE4M3(x, weight.group_size, weight.input_scale);
    }
    for (int64_t i = 0; i < part.num_rows; ++i) {
      const int64_t row = out.size();
      double sum = weight.bias.empty() ? 0.0 : weight.bias[row];
      for (int64_t col = 0; col < weight.cols; ++col) {
        sum += input[col] * values[row * weight.cols + col];
      }
      out.push_back(sum);
    }
  }
  return out;
}

}  // namespace quire::reference
