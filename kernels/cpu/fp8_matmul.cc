#include "kernels/cpu/fp8_matmul.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "engine/base/status.h"
#include "kernels/cpu/fp8_kernels.h"
#include "kernels/cpu/matmul_kernels.h"

namespace quire {
namespace {

const Fp8Kernels& GetKernels(Isa isa) {
  return QUIRE_ISA_TABLE(isa, kFp8Kernels);
}

struct SourceRow {
  const WeightPart* part = nullptr;
  int64_t row = 0;
  const uint8_t* codes() const { return part->data.row<const uint8_t>(row); }
};

// Row `row` of all parts, one below the other.
SourceRow FindRow(const LinearSpec& spec, int64_t row) {
  const WeightPart* part = spec.parts.data();
  while (row >= part->rows()) row -= (part++)->rows();
  return {part, row};
}

float ScaleOf(const SourceRow& source, int64_t group) {
  const TensorView& scales = source.part->scales;
  const int group_size = source.part->group_size;
  const int64_t row = group_size > 0     ? source.row / group_size
                      : scales.rows == 1 ? 0
                                         : source.row;
  return scales.row<const float>(row)[group];
}

bool HasNan(const uint8_t* codes, int64_t count) {
  bool has_nan = false;
  for (int64_t i = 0; i < count; ++i) has_nan |= (codes[i] & 0x7f) == 0x7f;
  return has_nan;
}

// The longest blocks that groups are whole ones of.
int64_t BlockSteps(int64_t group_steps, int64_t num_groups) {
  if (num_groups == 1) return kFp8BlockSteps;
  int64_t steps = std::min<int64_t>(group_steps, kFp8BlockSteps);
  while (group_steps % steps != 0) --steps;
  return steps;
}

}  // namespace

bool CanPackFp8Matrix(const LinearSpec& spec) {
  const int group_size = spec.parts[0].group_size;
  for (const WeightPart& part : spec.parts) {
    if (part.format != QuantFormat::kFp8 || part.group_size != group_size) {
      return false;
    }
  }
  return group_size % 2 == 0;
}

void Fp8Matrix::FillPanel(const LinearSpec& spec, int64_t panel) {
  const int64_t width = 2 * lanes_;
  char* const codes = panels_.data() + panel * num_steps_ * width * 2;
  float* const scales = scales_.floats() + panel * num_groups_ * width;
  SourceRow sources[32];
  for (int64_t lane = 0; lane < width; ++lane) {
    const int64_t row = RowOfLane(rows_, is_gated_, lanes_, panel, lane);
    if (row >= 0) sources[lane] = FindRow(spec, row);
  }
  // 512 bytes of each row at a time: the prefetcher follows, and the 16 KiB of
  // the panel stay in L1.
  constexpr int64_t kRunCols = 512;
  for (int64_t col = 0; col < cols_; col += kRunCols) {
    const int64_t end = std::min(col + kRunCols, cols_);
    for (int64_t lane = 0; lane < width; ++lane) {
      if (sources[lane].part == nullptr) continue;
      const uint8_t* const from = sources[lane].codes();
      char* to = codes + (col / 2 * width + lane) * 2;
      for (int64_t i = col; i + 1 < end; i += 2) {
        std::memcpy(to, from + i, 2);
        to += width * 2;
      }
      if (end % 2 != 0) std::memcpy(to, from + end - 1, 1);
    }
  }
  for (int64_t group = 0; group < num_groups_; ++group) {
    const int64_t begin = group * group_steps_ * 2;
    const int64_t end = std::min(begin + group_steps_ * 2, cols_);
    for (int64_t lane = 0; lane < width; ++lane) {
      const SourceRow& source = sources[lane];
      if (source.part == nullptr) continue;
      scales[group * width + lane] =
          HasNan(source.codes() + begin, end - begin)
              ? std::numeric_limits<float>::quiet_NaN()
              : ScaleOf(source, group);
    }
  }
}

std::unique_ptr<Fp8Matrix> PackFp8Matrix(const LinearSpec& spec, Isa isa,
                                         ThreadPool& pool) {
  QUIRE_CHECK(CanPackFp8Matrix(spec));
  auto packed = std::make_unique<Fp8Matrix>();
  Fp8Matrix& m = *packed;
  m.is_gated_ = spec.kind == LinearKind::kGateUp;
  m.lanes_ = GetKernels(isa).lanes;
  m.cols_ = spec.parts[0].cols();
  for (const WeightPart& part : spec.parts) m.rows_ += part.rows();
  const int64_t width = 2 * m.lanes_;
  m.num_panels_ = NumPanels(m.rows_, m.is_gated_, m.lanes_);
  m.num_steps_ = (m.cols_ + 1) / 2;
  m.group_steps_ = m.num_steps_;
  if (const int64_t size = spec.parts[0].group_size; size > 0 && m.cols_ > 0) {
    m.num_groups_ = (m.cols_ + size - 1) / size;
    m.group_steps_ = size / 2;
  }
  m.panels_ = AlignedBuffer(
      std::max<int64_t>(64, m.num_panels_ * m.num_steps_ * width * 2));
  m.scales_ = AlignedBuffer(m.num_panels_ * m.num_groups_ * width * 4);
  pool.ParallelForByNode(m.num_panels_, 1,
                         [&](int64_t begin, int64_t end, int) {
                           for (int64_t panel = begin; panel < end; ++panel) {
                             m.FillPanel(spec, panel);
                           }
                         });
  if (spec.bias.empty()) return packed;
  m.bias_ = AlignedBuffer(m.num_panels_ * width * 4);
  const float* const bias = static_cast<const float*>(spec.bias.data);
  const int64_t stride = spec.bias.rows == 1 ? 1 : spec.bias.row_stride;
  for (int64_t i = 0; i < m.num_panels_ * width; ++i) {
    const int64_t row =
        RowOfLane(m.rows_, m.is_gated_, m.lanes_, i / width, i % width);
    if (row >= 0) m.bias_.floats()[i] = bias[row * stride];
  }
  return packed;
}

void UnpackFp8Row(const Fp8Matrix& weight, int64_t row, float* out) {
  QUIRE_DCHECK(row >= 0 && row < weight.rows_);
  const int64_t lanes = weight.lanes_;
  const int64_t width = 2 * lanes;
  int64_t panel = row / width;
  int64_t lane = row % width;
  if (weight.is_gated_) {
    const int64_t half = weight.rows_ / 2;
    panel = row % half / lanes;
    lane = row % half % lanes + (row < half ? 0 : lanes);
  }
  const char* const codes =
      weight.panels_.data() + panel * weight.num_steps_ * width * 2;
  const float* const scales =
      weight.scales_.floats() + panel * weight.num_groups_ * width;
  for (int64_t col = 0; col < weight.cols_; ++col) {
    const int64_t step = col / 2;
    const uint8_t code =
        static_cast<uint8_t>(codes[(step * width + lane) * 2 + col % 2]);
    out[col] =
        E4M3ToFloat(code) * scales[step / weight.group_steps_ * width + lane];
  }
}

void Fp8Matmul(ThreadPool& pool, Isa isa, const Fp8Matrix& weight,
               const MatmulParams& params, MatmulScratch& scratch) {
  if (params.num_rows <= 0 || weight.rows_ == 0) return;
  const Fp8Kernels& kernels = GetKernels(isa);
  const MatmulKernels& dense = QUIRE_ISA_TABLE(isa, kMatmulKernels);
  constexpr int kBf16 = static_cast<int>(PanelFormat::kBf16Pairs);
  QUIRE_CHECK(kernels.lanes == weight.lanes_ &&
              kernels.max_tile_rows <= dense.max_tile_rows[kBf16] &&
              kernels.packed_x_step_bytes == dense.packed_x_step_bytes[kBf16]);
  Fp8Job job = {};
  job.bias = weight.bias_.floats();
  job.is_gated = weight.is_gated_;
  job.num_outputs = job.is_gated ? weight.rows_ / 2 : weight.rows_;
  job.activation = ToKernelActivation(params.activation);
  QUIRE_CHECK(job.is_gated || !IsGated(params.activation));
  job.out = params.out;
  job.out_stride = params.out_stride;
  job.residual = params.residual;
  job.residual_stride = params.residual_stride;
  job.out_scale = params.out_scale;
  job.panels = weight.panels_.data();
  job.panel_bytes = weight.num_steps_ * 4 * weight.lanes_;
  job.num_steps = weight.num_steps_;
  job.scales = weight.scales_.floats();
  job.num_groups = weight.num_groups_;
  job.group_steps = weight.group_steps_;
  job.block_steps = BlockSteps(weight.group_steps_, weight.num_groups_);
  job.num_rows = params.num_rows;
  job.num_tiles =
      (params.num_rows + kernels.max_tile_rows - 1) / kernels.max_tile_rows;
  char* const packed_x = scratch.PackedX(params.num_rows * job.num_steps *
                                         kernels.packed_x_step_bytes);
  job.packed_x = packed_x;

  MatmulJob pack = {};
  pack.format = PanelFormat::kBf16Pairs;
  pack.num_steps = job.num_steps;
  pack.x = params.x;
  pack.x_stride = params.x_stride;
  pack.cols = weight.cols_;
  pack.packed_x = packed_x;
  pack.block_steps = job.block_steps;
  pack.num_rows = job.num_rows;
  pack.num_tiles = job.num_tiles;
  pool.ParallelFor(job.num_steps == 0 ? 0 : job.num_tiles, 1,
                   [&](int64_t begin, int64_t end, int) {
                     for (int64_t tile = begin; tile < end; ++tile) {
                       dense.pack_x(pack, tile);
                     }
                   });
  const WorkSplit split =
      SplitWork(weight.num_panels_, job.num_tiles, pool.num_threads());
  RunSplit(pool, split, weight.num_panels_, job.num_tiles,
           [&](int64_t panel_begin, int64_t panel_end, int64_t tile_begin,
               int64_t tile_end) {
             kernels.compute(job, panel_begin, panel_end, tile_begin, tile_end);
           });
}

}  // namespace quire
