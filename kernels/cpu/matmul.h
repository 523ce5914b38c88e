// Products with weights that were packed at load: x W^T with an epilogue.
//
// Goto & van de Geijn 2008, "Anatomy of high-performance matrix
// multiplication", ACM TOMS 34(3): packed panels and register tiles. Here a
// vector holds neighbouring output channels and k runs sequentially, so that no
// sum crosses lanes.
//
// Determinism: on one instruction set the bits of an output element depend only
// on its row of x and its weights: one chain of fused multiply-adds over k
// ascending, the same in every register tile, for any number of rows, chunking
// and threads.
#ifndef QUIRE_KERNELS_CPU_MATMUL_H_
#define QUIRE_KERNELS_CPU_MATMUL_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"
#include "kernels/backend.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/isa.h"

namespace quire {

// Opaque; immutable after PackMatrix, so any number of threads may read it.
class PackedMatrix : public PackedWeight {
 public:
  DType dtype() const { return dtype_; }
  Isa isa() const { return isa_; }

 private:
  friend absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(
      const LinearSpec& spec, Isa isa, ThreadPool& pool);
  friend void Matmul(ThreadPool& pool, Isa isa, const PackedMatrix& weight,
                     const struct MatmulParams& params,
                     class MatmulScratch& scratch);
  friend void UnpackRow(const PackedMatrix& weight, int64_t row, float* out);

  // Bytes from the start of the panels to element (row, col).
  int64_t ElementOffset(int64_t row, int64_t col) const;
  // The row in a lane of a panel; -1 for padding.
  int64_t RowOfLane(int64_t panel, int64_t lane) const;
  // Copies the rows of one panel.
  void FillPanel(const LinearSpec& spec, int64_t panel);

  DType dtype_ = DType::kF32;
  Isa isa_ = Isa::kScalar;
  int lanes_ = 0;
  int64_t num_panels_ = 0;
  int64_t num_steps_ = 0;
  int64_t panel_bytes_ = 0;
  AlignedBuffer panels_;
  AlignedBuffer bias_;  // f32 [num_panels][2 * lanes]; empty for none.
};

// Copies the parts (and the bias) into the layout of `isa`, in parallel; they
// are not needed afterwards. Parts may have any row stride and alignment.
// INVALID_ARGUMENT if the parts disagree in cols or dtype, a shape does not
// suit the kind, or the bias is not f32 of `rows` elements; UNIMPLEMENTED for a
// dtype or format that is not dense f32, f16 or bf16.
absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(const LinearSpec& spec,
                                                         Isa isa,
                                                         ThreadPool& pool);

// out = activation(x W^T + bias) * out_scale + residual.
struct MatmulParams {
  const float* x = nullptr;  // [num_rows, weight.cols], f32
  int64_t x_stride = 0;
  int64_t num_rows = 0;
  // [num_rows, weight.rows], f32; half as many columns for kSwiGlu and kGeGlu.
  // Must not overlap x.
  float* out = nullptr;
  int64_t out_stride = 0;
  // kSwiGlu and kGeGlu require kGateUp weights. kGelu is the tanh form.
  Epilogue::Activation activation = Epilogue::Activation::kNone;
  const float* residual = nullptr;  // Shaped as out, may be out; null: none.
  int64_t residual_stride = 0;
  float out_scale = 1.0f;
};

// The rows of x in the layout (and precision) that the kernels read. Not
// thread-safe: one Matmul at a time. Grows if a call needs more than announced.
class MatmulScratch {
 public:
  explicit MatmulScratch(int64_t max_rows, int64_t max_cols);

 private:
  friend void Matmul(ThreadPool& pool, Isa isa, const PackedMatrix& weight,
                     const MatmulParams& params, MatmulScratch& scratch);
  AlignedBuffer packed_x_;
};

// Requires: `isa` is the one `weight` was packed for. With bf16 weights x is
// rounded to bf16 (to nearest, ties to even) first; with avx512_bf16 subnormal
// inputs count as zero, as VDPBF16PS defines. num_rows == 0 is a no-op.
void Matmul(ThreadPool& pool, Isa isa, const PackedMatrix& weight,
            const MatmulParams& params, MatmulScratch& scratch);

// out[0, cols) = row `row` of the weights, exactly. Requires: row in [0, rows).
void UnpackRow(const PackedMatrix& weight, int64_t row, float* out);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_MATMUL_H_
