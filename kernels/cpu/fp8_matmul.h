// Products with weights of e4m3 and scales beside them (QuantFormat::kFp8).
//
// Rounding: x to bf16; codes are exact in bf16, their products with x are
// summed in f32 within each group of columns that shares a scale, in order of
// k, and sum * scale is added up in f32 in order of the groups. So on one
// instruction set the bits of an output depend only on its row of x and its
// weights. A code that is NaN makes its group of the row NaN.
#ifndef QUIRE_KERNELS_CPU_FP8_MATMUL_H_
#define QUIRE_KERNELS_CPU_FP8_MATMUL_H_

#include <cstdint>
#include <memory>

#include "engine/base/thread_pool.h"
#include "kernels/backend.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul_params.h"

namespace quire {

// Immutable after PackFp8Matrix, so any number of threads may read it.
class Fp8Matrix {
 public:
  int64_t num_bytes() const {
    return panels_.num_bytes() + scales_.num_bytes() + bias_.num_bytes();
  }

 private:
  friend std::unique_ptr<Fp8Matrix> PackFp8Matrix(const LinearSpec& spec,
                                                  Isa isa, ThreadPool& pool);
  friend void Fp8Matmul(ThreadPool& pool, Isa isa, const Fp8Matrix& weight,
                        const MatmulParams& params, MatmulScratch& scratch);
  friend void UnpackFp8Row(const Fp8Matrix& weight, int64_t row, float* out);

  // Codes and scales of one panel.
  void FillPanel(const LinearSpec& spec, int64_t panel);

  bool is_gated_ = false;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  int lanes_ = 0;
  int64_t num_panels_ = 0;
  int64_t num_steps_ = 0;
  int64_t num_groups_ = 1;
  int64_t group_steps_ = 0;
  AlignedBuffer panels_;
  AlignedBuffer scales_;  // f32 [num_panels][num_groups][2 * lanes]
  AlignedBuffer bias_;    // f32 [num_panels][2 * lanes]; empty for none.
};

// Whether all parts are kFp8 that can go into one Fp8Matrix: in equal groups of
// an even number of columns.
bool CanPackFp8Matrix(const LinearSpec& spec);

// Repacks the parts, in parallel; they are not needed afterwards. Requires:
// CanPackFp8Matrix, and a valid spec (matmul.cc checks it).
std::unique_ptr<Fp8Matrix> PackFp8Matrix(const LinearSpec& spec, Isa isa,
                                         ThreadPool& pool);

// out[0, cols) = row `row`, by the formula of DequantizeRow.
void UnpackFp8Row(const Fp8Matrix& weight, int64_t row, float* out);

// As Matmul (kernels/cpu/matmul.h). Requires: `isa` is the one that `weight`
// was packed for.
void Fp8Matmul(ThreadPool& pool, Isa isa, const Fp8Matrix& weight,
               const MatmulParams& params, MatmulScratch& scratch);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_FP8_MATMUL_H_
