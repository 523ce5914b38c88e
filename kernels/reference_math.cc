#include "kernels/reference_math.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/base/status.h"
#include "kernels/reference.h"

namespace quire {

using reference::Load;

namespace {

double GeluTanh(double x) {
  return 0.5 * x *
         (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

double GeluErf(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

// norm(y) with row `row` of the weight and the bias.
std::vector<double> NormWithRow(const NormSpec& norm, int64_t row,
                                absl::Span<const double> y) {
  NormSpec of_row = norm;
  for (TensorView* view : {&of_row.weight, &of_row.bias}) {
    if (view->empty()) continue;
    *view = TensorView::Vector(view->row<float>(row), DType::kF32, view->cols);
  }
  return ReferenceNorm(of_row, y);
}

}  // namespace

std::vector<double> ReferenceNorm(const NormSpec& norm,
                                  absl::Span<const double> y) {
  std::vector<double> out(y.begin(), y.end());
  if (norm.kind == NormSpec::Kind::kNone) return out;
  double mean = 0.0;
  if (norm.kind == NormSpec::Kind::kLayer) {
    for (double value : y) mean += value / y.size();
  }
  double variance = 0.0;
  for (double value : y) variance += (value - mean) * (value - mean) / y.size();
  const double inverse = 1.0 / std::sqrt(variance + norm.eps);
  for (size_t i = 0; i < out.size(); ++i) {
    const double weight = Load(norm.weight, 0, i);
    out[i] = (y[i] - mean) * inverse * (norm.weight_offset + weight);
    if (norm.kind == NormSpec::Kind::kLayer) {
      out[i] = (y[i] - mean) * inverse * weight;
      if (!norm.bias.empty()) out[i] += Load(norm.bias, 0, i);
    }
  }
  return out;
}

namespace reference {

double Load(const TensorView& view, int64_t row, int64_t col) {
  switch (view.dtype) {
    case DType::kF32:
      return view.row<const float>(row)[col];
    case DType::kF16:
      return HalfToFloat(view.row<const uint16_t>(row)[col]);
    case DType::kBF16:
      return Bf16ToFloat(view.row<const uint16_t>(row)[col]);
    default:
      break;
  }
  QUIRE_CHECK(false);
  return 0.0;
}

float Round(DType dtype, double value) {
  const float f32 = static_cast<float>(value);
  if (dtype == DType::kBF16) return Bf16ToFloat(FloatToBf16(f32));
  if (dtype == DType::kF16) return HalfToFloat(FloatToHalf(f32));
  if (dtype == DType::kF8E4M3) return E4M3ToFloat(FloatToE4M3(f32));
  return f32;
}

void StoreKvHead(DType dtype, const std::vector<double>& values, float* out) {
  if (dtype != DType::kI8) {
    for (size_t i = 0; i < values.size(); ++i) out[i] = Round(dtype, values[i]);
    return;
  }
  float max = 0.0f;
  bool is_finite = true;
  for (double value : values) {
    is_finite = is_finite && std::isfinite(static_cast<float>(value));
    max = std::max(max, std::abs(static_cast<float>(value)));
  }
  const float scale = max / 127.0f;
  for (size_t i = 0; i < values.size(); ++i) {
    const float ratio = static_cast<float>(values[i]) / scale;
    out[i] = !is_finite ? std::numeric_limits<float>::quiet_NaN()
             : scale == 0.0f
                 ? 0.0f
                 : std::nearbyint(std::clamp(ratio, -127.0f, 127.0f)) * scale;
  }
}

void Store(const TensorView& view, int64_t row, int64_t col, double value) {
  switch (view.dtype) {
    case DType::kF32:
      view.row<float>(row)[col] = static_cast<float>(value);
      return;
    case DType::kF16:
      view.row<uint16_t>(row)[col] = FloatToHalf(static_cast<float>(value));
      return;
    case DType::kBF16:
      view.row<uint16_t>(row)[col] = FloatToBf16(static_cast<float>(value));
      return;
    default:
      break;
  }
  QUIRE_CHECK(false);
}

double Softcap(double x, double cap) {
  return cap > 0.0 ? cap * std::tanh(x / cap) : x;
}

std::vector<double> PrologueRow(const TensorView& x, const Prologue& prologue,
                                int64_t row) {
  std::vector<double> y(x.cols);
  for (int64_t col = 0; col < x.cols; ++col) {
    y[col] = Load(x, row, col);
    if (!prologue.residual.empty()) {
      y[col] += Load(prologue.residual, row, col);
    }
  }
  if (!prologue.residual_out.empty()) {
    for (int64_t col = 0; col < x.cols; ++col) {
      Store(prologue.residual_out, row, col, y[col]);
    }
  }
  return ReferenceNorm(prologue.norm, y);
}

std::vector<double> RoundToInt8(const std::vector<double>& x,
                                const std::vector<int32_t>& column_order) {
  constexpr int64_t kBlockCols = 32;
  std::vector<double> rounded(x.size());
  const auto index = [&column_order](int64_t i) {
    return column_order.empty() ? i : column_order[i];
  };
  for (size_t begin = 0; begin < x.size(); begin += kBlockCols) {
    float max = 0.0f;
    bool is_finite = true;
    for (size_t i = begin; i < begin + kBlockCols; ++i) {
      const float value = static_cast<float>(x[index(i)]);
      max = std::max(max, std::abs(value));
      is_finite &= std::isfinite(value);
    }
    const float scale = max / 127.0f;
    const float inverse = 127.0f / max;
    for (size_t i = begin; i < begin + kBlockCols; ++i) {
      const float value = static_cast<float>(x[index(i)]);
      rounded[index(i)] =
          !is_finite ? std::numeric_limits<double>::quiet_NaN()
          : max < 0x1p-100f
              ? 0.0
              : static_cast<double>(scale) * std::nearbyint(value * inverse);
    }
  }
  return rounded;
}

std::vector<double> RoundToE4M3(const std::vector<double>& x, int group_size,
                                float input_scale) {
  const size_t size = group_size > 0 ? group_size : x.size();
  std::vector<double> rounded;
  for (size_t first = 0; first < x.size(); first += size) {
    const size_t end = std::min(first + size, x.size());
    float scale = input_scale;
    if (scale == 0.0f) {
      float largest = 0.0f;
      for (size_t i = first; i < end; ++i) {
        largest = std::max(largest, std::abs(static_cast<float>(x[i])));
      }
      scale = largest > 0.0f ? largest / 448.0f : 1.0f;
    }
    for (size_t i = first; i < end; ++i) {
      const float element = static_cast<float>(x[i]) / scale;
      rounded.push_back(double{E4M3ToFloat(FloatToE4M3(element))} * scale);
    }
  }
  return rounded;
}

std::vector<double> Activate(Epilogue::Activation activation,
                             std::vector<double> x) {
  const size_t half = x.size() / 2;
  switch (activation) {
    case Epilogue::Activation::kNone:
      break;
    case Epilogue::Activation::kSwiGlu:
      for (size_t i = 0; i < half; ++i) {
        x[i] = x[i] / (1.0 + std::exp(-x[i])) * x[half + i];
      }
      x.resize(half);
      break;
    case Epilogue::Activation::kGeGlu:
      for (size_t i = 0; i < half; ++i) x[i] = GeluTanh(x[i]) * x[half + i];
      x.resize(half);
      break;
    case Epilogue::Activation::kGeGluErf:
      for (size_t i = 0; i < half; ++i) x[i] = GeluErf(x[i]) * x[half + i];
      x.resize(half);
      break;
    case Epilogue::Activation::kGeluErf:
      for (double& value : x) value = GeluErf(value);
      break;
    case Epilogue::Activation::kGelu:
      for (double& value : x) value = GeluTanh(value);
      break;
    case Epilogue::Activation::kRelu:
      for (double& value : x) value = std::max(value, 0.0);
      break;
  }
  return x;
}

std::vector<double> NormHeads(const NormSpec& norm, int head_dim,
                              std::vector<double> heads) {
  if (norm.kind == NormSpec::Kind::kNone) return heads;
  const int64_t size = norm.weight.cols;  // Of what is normed together.
  QUIRE_CHECK(size == head_dim || size == static_cast<int64_t>(heads.size()));
  for (size_t first = 0; first < heads.size(); first += size) {
    const std::vector<double> normed =
        NormWithRow(norm, norm.weight.rows == 1 ? 0 : first / size,
                    absl::MakeConstSpan(heads).subspan(first, size));
    std::copy(normed.begin(), normed.end(), heads.begin() + first);
  }
  return heads;
}

std::vector<double> NormBySquare(const NormSpec& norm, float mean_square,
                                 std::vector<double> heads) {
  const double inverse = 1.0 / std::sqrt(double{mean_square} + norm.eps);
  for (size_t i = 0; i < heads.size(); ++i) {
    heads[i] *= inverse * (norm.weight_offset + Load(norm.weight, 0, i));
  }
  return heads;
}

absl::Status GatherLogits(Communicator& ranks, const TensorView& slice,
                          int vocab_size, std::vector<float>* whole) {
  const int64_t rows = slice.rows, cols = slice.cols;
  whole->resize(rows * vocab_size);
  if (rows == 0) return absl::OkStatus();
  std::vector<float> own, all(ranks.size() * rows * cols);
  for (int64_t row = 0; row < rows; ++row) {
    own.insert(own.end(), slice.row<float>(row), slice.row<float>(row) + cols);
  }
  QUIRE_RETURN_IF_ERROR(ranks.AllGather(
      TensorView::Matrix(own.data(), DType::kF32, rows, cols),
      TensorView::Matrix(all.data(), DType::kF32, ranks.size() * rows, cols),
      nullptr));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t id = 0; id < vocab_size; ++id) {
      (*whole)[row * vocab_size + id] =
          all[(id / cols * rows + row) * cols + id % cols];
    }
  }
  return absl::OkStatus();
}

}  // namespace reference
}  // namespace quire
