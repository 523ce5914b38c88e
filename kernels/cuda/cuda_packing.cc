// Loading of the CUDA backend: weights, small tensors and attention layers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_step.h"
#include "kernels/cuda/large_linear.h"
#include "kernels/quant_codec.h"

namespace quire {
namespace {

constexpr char kWeightRemedy[] = "the model needs a GPU with more memory";

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

float LoadFloat(const TensorView& view, int64_t row, int64_t col) {
  if (view.dtype == DType::kF32) return view.row<const float>(row)[col];
  const uint16_t bits = view.row<const uint16_t>(row)[col];
  return view.dtype == DType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
}

// That the scales of kFp8 and kInt4 are there.
absl::Status CheckQuantizedPart(const WeightPart& part) {
  const int64_t rows = part.rows(), cols = part.cols(), g = part.group_size;
  int64_t scale_rows = rows, scale_cols = 1;
  if (part.format == QuantFormat::kFp8) {
    if (g > 0) {
      scale_rows = (rows + g - 1) / g;
      scale_cols = (cols + g - 1) / g;
    } else if (part.scales.rows == 1) {
      scale_rows = 1;
    }
  } else if (part.format == QuantFormat::kInt4) {
    scale_cols = g > 0 ? (cols + g - 1) / g : -1;
  } else {
    return absl::OkStatus();
  }
  const bool has_zeros = !part.zeros.empty();
  const bool has_order = !part.column_order.empty();
  if (part.scales.empty() || !IsFloat(part.scales.dtype) ||
      part.scales.rows != scale_rows || part.scales.cols != scale_cols ||
      (has_zeros &&
       (part.zeros.dtype != DType::kU8 || part.zeros.rows != scale_rows ||
        part.zeros.cols != scale_cols)) ||
      (has_order && (part.column_order.dtype != DType::kI32 ||
                     part.column_order.cols != cols))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a part of a linear layer is ", QuantFormatName(part.format), " [",
        rows, ", ", cols, "] in groups of ", g, " with ",
        DTypeName(part.scales.dtype), " [", part.scales.rows, ", ",
        part.scales.cols, "] scales"));
  }
  return absl::OkStatus();
}

absl::Status CheckParts(const LinearSpec& spec) {
  const size_t num_parts = spec.parts.size();
  const bool suits = spec.kind == LinearKind::kQkv      ? num_parts == 3
                     : spec.kind == LinearKind::kGateUp ? num_parts == 2
                     : spec.kind == LinearKind::kVocab  ? num_parts == 1
                                                        : num_parts >= 1;
  if (!suits) {
    return absl::InvalidArgumentError(
        absl::StrCat("a linear layer of kind ", static_cast<int>(spec.kind),
                     " cannot have ", num_parts, " parts"));
  }
  const WeightPart& first = spec.parts[0];
  for (const WeightPart& part : spec.parts) {
    const TensorView& data = part.data;
    const bool is_dense = part.format == QuantFormat::kDense;
    if (data.empty() || data.rows < 1 || data.cols < 1 ||
        data.row_stride < data.cols ||
        (is_dense ? !IsFloat(data.dtype) : data.dtype != DType::kU8)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a part of a linear layer is ", DTypeName(data.dtype),
                       " [", data.rows, ", ", data.cols, "]"));
    }
    // Parts of several formats are decoded.
    if (part.cols() != first.cols() ||
        (is_dense && first.format == QuantFormat::kDense &&
         data.dtype != first.data.dtype)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "parts of a linear layer disagree: ", DTypeName(data.dtype), " [",
          data.rows, ", ", part.cols(), "] and ", DTypeName(first.data.dtype),
          " [", first.rows(), ", ", first.cols(), "]"));
    }
    QUIRE_RETURN_IF_ERROR(CheckQuantizedPart(part));
  }
  if (first.cols() % 8 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a linear layer has ", first.cols(),
                     " columns; on a GPU they are a multiple of 8"));
  }
  if (spec.kind == LinearKind::kGateUp) {
    if (first.rows() != spec.parts[1].rows()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "gate has ", first.rows(), " rows, up has ", spec.parts[1].rows()));
    }
    if (first.rows() % 8 != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("gate and up have ", first.rows(),
                       " rows; on a GPU they are a multiple of 8"));
    }
  }
  return absl::OkStatus();
}

// What a part's values are in, or should be rounded to if it is quantized.
DType DecodedDType(const WeightPart& part) {
  if (part.format == QuantFormat::kDense) return part.data.dtype;
  return part.scales.dtype == DType::kF16 ? DType::kF16 : DType::kBF16;
}

// False if a finite value has no finite counterpart. values: scratch.
bool ConvertRow(const WeightPart& part, int64_t row, DType to,
                std::vector<float>& values, uint16_t* out) {
  const TensorView& from = part.data;
  if (part.format == QuantFormat::kDense && from.dtype == to) {
    std::memcpy(out, from.row<const uint16_t>(row),
                from.cols * sizeof(uint16_t));
    return true;
  }
  bool fits = true;
  values.resize(part.cols());
  DequantizeRow(part, row, values.data());
  for (int64_t col = 0; col < part.cols(); ++col) {
    const float value = values[col];
    if (to == DType::kBF16) {
      out[col] = FloatToBf16(value);
      fits &= std::isfinite(Bf16ToFloat(out[col])) || !std::isfinite(value);
    } else {
      out[col] = FloatToHalf(value);
      fits &= std::isfinite(HalfToFloat(out[col])) || !std::isfinite(value);
    }
  }
  return fits;
}

// The shapes that AttentionSpec allows for a QK-norm.
absl::Status MakeHeadNorm(const char* name, const NormSpec& norm, int num_heads,
                          int head_dim, bool spans_ranks, cuda::HeadNorm* out) {
  if (norm.kind == NormSpec::Kind::kNone) return absl::OkStatus();
  const bool is_layer = norm.kind == NormSpec::Kind::kLayer;
  const int64_t rows = norm.weight.rows, cols = norm.weight.cols;
  QUIRE_RETURN_IF_ERROR(CheckCudaNorm(name, norm, cols));
  using Span = cuda::HeadNorm::Span;
  if (spans_ranks) {
    if (is_layer || rows != 1 || cols != int64_t{num_heads} * head_dim) {
      return absl::InvalidArgumentError(absl::StrCat(
          name, ": only RMS norms of all heads together span ranks"));
    }
    out->span = Span::kAllHeads;
  } else if (rows == 1 && cols == head_dim) {
    out->span = Span::kHead;
  } else if (rows == num_heads && cols == head_dim) {
    out->span = Span::kEachHead;
  } else if (rows == 1 && cols == int64_t{num_heads} * head_dim) {
    out->span = Span::kAllHeads;
  } else {
    return absl::InvalidArgumentError(absl::StrCat(name, " is [", rows, ", ",
                                                   cols, "] for ", num_heads,
                                                   " heads of ", head_dim));
  }
  if (is_layer && !norm.bias.empty() && norm.bias.rows != rows) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": weight has ", rows, " rows, bias ", norm.bias.rows));
  }
  out->kind = is_layer ? cuda::NormArguments::Kind::kLayer
                       : cuda::NormArguments::Kind::kRms;
  out->weight = norm.weight.row<const float>(0);
  if (is_layer && !norm.bias.empty()) out->bias = norm.bias.row<const float>(0);
  out->eps = norm.eps;
  out->weight_offset = is_layer ? 0.0f : norm.weight_offset;
  return absl::OkStatus();
}

}  // namespace

std::pair<size_t, int64_t> SourceOfRow(const LinearSpec& spec, int64_t row) {
  if (spec.kind == LinearKind::kGateUp) {
    return {row / 8 % 2, row / 16 * 8 + row % 8};
  }
  size_t part = 0;
  while (row >= spec.parts[part].data.rows) row -= spec.parts[part++].data.rows;
  return {part, row};
}

absl::Status CheckCudaView(const char* name, const TensorView& view,
                           DType dtype, int64_t rows, int64_t cols) {
  if (view.empty() || view.dtype != dtype || view.rows < rows ||
      view.cols != cols || view.row_stride != cols) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, " is ", view.empty() ? "empty " : "", DTypeName(view.dtype), " [",
        view.rows, ", ", view.cols, "], not ", DTypeName(dtype), " [>= ", rows,
        ", ", cols, "]"));
  }
  return absl::OkStatus();
}

absl::Status CheckCudaNorm(const char* name, const NormSpec& norm,
                           int64_t cols) {
  if (norm.kind == NormSpec::Kind::kNone) return absl::OkStatus();
  QUIRE_RETURN_IF_ERROR(CheckCudaView(name, norm.weight, DType::kF32, 1, cols));
  if (norm.kind == NormSpec::Kind::kLayer && !norm.bias.empty()) {
    QUIRE_RETURN_IF_ERROR(CheckCudaView(name, norm.bias, DType::kF32, 1, cols));
  }
  return absl::OkStatus();
}

DType CudaBackend::KeptDType(DType from) const {
  if (device_->properties().major < 8) return DType::kF16;
  return from == DType::kF16 ? DType::kF16 : DType::kBF16;
}

DType CudaBackend::ActivationDType(DType weights) const {
  return KeptDType(weights);
}

bool CudaBackend::SupportsLinear(DType weights, QuantFormat format) const {
  return format == QuantFormat::kDense
             ? IsFloat(weights)
             : !IsBlockFormat(format) || format == QuantFormat::kQ8_0 ||
                   format == QuantFormat::kQ4_0;
}

absl::StatusOr<cuda::DeviceBuffer> CudaBackend::Allocate(const char* what,
                                                         int64_t num_bytes,
                                                         const char* remedy,
                                                         int64_t* total) {
  auto buffer =
      cuda::DeviceBuffer::Create(*device_, std::max<int64_t>(num_bytes, 16));
  if (!buffer.ok()) {
    return absl::Status(
        buffer.status().code(),
        absl::StrCat(what, ": ", buffer.status().message(), "; ", remedy));
  }
  *total += buffer->num_bytes();
  return buffer;
}

absl::Status CudaBackend::PackDense(const LinearSpec& spec,
                                    CudaWeight& weight) {
  const int64_t row_bytes = weight.cols * int64_t{sizeof(uint16_t)};
  QUIRE_ASSIGN_OR_RETURN(
      weight.data, Allocate("weights", weight.rows * row_bytes, kWeightRemedy,
                            &weight.num_bytes));
  return copies_.CopyRows(
      weight.data.data(), weight.rows, row_bytes,
      [&](int64_t first, int64_t count, char* out) -> absl::Status {
        std::vector<float> values;
        for (int64_t i = first; i < first + count; ++i, out += row_bytes) {
          const auto [part, row] = SourceOfRow(spec, i);
          if (ConvertRow(spec.parts[part], row, weight.dtype, values,
                         reinterpret_cast<uint16_t*>(out))) {
            continue;
          }
          return absl::InvalidArgumentError(absl::StrCat(
              "row ", row, " of a weight holds a ",
              DTypeName(spec.parts[part].data.dtype), " value beyond ",
              DTypeName(weight.dtype), ", in which this GPU keeps it"));
        }
        return absl::OkStatus();
      });
}

absl::StatusOr<std::unique_ptr<PackedWeight>> CudaBackend::PackLinear(
    const LinearSpec& spec) {
  QUIRE_RETURN_IF_ERROR(CheckParts(spec));
  auto weight = std::make_unique<CudaWeight>();
  weight->kind = spec.kind;
  weight->cols = spec.parts[0].cols();
  for (const WeightPart& part : spec.parts) weight->rows += part.rows();
  weight->dtype =
      KeptDType(spec.model_dtype.value_or(DecodedDType(spec.parts[0])));
  QUIRE_ASSIGN_OR_RETURN(const bool is_quantized, PackQuantized(spec, *weight));
  if (!is_quantized) QUIRE_RETURN_IF_ERROR(PackDense(spec, *weight));
  if (!spec.bias.empty()) {
    QUIRE_RETURN_IF_ERROR(
        CheckCudaView("bias", spec.bias, DType::kF32, 1, weight->rows));
    std::vector<float> bias(weight->rows);
    for (int64_t i = 0; i < weight->rows; ++i) {
      const auto [part, row] = SourceOfRow(spec, i);
      int64_t source = row;
      for (size_t p = 0; p < part; ++p) source += spec.parts[p].data.rows;
      bias[i] = spec.bias.row<const float>(0)[source];
    }
    const int64_t num_bytes = weight->rows * int64_t{sizeof(float)};
    QUIRE_ASSIGN_OR_RETURN(
        weight->bias,
        Allocate("bias", num_bytes, kWeightRemedy, &weight->num_bytes));
    QUIRE_RETURN_IF_ERROR(
        copies_.Copy(weight->bias.data(), bias.data(), num_bytes));
  }
  const bool is_vocab = spec.kind == LinearKind::kVocab;
  const bool is_gated = spec.kind == LinearKind::kGateUp;
  // Kernels of our own widen the others.
  if (!is_quantized) {
    large_linear_->AddWeight(weight->dtype, weight->rows, weight->cols,
                             weight->data.data<void>(), is_vocab, is_gated,
                             is_vocab || is_gated || !spec.bias.empty());
  } else if (RoundsToFp8(*weight)) {
    large_linear_->AddFp8Weight(weight->dtype, weight->rows, weight->cols,
                                weight->quantized, is_gated,
                                is_gated || !spec.bias.empty());
  }
  weights_bytes_ += weight->num_bytes;
  max_cols_ = std::max(max_cols_, weight->cols);
  return weight;
}

absl::StatusOr<TensorView> CudaBackend::Upload(TensorView host) {
  if (host.empty() || !IsFloat(host.dtype) || host.rows < 1 || host.cols < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot upload a ", DTypeName(host.dtype), " [", host.rows,
                     ", ", host.cols, "] tensor"));
  }
  const int64_t row_bytes = host.cols * int64_t{sizeof(float)};
  QUIRE_ASSIGN_OR_RETURN(cuda::DeviceBuffer buffer,
                         Allocate("weights", host.rows * row_bytes,
                                  kWeightRemedy, &weights_bytes_));
  const auto fill = [&](int64_t first, int64_t count, char* out) {
    auto* values = reinterpret_cast<float*>(out);
    for (int64_t row = first; row < first + count; ++row) {
      for (int64_t col = 0; col < host.cols; ++col) {
        *values++ = LoadFloat(host, row, col);
      }
    }
    return absl::OkStatus();
  };
  QUIRE_RETURN_IF_ERROR(
      copies_.CopyRows(buffer.data(), host.rows, row_bytes, fill));
  const TensorView view =
      TensorView::Matrix(buffer.data(), DType::kF32, host.rows, host.cols);
  uploads_.push_back(std::move(buffer));
  return view;
}

absl::StatusOr<int> CudaBackend::AddAttention(const AttentionSpec& spec) {
  if (spec.num_layers < 1 || spec.num_heads < 1 || spec.num_kv_heads < 1 ||
      spec.num_heads % spec.num_kv_heads != 0 || spec.sliding_window < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "attention: ", spec.num_layers, " layers, ", spec.num_heads, " heads, ",
        spec.num_kv_heads, " KV heads, window ", spec.sliding_window));
  }
  if (!(spec.scale > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "attention: scale is ", spec.scale, "; on a GPU it is above 0"));
  }
  if (cuda::PaddedHeadDim(spec.head_dim) == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention: head_dim is ", spec.head_dim,
                     "; on a GPU it is a multiple of 8 up to 256"));
  }
  const bool is_fp8 = spec.kv_dtype == DType::kF8E4M3;
  if (!is_fp8 && spec.kv_dtype != DType::kBF16 &&
      spec.kv_dtype != DType::kF16) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention: a KV cache in ", DTypeName(spec.kv_dtype),
                     "; on a GPU it is in bf16, f16 or fp8_e4m3"));
  }
  if (is_fp8 && spec.head_dim % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention: head_dim is ", spec.head_dim,
                     "; on a GPU a KV cache in fp8_e4m3 (--kv-cache-dtype) "
                     "needs a multiple of 16"));
  }
  for (const TensorView* rope : {&spec.rope_table, &spec.long_rope_table}) {
    if (rope->empty()) continue;
    QUIRE_RETURN_IF_ERROR(CheckCudaView("attention: RoPE table", *rope,
                                        DType::kF32, 1, rope->cols));
    if (rope->cols % 2 != 0 || rope->cols > spec.head_dim ||
        rope->cols != spec.rope_table.cols) {
      return absl::InvalidArgumentError(
          absl::StrCat("attention: rotary_dim ", rope->cols, " of head_dim ",
                       spec.head_dim));
    }
  }
  CudaAttention attention;
  attention.spec = spec;
  QUIRE_RETURN_IF_ERROR(MakeHeadNorm(
      "attention: q_norm", spec.q_norm, spec.num_heads, spec.head_dim,
      spec.norm_ranks != nullptr, &attention.q_norm));
  QUIRE_RETURN_IF_ERROR(MakeHeadNorm(
      "attention: k_norm", spec.k_norm, spec.num_kv_heads, spec.head_dim,
      spec.norm_ranks != nullptr, &attention.k_norm));
  attention.shape.num_heads = spec.num_heads;
  attention.shape.num_kv_heads = spec.num_kv_heads;
  attention.shape.head_dim = spec.head_dim;
  attention.shape.sliding_window = spec.sliding_window;
  attention.shape.scale = spec.scale;
  attention.shape.softcap = spec.softcap;
  attentions_.push_back(std::move(attention));
  return static_cast<int>(attentions_.size()) - 1;
}

}  // namespace quire
