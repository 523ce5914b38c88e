// Loading of quantized weights into the layouts of
// kernels/cuda/quantized_linear.h.
#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_step.h"
#include "kernels/cuda/packed_rows.h"

namespace quire {
namespace {

constexpr char kWeightRemedy[] = "the model needs a GPU with more memory";

bool HasSameOrder(const WeightPart& a, const WeightPart& b) {
  if (a.column_order.empty() || b.column_order.empty()) {
    return a.column_order.empty() && b.column_order.empty();
  }
  const auto* order = a.column_order.row<const int32_t>(0);
  return std::equal(order, order + a.column_order.cols,
                    b.column_order.row<const int32_t>(0));
}

// Blocks of 32 columns whose scale the kernels keep beside them.
bool IsRepacked(QuantFormat format) {
  return format == QuantFormat::kQ8_0 || format == QuantFormat::kQ4_0;
}

// Whether the kernels take the parts as they are.
bool IsNative(const LinearSpec& spec) {
  const WeightPart& first = spec.parts[0];
  const bool is_fp8 = first.format == QuantFormat::kFp8;
  if (spec.kind == LinearKind::kVocab) return false;
  if (is_fp8 ? first.cols() % 16 != 0 ||
                   (first.group_size != 0 && first.group_size != 128)
      : first.format == QuantFormat::kInt4 ? first.group_size % 32 != 0
                                           : !IsRepacked(first.format)) {
    return false;
  }
  for (const WeightPart& part : spec.parts) {
    if (part.format != first.format || part.group_size != first.group_size ||
        !HasSameOrder(part, first) ||
        (is_fp8 && first.group_size > 0 && part.rows() % 8 != 0)) {
      return false;
    }
  }
  return true;
}

float ScaleOf(const TensorView& scales, int64_t row, int64_t col) {
  if (scales.dtype == DType::kF32) return scales.row<const float>(row)[col];
  const uint16_t bits = scales.row<const uint16_t>(row)[col];
  return scales.dtype == DType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
}

// Of the scales and zero points of groups, in kInt4 and kQ8_0, as
// QuantizedWeight has them: each is an array of NumScales elements, in which
// sixteen rows have theirs together.
enum class GroupArray : uint8_t { kScales, kScaleTails, kZeros };
constexpr int64_t kBandRows = 16;

struct GroupScales {
  DType dtype = DType::kF32;
  bool has_zeros = false;  // Else all are 8.
  int group_size = 0;      // Of the parts.
  int packed_size = 0;     // Of QuantizedWeight.
  int64_t rows = 0, cols = 0;

  int64_t num_bands() const { return (rows + kBandRows - 1) / kBandRows; }
  int64_t BandBytes(GroupArray array) const {
    return cuda::NumScales(kBandRows, cols, packed_size) *
           (array == GroupArray::kZeros ? 1 : 2);
  }
};

GroupScales DescribeGroupScales(const LinearSpec& spec, int group_size,
                                int packed_size, const CudaWeight& weight) {
  const WeightPart& first = spec.parts[0];
  GroupScales scales;
  scales.group_size = group_size;
  scales.packed_size = packed_size;
  scales.rows = weight.rows;
  scales.cols = weight.cols;
  if (IsRepacked(first.format)) {
    scales.dtype = DType::kF16;
    return scales;
  }
  scales.dtype = first.scales.dtype;
  for (const WeightPart& part : spec.parts) {
    if (part.scales.dtype != scales.dtype) scales.dtype = DType::kF32;
    scales.has_zeros |= !part.zeros.empty();
  }
  return scales;
}

// From parts, or from the f16 numbers before the elements of blocks: what of
// `array` belongs to the rows of a band. What is of no row is zero.
//   out: [BandBytes(array)]
void PackBand(const LinearSpec& spec, const GroupScales& scales,
              GroupArray array, int64_t band, uint8_t* out) {
  const WeightPart& first = spec.parts[0];
  const bool has_blocks = IsRepacked(first.format);
  const int64_t block_bytes = QuantBlockOf(first.format).bytes;
  std::memset(out, 0, scales.BandBytes(array));
  const int64_t end = std::min((band + 1) * kBandRows, scales.rows);
  for (int64_t r = band * kBandRows; r < end; ++r) {
    const auto [part_idx, row] = SourceOfRow(spec, r);
    const WeightPart& part = spec.parts[part_idx];
    for (int64_t col = 0; col < scales.cols; col += scales.packed_size) {
      const int64_t place = cuda::PlaceOfScale(r % kBandRows, col, scales.cols,
                                               scales.packed_size);
      const int64_t g = col / scales.group_size;
      if (array == GroupArray::kZeros) {
        out[place] =
            part.zeros.empty() ? 8 : part.zeros.row<const uint8_t>(row)[g];
        continue;
      }
      uint16_t bits = 0;
      if (has_blocks) {
        std::memcpy(&bits, part.data.row<const uint8_t>(row) + g * block_bytes,
                    2);
      } else if (scales.dtype == DType::kF32) {
        const auto whole =
            std::bit_cast<uint32_t>(ScaleOf(part.scales, row, g));
        bits = static_cast<uint16_t>(array == GroupArray::kScales ? whole >> 16
                                                                  : whole);
      } else {
        bits = part.scales.row<const uint16_t>(row)[g];
      }
      std::memcpy(out + place * 2, &bits, 2);
    }
  }
}

// kFp8: those of the first row of every eight, or of all rows, for 128 columns
// or all.
//   group: of columns. out: [num_scales], f32.
void CopyFp8Scales(const LinearSpec& spec, int64_t group, int64_t num_scales,
                   int rows_of_scale, uint8_t* out) {
  for (int64_t r = 0; r < num_scales; ++r) {
    const auto [part_idx, row] = SourceOfRow(spec, r * rows_of_scale);
    const WeightPart& part = spec.parts[part_idx];
    const int64_t scale_row = part.group_size > 0     ? row / part.group_size
                              : part.scales.rows == 1 ? 0
                                                      : row;
    const float scale = ScaleOf(part.scales, scale_row, group);
    std::memcpy(out + r * 4, &scale, 4);
  }
}

// Calls pack(row, out) for each row of a StagedCopies::Fill.
template <typename Pack>
auto EachRow(int64_t row_bytes, const Pack& pack) {
  return [row_bytes, &pack](int64_t first, int64_t count, char* out) {
    for (int64_t i = 0; i < count; ++i) {
      pack(first + i, reinterpret_cast<uint8_t*>(out) + i * row_bytes);
    }
    return absl::OkStatus();
  };
}

}  // namespace

absl::Status CudaBackend::PackGroupScales(const LinearSpec& spec,
                                          int group_size, CudaWeight& weight) {
  cuda::QuantizedWeight& quantized = weight.quantized;
  const GroupScales scales =
      DescribeGroupScales(spec, group_size, quantized.group_size, weight);
  const auto copy = [&](GroupArray array, char* to) {
    const int64_t band_bytes = scales.BandBytes(array);
    return copies_.CopyRows(
        to, scales.num_bands(), band_bytes,
        EachRow(band_bytes, [&](int64_t band, uint8_t* out) {
          PackBand(spec, scales, array, band, out);
        }));
  };
  const int64_t num_bytes =
      scales.num_bands() * scales.BandBytes(GroupArray::kScales);
  const bool has_tails = scales.dtype == DType::kF32;
  QUIRE_ASSIGN_OR_RETURN(
      weight.scales,
      Allocate("scales of weights", has_tails ? 2 * num_bytes : num_bytes,
               kWeightRemedy, &weight.num_bytes));
  QUIRE_RETURN_IF_ERROR(copy(GroupArray::kScales, weight.scales.data()));
  quantized.scales = weight.scales.data();
  quantized.scale_dtype = scales.dtype;
  if (has_tails) {
    char* const tails = weight.scales.data() + num_bytes;
    QUIRE_RETURN_IF_ERROR(copy(GroupArray::kScaleTails, tails));
    quantized.scale_tails = reinterpret_cast<const uint16_t*>(tails);
  }
  if (!scales.has_zeros) return absl::OkStatus();
  QUIRE_ASSIGN_OR_RETURN(
      weight.zeros,
      Allocate("zero points of weights",
               scales.num_bands() * scales.BandBytes(GroupArray::kZeros),
               kWeightRemedy, &weight.num_bytes));
  quantized.zeros = weight.zeros.data<const uint8_t>();
  return copy(GroupArray::kZeros, weight.zeros.data());
}

absl::Status CudaBackend::PackFp8Scales(const LinearSpec& spec,
                                        int64_t num_groups,
                                        CudaWeight& weight) {
  const int rows_of_scale = weight.quantized.group_size > 0 ? 8 : 1;
  const int64_t num_scales = (weight.rows + rows_of_scale - 1) / rows_of_scale;
  const int64_t row_bytes = num_scales * int64_t{sizeof(float)};
  QUIRE_ASSIGN_OR_RETURN(weight.scales,
                         Allocate("scales of weights", num_groups * row_bytes,
                                  kWeightRemedy, &weight.num_bytes));
  weight.quantized.scales = weight.scales.data();
  weight.quantized.scale_stride = static_cast<int>((weight.rows + 7) / 8);
  return copies_.CopyRows(weight.scales.data(), num_groups, row_bytes,
                          EachRow(row_bytes, [&](int64_t group, uint8_t* out) {
                            CopyFp8Scales(spec, group, num_scales,
                                          rows_of_scale, out);
                          }));
}

absl::StatusOr<bool> CudaBackend::PackQuantized(const LinearSpec& spec,
                                                CudaWeight& weight) {
  if (!IsNative(spec)) return false;
  const WeightPart& first = spec.parts[0];
  const bool is_fp8 = first.format == QuantFormat::kFp8;
  const bool is_repacked = IsRepacked(first.format);
  const bool is_q8 = first.format == QuantFormat::kQ8_0;
  const int group_size = is_repacked ? 32 : first.group_size;
  const int64_t row_bytes = is_fp8  ? weight.cols
                            : is_q8 ? cuda::Int8RowBytes(weight.cols)
                                    : cuda::Int4RowBytes(weight.cols);
  QUIRE_ASSIGN_OR_RETURN(
      weight.data, Allocate("weights", weight.rows * row_bytes, kWeightRemedy,
                            &weight.num_bytes));
  QUIRE_RETURN_IF_ERROR(copies_.CopyRows(
      weight.data.data(), weight.rows, row_bytes,
      EachRow(row_bytes, [&](int64_t i, uint8_t* out) {
        const auto [part, row] = SourceOfRow(spec, i);
        const auto* from = spec.parts[part].data.row<const uint8_t>(row);
        if (is_fp8) {
          std::memcpy(out, from, row_bytes);
        } else if (is_q8) {
          cuda::PackQ8Row(from, weight.cols, out);
        } else if (is_repacked) {
          cuda::PackQ4Row(from, weight.cols, out);
        } else {
          cuda::PackInt4Row(from, weight.cols, out);
        }
      })));
  cuda::QuantizedWeight& quantized = weight.quantized;
  quantized.format =
      first.format == QuantFormat::kQ4_0 ? QuantFormat::kInt4 : first.format;
  quantized.data = weight.data.data<const uint8_t>();
  // Groups that are not of 32, 64 or 128 columns are cut to such.
  quantized.group_size = is_fp8                  ? group_size
                         : group_size % 128 == 0 ? 128
                         : group_size % 64 == 0  ? 64
                                                 : 32;
  const int64_t num_groups =
      group_size > 0 ? (weight.cols + group_size - 1) / group_size : 1;
  QUIRE_RETURN_IF_ERROR(is_fp8 ? PackFp8Scales(spec, num_groups, weight)
                               : PackGroupScales(spec, group_size, weight));
  if (!first.column_order.empty()) {
    const int64_t num_bytes = weight.cols * int64_t{sizeof(int32_t)};
    QUIRE_ASSIGN_OR_RETURN(weight.column_order,
                           Allocate("order of columns", num_bytes,
                                    kWeightRemedy, &weight.num_bytes));
    QUIRE_RETURN_IF_ERROR(copies_.Copy(weight.column_order.data(),
                                       first.column_order.row<const int32_t>(0),
                                       num_bytes));
    max_ordered_cols_ = std::max(max_ordered_cols_, weight.cols);
  }
  weight.format = first.format;
  weight.input_scale = first.input_scale;
  for (const WeightPart& part : spec.parts) {
    weight.input_scale = part.input_scale == 0 || weight.input_scale == 0
                             ? 0
                             : std::max(weight.input_scale, part.input_scale);
  }
  if (RoundsToFp8(weight)) {
    max_fp8_cols_ = std::max(max_fp8_cols_, weight.cols);
    max_fp8_groups_ = std::max(max_fp8_groups_, num_groups);
  }
  return true;
}

}  // namespace quire
