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
// and threads. With LinearSpec::num_column_segments, one chain for each
// segment.
#ifndef QUIRE_KERNELS_CPU_MATMUL_H_
#define QUIRE_KERNELS_CPU_MATMUL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"
#include "kernels/backend.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/fp8_matmul.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul_params.h"
#include "kernels/cpu/quant_matmul.h"

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
                     const MatmulParams& params, MatmulScratch& scratch);
  friend void UnpackRow(const PackedMatrix& weight, int64_t row, float* out);

  // Bytes from the start of the panels to element (row, col).
  int64_t ElementOffset(int64_t row, int64_t col) const;
  int64_t RowOfLane(int64_t panel, int64_t lane) const;
  absl::Status PackPieces(const LinearSpec& spec, ThreadPool& pool);
  // Copies the rows of one panel.
  void FillPanel(const LinearSpec& spec, int64_t panel);

  DType dtype_ = DType::kF32;
  Isa isa_ = Isa::kScalar;
  int lanes_ = 0;
  int64_t num_panels_ = 0;
  int64_t num_steps_ = 0;
  int num_segments_ = 1;  // Of f32 weights.
  int64_t panel_bytes_ = 0;
  AlignedBuffer panels_;
  AlignedBuffer bias_;  // f32 [num_panels][2 * lanes]; empty for none.

  // Instead of panels_: quantized weights, or matrices one below the other.
  std::unique_ptr<QuantMatrix> quant_;
  std::unique_ptr<Fp8Matrix> fp8_;
  std::vector<std::unique_ptr<PackedMatrix>> pieces_;
};

// Whether PackMatrix takes a part of this format (and dtype, if dense).
bool IsPackable(DType dtype, QuantFormat format);

// Copies the parts (and the bias) into the layout of `isa`, in parallel; they
// are not needed afterwards. Parts may have any row stride and alignment, and
// differ in format. Block formats and kInt4 keep their bits and are multiplied
// in integers (kernels/cpu/quant_matmul.h), kFp8 in bf16
// (kernels/cpu/fp8_matmul.h). What has no such layout becomes bf16: kInt4 with
// groups that are not multiples of 32 columns or do not divide them, kFp8 with
// an odd group_size, gate and up that differ in layout.
// INVALID_ARGUMENT if the parts disagree in cols, a shape does not suit the
// kind or the format, num_column_segments does not suit the columns, or the
// bias is not f32 of `rows` elements; UNIMPLEMENTED for what is not IsPackable.
absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(const LinearSpec& spec,
                                                         Isa isa,
                                                         ThreadPool& pool);

// Requires: `isa` is the one `weight` was packed for. With bf16 weights x is
// rounded to bf16 (to nearest, ties to even) first; with avx512_bf16 subnormal
// inputs count as zero, as VDPBF16PS defines. With kFp8 too; with other
// quantized weights x is rounded to 8 bits. num_rows == 0 is a no-op.
void Matmul(ThreadPool& pool, Isa isa, const PackedMatrix& weight,
            const MatmulParams& params, MatmulScratch& scratch);

// out[0, cols) = row `row` of the weights, exactly (quantized ones by the
// published formula). Requires: row in [0, rows).
void UnpackRow(const PackedMatrix& weight, int64_t row, float* out);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_MATMUL_H_
