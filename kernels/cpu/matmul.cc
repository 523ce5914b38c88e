#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cpu/dword_square.h"
#include "kernels/cpu/matmul_kernels.h"
#include "kernels/quant_codec.h"

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

// The tensors beside the elements of a quantized part.
absl::Status CheckQuantized(const WeightPart& part) {
  const auto fail = [&part](const auto&... what) {
    return absl::InvalidArgumentError(
        absl::StrCat("a part in ", QuantFormatName(part.format), " [",
                     part.rows(), ", ", part.cols(), "] has ", what...));
  };
  const QuantBlock block = QuantBlockOf(part.format);
  if (part.data.dtype != DType::kU8 || part.data.cols % block.bytes != 0) {
    return fail("rows of ", part.data.cols, " elements of ",
                DTypeName(part.data.dtype), ", not blocks of ", block.bytes,
                " bytes");
  }
  if (part.format == QuantFormat::kFp8) {
    const TensorView& scales = part.scales;
    const int64_t size = part.group_size;
    const bool fits =
        size > 0 ? scales.rows == (part.rows() + size - 1) / size &&
                       scales.cols == (part.cols() + size - 1) / size
                 : scales.cols == 1 &&
                       (scales.rows == 1 || scales.rows == part.rows());
    if (size < 0 || !fits || scales.empty() || scales.dtype != DType::kF32) {
      return fail("scales of ", DTypeName(scales.dtype), " [", scales.rows,
                  ", ", scales.cols, "] with group_size ", size);
    }
  }
  if (part.format != QuantFormat::kInt4) return absl::OkStatus();
  if (part.group_size < 1) return fail("group_size ", part.group_size);
  const int64_t groups = (part.cols() + part.group_size - 1) / part.group_size;
  if (part.scales.empty() || part.scales.rows != part.rows() ||
      part.scales.cols != groups) {
    return fail("scales of shape [", part.scales.rows, ", ", part.scales.cols,
                "] with group_size ", part.group_size);
  }
  if (!part.zeros.empty() &&
      (part.zeros.dtype != DType::kU8 || part.zeros.rows != part.rows() ||
       part.zeros.cols != groups)) {
    return fail("zeros of ", DTypeName(part.zeros.dtype), " [", part.zeros.rows,
                ", ", part.zeros.cols, "]");
  }
  const TensorView& order = part.column_order;
  if (order.empty()) return absl::OkStatus();
  if (order.dtype != DType::kI32 || order.rows * order.cols != part.cols()) {
    return fail("a column_order of ", order.rows * order.cols, " elements of ",
                DTypeName(order.dtype));
  }
  std::vector<bool> is_named(part.cols(), false);
  for (int64_t col = 0; col < part.cols(); ++col) {
    const int32_t source = order.row<const int32_t>(0)[col];
    if (source < 0 || source >= part.cols() || is_named[source]) {
      return fail("a column_order that is not a permutation: entry ", col,
                  " is ", source);
    }
    is_named[source] = true;
  }
  return absl::OkStatus();
}

absl::Status CheckSpec(const LinearSpec& spec) {
  if (spec.parts.empty()) {
    return absl::InvalidArgumentError("a linear layer has no parts");
  }
  const WeightPart& first = spec.parts[0];
  int64_t rows = 0;
  for (size_t i = 0; i < spec.parts.size(); ++i) {
    const WeightPart& part = spec.parts[i];
    const TensorView& data = part.data;
    if (!IsPackable(data.dtype, part.format)) {
      return absl::UnimplementedError(
          absl::StrCat("weights in ", QuantFormatName(part.format), " of ",
                       DTypeName(data.dtype)));
    }
    if (data.rows < 0 || data.cols < 0 ||
        (data.data == nullptr && data.rows * data.cols != 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("part ", i, " of a linear layer has no data"));
    }
    if (part.format != QuantFormat::kDense) {
      QUIRE_RETURN_IF_ERROR(CheckQuantized(part));
    }
    if (part.cols() != first.cols()) {
      return absl::InvalidArgumentError(
          absl::StrCat("part ", i, " of a linear layer has ", part.cols(),
                       " columns, part 0 has ", first.cols()));
    }
    rows += data.rows;
  }
  const int num_segments = spec.num_column_segments;
  if (num_segments < 1 || num_segments > kMaxColumnSegments ||
      (num_segments & (num_segments - 1)) != 0 ||
      first.cols() % num_segments != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a linear layer of ", first.cols(), " columns in ", num_segments,
        " segments, not a power of two that divides them, up to ",
        kMaxColumnSegments));
  }
  if (spec.kind == LinearKind::kGateUp &&
      (spec.parts.size() != 2 || spec.parts[1].rows() != first.rows())) {
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

bool IsDense(const LinearSpec& spec) {
  for (const WeightPart& part : spec.parts) {
    if (part.format != QuantFormat::kDense ||
        part.data.dtype != spec.parts[0].data.dtype) {
      return false;
    }
  }
  return true;
}

// [rows, cols] of bf16.
std::vector<uint16_t> ToBf16(const WeightPart& part, ThreadPool& pool) {
  const int64_t cols = part.cols();
  std::vector<uint16_t> result(part.rows() * cols);
  pool.ParallelFor(part.rows(), 16, [&](int64_t begin, int64_t end, int) {
    std::vector<float> values(cols);
    for (int64_t row = begin; row < end; ++row) {
      DequantizeRow(part, row, values.data());
      for (int64_t col = 0; col < cols; ++col) {
        result[row * cols + col] = FloatToBf16(values[col]);
      }
    }
  });
  return result;
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
constexpr int64_t kLargeBlockBytes = 64 << 10;

// Of `size`, cut into as few parts of at most `max_part` as possible, all alike
// but for the last.
int64_t EvenPart(int64_t size, int64_t max_part) {
  const int64_t num_parts =
      std::max<int64_t>(1, (size + max_part - 1) / max_part);
  return std::max<int64_t>(1, (size + num_parts - 1) / num_parts);
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
  return quire::RowOfLane(rows, kind == LinearKind::kGateUp, lanes_, panel,
                          lane);
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
      if (unit_bytes == 4 && lane % kSquareLanes == 0 &&
          std::count(src + lane, src + lane + kSquareLanes, nullptr) == 0) {
        int64_t i = 0;
        for (; i + 4 <= count; i += 4) {
          ScatterSquare(src + lane, (unit + i) * 4, 0, to + i * step_bytes,
                        step_bytes);
        }
        for (int j = 0; j < kSquareLanes; ++j) {
          ScatterUnits<4>(src[lane + j] + (unit + i) * 4,
                          to + i * step_bytes + j * 4, count - i, step_bytes);
        }
        lane += kSquareLanes - 1;
      } else if (unit_bytes == 4) {
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

bool IsPackable(DType dtype, QuantFormat format) {
  if (format == QuantFormat::kDense) {
    return dtype == DType::kF32 || dtype == DType::kF16 ||
           dtype == DType::kBF16;
  }
  return true;
}

// One matrix for each part, or, where a panel needs both, all parts in bf16.
absl::Status PackedMatrix::PackPieces(const LinearSpec& spec,
                                      ThreadPool& pool) {
  std::vector<std::vector<uint16_t>> dense;
  int64_t row = 0;
  LinearSpec gated = spec;
  for (size_t i = 0; i < spec.parts.size(); ++i) {
    WeightPart part = spec.parts[i];
    LinearSpec piece;
    piece.parts = {part};
    if (!spec.bias.empty()) {
      const int64_t stride = spec.bias.rows == 1 ? 1 : spec.bias.row_stride;
      piece.bias = spec.bias;
      piece.bias.data = static_cast<float*>(spec.bias.data) + row * stride;
      (spec.bias.rows == 1 ? piece.bias.cols : piece.bias.rows) = part.rows();
    }
    row += part.rows();
    const bool is_dense = part.format == QuantFormat::kDense;
    if (kind == LinearKind::kGateUp ||
        (!is_dense && !CanPackQuantMatrix(piece) && !CanPackFp8Matrix(piece))) {
      dense.push_back(ToBf16(part, pool));
      part = WeightPart{TensorView::Matrix(dense.back().data(), DType::kBF16,
                                           part.rows(), part.cols())};
      piece.parts[0] = part;
      gated.parts[i] = part;
    }
    if (kind == LinearKind::kGateUp) continue;
    QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<PackedMatrix> packed,
                           PackMatrix(piece, isa_, pool));
    pieces_.push_back(std::move(packed));
    dense.clear();
  }
  if (kind == LinearKind::kGateUp) {
    QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<PackedMatrix> packed,
                           PackMatrix(gated, isa_, pool));
    pieces_.push_back(std::move(packed));
  }
  for (const auto& piece : pieces_) num_bytes += piece->num_bytes;
  return absl::OkStatus();
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
  p.cols = spec.parts[0].cols();
  for (const WeightPart& part : spec.parts) p.rows += part.rows();
  if (!IsDense(spec)) {
    if (CanPackQuantMatrix(spec)) {
      p.quant_ = PackQuantMatrix(spec, isa, pool);
      p.num_bytes = p.quant_->num_bytes();
    } else if (CanPackFp8Matrix(spec)) {
      p.fp8_ = PackFp8Matrix(spec, isa, pool);
      p.num_bytes = p.fp8_->num_bytes();
    } else {
      QUIRE_RETURN_IF_ERROR(p.PackPieces(spec, pool));
    }
    return packed;
  }

  static_assert(kMaxSegments == kMaxColumnSegments);
  if (p.dtype_ == DType::kF32) p.num_segments_ = spec.num_column_segments;
  const bool is_bf16 = p.dtype_ == DType::kBF16;
  const int64_t width = 2 * p.lanes_;
  const int64_t unit_bytes = is_bf16 ? 4 : DTypeSize(p.dtype_);
  p.num_panels_ = NumPanels(p.rows, p.kind == LinearKind::kGateUp, p.lanes_);
  p.num_steps_ = is_bf16 ? (p.cols + 1) / 2 : p.cols;
  p.panel_bytes_ = p.num_steps_ * width * unit_bytes;
  // Never null: prefetch addresses are derived from it even without columns.
  p.panels_ =
      AlignedBuffer(std::max<int64_t>(64, p.num_panels_ * p.panel_bytes_));
  p.num_bytes = p.panels_.num_bytes();
  pool.ParallelForByNode(p.num_panels_, 1,
                         [&](int64_t begin, int64_t end, int) {
                           for (int64_t panel = begin; panel < end; ++panel)
                             p.FillPanel(spec, panel);
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

void Matmul(ThreadPool& pool, Isa isa, const PackedMatrix& weight,
            const MatmulParams& params, MatmulScratch& scratch) {
  if (params.num_rows <= 0 || weight.rows == 0) return;
  QUIRE_CHECK(isa == weight.isa_);
  if (weight.quant_ != nullptr) {
    QuantMatmul(pool, GetQuantKernels(isa), *weight.quant_, params, scratch);
    return;
  }
  if (weight.fp8_ != nullptr) {
    Fp8Matmul(pool, isa, *weight.fp8_, params, scratch);
    return;
  }
  if (!weight.pieces_.empty()) {
    MatmulParams piece_params = params;
    for (const auto& piece : weight.pieces_) {
      Matmul(pool, isa, *piece, piece_params, scratch);
      piece_params.out += piece->rows;
      if (piece_params.residual != nullptr)
        piece_params.residual += piece->rows;
    }
    return;
  }
  const MatmulKernels& kernels = GetKernels(isa);
  MatmulJob job = {};
  job.format = FormatOf(weight.dtype_);
  const int format = static_cast<int>(job.format);
  job.panels = weight.panels_.data();
  job.panel_bytes = weight.panel_bytes_;
  job.num_steps = weight.num_steps_;
  job.num_segments = weight.num_segments_;
  (job.num_segments > 1 ? job.segment_bias : job.bias) = weight.bias_.floats();
  job.is_gated = weight.kind == LinearKind::kGateUp;
  job.num_outputs = job.is_gated ? weight.rows / 2 : weight.rows;
  job.activation = ToKernelActivation(params.activation);
  QUIRE_CHECK(job.is_gated || !IsGated(params.activation));
  job.x = params.x;
  job.x_stride = params.x_stride;
  job.cols = weight.cols;
  const int64_t scratch_bytes =
      params.num_rows * weight.num_steps_ * kernels.packed_x_step_bytes[format];
  job.packed_x = scratch.PackedX(scratch_bytes);
  job.num_rows = params.num_rows;
  const int64_t max_tile_rows = kernels.max_tile_rows[format];
  job.num_tiles = (params.num_rows + max_tile_rows - 1) / max_tile_rows;
  job.block_steps = job.num_steps;
  if (job.num_tiles > 1) {
    const int64_t max_steps =
        (job.num_tiles < kManyTiles ? kBlockBytes : kLargeBlockBytes) /
        kernels.panel_step_bytes[format];
    job.block_steps = EvenPart(job.num_steps / job.num_segments, max_steps);
  }
  job.out = params.out;
  job.out_stride = params.out_stride;
  job.residual = params.residual;
  job.residual_stride = params.residual_stride;
  job.out_scale = params.out_scale;

  const int64_t num_packed = job.num_steps == 0 ? 0 : job.num_tiles;
  pool.ParallelForStreams(num_packed, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t tile = begin; tile < end; ++tile) {
      kernels.pack_x(job, tile);
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

void UnpackRow(const PackedMatrix& weight, int64_t row, float* out) {
  QUIRE_DCHECK(row >= 0 && row < weight.rows);
  if (weight.quant_ != nullptr) {
    UnpackQuantRow(*weight.quant_, row, out);
    return;
  }
  if (weight.fp8_ != nullptr) {
    UnpackFp8Row(*weight.fp8_, row, out);
    return;
  }
  for (const auto& piece : weight.pieces_) {
    if (row < piece->rows) {
      UnpackRow(*piece, row, out);
      return;
    }
    row -= piece->rows;
  }
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
