// Any tensors as a quantized matrix of a checkpoint: what is accepted can be
// cut and decoded.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/weights/quantized_matrix.h"
#include "kernels/quant_codec.h"

namespace quire {
namespace {

// Hands out the input's bytes; zeros when they are spent.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint8_t Byte() { return at_ < size_ ? data_[at_++] : 0; }
  void Fill(std::vector<uint8_t>* bytes) {
    const size_t count = std::min(bytes->size(), size_ - at_);
    std::copy_n(data_ + at_, count, bytes->begin());
    at_ += count;
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

struct Tensor {
  std::vector<uint8_t> bytes;  // Of the exact size, for the sanitizer.
  StoredTensor stored;
};

Tensor MakeTensor(Input& input, const std::string* path) {
  constexpr StoredDType kDTypes[] = {StoredDType::kI32,    StoredDType::kF16,
                                     StoredDType::kF32,    StoredDType::kI8,
                                     StoredDType::kF8E4M3, StoredDType::kF8E8M0,
                                     StoredDType::kBF16};
  Tensor tensor;
  StoredTensor& stored = tensor.stored;
  stored.name = std::string(1, 't');
  stored.path = path;
  stored.dtype = kDTypes[input.Byte() % 7];
  stored.num_elements = 1;
  for (int i = input.Byte() % 4; i > 0; --i) {
    // A third dimension is one too many for everybody, so it may be small;
    // megabytes of zeros would take most of the time.
    stored.shape.push_back(input.Byte() % (stored.shape.size() < 2 ? 80 : 4));
    stored.num_elements *= stored.shape.back();
  }
  tensor.bytes.resize(stored.num_elements * StoredDTypeSize(stored.dtype));
  input.Fill(&tensor.bytes);
  stored.data = tensor.bytes;
  return tensor;
}

void Decode(const absl::StatusOr<WeightPart>& part, int64_t rows, int64_t cols,
            Input& input, RangeRunner run, PartMemory& memory) {
  if (!part.ok()) return;
  if (part->rows() != rows || part->cols() != cols) std::abort();
  std::vector<float> values(cols);
  for (int64_t r = 0; r < rows; ++r) DequantizeRow(*part, r, values.data());
  const int64_t first_row = input.Byte() % rows;
  const int64_t first_col = input.Byte() % cols;
  const IndexRange own_rows = {
      first_row, first_row + 1 + input.Byte() % (rows - first_row)};
  const IndexRange own_cols = {
      first_col, first_col + 1 + input.Byte() % (cols - first_col)};
  const auto slice = SlicePart(*part, own_rows, own_cols);
  if (slice) {
    if (slice->rows() != own_rows.size() || slice->cols() != own_cols.size()) {
      std::abort();
    }
    values.resize(own_cols.size());
    for (int64_t r = 0; r < slice->rows(); ++r) {
      DequantizeRow(*slice, r, values.data());
    }
  }
  DequantizePart(*part, own_rows, own_cols, DType::kBF16, run, memory);
}

}  // namespace
}  // namespace quire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quire;
  static const std::string* const path = new std::string("fuzz");
  const auto run = [](int64_t count,
                      absl::FunctionRef<void(int64_t, int64_t)> body) {
    if (count > 0) body(0, count);
  };
  Input input(data, size);
  const int kind = input.Byte() % 5;
  const int64_t rows = 1 + input.Byte() % 72;
  const int64_t cols = 1 + input.Byte() % 72;
  const int said = input.Byte() % 72;
  const int present = input.Byte();
  const Tensor codes = MakeTensor(input, path);
  const Tensor scales = MakeTensor(input, path);
  const Tensor third = MakeTensor(input, path);
  const Tensor fourth = MakeTensor(input, path);
  PartMemory memory;
  if (kind < 3) {
    IntTensors tensors;
    tensors.layout = static_cast<IntTensors::Layout>(kind);
    tensors.codes = &codes.stored;
    tensors.scales = &scales.stored;
    if (present & 1) tensors.zeros = &third.stored;
    if (present & 2) tensors.group_indices = &fourth.stored;
    tensors.group_size = said;
    tensors.zeros_are_less_one = present & 4;
    Decode(ReadIntMatrix(tensors, rows, cols, DType::kF32, run, memory), rows,
           cols, input, run, memory);
  } else if (kind == 3) {
    Fp8Tensors tensors;
    tensors.codes = &codes.stored;
    tensors.scales = &scales.stored;
    if (present & 1) tensors.input_scale = &third.stored;
    tensors.block_size = said;
    tensors.num_fused = 1 + present / 2 % 4;
    tensors.fused_idx = tensors.num_fused - 1;
    Decode(ReadFp8Matrix(tensors, rows, cols, memory), rows, cols, input, run,
           memory);
  } else {
    Decode(ReadInt8Matrix(codes.stored, scales.stored, rows, cols, {0, rows},
                          {0, cols}, DType::kF16, run, memory),
           rows, cols, input, run, memory);
  }
  return 0;
}
