// Loading of quantized weights into the layouts of
// kernels/cuda/quantized_linear.h.
#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_step.h"

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

void PackInt4Row(const uint8_t* from, int64_t cols, uint8_t* out) {
  std::vector<uint32_t> words(cuda::Int4RowBytes(cols) / 4);
  for (int64_t col = 0; col < cols; ++col) {
    const uint32_t element = from[col / 2] >> (col % 2 * 4) & 0xf;
    const cuda::Int4Place place = cuda::PlaceOfInt4(col);
    words[place.word] |= element << (4 * place.nibble);
  }
  std::memcpy(out, words.data(), words.size() * 4);
}

// Q4_0 is four bits in groups of 32 with a zero point of 8: of its 16 bytes the
// low halves are the first sixteen columns.
void PackQ4Row(const uint8_t* from, int64_t cols, uint8_t* out) {
  const QuantBlock block = QuantBlockOf(QuantFormat::kQ4_0);
  std::vector<uint8_t> nibbles(cols / 2);
  for (int64_t col = 0; col < cols; ++col) {
    const int64_t in_block = col % block.cols;
    const uint8_t byte =
        from[col / block.cols * block.bytes + 2 + in_block % 16];
    const uint8_t element = in_block < 16 ? byte & 0xf : byte >> 4;
    nibbles[col / 2] |= element << (col % 2 * 4);
  }
  PackInt4Row(nibbles.data(), cols, out);
}

void PackQ8Row(const uint8_t* from, int64_t cols, uint8_t* out) {
  const QuantBlock block = QuantBlockOf(QuantFormat::kQ8_0);
  for (int64_t col = 0; col < cols; ++col) {
    out[cuda::PlaceOfInt8(col)] =
        from[col / block.cols * block.bytes + 2 + col % block.cols];
  }
}

// As QuantizedWeight says.
struct PackedScales {
  std::vector<uint8_t> scales, tails, zeros;  // zeros: empty if all are 8.
  DType dtype = DType::kF32;
};

// kInt4 and kQ8_0, from parts or from the f16 numbers before the elements of
// blocks.
//   group_size: of the parts. packed_size: that of QuantizedWeight.
PackedScales PackGroupScales(const LinearSpec& spec, int64_t rows, int64_t cols,
                             int group_size, int packed_size) {
  const WeightPart& first = spec.parts[0];
  const bool has_blocks = IsRepacked(first.format);
  const int64_t block_bytes = QuantBlockOf(first.format).bytes;
  PackedScales packed;
  packed.dtype = has_blocks ? DType::kF16 : first.scales.dtype;
  bool has_zeros = false;
  for (const WeightPart& part : spec.parts) {
    if (has_blocks) continue;
    if (part.scales.dtype != packed.dtype) packed.dtype = DType::kF32;
    has_zeros |= !part.zeros.empty();
  }
  const int64_t num_scales = cuda::NumScales(rows, cols, packed_size);
  packed.scales.resize(num_scales * 2);
  if (packed.dtype == DType::kF32) packed.tails.resize(num_scales * 2);
  if (has_zeros) packed.zeros.resize(num_scales);
  const auto store = [](std::vector<uint8_t>& to, int64_t place,
                        uint16_t bits) {
    std::memcpy(&to[place * 2], &bits, 2);
  };
  for (int64_t r = 0; r < rows; ++r) {
    const auto [part_idx, row] = SourceOfRow(spec, r);
    const WeightPart& part = spec.parts[part_idx];
    for (int64_t col = 0; col < cols; col += packed_size) {
      const int64_t place = cuda::PlaceOfScale(r, col, cols, packed_size);
      const int64_t g = col / group_size;
      if (has_blocks) {
        std::memcpy(&packed.scales[place * 2],
                    part.data.row<const uint8_t>(row) + g * block_bytes, 2);
      } else if (packed.dtype == DType::kF32) {
        const auto bits = std::bit_cast<uint32_t>(ScaleOf(part.scales, row, g));
        store(packed.scales, place, static_cast<uint16_t>(bits >> 16));
        store(packed.tails, place, static_cast<uint16_t>(bits));
      } else {
        store(packed.scales, place, part.scales.row<const uint16_t>(row)[g]);
      }
      if (!has_zeros) continue;
      packed.zeros[place] =
          part.zeros.empty() ? 8 : part.zeros.row<const uint8_t>(row)[g];
    }
  }
  return packed;
}

// kFp8: of rows, or with a shift of 3 of blocks, which have eight i rows.
PackedScales PackFp8Scales(const LinearSpec& spec, int64_t rows,
                           int64_t num_groups, int shift) {
  const int64_t stride = (rows + (int64_t{1} << shift) - 1) >> shift;
  PackedScales packed;
  packed.scales.resize(num_groups * stride * 4);
  for (int64_t r = 0; r < stride; ++r) {
    const auto [part_idx, row] = SourceOfRow(spec, r << shift);
    const WeightPart& part = spec.parts[part_idx];
    const int64_t scale_row = part.group_size > 0     ? row / part.group_size
                              : part.scales.rows == 1 ? 0
                                                      : row;
    for (int64_t g = 0; g < num_groups; ++g) {
      const float scale = ScaleOf(part.scales, scale_row, g);
      std::memcpy(&packed.scales[(g * stride + r) * 4], &scale, 4);
    }
  }
  return packed;
}

}  // namespace

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
  std::vector<uint8_t> bytes(weight.rows * row_bytes);
  for (int64_t i = 0; i < weight.rows; ++i) {
    const auto [part, row] = SourceOfRow(spec, i);
    const auto* from = spec.parts[part].data.row<const uint8_t>(row);
    if (is_fp8) {
      std::memcpy(&bytes[i * row_bytes], from, row_bytes);
    } else if (is_q8) {
      PackQ8Row(from, weight.cols, &bytes[i * row_bytes]);
    } else if (is_repacked) {
      PackQ4Row(from, weight.cols, &bytes[i * row_bytes]);
    } else {
      PackInt4Row(from, weight.cols, &bytes[i * row_bytes]);
    }
  }
  const auto upload = [&](const char* what, const void* from, int64_t num_bytes,
                          cuda::DeviceBuffer* to) -> absl::Status {
    if (num_bytes == 0) return absl::OkStatus();
    QUIRE_ASSIGN_OR_RETURN(
        *to, Allocate(what, num_bytes, kWeightRemedy, &weight.num_bytes));
    QUIRE_RETURN_IF_ERROR(device_->CopyToDevice(to->data(), from, num_bytes));
    return device_->Synchronize();
  };
  QUIRE_RETURN_IF_ERROR(
      upload("weights", bytes.data(), bytes.size(), &weight.data));
  const int64_t num_groups =
      group_size > 0 ? (weight.cols + group_size - 1) / group_size : 1;
  // Groups that are not of 32, 64 or 128 columns are cut to such.
  const int packed_size = is_fp8                  ? group_size
                          : group_size % 128 == 0 ? 128
                          : group_size % 64 == 0  ? 64
                                                  : 32;
  const int shift = is_fp8 && group_size > 0 ? 3 : 0;
  PackedScales scales =
      is_fp8 ? PackFp8Scales(spec, weight.rows, num_groups, shift)
             : PackGroupScales(spec, weight.rows, weight.cols, group_size,
                               packed_size);
  const int64_t num_scale_bytes = static_cast<int64_t>(scales.scales.size());
  scales.scales.insert(scales.scales.end(), scales.tails.begin(),
                       scales.tails.end());
  QUIRE_RETURN_IF_ERROR(upload("scales of weights", scales.scales.data(),
                               scales.scales.size(), &weight.scales));
  QUIRE_RETURN_IF_ERROR(upload("zero points of weights", scales.zeros.data(),
                               scales.zeros.size(), &weight.zeros));
  if (!first.column_order.empty()) {
    QUIRE_RETURN_IF_ERROR(upload("order of columns",
                                 first.column_order.row<const int32_t>(0),
                                 weight.cols * 4, &weight.column_order));
    max_ordered_cols_ = std::max(max_ordered_cols_, weight.cols);
  }
  weight.format = first.format;
  weight.input_scale = first.input_scale;
  for (const WeightPart& part : spec.parts) {
    weight.input_scale = part.input_scale == 0 || weight.input_scale == 0
                             ? 0
                             : std::max(weight.input_scale, part.input_scale);
  }
  cuda::QuantizedWeight& quantized = weight.quantized;
  quantized.format =
      first.format == QuantFormat::kQ4_0 ? QuantFormat::kInt4 : first.format;
  quantized.data = weight.data.data<const uint8_t>();
  quantized.scales = weight.scales.data();
  quantized.scale_dtype = scales.dtype;
  if (!scales.tails.empty()) {
    quantized.scale_tails =
        weight.scales.data<const uint16_t>() + num_scale_bytes / 2;
  }
  quantized.zeros = weight.zeros.data<const uint8_t>();
  quantized.scale_stride = static_cast<int>((weight.rows + 7) / 8);
  quantized.group_size = packed_size;
  if (RoundsToFp8(weight)) {
    max_fp8_cols_ = std::max(max_fp8_cols_, weight.cols);
    max_fp8_groups_ = std::max(max_fp8_groups_, num_groups);
  }
  return true;
}

}  // namespace quire
