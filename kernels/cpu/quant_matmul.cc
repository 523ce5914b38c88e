#include "kernels/cpu/quant_matmul.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/base/status.h"
#include "kernels/cpu/dword_square.h"
#include "kernels/cpu/quant_blocks.h"
#include "kernels/cpu/quant_kernels.h"

namespace quire {
namespace {

// Super-blocks of one channel are copied in runs of about this many blocks: the
// run of the panel (17 KiB of 8-bit codes) stays in L1 while its channels are
// filled in, and the source is read in pieces that the prefetcher sees.
constexpr int64_t kRunBlocks = 16;

// Formats of one f16 scale and then kDwords dwords of codes, already in order
// but for the sign bits of 8-bit codes: blocks [0, num_blocks) of a channel.
template <int kDwords>
void CopyPlainBlocks(const uint8_t* blocks, int64_t num_blocks, int64_t width,
                     int64_t lane, char* out) {
  constexpr uint32_t kSigns = kDwords == 8 ? 0x80808080u : 0;
  for (int64_t block = 0; block < num_blocks; ++block) {
    std::memcpy(out + lane * 2, blocks, 2);
    char* const codes = out + width * 2 + lane * 4;
#pragma GCC unroll 8
    for (int i = 0; i < kDwords; ++i) {
      uint32_t dword;
      std::memcpy(&dword, blocks + 2 + 4 * i, sizeof(dword));
      dword ^= kSigns;
      std::memcpy(codes + i * width * 4, &dword, sizeof(dword));
    }
    blocks += 2 + 4 * kDwords;
    out += width * (2 + 4 * kDwords);
  }
}

// The same for kSquareLanes neighbouring lanes.
template <int kDwords>
void CopyPlainBlocks4(const char* const* channels, int64_t begin,
                      int64_t num_blocks, int64_t width, int64_t lane,
                      char* out) {
  constexpr int64_t kBytes = 2 + 4 * kDwords;
  constexpr uint32_t kSigns = kDwords == 8 ? 0x80808080u : 0;
  int64_t offset = begin * kBytes;
  for (int64_t block = 0; block < num_blocks; ++block) {
    uint16_t scales[kSquareLanes];
#pragma GCC unroll 4
    for (int i = 0; i < kSquareLanes; ++i) {
      std::memcpy(scales + i, channels[i] + offset, 2);
    }
    std::memcpy(out + lane * 2, scales, sizeof(scales));
    char* const codes = out + width * 2 + lane * 4;
#pragma GCC unroll 2
    for (int first = 0; first < kDwords; first += 4) {
      ScatterSquare(channels, offset + 2 + 4 * first, kSigns,
                    codes + first * width * 4, width * 4);
    }
    offset += kBytes;
    out += width * kBytes;
  }
}

template <int kDwords>
void StoreCodes(const uint32_t* dwords, int64_t width, char* out) {
#pragma GCC unroll 8
  for (int i = 0; i < kDwords; ++i) {
    std::memcpy(out + i * width * 4, dwords + i, 4);
  }
}

}  // namespace

bool HasVnni(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx2) {
    unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 &&
           (eax >> 4 & 1) != 0;  // AVX-VNNI
  }
  if (isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16) {
    return __builtin_cpu_supports("avx512vnni");
  }
#endif
  return false;
}

const QuantKernels& GetQuantKernels(Isa isa, bool with_vnni) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx2) {
    return with_vnni ? cpu_avx2_vnni::kQuantKernels : cpu_avx2::kQuantKernels;
  }
  if (isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16) {
    return with_vnni ? cpu_avx512_vnni::kQuantKernels
                     : cpu_avx512::kQuantKernels;
  }
  return cpu_scalar::kQuantKernels;
#else
  return QUIRE_ISA_TABLE(isa, kQuantKernels);
#endif
}

const QuantKernels& GetQuantKernels(Isa isa) {
  return GetQuantKernels(isa, HasVnni(isa));
}

int64_t QuantScratchBytes(Isa isa, int num_threads) {
  return GetQuantKernels(isa).scratch_bytes * num_threads;
}

bool CanPackQuantMatrix(const LinearSpec& spec) {
  const WeightPart& first = spec.parts[0];
  for (const WeightPart& part : spec.parts) {
    const std::optional<PanelCode> code = PanelCodeFor(part);
    if (!code.has_value()) return false;
    // A panel of gate and up has one layout.
    if (spec.kind == LinearKind::kGateUp &&
        (*code != *PanelCodeFor(first) ||
         part.group_size != first.group_size)) {
      return false;
    }
    // x is permuted and rounded once for all parts.
    if (part.column_order.empty() != first.column_order.empty()) return false;
    if (!part.column_order.empty() &&
        std::memcmp(part.column_order.data, first.column_order.data,
                    part.cols() * sizeof(int32_t)) != 0) {
      return false;
    }
  }
  return true;
}

int64_t QuantMatrix::num_bytes() const {
  int64_t num_bytes = column_order_.size() * sizeof(int32_t);
  for (const Segment& segment : segments_) {
    num_bytes += segment.panels.num_bytes() + segment.bias.num_bytes();
  }
  return num_bytes;
}

// Copies super-blocks [super_begin, super_end) of one row to lane `lane` of a
// panel; `run`: super-block super_begin of that panel.
void QuantMatrix::FillChannel(const WeightPart& part, int64_t row,
                              int64_t super_begin, int64_t super_end,
                              int64_t lane, char* run,
                              const Segment& segment) const {
  const QuantLayout& layout = LayoutOf(segment.code);
  const int64_t width = 2 * lanes_;
  const uint8_t* const bytes =
      static_cast<const uint8_t*>(part.data.data) + row * part.data.row_stride;
  const int64_t num_supers = super_end - super_begin;
  if (part.format == QuantFormat::kQ8_0) {
    CopyPlainBlocks<8>(bytes + super_begin * 34, num_supers, width, lane, run);
    return;
  }
  if (part.format == QuantFormat::kQ4_0 ||
      part.format == QuantFormat::kIQ4_NL) {
    CopyPlainBlocks<4>(bytes + super_begin * 18, num_supers, width, lane, run);
    return;
  }
  QuantChannel channel;
  for (int64_t super = super_begin; super < super_end; ++super) {
    char* const base = run + (super - super_begin) * segment.super_bytes;
    const bool is_group = part.format == QuantFormat::kInt4;
    if (is_group) {
      ReadGroupFields(part, row, super, &channel);
    } else {
      ReadSuperBlock(part.format, bytes, super, &channel);
    }
    int half = 0;
    if (layout.scale == QuantScale::kF32) {
      std::memcpy(base + lane * 4, channel.halves, 4);
      half = 2;
    }
    for (; half < layout.num_halves; ++half) {
      std::memcpy(base + (half * width + lane) * 2, &channel.halves[half], 2);
    }
    char* const byte_fields = base + layout.num_halves * width * 2 + lane;
    for (int i = 0; i < layout.num_bytes; ++i) {
      byte_fields[i * width] = static_cast<char>(channel.bytes[i]);
    }
    char* codes = base + QuantFieldBytes(layout) * width + lane * 4;
    for (int64_t block = 0; block < segment.blocks_per_super; ++block) {
      uint32_t group_codes[8];
      const uint32_t* dwords = channel.codes[is_group ? 0 : block];
      if (is_group) {
        ReadInt4Block(bytes, super * segment.blocks_per_super + block,
                      group_codes);
        dwords = group_codes;
      }
      switch (layout.code_bits) {
        case 2:
          StoreCodes<2>(dwords, width, codes);
          break;
        case 3:
          StoreCodes<3>(dwords, width, codes);
          break;
        case 4:
          StoreCodes<4>(dwords, width, codes);
          break;
        case 5:
          StoreCodes<5>(dwords, width, codes);
          break;
        default:
          StoreCodes<6>(dwords, width, codes);
      }
      codes += width * QuantCodeBytes(layout);
    }
  }
}

void QuantMatrix::FillPanel(const WeightPart* parts, int64_t panel,
                            Segment& segment) const {
  const int64_t num_supers = cols_ / kQuantBlockCols / segment.blocks_per_super;
  const int64_t run =
      std::max<int64_t>(1, kRunBlocks / segment.blocks_per_super);
  char* const base = segment.panels.data() + panel * segment.panel_bytes;
  const int64_t width = 2 * lanes_;
  struct Channel {
    const WeightPart* part = nullptr;  // Null: padding.
    int64_t row = 0;
  } channels[32];
  const char* rows[32] = {};
  for (int64_t lane = 0; lane < width; ++lane) {
    int64_t row = RowOfLane(segment.num_rows, is_gated_, lanes_, panel, lane);
    if (row < 0) continue;
    const WeightPart* part = parts;
    if (is_gated_ && row >= segment.num_rows / 2) {
      row -= segment.num_rows / 2;
      ++part;
    }
    channels[lane] = {part, row};
    rows[lane] =
        static_cast<const char*>(part->data.data) + row * part->data.row_stride;
  }
  // Of all parts of a segment: they have one layout.
  const auto all_are = [&](QuantFormat format) {
    for (const Channel& channel : channels) {
      if (channel.part != nullptr && channel.part->format != format) {
        return false;
      }
    }
    return true;
  };
  const bool is_q8_0 = all_are(QuantFormat::kQ8_0);
  const bool is_plain4 =
      all_are(QuantFormat::kQ4_0) || all_are(QuantFormat::kIQ4_NL);
  for (int64_t super = 0; super < num_supers; super += run) {
    const int64_t end = std::min(super + run, num_supers);
    char* const to = base + super * segment.super_bytes;
    for (int64_t lane = 0; lane < width; ++lane) {
      if ((is_q8_0 || is_plain4) && lane % kSquareLanes == 0 &&
          std::count(rows + lane, rows + lane + kSquareLanes, nullptr) == 0) {
        if (is_q8_0) {
          CopyPlainBlocks4<8>(rows + lane, super, end - super, width, lane, to);
        } else {
          CopyPlainBlocks4<4>(rows + lane, super, end - super, width, lane, to);
        }
        lane += kSquareLanes - 1;
        continue;
      }
      const Channel& channel = channels[lane];
      if (channel.part == nullptr) continue;
      FillChannel(*channel.part, channel.row, super, end, lane, to, segment);
    }
  }
}

std::unique_ptr<QuantMatrix> PackQuantMatrix(const LinearSpec& spec, Isa isa,
                                             ThreadPool& pool) {
  QUIRE_CHECK(CanPackQuantMatrix(spec));
  auto packed = std::make_unique<QuantMatrix>();
  QuantMatrix& m = *packed;
  m.is_gated_ = spec.kind == LinearKind::kGateUp;
  m.lanes_ = GetQuantKernels(isa).lanes;
  m.cols_ = spec.parts[0].cols();
  const int64_t width = 2 * m.lanes_;
  const TensorView& order = spec.parts[0].column_order;
  if (!order.empty()) {
    m.column_order_.assign(order.row<const int32_t>(0),
                           order.row<const int32_t>(0) + m.cols_);
  }
  const size_t parts_per_segment = m.is_gated_ ? 2 : 1;
  for (size_t i = 0; i < spec.parts.size(); i += parts_per_segment) {
    const WeightPart* const parts = &spec.parts[i];
    QuantMatrix::Segment segment;
    segment.code = *PanelCodeFor(*parts);
    const QuantLayout& layout = LayoutOf(segment.code);
    segment.first_row = m.rows_;
    for (size_t j = 0; j < parts_per_segment; ++j) {
      segment.num_rows += parts[j].rows();
    }
    m.rows_ += segment.num_rows;
    segment.num_panels = NumPanels(segment.num_rows, m.is_gated_, m.lanes_);
    segment.blocks_per_super = layout.blocks_per_super > 0
                                   ? layout.blocks_per_super
                                   : parts->group_size / kQuantBlockCols;
    segment.super_bytes =
        width * (QuantFieldBytes(layout) +
                 segment.blocks_per_super * int64_t{QuantCodeBytes(layout)});
    segment.panel_bytes = m.cols_ / kQuantBlockCols / segment.blocks_per_super *
                          segment.super_bytes;
    segment.panels = AlignedBuffer(
        std::max<int64_t>(64, segment.num_panels * segment.panel_bytes));
    pool.ParallelForByNode(segment.num_panels, 1,
                           [&](int64_t begin, int64_t end, int) {
                             for (int64_t panel = begin; panel < end; ++panel) {
                               m.FillPanel(parts, panel, segment);
                             }
                           });
    if (!spec.bias.empty()) {
      segment.bias = AlignedBuffer(segment.num_panels * width * 4);
      const float* const bias = static_cast<const float*>(spec.bias.data);
      const int64_t stride = spec.bias.rows == 1 ? 1 : spec.bias.row_stride;
      for (int64_t j = 0; j < segment.num_panels * width; ++j) {
        const int64_t row = RowOfLane(segment.num_rows, m.is_gated_, m.lanes_,
                                      j / width, j % width);
        if (row < 0) continue;
        segment.bias.floats()[j] = bias[(segment.first_row + row) * stride];
      }
    }
    m.segments_.push_back(std::move(segment));
  }
  return packed;
}

QuantJob QuantMatrix::MakeJob(const QuantKernels& kernels,
                              const MatmulParams& params,
                              MatmulScratch& scratch) const {
  QuantJob job = {};
  job.num_blocks = cols_ / kQuantBlockCols;
  job.x = params.x;
  job.x_stride = params.x_stride;
  job.column_order = column_order_.empty() ? nullptr : column_order_.data();
  job.packed_x = scratch.PackedX(params.num_rows * job.num_blocks *
                                 kQuantBlockXDwords * 4);
  job.num_rows = params.num_rows;
  const int64_t tile_rows =
      params.num_rows >= kManyTiles * kernels.max_tile_rows
          ? kernels.many_tile_rows
          : kernels.max_tile_rows;
  job.num_tiles = (params.num_rows + tile_rows - 1) / tile_rows;
  job.is_gated = is_gated_;
  job.out_stride = params.out_stride;
  job.activation = ToKernelActivation(params.activation);
  QUIRE_CHECK(job.is_gated || !IsGated(params.activation));
  job.residual_stride = params.residual_stride;
  job.out_scale = params.out_scale;
  return job;
}

int64_t QuantMatrix::NumChunks(const WorkSplit& split) const {
  int64_t num_chunks = 0;
  for (const Segment& segment : segments_) {
    num_chunks += (segment.num_panels + split.panels_per_chunk - 1) /
                  split.panels_per_chunk;
  }
  return num_chunks;
}

QuantMatrix::ChunkPlace QuantMatrix::FindChunks(const WorkSplit& split,
                                                int64_t chunk,
                                                int64_t num_chunks) const {
  const Segment* segment = segments_.data();
  for (;; ++segment) {
    const int64_t count = (segment->num_panels + split.panels_per_chunk - 1) /
                          split.panels_per_chunk;
    if (chunk < count) break;
    chunk -= count;
  }
  const int64_t count =
      std::min(num_chunks, (segment->num_panels + split.panels_per_chunk - 1) /
                                   split.panels_per_chunk -
                               chunk);
  return {
      segment, chunk * split.panels_per_chunk,
      std::min((chunk + count) * split.panels_per_chunk, segment->num_panels),
      count};
}

void QuantMatmul(ThreadPool& pool, const QuantKernels& kernels,
                 const QuantMatrix& weight, const MatmulParams& params,
                 MatmulScratch& scratch) {
  if (params.num_rows <= 0 || weight.rows_ == 0) return;
  QUIRE_CHECK(kernels.lanes == weight.lanes_);
  const QuantJob job = weight.MakeJob(kernels, params, scratch);
  pool.ParallelForStreams(job.num_tiles, 1,
                          [&](int64_t begin, int64_t end, int) {
                            for (int64_t tile = begin; tile < end; ++tile) {
                              kernels.pack_x(job, tile);
                            }
                          });

  int64_t num_panels = 0;
  for (const auto& segment : weight.segments_) num_panels += segment.num_panels;
  const WorkSplit split =
      SplitWork(num_panels, job.num_tiles, pool.num_threads());
  const int64_t num_chunks = weight.NumChunks(split);
  char* const thread_scratch =
      scratch.Threads(kernels.scratch_bytes * pool.num_threads());
  // Item `item` and what follows it in its segment; returns how many it did.
  const auto run = [&](int64_t item, int64_t num_items, int thread_idx) {
    const int64_t num_parts = split.num_tile_parts;
    const int64_t part = item / num_chunks;
    const QuantMatrix::ChunkPlace place =
        weight.FindChunks(split, item % num_chunks, num_items);
    const QuantMatrix::Segment& segment = *place.segment;
    QuantJob own = job;
    own.weights = {segment.code, segment.panels.data(), segment.panel_bytes,
                   segment.blocks_per_super, segment.super_bytes};
    own.bias = segment.bias.floats();
    own.num_outputs = job.is_gated ? segment.num_rows / 2 : segment.num_rows;
    own.out = params.out + segment.first_row;
    own.residual = params.residual == nullptr
                       ? nullptr
                       : params.residual + segment.first_row;
    kernels.compute(own, place.panel_begin, place.panel_end,
                    part * job.num_tiles / num_parts,
                    (part + 1) * job.num_tiles / num_parts,
                    thread_scratch + thread_idx * kernels.scratch_bytes);
    return place.num_chunks;
  };
  pool.ParallelForStreams(num_chunks * split.num_tile_parts, split.max_run,
                          [&](int64_t begin, int64_t end, int thread_idx) {
                            while (begin < end)
                              begin += run(begin, end - begin, thread_idx);
                          });
}

void UnpackQuantRow(const QuantMatrix& weight, int64_t row, float* out) {
  QUIRE_DCHECK(row >= 0 && row < weight.rows_);
  const QuantMatrix::Segment* segment = weight.segments_.data();
  while (row >= segment->first_row + segment->num_rows) ++segment;
  row -= segment->first_row;
  const QuantLayout& layout = LayoutOf(segment->code);
  const int64_t lanes = weight.lanes_;
  const int64_t width = 2 * lanes;
  int64_t panel = row / width;
  int64_t lane = row % width;
  if (weight.is_gated_) {
    const int64_t half = segment->num_rows / 2;
    panel = row % half / lanes;
    lane = row % half % lanes + (row < half ? 0 : lanes);
  }
  const int64_t num_blocks = weight.cols_ / kQuantBlockCols;
  QuantChannel channel;
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t idx = block % segment->blocks_per_super;
    const char* const base =
        segment->panels.data() + panel * segment->panel_bytes +
        block / segment->blocks_per_super * segment->super_bytes;
    int half = 0;
    if (layout.scale == QuantScale::kF32) {
      std::memcpy(channel.halves, base + lane * 4, 4);
      half = 2;
    }
    for (; half < layout.num_halves; ++half) {
      std::memcpy(&channel.halves[half], base + (half * width + lane) * 2, 2);
    }
    const char* const bytes = base + layout.num_halves * width * 2 + lane;
    for (int i = 0; i < layout.num_bytes; ++i) {
      channel.bytes[i] = static_cast<uint8_t>(bytes[i * width]);
    }
    const char* const codes =
        base + width * (QuantFieldBytes(layout) +
                        idx * int64_t{QuantCodeBytes(layout)});
    for (int i = 0; i < layout.code_bits; ++i) {
      std::memcpy(&channel.codes[0][i], codes + (i * width + lane) * 4, 4);
    }
    float values[kQuantBlockCols];
    float* const to =
        weight.column_order_.empty() ? out + block * kQuantBlockCols : values;
    DequantizeChannel(segment->code, channel.halves, channel.bytes,
                      static_cast<int>(idx), channel.codes[0], to);
    if (to == out + block * kQuantBlockCols) continue;
    for (int k = 0; k < kQuantBlockCols; ++k) {
      out[weight.column_order_[block * kQuantBlockCols + k]] = values[k];
    }
  }
}

}  // namespace quire
