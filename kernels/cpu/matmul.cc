#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cpu/matmul_kernels.h"

namespace quire {
namespace {

const MatmulKernels& GetKernels(Isa isa) {
  return QUIRE_ISA_TABLE(isa, kMatmulKernels);
}

PanelFormat FormatOf(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return PanelFormat::kF16;
    case DType::kBF16:
      return PanelFormat::kBf16Pairs;
    default:
      return PanelFormat::kF32;
  }
}

MatmulActivation ToKernelActivation(Epilogue::Activation activation) {
  switch (activation) {
    case Epilogue::Activation::kNone:
      break;
    case Epilogue::Activation::kSwiGlu:
      return MatmulActivation::kSwiGlu;
    case Epilogue::Activation::kGeGlu:
      return MatmulActivation::kGeGlu;
    case Epilogue::Activation::kGelu:
      return MatmulActivation::kGelu;
    case Epilogue::Activation::kRelu:
      return MatmulActivation::kRelu;
  }
  return MatmulActivation::kNone;
}

absl::Status CheckSpec(const LinearSpec& spec) {
  if (spec.parts.empty()) {
    return absl::InvalidArgumentError("a linear layer has no parts");
  }
  const TensorView& first = spec.parts[0].data;
  int64_t rows = 0;
  for (size_t i = 0; i < spec.parts.size(); ++i) {
    const TensorView& data = spec.parts[i].data;
    if (spec.parts[i].format != QuantFormat::kDense ||
        data.dtype == DType::kI32) {
      return absl::UnimplementedError(absl::StrCat(
          "weights of dtype ", DTypeName(data.dtype), " or quantized"));
    }
    if (data.cols != first.cols || data.dtype != first.dtype) {
      return absl::InvalidArgumentError(
          absl::StrCat("part ", i, " of a linear layer has ", data.cols,
                       " columns of ", DTypeName(data.dtype), ", part 0 has ",
                       first.cols, " of ", DTypeName(first.dtype)));
    }
    if (data.rows < 0 || data.cols < 0 ||
        (data.data == nullptr && data.rows * data.cols != 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("part ", i, " of a linear layer has no data"));
    }
    rows += data.rows;
  }
  if (spec.kind == LinearKind::kGateUp &&
      (spec.parts.size() != 2 || spec.parts[1].data.rows != first.rows)) {
    return absl::InvalidArgumentError(
        "a gated layer needs two parts of equal shape, gate and up");
  }
  if (!spec.bias.empty() && (spec.bias.dtype != DType::kF32 ||
                             spec.bias.rows * spec.bias.cols != rows)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "bias has ", spec.bias.rows * spec.bias.cols, " elements of ",
        DTypeName(spec.bias.dtype), ", expected ", rows, " of f32"));
  }
  return absl::OkStatus();
}

// Copies one row into its lane of a panel: `num_steps` units of kUnit bytes,
// `step_bytes` apart. Blocks of one cache line per row keep both sides in L1.
template <int kUnit>
void ScatterUnits(const char* src, char* dst, int64_t num_units,
                  int64_t step_bytes) {
  for (int64_t i = 0; i < num_units; ++i) {
    std::memcpy(dst + i * step_bytes, src + i * kUnit, kUnit);
  }
}

// Row `row` of all parts, one below the other.
const char* SourceRow(const LinearSpec& spec, int64_t row) {
  size_t part = 0;
  while (row >= spec.parts[part].data.rows) {
    row -= spec.parts[part].data.rows;
    ++part;
  }
  const TensorView& data = spec.parts[part].data;
  return static_cast<const char*>(data.data) +
         row * data.row_stride * DTypeSize(data.dtype);
}

// A block of one panel that several row tiles use in turn, sized so that it and
// the next one, which is prefetched meanwhile, fit into L1 (48 KiB on Zen 5).
constexpr int64_t kBlockBytes = 16 << 10;
// With many row tiles the block comes from L2, cheaply beside the arithmetic;
// longer blocks spill the accumulators less often.
constexpr int64_t kLargeBlockBytes = 32 << 10;

// Work items: panels_per_chunk panels by a part of the row tiles.
struct WorkSplit {
  int64_t panels_per_chunk;
  int64_t num_panel_chunks;
  int64_t num_tile_parts;
};

WorkSplit SplitWork(int64_t num_panels, int64_t num_tiles, int num_threads) {
  WorkSplit split;
  if (num_tiles < kManyTiles) {
    // Memory is the limit. A chunk is a stream that a thread prefetches
    // through: long, but 16 to a thread, so that a slow one holds the others up
    // by no more than that.
    split.panels_per_chunk =
        std::max<int64_t>(1, num_panels / (16 * num_threads));
    split.num_tile_parts = 1;
  } else {
    // Arithmetic is: panels that share a pass over x, or, where panels are few,
    // parts of x of at least 8 row tiles; at least 8 items to a thread.
    const int64_t num_items = 8 * num_threads;
    split.panels_per_chunk =
        std::clamp<int64_t>(num_panels / num_items, 1, kMaxPassPanels);
    split.num_tile_parts =
        std::clamp<int64_t>((num_items + num_panels - 1) / num_panels, 1,
                            std::max<int64_t>(1, num_tiles / 8));
  }
  split.num_panel_chunks =
      (num_panels + split.panels_per_chunk - 1) / split.panels_per_chunk;
  return split;
}

}  // namespace

int64_t PackedMatrix::ElementOffset(int64_t row, int64_t col) const {
  int64_t panel;
  int64_t lane;
  if (kind == LinearKind::kGateUp) {
    const int64_t half = rows / 2;
    const int64_t channel = row % half;
    panel = channel / lanes_;
    lane = channel % lanes_ + (row < half ? 0 : lanes_);
  } else {
    panel = row / (2 * lanes_);
    lane = row % (2 * lanes_);
  }
  const int64_t size = DTypeSize(dtype_);
  const int64_t base = panel * panel_bytes_;
  if (dtype_ == DType::kBF16) {
    return base + ((col / 2 * 2 * lanes_ + lane) * 2 + col % 2) * size;
  }
  return base + (col * 2 * lanes_ + lane) * size;
}

int64_t PackedMatrix::RowOfLane(int64_t panel, int64_t lane) const {
  if (kind != LinearKind::kGateUp) {
    const int64_t row = panel * 2 * lanes_ + lane;
    return row < rows ? row : -1;
  }
  const int64_t channel = panel * lanes_ + lane % lanes_;
  if (channel >= rows / 2) return -1;
  return channel + (lane < lanes_ ? 0 : rows / 2);
}

void PackedMatrix::FillPanel(const LinearSpec& spec, int64_t panel) {
  const bool is_bf16 = dtype_ == DType::kBF16;
  const int64_t width = 2 * lanes_;
  const int64_t unit_bytes = is_bf16 ? 4 : DTypeSize(dtype_);
  const int64_t step_bytes = width * unit_bytes;
  const int64_t num_units = is_bf16 ? cols / 2 : cols;  // Whole ones.
  char* const dst = panels_.data() + panel * panel_bytes_;
  const char* src[32];
  for (int64_t lane = 0; lane < width; ++lane) {
    const int64_t row = RowOfLane(panel, lane);
    src[lane] = row < 0 ? nullptr : SourceRow(spec, row);
  }
  // 512 bytes of each row at a time: long enough for the hardware prefetcher
  // (64 bytes at a time gave 0.3 GB/s), while 16 KiB of panel stay in L1.
  const int64_t units_per_line = 512 / unit_bytes;
  for (int64_t unit = 0; unit < num_units; unit += units_per_line) {
    const int64_t count = std::min(units_per_line, num_units - unit);
    for (int64_t lane = 0; lane < width; ++lane) {
      if (src[lane] == nullptr) continue;
      const char* const from = src[lane] + unit * unit_bytes;
      char* const to = dst + unit * step_bytes + lane * unit_bytes;
      if (unit_bytes == 4) {
        ScatterUnits<4>(from, to, count, step_bytes);
      } else {
        ScatterUnits<2>(from, to, count, step_bytes);
      }
    }
  }
  if (!is_bf16 || cols % 2 == 0) return;
  for (int64_t lane = 0; lane < width; ++lane) {
    if (src[lane] == nullptr) continue;
    std::memcpy(dst + num_units * step_bytes + lane * unit_bytes,
                src[lane] + num_units * unit_bytes, 2);
  }
}

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(const LinearSpec& spec,
                                                         Isa isa,
                                                         ThreadPool& pool) {
  QUIRE_RETURN_IF_ERROR(CheckSpec(spec));
  auto packed = std::make_unique<PackedMatrix>();
  PackedMatrix& p = *packed;
  p.kind = spec.kind;
  p.dtype_ = spec.parts[0].data.dtype;
  p.isa_ = isa;
  p.lanes_ = GetKernels(isa).lanes;
  p.cols = spec.parts[0].data.cols;
  for (const WeightPart& part : spec.parts) p.rows += part.data.rows;

  const bool is_bf16 = p.dtype_ == DType::kBF16;
  const int64_t width = 2 * p.lanes_;
  const int64_t unit_bytes = is_bf16 ? 4 : DTypeSize(p.dtype_);
  p.num_panels_ = (p.rows + width - 1) / width;
  if (p.kind == LinearKind::kGateUp) {
    p.num_panels_ = (p.rows / 2 + p.lanes_ - 1) / p.lanes_;
  }
  p.num_steps_ = is_bf16 ? (p.cols + 1) / 2 : p.cols;
  p.panel_bytes_ = p.num_steps_ * width * unit_bytes;
  // Never null: prefetch addresses are derived from it even without columns.
  p.panels_ =
      AlignedBuffer(std::max<int64_t>(64, p.num_panels_ * p.panel_bytes_));
  p.num_bytes = p.panels_.num_bytes();
  pool.ParallelFor(p.num_panels_, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) p.FillPanel(spec, panel);
  });

  if (!spec.bias.empty()) {
    p.bias_ = AlignedBuffer(p.num_panels_ * width * 4);
    p.num_bytes += p.bias_.num_bytes();
    const float* const bias = static_cast<const float*>(spec.bias.data);
    const int64_t stride =
        spec.bias.rows == 1 ? 1 : spec.bias.row_stride;  // [1, n] or [n, 1].
    for (int64_t i = 0; i < p.num_panels_ * width; ++i) {
      const int64_t row = p.RowOfLane(i / width, i % width);
      if (row >= 0) p.bias_.floats()[i] = bias[row * stride];
    }
  }
  return packed;
}

MatmulScratch::MatmulScratch(int64_t max_rows, int64_t max_cols)
    : packed_x_(max_rows * (max_cols + 1) * 4) {}

void Matmul(ThreadPool& pool, Isa isa, const PackedMatrix& weight,
            const MatmulParams& params, MatmulScratch& scratch) {
  if (params.num_rows <= 0 || weight.rows == 0) return;
  QUIRE_CHECK(isa == weight.isa_);
  const MatmulKernels& kernels = GetKernels(isa);
  MatmulJob job = {};
  job.format = FormatOf(weight.dtype_);
  const int format = static_cast<int>(job.format);
  job.panels = weight.panels_.data();
  job.panel_bytes = weight.panel_bytes_;
  job.num_steps = weight.num_steps_;
  job.bias = weight.bias_.floats();
  job.is_gated = weight.kind == LinearKind::kGateUp;
  job.num_outputs = job.is_gated ? weight.rows / 2 : weight.rows;
  job.activation = ToKernelActivation(params.activation);
  QUIRE_CHECK(job.is_gated || (job.activation != MatmulActivation::kSwiGlu &&
                               job.activation != MatmulActivation::kGeGlu));
  job.x = params.x;
  job.x_stride = params.x_stride;
  job.cols = weight.cols;
  const int64_t scratch_bytes =
      params.num_rows * weight.num_steps_ * kernels.packed_x_step_bytes[format];
  if (scratch.packed_x_.num_bytes() < scratch_bytes) {
    scratch.packed_x_ = AlignedBuffer(scratch_bytes);
  }
  job.packed_x = scratch.packed_x_.data();
  job.num_rows = params.num_rows;
  const int64_t max_tile_rows = kernels.max_tile_rows[format];
  job.num_tiles = (params.num_rows + max_tile_rows - 1) / max_tile_rows;
  job.block_steps = job.num_steps;
  if (job.num_tiles > 1) {
    job.block_steps =
        (job.num_tiles < kManyTiles ? kBlockBytes : kLargeBlockBytes) /
        kernels.panel_step_bytes[format];
  }
  job.out = params.out;
  job.out_stride = params.out_stride;
  job.residual = params.residual;
  job.residual_stride = params.residual_stride;
  job.out_scale = params.out_scale;

  const int64_t num_packed = job.num_steps == 0 ? 0 : job.num_tiles;
  pool.ParallelFor(num_packed, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t tile = begin; tile < end; ++tile) kernels.pack_x(job, tile);
  });
  const WorkSplit split =
      SplitWork(weight.num_panels_, job.num_tiles, pool.num_threads());
  pool.ParallelFor(
      split.num_panel_chunks * split.num_tile_parts, 1,
      [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t panel =
              i / split.num_tile_parts * split.panels_per_chunk;
          const int64_t part = i % split.num_tile_parts;
          kernels.compute(
              job, panel,
              std::min(panel + split.panels_per_chunk, weight.num_panels_),
              part * job.num_tiles / split.num_tile_parts,
              (part + 1) * job.num_tiles / split.num_tile_parts);
        }
      });
}

void UnpackRow(const PackedMatrix& weight, int64_t row, float* out) {
  QUIRE_DCHECK(row >= 0 && row < weight.rows);
  const char* const panels = weight.panels_.data();
  for (int64_t col = 0; col < weight.cols; ++col) {
    const char* const element = panels + weight.ElementOffset(row, col);
    if (weight.dtype_ == DType::kF32) {
      std::memcpy(&out[col], element, 4);
      continue;
    }
    uint16_t bits;
    std::memcpy(&bits, element, 2);
    out[col] =
        weight.dtype_ == DType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
  }
}

}  // namespace quire
