// Encoded weights to f32 and back.
//
// Decoding follows the definitions of the formats (ggml's ggml-common.h and
// ggml-quants.c for the block formats, OCP Microscaling Formats v1.0 for MXFP4)
// bit by bit in f32, without contraction to fused multiply-adds. Encoding:
// q8_0, q4_0, q4_1, q5_0 and q5_1 round as their reference does, so that the
// bytes are the same; the other formats search for scales of small squared
// error, every weight counting the same.
//
// All functions are thread-safe: they keep no state.
#ifndef QUIRE_KERNELS_QUANT_CODEC_H_
#define QUIRE_KERNELS_QUANT_CODEC_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/quant_format.h"
#include "kernels/tensor_view.h"

namespace quire {

// Bytes of `cols` columns. Requires: not kDense; cols is a multiple of the
// format's block.
constexpr int64_t QuantRowBytes(QuantFormat format, int64_t cols) {
  const QuantBlock block = QuantBlockOf(format);
  return cols / block.cols * block.bytes;
}

// One row of a block format.
//   blocks: QuantRowBytes(format, cols), at any alignment. Every bit pattern is
//   valid; scales that are not finite give values that are not.
//   out: [cols]
// Requires: IsBlockFormat(format); cols is a multiple of its block.
void DequantizeBlocks(QuantFormat format, const uint8_t* blocks, int64_t cols,
                      float* out);

// One row of a part of any format, in the order of the model's columns
// (column_order undone). out: [part.cols()]
// Requires: part is as WeightPart describes it, column_order a permutation.
void DequantizeRow(const WeightPart& part, int64_t row, float* out);

// The reverse of DequantizeBlocks. The bytes of values that are not finite, or
// whose scale f16 cannot hold, are unspecified.
//   values: [cols]; out: QuantRowBytes(format, cols), at any alignment.
// Requires: as DequantizeBlocks.
void QuantizeBlocks(QuantFormat format, const float* values, int64_t cols,
                    uint8_t* out);

struct QuantizationScheme {
  QuantFormat format = QuantFormat::kQ8_0;
  // kFp8: what shares a scale. kBlock: squares of group_size (128).
  enum class Fp8Scales : uint8_t { kTensor, kRow, kBlock };
  Fp8Scales fp8_scales = Fp8Scales::kRow;
  // kInt4: columns that share a scale, an even number; the last group of a row
  // may be shorter.
  int group_size = 128;
  // kInt4: the zero point is 8 everywhere.
  bool is_symmetric = false;
};

// Memory of an encoded matrix, and the part that describes it.
struct QuantizedMatrix {
  WeightPart part;  // Views of the buffers below.
  std::unique_ptr<uint8_t[]> data;
  std::unique_ptr<uint8_t[]> scales;
  std::unique_ptr<uint8_t[]> zeros;
  int64_t num_bytes = 0;  // Of the buffers.
};

// Calls body(begin, end) over ranges that cover [0, num_items), perhaps on
// several threads at once.
using RangeRunner = absl::FunctionRef<void(
    int64_t num_items,
    absl::FunctionRef<void(int64_t begin, int64_t end)> body)>;

//   dense: [rows, cols], f32, f16 or bf16.
// INVALID_ARGUMENT if the columns do not fit the format's block, a value is not
// finite or too large for the format's scales, or group_size is not usable.
absl::StatusOr<QuantizedMatrix> QuantizeMatrix(
    const TensorView& dense, const QuantizationScheme& scheme);

// The same on the threads of `run`: the same bytes.
absl::StatusOr<QuantizedMatrix> QuantizeMatrix(const TensorView& dense,
                                               const QuantizationScheme& scheme,
                                               RangeRunner run);

}  // namespace quire

#endif  // QUIRE_KERNELS_QUANT_CODEC_H_
