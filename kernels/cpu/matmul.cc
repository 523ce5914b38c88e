#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"

namespace quire {
namespace {

float LoadElement(const TensorView& view, int64_t row, int64_t col) {
  switch (view.dtype) {
    case DType::kF32:
      return view.row<const float>(row)[col];
    case DType::kF16:
      return HalfToFloat(view.row<const uint16_t>(row)[col]);
    case DType::kBF16:
      return Bf16ToFloat(view.row<const uint16_t>(row)[col]);
    case DType::kI32:
      break;
  }
  return 0.0f;
}

float GeluTanh(float x) {
  return 0.5f * x *
         (1.0f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
}

float Activate(Epilogue::Activation activation, float a, float b) {
  switch (activation) {
    case Epilogue::Activation::kNone:
      return a;
    case Epilogue::Activation::kSwiGlu:
      return a / (1.0f + std::exp(-a)) * b;
    case Epilogue::Activation::kGeGlu:
      return GeluTanh(a) * b;
    case Epilogue::Activation::kGelu:
      return GeluTanh(a);
    case Epilogue::Activation::kRelu:
      return std::max(a, 0.0f);
  }
  return a;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(const LinearSpec& spec,
                                                         Isa isa,
                                                         ThreadPool& pool) {
  auto packed = std::make_unique<PackedMatrix>();
  if (spec.parts.empty()) return absl::InvalidArgumentError("no parts");
  packed->dtype = spec.parts[0].data.dtype;
  packed->cols = spec.parts[0].data.cols;
  packed->kind = spec.kind;
  for (const WeightPart& part : spec.parts) {
    if (part.data.cols != packed->cols || part.data.dtype != packed->dtype) {
      return absl::InvalidArgumentError("parts disagree");
    }
    packed->rows += part.data.rows;
    for (int64_t row = 0; row < part.data.rows; ++row) {
      for (int64_t col = 0; col < part.data.cols; ++col) {
        packed->values.push_back(LoadElement(part.data, row, col));
      }
    }
  }
  if (!spec.bias.empty()) {
    const float* bias = spec.bias.row<const float>(0);
    packed->bias.assign(bias, bias + packed->rows);
  }
  packed->num_bytes = packed->rows * packed->cols * 4;
  return packed;
}

void Matmul(ThreadPool& pool, Isa isa, const PackedMatrix& weight,
            const MatmulParams& params, MatmulScratch& scratch) {
  const bool gated = params.activation == Epilogue::Activation::kSwiGlu ||
                     params.activation == Epilogue::Activation::kGeGlu;
  const int64_t out_cols = gated ? weight.rows / 2 : weight.rows;
  for (int64_t row = 0; row < params.num_rows; ++row) {
    const float* x = params.x + row * params.x_stride;
    for (int64_t i = 0; i < weight.cols; ++i) {
      scratch.x_[i] =
          weight.dtype == DType::kBF16 ? Bf16ToFloat(FloatToBf16(x[i])) : x[i];
    }
    const auto dot = [&](int64_t r) {
      float sum = 0;
      const float* w = weight.values.data() + r * weight.cols;
      for (int64_t i = 0; i < weight.cols; ++i) sum += scratch.x_[i] * w[i];
      return ((weight.bias.empty() ? 0.0f : weight.bias[r]) + sum) *
             params.out_scale;
    };
    for (int64_t r = 0; r < out_cols; ++r) {
      float value =
          Activate(params.activation, dot(r), gated ? dot(r + out_cols) : 0.0f);
      if (params.residual != nullptr) {
        value += params.residual[row * params.residual_stride + r];
      }
      params.out[row * params.out_stride + r] = value;
    }
  }
}

void UnpackRow(const PackedMatrix& weight, int64_t row, float* out) {
  const float* values = weight.values.data() + row * weight.cols;
  std::copy(values, values + weight.cols, out);
}

}  // namespace quire
