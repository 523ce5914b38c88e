#include "kernels/cuda/elementwise.h"

#include <cmath>

#include "kernels/cuda/norm_row.h"
#include "kernels/cuda/planted_bug.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = kNormThreads;

// The sum over the CTA, for every thread; the order of the sum is fixed.
// `scratch`: one float per warp and one more; the caller may use it again after
// the next barrier.
SIMT_DEVICE float CtaSum(float value, float* scratch) {
  const int warp = simt::ThreadX() / 32;
  value = WarpSum(value);
  if (simt::ThreadX() % 32 == 0) scratch[warp] = value;
  if (!HasPlantedBug(PlantedBug::kHeadStatisticsNoBarrier)) {
    simt::SyncThreads();
  }
  float sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += scratch[w];
  if (!HasPlantedBug(PlantedBug::kHeadStatisticsScratchReused)) {
    simt::SyncThreads();
  }
  return sum;
}

template <DType kType>
SIMT_KERNEL(kThreads)
GatherKernel(const GatherArguments arguments) {
  const int64_t token = simt::CtaX();
  int32_t entry = 0;
  if (HasPlantedBug(PlantedBug::kGatherBeforeWait)) {
    entry = arguments.entries[token];
  }
  simt::WaitForPrevious();
  simt::LaunchNext();
  if (!HasPlantedBug(PlantedBug::kGatherBeforeWait)) {
    entry = arguments.entries[token];
  }
  const uint16_t* from = arguments.table + int64_t{entry} * arguments.cols;
  const int end =
      arguments.cols -
      (HasPlantedBug(PlantedBug::kGatherLosesTheLastColumns) ? 8 : 0);
  uint16_t* to = arguments.x + token * arguments.cols;
  for (int c = simt::ThreadX() * 8; c < end; c += kThreads * 8) {
    float values[8], sums[8];
    Unpack<kType>(simt::Load16(from + c), values);
    if (arguments.adds) {
      Unpack<kType>(simt::Load16(to + c), sums);
      SIMT_UNROLL
      for (int i = 0; i < 8; ++i) values[i] += sums[i];
    } else {
      SIMT_UNROLL
      for (int i = 0; i < 8; ++i) values[i] *= arguments.scale;
    }
    simt::Store16(to + c, Pack<kType>(values));
  }
}

// One CTA per token. The row is read again for the second pass: it lies in L1
// by then, and registers need no bound on its length.
template <DType kType>
SIMT_KERNEL(kThreads)
NormKernel(const NormArguments arguments) {
  using Rows = NormRows<kType, 1>;
  SIMT_SHARED(float, scratch, Rows::kScratch);
  const bool is_early = HasPlantedBug(PlantedBug::kNormBeforeWait);
  if (!is_early) simt::WaitForPrevious();
  if (!is_early) simt::LaunchNext();
  const int cols = arguments.cols;
  const int64_t out_row = int64_t{simt::CtaX()} * cols;
  const Rows rows(arguments, static_cast<int>(simt::CtaX()), scratch);
  if (is_early) simt::WaitForPrevious();
  // Each thread writes only what it alone has read: out and residual_out may
  // alias the inputs.
  for (int c = simt::ThreadX() * 8; c < cols; c += kThreads * 8) {
    float values[8];
    rows.Load(0, c, values);
    rows.StoreSum(0, c, values);
    rows.Norm(0, c, values);
    SIMT_UNROLL
    for (int i = 0; i < 8; ++i) {
      values[i] = simt::Product(values[i], arguments.scale);
    }
    if (arguments.addend) {
      float addend[8];
      Unpack<kType>(simt::Load16(arguments.addend + out_row + c), addend);
      SIMT_UNROLL
      for (int i = 0; i < 8; ++i) values[i] += addend[i];
    }
    if (arguments.out_f32) {
      SIMT_UNROLL
      for (int i = 0; i < 8; ++i)
        arguments.out_f32[out_row + c + i] = values[i];
    }
    if (arguments.out) {
      simt::Store16(arguments.out + out_row + c, Pack<kType>(values));
    }
  }
}

template <DType kType>
SIMT_KERNEL(kThreads)
GatedKernel(const GatedArguments arguments) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t token = simt::CtaX();
  const int c = (simt::CtaY() * kThreads + simt::ThreadX()) * 8;
  if (c >= arguments.cols && !HasPlantedBug(PlantedBug::kGatedNoGuard)) return;
  const uint16_t* x = arguments.x + (token * arguments.cols + c) * 2;
  float gate[8], up[8];
  Unpack<kType>(simt::Load16(x), gate);
  Unpack<kType>(simt::Load16(x + 8), up);
  SIMT_UNROLL
  for (int i = 0; i < 8; ++i) {
    gate[i] = HasPlantedBug(PlantedBug::kGatedSwapsGateAndUp)
                  ? GatedValue(arguments.activation, up[i], gate[i])
                  : GatedValue(arguments.activation, gate[i], up[i]);
  }
  simt::Store16(arguments.out + token * arguments.cols + c, Pack<kType>(gate));
}

// The mean and 1 / sqrt(variance + eps) of all heads of q, or of k, of a token:
// one CTA each.
template <DType kType>
SIMT_KERNEL(kThreads)
HeadStatisticsKernel(const RopeArguments arguments) {
  SIMT_SHARED(float, scratch, kThreads / 32);
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t token = simt::CtaX();
  const bool is_q = simt::CtaY() == 0;
  const HeadNorm& norm = is_q ? arguments.q_norm : arguments.k_norm;
  const int cols = (is_q ? arguments.num_heads : arguments.num_kv_heads) *
                   arguments.head_dim;
  const uint16_t* x =
      arguments.qkv + token * arguments.qkv_stride +
      (is_q || HasPlantedBug(PlantedBug::kHeadStatisticsOfTheQueries)
           ? 0
           : arguments.num_heads * arguments.head_dim);
  float mean = 0;
  if (norm.kind == NormArguments::Kind::kLayer) {
    float sum = 0;
    for (int c = simt::ThreadX(); c < cols; c += kThreads) {
      sum += Element<kType>::ToFloat(x[c]);
    }
    mean = CtaSum(sum, scratch) / static_cast<float>(cols);
  }
  float sum = 0;
  for (int c = simt::ThreadX(); c < cols; c += kThreads) {
    const float value = Element<kType>::ToFloat(x[c]) - mean;
    sum += value * value;
  }
  sum = CtaSum(sum, scratch);
  if (simt::ThreadX() == 0) {
    float* statistics = arguments.statistics + (token * 2 + (is_q ? 0 : 1)) * 2;
    statistics[0] = mean;
    statistics[1] =
        arguments.num_norm_ranks > 0
            ? sum
            : simt::Rsqrt(sum / static_cast<float>(cols) + norm.eps);
  }
}

// One warp per (token, head of q, k or v); lane l holds dimensions l, l + 32,
// ..
constexpr int kMaxPerLane = 256 / 32;

// Norms the warp's head.
//   statistics: mean and factor; read only if the norm spans all heads.
//   num_summed: of the elements whose squares are summed in place of the
//   factor; 0: none.
SIMT_DEVICE void NormHead(const HeadNorm& norm, const float* statistics,
                          int num_summed, int head, int head_dim,
                          float (&values)[kMaxPerLane]) {
  const int lane = simt::ThreadX() % 32;
  float mean = 0, inverse = 1;
  if (norm.span == HeadNorm::Span::kAllHeads) {
    mean = statistics[0];
    inverse = num_summed == 0
                  ? statistics[1]
                  : simt::Rsqrt(statistics[1] / static_cast<float>(num_summed) +
                                norm.eps);
  } else {
    if (norm.kind == NormArguments::Kind::kLayer) {
      float sum = 0;
      SIMT_UNROLL
      for (int i = 0; i < kMaxPerLane; ++i) sum += values[i];
      mean = WarpSum(sum) / static_cast<float>(head_dim);
    }
    float sum = 0;
    SIMT_UNROLL
    for (int i = 0; i < kMaxPerLane; ++i) {
      const float value = i * 32 + lane < head_dim ? values[i] - mean : 0.0f;
      sum += value * value;
    }
    inverse =
        simt::Rsqrt(WarpSum(sum) / static_cast<float>(head_dim) + norm.eps);
  }
  const bool is_shared = norm.span == HeadNorm::Span::kHead ||
                         HasPlantedBug(PlantedBug::kRopeNormsWithTheFirstHead);
  const int first = is_shared ? 0 : head * head_dim;
  SIMT_UNROLL
  for (int i = 0; i < kMaxPerLane; ++i) {
    const int d = i * 32 + lane;
    if (d >= head_dim) continue;
    values[i] = (values[i] - mean) * inverse *
                (norm.weight_offset + norm.weight[first + d]);
    if (norm.bias) values[i] += norm.bias[first + d];
  }
}

// Rotates a head that a warp holds. The partner of a dimension lies in another
// lane, at a distance that depends on rotary_dim: through `mine`, [256],
// shared.
SIMT_DEVICE void Rotate(const RopeArguments& arguments, int64_t token,
                        int position, float* mine,
                        float (&values)[kMaxPerLane]) {
  const int lane = simt::ThreadX() % 32;
  SIMT_UNROLL
  for (int i = 0; i < kMaxPerLane; ++i) mine[i * 32 + lane] = values[i];
  if (!HasPlantedBug(PlantedBug::kRopeNoSyncWarp)) simt::SyncWarp();
  const int half = arguments.rotary_dim / 2;
  const bool is_long =
      arguments.long_rope_table &&
      arguments.start_tokens[token] > arguments.long_rope_after;
  const float* table =
      (is_long ? arguments.long_rope_table : arguments.rope_table) +
      int64_t{position} * arguments.rotary_dim;
  SIMT_UNROLL
  for (int i = 0; i < kMaxPerLane; ++i) {
    const int d = i * 32 + lane;
    if (d >= arguments.rotary_dim) continue;
    const bool is_second = arguments.is_interleaved ? d % 2 == 1 : d >= half;
    const int pair = arguments.is_interleaved ? d / 2 : d % half;
    const int partner = arguments.is_interleaved ? d ^ 1
                        : is_second              ? d - half
                                                 : d + half;
    const float cosine = table[pair], sine = table[half + pair];
    values[i] = is_second ? mine[d] * cosine + mine[partner] * sine
                          : mine[d] * cosine - mine[partner] * sine;
  }
}

template <DType kType, DType kKv>
SIMT_KERNEL(kThreads)
RopeKernel(const RopeArguments arguments) {
  SIMT_SHARED(float, rows, kThreads / 32 * 256);
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int warp = simt::ThreadX() / 32, lane = simt::ThreadX() % 32;
  const int num_rows = arguments.num_heads + 2 * arguments.num_kv_heads;
  const int64_t item = int64_t{simt::CtaX()} * (kThreads / 32) + warp;
  if (item >= int64_t{arguments.num_tokens} * num_rows) return;
  const int64_t token = item / num_rows;
  // Padding: it has no cache.
  if (arguments.table_rows[token] < 0 &&
      !HasPlantedBug(PlantedBug::kRopeWritesPadding)) {
    return;
  }
  const int row = static_cast<int>(item % num_rows);
  const bool is_q = row < arguments.num_heads;
  const bool is_v = row >= arguments.num_heads + arguments.num_kv_heads;
  const int head_dim = arguments.head_dim;
  uint16_t* x =
      arguments.qkv + token * arguments.qkv_stride + int64_t{row} * head_dim;

  float values[kMaxPerLane];
  SIMT_UNROLL
  for (int i = 0; i < kMaxPerLane; ++i) {
    const int d = i * 32 + lane;
    values[i] = d < head_dim ? Element<kType>::ToFloat(x[d]) : 0.0f;
  }
  const HeadNorm& norm = is_q ? arguments.q_norm : arguments.k_norm;
  if (!is_v && norm.kind != NormArguments::Kind::kNone) {
    // Without such norms there may be none, and null takes no offset.
    const float* const statistics =
        norm.span == HeadNorm::Span::kAllHeads
            ? arguments.statistics + (token * 2 + (is_q ? 0 : 1)) * 2
            : nullptr;
    NormHead(norm, statistics,
             arguments.num_norm_ranks *
                 (is_q ? arguments.num_heads : arguments.num_kv_heads) *
                 head_dim,
             is_q ? row : row - arguments.num_heads, head_dim, values);
  }
  const int position = arguments.positions[token];
  if (arguments.rope_table && !is_v) {
    const int scratch = HasPlantedBug(PlantedBug::kRopeOneScratch) ? 0 : warp;
    Rotate(arguments, token, position, rows + scratch * 256, values);
  }
  const auto store = [&](auto* to, auto from_float) {
    SIMT_UNROLL
    for (int i = 0; i < kMaxPerLane; ++i) {
      const int d = i * 32 + lane;
      if (d < head_dim) to[d] = from_float(values[i]);
    }
  };
  const auto to_16_bits = [](float value) {
    return Element<kType>::FromFloat(value);
  };
  if (is_q) return store(x, to_16_bits);
  const int kv_head = is_v ? row - arguments.num_heads - arguments.num_kv_heads
                           : row - arguments.num_heads;
  const int place =
      position +
      (HasPlantedBug(PlantedBug::kRopeBlockOfTheNextPosition) ? 1 : 0);
  const int slot =
      position + (HasPlantedBug(PlantedBug::kRopeWritesTheNextSlot) ? 1 : 0);
  const int64_t block =
      arguments.block_tables[arguments.table_rows[token] *
                                 arguments.block_table_stride +
                             place / arguments.block_size];
  const int64_t to =
      (((block * 2 + (is_v ? 1 : 0)) * arguments.num_kv_heads + kv_head) *
           arguments.block_size +
       slot % arguments.block_size) *
      head_dim;
  if constexpr (kKv == DType::kF8E4M3) {
    store(static_cast<uint8_t*>(arguments.kv_cache) + to,
          [](float value) { return simt::FloatToE4M3(value); });
  } else {
    store(static_cast<uint16_t*>(arguments.kv_cache) + to, to_16_bits);
  }
}

SIMT_KERNEL(kThreads)
BlockCopyKernel(const BlockCopyArguments arguments) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int32_t* pair = arguments.pairs + 2 * simt::CtaX();
  const int64_t layer_idx =
      HasPlantedBug(PlantedBug::kBlockCopyOneLayer) ? 0 : simt::CtaY();
  unsigned char* layer = arguments.kv_cache + layer_idx * arguments.layer_bytes;
  const unsigned char* from = layer + pair[0] * arguments.block_bytes;
  unsigned char* to = layer + pair[1] * arguments.block_bytes;
  const int64_t end =
      arguments.block_bytes -
      (HasPlantedBug(PlantedBug::kBlockCopyLosesTheLastPiece) ? 16 : 0);
  for (int64_t i = simt::ThreadX() * 16; i < end; i += kThreads * 16) {
    simt::Store16(to + i, simt::Load16(from + i));
  }
}

simt::LaunchShape Shape(int64_t num_ctas_x, int64_t num_ctas_y = 1) {
  return {.num_ctas_x = static_cast<uint32_t>(num_ctas_x),
          .num_ctas_y = static_cast<uint32_t>(num_ctas_y),
          .num_threads = kThreads,
          .waits_for_previous = true};
}

bool IsHalf(DType dtype) {
  return dtype == DType::kBF16 || dtype == DType::kF16;
}

}  // namespace

bool LaunchGather(const GatherArguments& arguments, simt::Stream stream) {
  if (!IsHalf(arguments.dtype) || arguments.cols % 8 != 0) return false;
  if (arguments.num_tokens == 0) return true;
  return simt::Launch(arguments.dtype == DType::kBF16
                          ? &GatherKernel<DType::kBF16>
                          : &GatherKernel<DType::kF16>,
                      Shape(arguments.num_tokens), stream, arguments);
}

bool LaunchNorm(const NormArguments& arguments, simt::Stream stream) {
  if (!IsHalf(arguments.dtype) || arguments.cols % 8 != 0) return false;
  if (arguments.num_tokens == 0) return true;
  return simt::Launch(arguments.dtype == DType::kBF16
                          ? &NormKernel<DType::kBF16>
                          : &NormKernel<DType::kF16>,
                      Shape(arguments.num_tokens), stream, arguments);
}

bool LaunchGated(const GatedArguments& arguments, simt::Stream stream) {
  if (!IsHalf(arguments.dtype) || arguments.cols % 8 != 0) return false;
  if (arguments.num_tokens == 0) return true;
  return simt::Launch(
      arguments.dtype == DType::kBF16 ? &GatedKernel<DType::kBF16>
                                      : &GatedKernel<DType::kF16>,
      Shape(arguments.num_tokens,
            (arguments.cols + kThreads * 8 - 1) / (kThreads * 8)),
      stream, arguments);
}

bool LaunchHeadSquares(const RopeArguments& arguments, simt::Stream stream) {
  return arguments.statistics != nullptr &&
         simt::Launch(arguments.dtype == DType::kBF16
                          ? &HeadStatisticsKernel<DType::kBF16>
                          : &HeadStatisticsKernel<DType::kF16>,
                      Shape(arguments.num_tokens, 2), stream, arguments);
}

bool LaunchRopeAndCache(const RopeArguments& arguments, simt::Stream stream) {
  if (!IsHalf(arguments.dtype) ||
      (arguments.kv_dtype != arguments.dtype &&
       arguments.kv_dtype != DType::kF8E4M3) ||
      arguments.head_dim > 256 || arguments.rotary_dim > arguments.head_dim ||
      arguments.rotary_dim % 2 != 0) {
    return false;
  }
  const int64_t num_items = int64_t{arguments.num_tokens} *
                            (arguments.num_heads + 2 * arguments.num_kv_heads);
  if (num_items == 0) return true;
  const bool spans_heads = arguments.q_norm.span == HeadNorm::Span::kAllHeads ||
                           arguments.k_norm.span == HeadNorm::Span::kAllHeads;
  if (spans_heads && arguments.num_norm_ranks == 0 &&
      !LaunchHeadSquares(arguments, stream)) {
    return false;
  }
  constexpr int kWarps = kThreads / 32;
  constexpr DType kBf16 = DType::kBF16, kF16 = DType::kF16,
                  kFp8 = DType::kF8E4M3;
  const bool is_fp8 = arguments.kv_dtype == kFp8;
  return simt::Launch(
      arguments.dtype == kBf16
          ? (is_fp8 ? &RopeKernel<kBf16, kFp8> : &RopeKernel<kBf16, kBf16>)
          : (is_fp8 ? &RopeKernel<kF16, kFp8> : &RopeKernel<kF16, kF16>),
      Shape((num_items + kWarps - 1) / kWarps), stream, arguments);
}

bool LaunchBlockCopy(const BlockCopyArguments& arguments, simt::Stream stream) {
  if (arguments.block_bytes % 16 != 0) return false;
  if (arguments.num_pairs == 0) return true;
  return simt::Launch(&BlockCopyKernel,
                      Shape(arguments.num_pairs, arguments.num_layers), stream,
                      arguments);
}

}  // namespace quire::cuda
