// Quantized matrices as Hugging Face checkpoints store them, to WeightPart.
//
// Layouts (x-bit codes b = 32 / bits to an int32, the first in the low bits):
//   GPTQ (AutoGPTQ, GPTQModel): qweight [cols / b, rows] packs columns; qzeros
//     [groups, rows / b] packs rows; scales [groups, rows]; g_idx [cols] gives
//     each column's group.
//   AWQ (AutoAWQ "gemm"): qweight [cols, rows / b] and qzeros [groups, rows /
//     b] pack rows, interleaved: the codes of a word are rows 0 2 4 6 1 3 5 7;
//     scales [groups, rows].
//   compressed-tensors "pack-quantized": weight_packed [rows, cols / b] packs
//     columns; weight_zero_point [rows / b, groups] packs rows; weight_scale
//     [rows, groups]; weight_g_idx [cols]. Codes and zero points are signed and
//     stored with 2^(bits - 1) added.
//   FP8: weight [rows, cols] of e4m3, weight_scale (compressed-tensors) or
//     weight_scale_inv (DeepSeek) beside it: both are what a code is multiplied
//     by.
//
// Tensors are untrusted: every function checks shapes and dtypes against the
// [rows, cols] of the model before it reads, and every error is
// INVALID_ARGUMENT, naming file and tensor.
#ifndef QUIRE_ENGINE_WEIGHTS_QUANTIZED_MATRIX_H_
#define QUIRE_ENGINE_WEIGHTS_QUANTIZED_MATRIX_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/parallel/sharding.h"
#include "engine/weights/safetensors.h"
#include "kernels/backend.h"
#include "kernels/quant_codec.h"

namespace quire {

// Owns what was converted; parts point into it.
using PartMemory = std::vector<std::unique_ptr<uint8_t[]>>;

// A view as `tensor` stores it, or a copy if it is not aligned to its elements.
TensorView AlignedView(const StoredTensor& tensor, DType dtype, int64_t rows,
                       int64_t cols, PartMemory& memory);

struct IntTensors {
  enum class Layout : uint8_t { kGptq, kAwq, kPacked };
  Layout layout = Layout::kGptq;
  const StoredTensor* codes = nullptr;
  const StoredTensor* scales = nullptr;
  const StoredTensor* zeros = nullptr;          // May be null.
  const StoredTensor* group_indices = nullptr;  // May be null.
  int group_size = 0;               // What the configuration says; 0: nothing.
  bool zeros_are_less_one = false;  // GPTQ's first format.
  // What is read of the tensors and filled in of the matrix, whose other
  // elements, scales and zero points are not initialized. Whole words and
  // groups are read, and all columns where they are not in order. Empty:
  // everything.
  IndexRange needed_rows, needed_cols;
};

// The matrix [rows, cols]. Four bits become kInt4. Eight bits, and groups of
// columns that are not all of one size, become dense of `dense_dtype`.
absl::StatusOr<WeightPart> ReadIntMatrix(const IntTensors& tensors,
                                         int64_t rows, int64_t cols,
                                         DType dense_dtype, RangeRunner run,
                                         PartMemory& memory);

struct Fp8Tensors {
  const StoredTensor* codes = nullptr;
  const StoredTensor* scales = nullptr;
  const StoredTensor* input_scale = nullptr;  // May be null.
  int block_size = 0;  // What the configuration says; 0: nothing.
  // The matrix is several fused into one, which may have a scale each; this is
  // about number `fused_idx` of them.
  int num_fused = 1;
  int fused_idx = 0;
};

// The matrix [rows, cols] as kFp8; codes stay where they are.
absl::StatusOr<WeightPart> ReadFp8Matrix(const Fp8Tensors& tensors,
                                         int64_t rows, int64_t cols,
                                         PartMemory& memory);

// Codes of int8 times a scale for the matrix or each row, as dense.
//   needed_rows, needed_cols: what is filled in of the matrix [rows, cols].
absl::StatusOr<WeightPart> ReadInt8Matrix(
    const StoredTensor& codes, const StoredTensor& scales, int64_t rows,
    int64_t cols, IndexRange needed_rows, IndexRange needed_cols,
    DType dense_dtype, RangeRunner run, PartMemory& memory);

// The part's rows and columns as a view; none if its scales, blocks or column
// order do not let it be cut there.
std::optional<WeightPart> SlicePart(const WeightPart& part, IndexRange rows,
                                    IndexRange cols);

// The same values as dense elements of `dtype`.
WeightPart DequantizePart(const WeightPart& part, IndexRange rows,
                          IndexRange cols, DType dtype, RangeRunner run,
                          PartMemory& memory);

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_QUANTIZED_MATRIX_H_
