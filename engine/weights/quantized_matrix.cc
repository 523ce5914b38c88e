#include "engine/weights/quantized_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// Rows that are unpacked together: words of GPTQ and AWQ hold or neighbour
// several rows, and so many fill a cache line.
constexpr int64_t kRowsAtOnce = 64;

absl::Status TensorError(const StoredTensor& tensor,
                         absl::string_view message) {
  return absl::InvalidArgumentError(
      absl::StrCat(*tensor.path, ": tensor \"", tensor.name, "\": ", message));
}

absl::Status CheckShape(const StoredTensor& tensor,
                        std::vector<int64_t> expected) {
  if (tensor.shape == expected) return absl::OkStatus();
  return TensorError(tensor,
                     absl::StrCat("shape is ", ShapeString(tensor.shape),
                                  ", expected ", ShapeString(expected)));
}

absl::Status CheckDType(const StoredTensor& tensor, StoredDType expected) {
  if (tensor.dtype == expected && tensor.format == QuantFormat::kDense) {
    return absl::OkStatus();
  }
  return TensorError(tensor,
                     absl::StrCat("dtype is ", StoredDTypeName(tensor.dtype),
                                  ", expected ", StoredDTypeName(expected)));
}

absl::StatusOr<DType> FloatDTypeOf(const StoredTensor& tensor) {
  switch (tensor.dtype) {
    case StoredDType::kF32:
      return DType::kF32;
    case StoredDType::kF16:
      return DType::kF16;
    case StoredDType::kBF16:
      return DType::kBF16;
    default:
      return TensorError(
          tensor, absl::StrCat("dtype is ", StoredDTypeName(tensor.dtype),
                               ", expected F32, F16 or BF16"));
  }
}

uint8_t* Allocate(int64_t num_bytes, PartMemory& memory) {
  memory.emplace_back(new uint8_t[num_bytes]);
  return memory.back().get();
}

uint32_t LoadWord(const uint8_t* words, int64_t idx) {
  uint32_t word;
  std::memcpy(&word, words + idx * 4, 4);
  return word;
}

void StoreFloat(float value, DType dtype, uint8_t* to, int64_t idx) {
  if (dtype == DType::kF32) {
    std::memcpy(to + idx * 4, &value, 4);
    return;
  }
  const uint16_t bits =
      dtype == DType::kF16 ? FloatToHalf(value) : FloatToBf16(value);
  std::memcpy(to + idx * 2, &bits, 2);
}

// AWQ: the row, of a word's eight, that is in its code number i.
constexpr int kAwqRows[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// Shapes, checked, and what follows from them.
struct IntLayout {
  int64_t rows = 0;
  int64_t cols = 0;
  int bits = 0;
  int per_word = 0;  // Codes.
  int64_t num_groups = 0;
  int64_t group_size = 0;
  DType scale_dtype = DType::kF16;
  // What is filled in: rows of whole words, columns of whole words and groups.
  IndexRange needed_rows;
  IndexRange needed_cols;

  IndexRange needed_groups() const {
    return {needed_cols.begin / group_size,
            (needed_cols.end + group_size - 1) / group_size};
  }
  int64_t num_chunks() const {
    return (needed_rows.size() + kRowsAtOnce - 1) / kRowsAtOnce;
  }
  // The rows of a chunk.
  IndexRange Chunk(int64_t chunk) const {
    const int64_t first = needed_rows.begin + chunk * kRowsAtOnce;
    return {first, std::min(first + kRowsAtOnce, needed_rows.end)};
  }
};

// Sets what is needed, with the rest of what shares words or groups with it.
void SetNeeded(const IntTensors& tensors, bool is_in_order, IntLayout& layout) {
  layout.needed_rows = {0, layout.rows};
  layout.needed_cols = {0, layout.cols};
  // The rows of a word of AWQ or GPTQ's zero points.
  constexpr int64_t kWordRows = 8;
  if (tensors.needed_rows.size() > 0) {
    layout.needed_rows = {tensors.needed_rows.begin / kWordRows * kWordRows,
                          std::min((tensors.needed_rows.end + kWordRows - 1) /
                                       kWordRows * kWordRows,
                                   layout.rows)};
  }
  if (tensors.needed_cols.size() > 0 && is_in_order) {
    const int64_t unit = std::lcm(layout.group_size, int64_t{layout.per_word});
    layout.needed_cols = {
        tensors.needed_cols.begin / unit * unit,
        std::min((tensors.needed_cols.end + unit - 1) / unit * unit,
                 layout.cols)};
  }
}

absl::Status CheckCodes(const IntTensors& tensors, IntLayout& layout) {
  const StoredTensor& codes = *tensors.codes;
  QUIRE_RETURN_IF_ERROR(CheckDType(codes, StoredDType::kI32));
  using Layout = IntTensors::Layout;
  // The packed dimension tells the bits.
  const int packed_dim = tensors.layout == Layout::kGptq ? 0 : 1;
  const int64_t unpacked =
      tensors.layout == Layout::kAwq ? layout.rows : layout.cols;
  for (const int bits : {4, 8}) {
    const int per_word = 32 / bits;
    if (unpacked % per_word != 0) continue;
    if (codes.shape.size() == 2 &&
        codes.shape[packed_dim] == unpacked / per_word) {
      layout.bits = bits;
      layout.per_word = per_word;
    }
  }
  if (layout.bits == 0 ||
      (tensors.layout == Layout::kAwq && layout.bits != 4)) {
    return TensorError(
        codes,
        absl::StrCat("shape ", ShapeString(codes.shape), " does not hold [",
                     layout.rows, ", ", layout.cols, "] elements of 4",
                     tensors.layout == Layout::kAwq ? "" : " or 8",
                     " bits (other widths are not supported)"));
  }
  const int64_t packed = unpacked / layout.per_word;
  switch (tensors.layout) {
    case Layout::kGptq:
      return CheckShape(codes, {packed, layout.rows});
    case Layout::kAwq:
      return CheckShape(codes, {layout.cols, packed});
    case Layout::kPacked:
      return CheckShape(codes, {layout.rows, packed});
  }
  return absl::OkStatus();
}

absl::Status CheckGroups(const IntTensors& tensors, IntLayout& layout) {
  const StoredTensor& scales = *tensors.scales;
  const bool is_packed = tensors.layout == IntTensors::Layout::kPacked;
  QUIRE_ASSIGN_OR_RETURN(layout.scale_dtype, FloatDTypeOf(scales));
  const int group_dim = is_packed ? 1 : 0;
  if (scales.shape.size() != 2 || scales.shape[1 - group_dim] != layout.rows ||
      scales.shape[group_dim] < 1 || scales.shape[group_dim] > layout.cols) {
    return TensorError(
        scales, absl::StrCat("shape ", ShapeString(scales.shape),
                             " does not hold a scale for each of ", layout.rows,
                             " rows and group of columns"));
  }
  layout.num_groups = scales.shape[group_dim];
  const int64_t said = tensors.group_size;
  if (said > 0 && (layout.cols + said - 1) / said == layout.num_groups) {
    layout.group_size = said;
  } else if (layout.cols % layout.num_groups == 0) {
    layout.group_size = layout.cols / layout.num_groups;
  } else {
    return TensorError(
        scales, absl::StrCat(layout.num_groups, " groups do not fit ",
                             layout.cols, " columns in groups of ", said));
  }
  if (tensors.zeros != nullptr) {
    QUIRE_RETURN_IF_ERROR(CheckDType(*tensors.zeros, StoredDType::kI32));
    // Rows are padded to whole words.
    const int64_t words = (layout.rows + layout.per_word - 1) / layout.per_word;
    QUIRE_RETURN_IF_ERROR(
        is_packed ? CheckShape(*tensors.zeros, {words, layout.num_groups})
                  : CheckShape(*tensors.zeros, {layout.num_groups, words}));
  }
  return absl::OkStatus();
}

// Codes of rows [begin, end), a byte each, into out[row - begin][col].
// of the needed columns. Requires: begin is a multiple of 8.
void UnpackRows(const IntTensors& tensors, const IntLayout& layout,
                int64_t begin, int64_t end, uint8_t* out) {
  const uint8_t* words = tensors.codes->data.data();
  const uint32_t mask = (1u << layout.bits) - 1;
  const int64_t cols = layout.cols;
  const auto [first_col, end_col] = layout.needed_cols;
  const int per_word = layout.per_word;
  switch (tensors.layout) {
    case IntTensors::Layout::kGptq:
      for (int64_t c = first_col; c < end_col; c += per_word) {
        for (int64_t row = begin; row < end; ++row) {
          const uint32_t word =
              LoadWord(words, c / per_word * layout.rows + row);
          uint8_t* to = out + (row - begin) * cols + c;
          for (int i = 0; i < per_word; ++i) {
            to[i] = static_cast<uint8_t>(word >> (i * layout.bits) & mask);
          }
        }
      }
      return;
    case IntTensors::Layout::kAwq:
      for (int64_t c = first_col; c < end_col; ++c) {
        for (int64_t row = begin; row < end; row += 8) {
          const uint32_t word = LoadWord(words, (c * layout.rows + row) / 8);
          for (int i = 0; i < 8; ++i) {
            out[(row + kAwqRows[i] - begin) * cols + c] =
                static_cast<uint8_t>(word >> (i * 4) & 15);
          }
        }
      }
      return;
    case IntTensors::Layout::kPacked:
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t c = first_col; c < end_col; ++c) {
          const uint32_t word = LoadWord(words, (row * cols + c) / per_word);
          out[(row - begin) * cols + c] =
              static_cast<uint8_t>(word >> (c % per_word * layout.bits) & mask);
        }
      }
      return;
  }
}

// The zero point of a row's group; 256 for GPTQ's largest one.
int ZeroOf(const IntTensors& tensors, const IntLayout& layout, int64_t row,
           int64_t group) {
  const int middle = 1 << (layout.bits - 1);
  if (tensors.zeros == nullptr) return middle;
  const uint8_t* words = tensors.zeros->data.data();
  const int per_word = layout.per_word;
  const int64_t words_of_rows = (layout.rows + per_word - 1) / per_word;
  const int64_t word_row = row / per_word;
  int place = static_cast<int>(row % per_word);
  if (tensors.layout == IntTensors::Layout::kAwq) {
    place =
        static_cast<int>(std::find(kAwqRows, kAwqRows + 8, place) - kAwqRows);
  }
  const int64_t idx = tensors.layout == IntTensors::Layout::kPacked
                          ? word_row * layout.num_groups + group
                          : group * words_of_rows + word_row;
  const uint32_t mask = (1u << layout.bits) - 1;
  const int stored =
      static_cast<int>(LoadWord(words, idx) >> (place * layout.bits) & mask);
  return stored + (tensors.zeros_are_less_one ? 1 : 0);
}

// Each column's group; empty if they are in order.
absl::StatusOr<std::vector<int32_t>> ReadGroupIndices(const IntTensors& tensors,
                                                      const IntLayout& layout) {
  std::vector<int32_t> groups;
  if (tensors.group_indices == nullptr) return groups;
  const StoredTensor& tensor = *tensors.group_indices;
  QUIRE_RETURN_IF_ERROR(CheckDType(tensor, StoredDType::kI32));
  QUIRE_RETURN_IF_ERROR(CheckShape(tensor, {layout.cols}));
  groups.resize(layout.cols);
  std::memcpy(groups.data(), tensor.data.data(), layout.cols * 4);
  bool in_order = true;
  for (int64_t c = 0; c < layout.cols; ++c) {
    if (groups[c] < 0 || groups[c] >= layout.num_groups) {
      return TensorError(
          tensor, absl::StrCat("column ", c, " is in group ", groups[c], " of ",
                               layout.num_groups));
    }
    in_order &= groups[c] == c / layout.group_size;
  }
  if (in_order) groups.clear();
  return groups;
}

// Columns sorted by group, if that makes whole groups; otherwise empty.
std::vector<int32_t> OrderByGroup(const std::vector<int32_t>& groups,
                                  const IntLayout& layout) {
  std::vector<int32_t> order(layout.cols);
  for (int64_t c = 0; c < layout.cols; ++c) order[c] = static_cast<int32_t>(c);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return groups[a] < groups[b]; });
  for (int64_t c = 0; c < layout.cols; ++c) {
    if (groups[order[c]] != c / layout.group_size) return {};
  }
  return order;
}

// Scales as [rows, groups].
TensorView ReadScales(const IntTensors& tensors, const IntLayout& layout,
                      PartMemory& memory) {
  const StoredTensor& scales = *tensors.scales;
  if (tensors.layout == IntTensors::Layout::kPacked) {
    return AlignedView(scales, layout.scale_dtype, layout.rows,
                       layout.num_groups, memory);
  }
  const int64_t size = DTypeSize(layout.scale_dtype);
  uint8_t* out = Allocate(layout.rows * layout.num_groups * size, memory);
  const IndexRange groups = layout.needed_groups();
  for (int64_t group = groups.begin; group < groups.end; ++group) {
    for (int64_t row = layout.needed_rows.begin; row < layout.needed_rows.end;
         ++row) {
      std::memcpy(out + (row * layout.num_groups + group) * size,
                  scales.data.data() + (group * layout.rows + row) * size,
                  size);
    }
  }
  return TensorView::Matrix(out, layout.scale_dtype, layout.rows,
                            layout.num_groups);
}

// Zero points as [rows, groups]; empty if all are 8.
TensorView ReadZeros(const IntTensors& tensors, const IntLayout& layout,
                     PartMemory& memory) {
  if (tensors.zeros == nullptr) return TensorView();
  uint8_t* out = Allocate(layout.rows * layout.num_groups, memory);
  bool all_in_the_middle = true;
  const IndexRange groups = layout.needed_groups();
  for (int64_t row = layout.needed_rows.begin; row < layout.needed_rows.end;
       ++row) {
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      const int zero = ZeroOf(tensors, layout, row, group);
      out[row * layout.num_groups + group] = static_cast<uint8_t>(zero);
      all_in_the_middle &= zero == 8;
    }
  }
  if (all_in_the_middle) {
    memory.pop_back();
    return TensorView();
  }
  return TensorView::Matrix(out, DType::kU8, layout.rows, layout.num_groups);
}

float LoadScale(const TensorView& scales, int64_t row, int64_t group) {
  switch (scales.dtype) {
    case DType::kF32:
      return scales.row<const float>(row)[group];
    case DType::kF16:
      return HalfToFloat(scales.row<const uint16_t>(row)[group]);
    default:
      return Bf16ToFloat(scales.row<const uint16_t>(row)[group]);
  }
}

WeightPart DensePart(const uint8_t* data, DType dtype, int64_t rows,
                     int64_t cols) {
  WeightPart part;
  part.data = TensorView::Matrix(data, dtype, rows, cols);
  return part;
}

// groups: as ReadGroupIndices.
WeightPart DequantizeInts(const IntTensors& tensors, const IntLayout& layout,
                          const std::vector<int32_t>& groups,
                          const TensorView& scales, DType dtype,
                          RangeRunner run, PartMemory& memory) {
  const int64_t cols = layout.cols;
  uint8_t* out = Allocate(layout.rows * cols * DTypeSize(dtype), memory);
  run(layout.num_chunks(), [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> codes(kRowsAtOnce * cols);
    std::vector<float> values(layout.num_groups);
    std::vector<int> zeros(layout.num_groups);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const auto [first, last] = layout.Chunk(chunk);
      UnpackRows(tensors, layout, first, last, codes.data());
      for (int64_t row = first; row < last; ++row) {
        const IndexRange needed = layout.needed_groups();
        for (int64_t g = needed.begin; g < needed.end; ++g) {
          values[g] = LoadScale(scales, row, g);
          zeros[g] = ZeroOf(tensors, layout, row, g);
        }
        for (int64_t c = layout.needed_cols.begin; c < layout.needed_cols.end;
             ++c) {
          const int64_t g = groups.empty() ? c / layout.group_size : groups[c];
          const int code = codes[(row - first) * cols + c] - zeros[g];
          StoreFloat(values[g] * static_cast<float>(code), dtype, out,
                     row * cols + c);
        }
      }
    }
  });
  return DensePart(out, dtype, layout.rows, cols);
}

// Codes as nibbles [rows, cols / 2], the columns in `order` if it is not empty.
const uint8_t* RepackNibbles(const IntTensors& tensors, const IntLayout& layout,
                             const std::vector<int32_t>& order, RangeRunner run,
                             PartMemory& memory) {
  const int64_t cols = layout.cols;
  uint8_t* out = Allocate(layout.rows * cols / 2, memory);
  run(layout.num_chunks(), [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> codes(kRowsAtOnce * cols);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const auto [first, last] = layout.Chunk(chunk);
      UnpackRows(tensors, layout, first, last, codes.data());
      for (int64_t row = first; row < last; ++row) {
        const uint8_t* from = codes.data() + (row - first) * cols;
        uint8_t* to = out + row * cols / 2;
        for (int64_t c = layout.needed_cols.begin; c < layout.needed_cols.end;
             c += 2) {
          const int low = from[order.empty() ? c : order[c]];
          const int high = from[order.empty() ? c + 1 : order[c + 1]];
          to[c / 2] = static_cast<uint8_t>(low | high << 4);
        }
      }
    }
  });
  return out;
}

// The scales of an fp8 matrix as f32.
absl::StatusOr<std::vector<float>> ReadFp8Scales(const StoredTensor& tensor) {
  std::vector<float> scales(tensor.num_elements);
  if (tensor.dtype == StoredDType::kF8E8M0) {
    for (int64_t i = 0; i < tensor.num_elements; ++i) {
      const int bits = tensor.data[i];
      scales[i] = bits == 255 ? NAN : std::ldexp(1.0f, bits - 127);
    }
    return scales;
  }
  QUIRE_ASSIGN_OR_RETURN(const DType dtype, FloatDTypeOf(tensor));
  for (int64_t i = 0; i < tensor.num_elements; ++i) {
    uint16_t bits = 0;
    switch (dtype) {
      case DType::kF32:
        std::memcpy(&scales[i], tensor.data.data() + i * 4, 4);
        break;
      case DType::kF16:
        std::memcpy(&bits, tensor.data.data() + i * 2, 2);
        scales[i] = HalfToFloat(bits);
        break;
      default:
        std::memcpy(&bits, tensor.data.data() + i * 2, 2);
        scales[i] = Bf16ToFloat(bits);
    }
  }
  return scales;
}

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The edge of the squares that have a scale each; 0 if the shape is not that of
// squares.
int64_t SquareOf(const StoredTensor& scales, int64_t rows, int64_t cols,
                 int64_t said) {
  if (scales.shape.size() != 2) return 0;
  for (const int64_t size : {said, int64_t{128}}) {
    if (size > 0 && scales.shape[0] == CeilDivide(rows, size) &&
        scales.shape[1] == CeilDivide(cols, size)) {
      return size;
    }
  }
  return 0;
}

bool HoldsOneForEachRow(const StoredTensor& scales, int64_t rows) {
  const std::vector<int64_t>& shape = scales.shape;
  return scales.num_elements == rows && !shape.empty() && shape[0] == rows &&
         (shape.size() == 1 || (shape.size() == 2 && shape[1] == 1));
}

absl::Status BadScales(const StoredTensor& scales, int64_t rows, int64_t cols) {
  return TensorError(
      scales,
      absl::StrCat("shape ", ShapeString(scales.shape), " is none of [1], [",
                   rows, "], [", rows, ", 1] and a scale for each block of [",
                   rows, ", ", cols, "]"));
}

}  // namespace

TensorView AlignedView(const StoredTensor& tensor, DType dtype, int64_t rows,
                       int64_t cols, PartMemory& memory) {
  const uint8_t* data = tensor.data.data();
  if (reinterpret_cast<uintptr_t>(data) % DTypeSize(dtype) != 0) {
    uint8_t* copy = Allocate(tensor.data.size(), memory);
    std::memcpy(copy, data, tensor.data.size());
    data = copy;
  }
  return TensorView::Matrix(data, dtype, rows, cols);
}

absl::StatusOr<WeightPart> ReadIntMatrix(const IntTensors& tensors,
                                         int64_t rows, int64_t cols,
                                         DType dense_dtype, RangeRunner run,
                                         PartMemory& memory) {
  IntLayout layout;
  layout.rows = rows;
  layout.cols = cols;
  QUIRE_RETURN_IF_ERROR(CheckCodes(tensors, layout));
  QUIRE_RETURN_IF_ERROR(CheckGroups(tensors, layout));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int32_t> groups,
                         ReadGroupIndices(tensors, layout));
  SetNeeded(tensors, groups.empty(), layout);
  const TensorView scales = ReadScales(tensors, layout, memory);
  std::vector<int32_t> order;
  if (!groups.empty()) order = OrderByGroup(groups, layout);
  if (layout.bits != 4 || (!groups.empty() && order.empty()) ||
      layout.group_size % 2 != 0) {
    return DequantizeInts(tensors, layout, groups, scales, dense_dtype, run,
                          memory);
  }
  WeightPart part;
  part.format = QuantFormat::kInt4;
  part.group_size = static_cast<int>(layout.group_size);
  part.scales = scales;
  part.zeros = ReadZeros(tensors, layout, memory);
  // compressed-tensors' words are what kInt4 is.
  const uint8_t* codes =
      tensors.layout == IntTensors::Layout::kPacked && order.empty()
          ? tensors.codes->data.data()
          : RepackNibbles(tensors, layout, order, run, memory);
  part.data = TensorView::Matrix(codes, DType::kU8, rows, cols / 2);
  if (!order.empty()) {
    uint8_t* kept = Allocate(cols * 4, memory);
    std::memcpy(kept, order.data(), cols * 4);
    part.column_order = TensorView::Vector(kept, DType::kI32, cols);
  }
  return part;
}

absl::StatusOr<WeightPart> ReadFp8Matrix(const Fp8Tensors& tensors,
                                         int64_t rows, int64_t cols,
                                         PartMemory& memory) {
  QUIRE_RETURN_IF_ERROR(CheckDType(*tensors.codes, StoredDType::kF8E4M3));
  QUIRE_RETURN_IF_ERROR(CheckShape(*tensors.codes, {rows, cols}));
  const StoredTensor& stored = *tensors.scales;
  QUIRE_ASSIGN_OR_RETURN(std::vector<float> values, ReadFp8Scales(stored));
  WeightPart part;
  part.format = QuantFormat::kFp8;
  part.data =
      TensorView::Matrix(tensors.codes->data.data(), DType::kU8, rows, cols);
  const int64_t square = SquareOf(stored, rows, cols, tensors.block_size);
  int64_t scale_rows = 1;
  if (values.size() == 1) {
    // One for all.
  } else if (HoldsOneForEachRow(stored, rows)) {
    scale_rows = rows;
  } else if (square > 0) {
    scale_rows = stored.shape[0];
    part.group_size = static_cast<int>(square);
  } else if (tensors.num_fused > 1 && stored.shape.size() == 1 &&
             stored.num_elements == tensors.num_fused) {
    values = {values[tensors.fused_idx]};
  } else {
    return BadScales(stored, rows, cols);
  }
  uint8_t* kept = Allocate(values.size() * 4, memory);
  std::memcpy(kept, values.data(), values.size() * 4);
  part.scales = TensorView::Matrix(kept, DType::kF32, scale_rows,
                                   values.size() / scale_rows);
  if (tensors.input_scale != nullptr) {
    QUIRE_ASSIGN_OR_RETURN(const std::vector<float> input,
                           ReadFp8Scales(*tensors.input_scale));
    // Several: one for each of the fused matrices, whose input is the same.
    for (const float value : input) {
      if (!(value > 0.0f) || !std::isfinite(value)) {
        return TensorError(*tensors.input_scale,
                           absl::StrCat(value, " is not a scale"));
      }
      part.input_scale = std::max(part.input_scale, value);
    }
  }
  return part;
}

absl::StatusOr<WeightPart> ReadInt8Matrix(
    const StoredTensor& codes, const StoredTensor& scales, int64_t rows,
    int64_t cols, IndexRange needed_rows, IndexRange needed_cols,
    DType dense_dtype, RangeRunner run, PartMemory& memory) {
  QUIRE_RETURN_IF_ERROR(CheckDType(codes, StoredDType::kI8));
  QUIRE_RETURN_IF_ERROR(CheckShape(codes, {rows, cols}));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<float> values,
                         ReadFp8Scales(scales));
  if (values.size() != 1 && !HoldsOneForEachRow(scales, rows)) {
    return BadScales(scales, rows, cols);
  }
  uint8_t* out = Allocate(rows * cols * DTypeSize(dense_dtype), memory);
  run(needed_rows.size(), [&](int64_t begin, int64_t end) {
    for (int64_t row = needed_rows.begin + begin; row < needed_rows.begin + end;
         ++row) {
      const float scale = values[values.size() == 1 ? 0 : row];
      for (int64_t i = row * cols + needed_cols.begin;
           i < row * cols + needed_cols.end; ++i) {
        const auto code = static_cast<int8_t>(codes.data[i]);
        StoreFloat(scale * static_cast<float>(code), dense_dtype, out, i);
      }
    }
  });
  return DensePart(out, dense_dtype, rows, cols);
}

std::optional<WeightPart> SlicePart(const WeightPart& part, IndexRange rows,
                                    IndexRange cols) {
  const bool has_all_cols = cols == IndexRange{0, part.cols()};
  const QuantBlock block = part.format == QuantFormat::kDense
                               ? QuantBlock{1, 1}
                               : QuantBlockOf(part.format);
  if (cols.begin % block.cols != 0 || cols.size() % block.cols != 0) {
    return std::nullopt;
  }
  // [r, c] of a view of one row or column serves all.
  const auto cut = [](const TensorView& view, IndexRange r, IndexRange c) {
    TensorView out = view;
    const int64_t offset = r.begin * view.row_stride + c.begin;
    out.data =
        static_cast<uint8_t*>(view.data) + offset * DTypeSize(view.dtype);
    out.rows = r.size();
    out.cols = c.size();
    return out;
  };
  WeightPart out = part;
  out.data = cut(part.data, rows,
                 {cols.begin / block.cols * block.bytes,
                  cols.end / block.cols * block.bytes});
  const int64_t group = part.group_size;
  if (part.format == QuantFormat::kFp8 && group > 0) {
    if (rows.begin % group != 0 || cols.begin % group != 0) return std::nullopt;
    out.scales =
        cut(part.scales, {rows.begin / group, CeilDivide(rows.end, group)},
            {cols.begin / group, CeilDivide(cols.end, group)});
  } else if (part.format == QuantFormat::kFp8 && part.scales.rows > 1) {
    out.scales = cut(part.scales, rows, {0, 1});
  } else if (part.format == QuantFormat::kInt4) {
    if (!has_all_cols &&
        (!part.column_order.empty() || cols.begin % group != 0)) {
      return std::nullopt;
    }
    const IndexRange groups = {cols.begin / group, CeilDivide(cols.end, group)};
    out.scales = cut(part.scales, rows, groups);
    if (!part.zeros.empty()) out.zeros = cut(part.zeros, rows, groups);
  }
  return out;
}

WeightPart DequantizePart(const WeightPart& part, IndexRange rows,
                          IndexRange cols, DType dtype, RangeRunner run,
                          PartMemory& memory) {
  uint8_t* out = Allocate(rows.size() * cols.size() * DTypeSize(dtype), memory);
  run(rows.size(), [&](int64_t begin, int64_t end) {
    std::vector<float> values(part.cols());
    for (int64_t row = begin; row < end; ++row) {
      DequantizeRow(part, rows.begin + row, values.data());
      for (int64_t c = 0; c < cols.size(); ++c) {
        StoreFloat(values[cols.begin + c], dtype, out, row * cols.size() + c);
      }
    }
  });
  return DensePart(out, dtype, rows.size(), cols.size());
}

}  // namespace quire
