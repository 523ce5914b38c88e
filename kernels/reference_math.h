// Rows of numbers as the reference backend computes them: in double, with the
// rounding points of kernels/backend.h. For kernels/reference.cc alone.
#ifndef QUIRE_KERNELS_REFERENCE_MATH_H_
#define QUIRE_KERNELS_REFERENCE_MATH_H_

#include <cstdint>
#include <vector>

#include "kernels/backend.h"

namespace quire::reference {

// Requires: a view in host memory of f32, f16 or bf16.
double Load(const TensorView& view, int64_t row, int64_t col);
void Store(const TensorView& view, int64_t row, int64_t col, double value);

// To the nearest value of a floating dtype, as f32.
float Round(DType dtype, double value);

// K or V of one token and head as the cache holds it.
void StoreKvHead(DType dtype, const std::vector<double>& values, float* out);

double Softcap(double x, double cap);

// y = x + residual of one row; writes residual_out; returns norm(y).
std::vector<double> PrologueRow(const TensorView& x, const Prologue& prologue,
                                int64_t row);

// x' as the CPU backend rounds it for quantized weights
// (kernels/cpu/quant_matmul.h), in f32 operation by operation.
std::vector<double> RoundToInt8(const std::vector<double>& x,
                                const std::vector<int32_t>& column_order);

// x' as a GPU rounds it for kFp8 weights in steps of many tokens: to e4m3, in
// f32 operation by operation.
//   group_size: columns that share a scale; 0: all.
//   input_scale: in place of max|x'| / 448; 0: none.
std::vector<double> RoundToE4M3(const std::vector<double>& x, int group_size,
                                float input_scale);

// A gated activation halves the row.
std::vector<double> Activate(Epilogue::Activation activation,
                             std::vector<double> x);

// QK-norm of the heads of one token.
//   heads: [num_heads * head_dim]
std::vector<double> NormHeads(const NormSpec& norm, int head_dim,
                              std::vector<double> heads);

// An RMS norm of heads whose mean square is known.
std::vector<double> NormBySquare(const NormSpec& norm, float mean_square,
                                 std::vector<double> heads);

// The whole rows of which every rank has a slice: [slice.rows, vocab_size].
absl::Status GatherLogits(Communicator& ranks, const TensorView& slice,
                          int vocab_size, std::vector<float>* whole);

}  // namespace quire::reference

#endif  // QUIRE_KERNELS_REFERENCE_MATH_H_
