// Products with block-quantized and int4 weights: x W^T in integers.
//
// Rounding: each row of x is rounded to 8 bits for every 32 columns (of the
// weights' order): scale max|x| / 127, code x * (127 / max|x|) to the nearest,
// ties to even, all in f32; columns whose max|x| is below 2^-100 count as zero,
// and a NaN or an infinity makes the whole row NaN. Products of codes are
// summed exactly; scales are applied in f32. So on one instruction set, with
// VNNI or without, the bits of an output depend only on its row of x and its
// weights.
#ifndef QUIRE_KERNELS_CPU_QUANT_MATMUL_H_
#define QUIRE_KERNELS_CPU_QUANT_MATMUL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"
#include "kernels/backend.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul_params.h"
#include "kernels/cpu/quant_layout.h"

namespace quire {

struct QuantJob;
struct QuantKernels;

// Immutable after PackQuantMatrix, so any number of threads may read it.
class QuantMatrix {
 public:
  int64_t num_bytes() const;

 private:
  friend std::unique_ptr<QuantMatrix> PackQuantMatrix(const LinearSpec& spec,
                                                      Isa isa,
                                                      ThreadPool& pool);
  friend void QuantMatmul(ThreadPool& pool, const QuantKernels& kernels,
                          const QuantMatrix& weight, const MatmulParams& params,
                          MatmulScratch& scratch);
  friend void UnpackQuantRow(const QuantMatrix& weight, int64_t row,
                             float* out);

  // The rows of one part, or of both of a gated layer, in panels of their own.
  struct Segment {
    PanelCode code = PanelCode::kQ8_0;
    int64_t first_row = 0;
    int64_t num_rows = 0;
    int64_t num_panels = 0;
    int64_t panel_bytes = 0;
    int64_t blocks_per_super = 1;
    int64_t super_bytes = 0;
    AlignedBuffer panels;
    AlignedBuffer bias;  // f32 [num_panels][2 * lanes]; empty for none.
  };
  // Panels [panel_begin, panel_end) of a segment, `num_chunks` chunks.
  struct ChunkPlace {
    const Segment* segment;
    int64_t panel_begin;
    int64_t panel_end;
    int64_t num_chunks;
  };
  int64_t NumChunks(const WorkSplit& split) const;
  // Chunk `chunk` and up to num_chunks - 1 more, as far as its segment goes.
  ChunkPlace FindChunks(const WorkSplit& split, int64_t chunk,
                        int64_t num_chunks) const;
  // What is the same for all segments.
  QuantJob MakeJob(const QuantKernels& kernels, const MatmulParams& params,
                   MatmulScratch& scratch) const;
  // Fills panel `panel` of a segment from its one or two parts.
  void FillPanel(const WeightPart* parts, int64_t panel,
                 Segment& segment) const;
  void FillChannel(const WeightPart& part, int64_t row, int64_t super_begin,
                   int64_t super_end, int64_t lane, char* run,
                   const Segment& segment) const;

  bool is_gated_ = false;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  int lanes_ = 0;
  std::vector<int32_t> column_order_;  // [cols] or empty.
  std::vector<Segment> segments_;
};

// Whether all parts can go into one QuantMatrix.
bool CanPackQuantMatrix(const LinearSpec& spec);

// Repacks the parts, in parallel; they are not needed afterwards. Requires:
// CanPackQuantMatrix, and a valid spec (matmul.cc checks it).
std::unique_ptr<QuantMatrix> PackQuantMatrix(const LinearSpec& spec, Isa isa,
                                             ThreadPool& pool);

// What the kernels need in MatmulScratch for all threads.
int64_t QuantScratchBytes(Isa isa, int num_threads);

// out[0, cols) = row `row`, by the published formula of its format.
void UnpackQuantRow(const QuantMatrix& weight, int64_t row, float* out);

// The kernels for `isa`, with VNNI where this CPU has it; or as `with_vnni`
// says (for tests, which must ask HasVnni first). Results are the same bits.
const QuantKernels& GetQuantKernels(Isa isa);
const QuantKernels& GetQuantKernels(Isa isa, bool with_vnni);
bool HasVnni(Isa isa);

// As Matmul (kernels/cpu/matmul.h). Requires: the kernels' lanes are those of
// the instruction set that `weight` was packed for.
void QuantMatmul(ThreadPool& pool, const QuantKernels& kernels,
                 const QuantMatrix& weight, const MatmulParams& params,
                 MatmulScratch& scratch);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_QUANT_MATMUL_H_
