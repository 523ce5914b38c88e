// Matrix products of f32 activations with packed weights.
#ifndef QUIRE_KERNELS_CPU_MATMUL_H_
#define QUIRE_KERNELS_CPU_MATMUL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

namespace quire {

class PackedMatrix : public PackedWeight {
 public:
  DType dtype = DType::kF32;
  std::vector<float> values;  // [rows, cols]
  std::vector<float> bias;    // [rows] or empty.
};

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(const LinearSpec& spec,
                                                         Isa isa,
                                                         ThreadPool& pool);

struct MatmulParams {
  const float* x = nullptr;  // [num_rows, weight.cols]
  int64_t x_stride = 0;
  int64_t num_rows = 0;
  float* out = nullptr;  // [num_rows, out cols]
  int64_t out_stride = 0;
  Epilogue::Activation activation = Epilogue::Activation::kNone;
  const float* residual = nullptr;  // May alias out; null: none.
  int64_t residual_stride = 0;
  // Applied to x W^T + bias before the activation (the scale of Logits).
  float out_scale = 1.0f;
};

class MatmulScratch {
 public:
  MatmulScratch(int64_t max_rows, int64_t max_cols) : x_(max_cols) {}
  std::vector<float> x_;
};

void Matmul(ThreadPool& pool, Isa isa, const PackedMatrix& weight,
            const MatmulParams& params, MatmulScratch& scratch);

// Exact values of one row.
void UnpackRow(const PackedMatrix& weight, int64_t row, float* out);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_MATMUL_H_
