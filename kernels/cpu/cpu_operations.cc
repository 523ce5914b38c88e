// The operations of the CPU backend: checks of shapes, prologues, and calls of
// the kernels.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_step.h"
#include "kernels/cpu/elementwise.h"

namespace quire {
namespace {

// Elements of kSize bytes, `stride` bytes apart in `to`.
template <int kSize>
void ScatterElements(const char* from, int64_t count, int64_t stride,
                     char* to) {
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * stride, from + i * kSize, kSize);
  }
}

// The RMS norm of all heads together, whose factor is known.
void ScaleHeads(const NormSpec& norm, float factor, float* heads) {
  const float* const weight = norm.weight.row<const float>(0);
  for (int64_t i = 0; i < norm.weight.cols; ++i) {
    heads[i] *= factor * (norm.weight_offset + weight[i]);
  }
}

// Stores one token in its slot of a block.
//   kv: [2 * num_kv_heads, head_dim], K of all heads and then V.
//   row: room for head_dim elements.
void WriteKvOfToken(Isa isa, const KvBlockLayout& layout, int64_t slot,
                    const float* kv, char* block, char* row) {
  const int64_t size = DTypeSize(layout.dtype);
  for (int i = 0; i < 2 * layout.num_kv_heads; ++i) {
    const bool is_k = i < layout.num_kv_heads;
    const int head = is_k ? i : i - layout.num_kv_heads;
    const float* const from = kv + int64_t{i} * layout.head_dim;
    char* const to = is_k ? row : block + layout.V(head, slot, 0);
    if (layout.dtype == DType::kI8) {
      const float scale = QuantizeRow(isa, from, layout.head_dim,
                                      reinterpret_cast<int8_t*>(to));
      std::memcpy(block + (is_k ? layout.KScale(head, slot)
                                : layout.VScale(head, slot)),
                  &scale, sizeof(scale));
    } else {
      ConvertRow(isa, from, layout.head_dim, layout.dtype, to);
    }
    if (!is_k) continue;
    char* const k = block + layout.K(head, slot, 0);
    const int64_t stride = layout.block_size * size;
    switch (size) {
      case 1:
        ScatterElements<1>(row, layout.head_dim, stride, k);
        break;
      case 2:
        ScatterElements<2>(row, layout.head_dim, stride, k);
        break;
      default:
        ScatterElements<4>(row, layout.head_dim, stride, k);
    }
  }
}

}  // namespace

absl::Status CpuBackend::Embed(Step& step, const PackedWeight& vocab,
                               const PackedWeight* positions, float scale,
                               TensorView out) {
  const CpuStep& cpu_step = AsCpuStep(step);
  const auto& table = static_cast<const PackedMatrix&>(vocab);
  const auto* position_table = static_cast<const PackedMatrix*>(positions);
  QUIRE_RETURN_IF_ERROR(
      CheckView("Embed: out", out, cpu_step.num_tokens, vocab.cols));
  if (vocab.rows < shape_.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("Embed: the table has ", vocab.rows,
                     " rows, vocab_size is ", shape_.vocab_size));
  }
  if (positions != nullptr && (positions->cols != vocab.cols ||
                               positions->rows < shape_.max_model_len)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "Embed: positions are [", positions->rows, ", ", positions->cols,
        "], not [>= ", shape_.max_model_len, ", ", vocab.cols, "]"));
  }
  pool_.ParallelFor(
      cpu_step.num_tokens, 16, [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t) {
          float* row = out.row<float>(t);
          UnpackRow(table, cpu_step.token_ids[t], row);
          if (position_table == nullptr) {
            if (scale != 1.0f) {
              ScaleAddRow(isa_, scale, nullptr, vocab.cols, row);
            }
            continue;
          }
          float* addend = normed_ + t * normed_stride_;
          UnpackRow(*position_table, cpu_step.positions[t], addend);
          ScaleAddRow(isa_, scale, addend, vocab.cols, row);
        }
      });
  return absl::OkStatus();
}

absl::Status CpuBackend::AddPositions(Step& step, const PackedWeight& positions,
                                      TensorView x) {
  const CpuStep& cpu_step = AsCpuStep(step);
  const auto& table = static_cast<const PackedMatrix&>(positions);
  QUIRE_RETURN_IF_ERROR(
      CheckView("AddPositions: x", x, cpu_step.num_tokens, table.cols));
  if (table.rows < shape_.max_model_len) {
    return absl::InvalidArgumentError(
        absl::StrCat("AddPositions: the table has ", table.rows,
                     " rows, max_model_len is ", shape_.max_model_len));
  }
  pool_.ParallelFor(
      cpu_step.num_tokens, 16, [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t) {
          float* addend = normed_ + t * normed_stride_;
          UnpackRow(table, cpu_step.positions[t], addend);
          ScaleAddRow(isa_, 1.0f, addend, table.cols, x.row<float>(t));
        }
      });
  return absl::OkStatus();
}

absl::Status CpuBackend::CheckPrologue(const Prologue& prologue, int64_t rows,
                                       int64_t cols) const {
  QUIRE_RETURN_IF_ERROR(CheckNorm("norm weight", prologue.norm, cols));
  if (!prologue.residual.empty()) {
    QUIRE_RETURN_IF_ERROR(CheckView("residual", prologue.residual, rows, cols));
  }
  if (!prologue.residual_out.empty()) {
    QUIRE_RETURN_IF_ERROR(
        CheckView("residual_out", prologue.residual_out, rows, cols));
  }
  return absl::OkStatus();
}

void CpuBackend::ApplyPrologue(const Prologue& prologue, int64_t num_rows,
                               const int32_t* row_idxs, TensorView x,
                               float* out, int64_t out_stride) {
  pool_.ParallelFor(num_rows, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = row_idxs == nullptr ? i : row_idxs[i];
      NormRow(
          isa_, prologue.norm, x.cols, x.row<const float>(row),
          prologue.residual.empty() ? nullptr
                                    : prologue.residual.row<const float>(row),
          prologue.residual_out.empty() ? nullptr
                                        : prologue.residual_out.row<float>(row),
          out + i * out_stride);
    }
  });
}

absl::Status CpuBackend::Norm(Step& step, TensorView x,
                              const Prologue& prologue, TensorView out) {
  const CpuStep& cpu_step = AsCpuStep(step);
  const int64_t num_rows = cpu_step.num_tokens;
  QUIRE_RETURN_IF_ERROR(CheckView("Norm: x", x, num_rows, x.cols));
  QUIRE_RETURN_IF_ERROR(CheckView("Norm: out", out, num_rows, x.cols));
  QUIRE_RETURN_IF_ERROR(CheckPrologue(prologue, num_rows, x.cols));
  ApplyPrologue(prologue, num_rows, nullptr, x, out.row<float>(0),
                out.row_stride);
  return absl::OkStatus();
}

absl::Status CpuBackend::Linear(Step& step, TensorView x,
                                const Prologue& prologue,
                                const PackedWeight& weight,
                                const Epilogue& epilogue, TensorView out) {
  const CpuStep& cpu_step = AsCpuStep(step);
  const int64_t num_rows = cpu_step.num_tokens;
  const bool is_gated = IsGated(epilogue.activation);
  if (is_gated && weight.kind != LinearKind::kGateUp) {
    return absl::InvalidArgumentError(
        "Linear: a gated activation needs kGateUp weights");
  }
  const int64_t out_cols = is_gated ? weight.rows / 2 : weight.rows;
  QUIRE_RETURN_IF_ERROR(CheckView("Linear: x", x, num_rows, weight.cols));
  QUIRE_RETURN_IF_ERROR(CheckView("Linear: out", out, num_rows, out_cols));
  QUIRE_RETURN_IF_ERROR(CheckPrologue(prologue, num_rows, weight.cols));
  MatmulParams params;
  params.num_rows = num_rows;
  params.activation = epilogue.activation;
  const bool has_norm = epilogue.norm.kind != NormSpec::Kind::kNone;
  const bool is_finished_later = has_norm || epilogue.all_reduce != nullptr;
  TensorView product = is_finished_later ? epilogue.norm_input : out;
  if (is_finished_later) {
    QUIRE_RETURN_IF_ERROR(
        CheckNorm("Linear: norm of the product", epilogue.norm, out_cols));
    QUIRE_RETURN_IF_ERROR(
        CheckView("Linear: norm_input", product, num_rows, out_cols));
  }
  if (epilogue.all_reduce != nullptr) {
    if (epilogue.activation != Epilogue::Activation::kNone) {
      return absl::InvalidArgumentError(
          "Linear: an activation of a sum over ranks");
    }
    product = TensorView::Matrix(product.data, DType::kF32, num_rows, out_cols);
  }
  params.out = product.row<float>(0);
  params.out_stride = product.row_stride;
  if (!epilogue.residual.empty()) {
    QUIRE_RETURN_IF_ERROR(
        CheckView("Linear: residual", epilogue.residual, num_rows, out_cols));
  }
  if (!is_finished_later) {
    params.out_scale = epilogue.scale;
    if (!epilogue.residual.empty()) {
      params.residual = epilogue.residual.row<const float>(0);
      params.residual_stride = epilogue.residual.row_stride;
    }
  }
  if (out.data == x.data || product.data == x.data ||
      (is_finished_later &&
       (product.data == out.data || product.data == epilogue.residual.data))) {
    return absl::InvalidArgumentError(
        "Linear: out and norm_input must not alias x or each other");
  }
  if (prologue.norm.kind == NormSpec::Kind::kNone &&
      prologue.residual.empty() && prologue.residual_out.empty()) {
    params.x = x.row<const float>(0);
    params.x_stride = x.row_stride;
  } else {
    ApplyPrologue(prologue, num_rows, nullptr, x, normed_, normed_stride_);
    params.x = normed_;
    params.x_stride = normed_stride_;
  }
  Matmul(pool_, isa_, static_cast<const PackedMatrix&>(weight), params,
         *matmul_scratch_);
  if (epilogue.all_reduce != nullptr) {
    QUIRE_RETURN_IF_ERROR(epilogue.all_reduce->AllReduceSum(product, nullptr));
  }
  if (is_finished_later) FinishProduct(epilogue, num_rows, product, out);
  return absl::OkStatus();
}

// out = scale * norm(product) + residual; overwrites the product.
void CpuBackend::FinishProduct(const Epilogue& epilogue, int64_t num_rows,
                               TensorView product, TensorView out) {
  const bool has_norm = epilogue.norm.kind != NormSpec::Kind::kNone;
  pool_.ParallelFor(num_rows, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      float* values = product.row<float>(row);
      if (has_norm) {
        NormRow(isa_, epilogue.norm, out.cols, values, nullptr, nullptr,
                values);
      }
      ScaleAddRow(isa_, epilogue.scale,
                  epilogue.residual.empty()
                      ? nullptr
                      : epilogue.residual.row<const float>(row),
                  out.cols, values);
      std::copy_n(values, out.cols, out.row<float>(row));
    }
  });
}

// The sum of squares of heads. That of a head is in double, those of the heads
// are added by halves, as ranks that have half of the heads each do it.
float SumHeadSquares(const float* heads, int num_heads, int head_dim) {
  if (num_heads > 1 && num_heads % 2 == 0) {
    const int half = num_heads / 2;
    return SumHeadSquares(heads, half, head_dim) +
           SumHeadSquares(heads + int64_t{half} * head_dim, half, head_dim);
  }
  float sum = 0.0f;
  for (int head = 0; head < num_heads; ++head) {
    const float* const x = heads + int64_t{head} * head_dim;
    // Four chains: additions wait for their predecessors.
    double sums[4] = {};
    for (int i = 0; i < head_dim; ++i) sums[i % 4] += double{x[i]} * x[i];
    sum += static_cast<float>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return sum;
}

// RMS norms of all heads together: the factors of q and k of every token, in
// norm_factors_.
absl::Status CpuBackend::MeasureHeads(const CpuStep& step,
                                      const AttentionSpec& spec,
                                      TensorView qkv) {
  const int64_t q_cols = int64_t{spec.num_heads} * spec.head_dim;
  const int64_t k_cols = int64_t{spec.num_kv_heads} * spec.head_dim;
  float* const factors = norm_factors_.data();
  pool_.ParallelFor(step.num_tokens, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float* const heads = qkv.row<const float>(t);
      factors[2 * t] = SumHeadSquares(heads, spec.num_heads, spec.head_dim);
      factors[2 * t + 1] =
          SumHeadSquares(heads + q_cols, spec.num_kv_heads, spec.head_dim);
    }
  });
  float size = 1.0f;
  if (spec.norm_ranks != nullptr) {
    QUIRE_RETURN_IF_ERROR(spec.norm_ranks->AllReduceSum(
        TensorView::Matrix(factors, DType::kF32, step.num_tokens, 2), nullptr));
    size = static_cast<float>(spec.norm_ranks->size());
  }
  for (int64_t t = 0; t < step.num_tokens; ++t) {
    const auto factor = [size](float sum, int64_t cols, float eps) {
      return 1.0f / std::sqrt(sum / (size * static_cast<float>(cols)) + eps);
    };
    factors[2 * t] = factor(factors[2 * t], q_cols, spec.q_norm.eps);
    factors[2 * t + 1] = factor(factors[2 * t + 1], k_cols, spec.k_norm.eps);
  }
  return absl::OkStatus();
}

// The QK-norm of a token's heads, in place; see AttentionSpec for the shapes.
void CpuBackend::NormHeads(const NormSpec& norm, int num_heads, int head_dim,
                           float* heads) {
  if (norm.kind == NormSpec::Kind::kNone) return;
  if (norm.weight.cols != head_dim) {
    NormRow(isa_, norm, norm.weight.cols, heads, nullptr, nullptr, heads);
    return;
  }
  NormSpec own = norm;
  for (int i = 0; i < num_heads; ++i) {
    float* values = heads + int64_t{i} * head_dim;
    NormRow(isa_, own, head_dim, values, nullptr, nullptr, values);
    if (norm.weight.rows == 1) continue;
    if (i + 1 == num_heads) break;
    own.weight.data = norm.weight.row<float>(i + 1);
    if (!norm.bias.empty()) own.bias.data = norm.bias.row<float>(i + 1);
  }
}

void CpuBackend::WriteKv(const CpuStep& step, const KvLayers& kv, int layer,
                         TensorView qkv) {
  const AttentionSpec& spec = kv.spec;
  const int head_dim = spec.head_dim;
  char* const base = kv.memory.data() + layer * kv.layer_bytes;
  // Tokens of a block share cache lines of K: whole blocks where there are
  // many.
  const int64_t chunk = step.num_tokens < 64 ? 4 : 16;
  const bool is_measured = MeasuresHeads(spec);
  pool_.ParallelFor(
      step.num_tokens, chunk, [&](int64_t begin, int64_t end, int thread_idx) {
        for (int64_t t = begin; t < end; ++t) {
          const int64_t position = step.positions[t];
          float* head = qkv.row<float>(t);
          float* const k = head + int64_t{spec.num_heads} * head_dim;
          if (!is_measured) {
            NormHeads(spec.q_norm, spec.num_heads, head_dim, head);
            NormHeads(spec.k_norm, spec.num_kv_heads, head_dim, k);
          } else {
            ScaleHeads(spec.q_norm, norm_factors_[2 * t], head);
            ScaleHeads(spec.k_norm, norm_factors_[2 * t + 1], k);
          }
          const int32_t row_idx = step.token_row[t];
          const SlotState& slot = slots_[step.rows[row_idx].row.slot];
          const bool is_long = !spec.long_rope_table.empty() &&
                               slot.num_start_tokens > spec.long_rope_after;
          const TensorView& rope =
              is_long ? spec.long_rope_table : spec.rope_table;
          const int num_rotated =
              rope.empty() ? 0 : spec.num_heads + spec.num_kv_heads;
          for (int i = 0; i < num_rotated; ++i) {
            RopeHead(isa_, rope.row<const float>(position),
                     static_cast<int>(rope.cols), spec.rope_interleaved,
                     head + int64_t{i} * head_dim);
          }
          const AttentionRow& row = step.attention_rows[row_idx];
          const int64_t block = row.block_table[position / shape_.block_size];
          WriteKvOfToken(isa_, kv.layout, position % shape_.block_size,
                         head + int64_t{spec.num_heads} * head_dim,
                         base + block * kv.layout.BlockBytes(),
                         kv_rows_.data() + thread_idx * kv_row_bytes_);
        }
      });
}

absl::Status CpuBackend::Attention(Step& step, int spec_id, int layer,
                                   TensorView qkv, TensorView out) {
  const CpuStep& cpu_step = AsCpuStep(step);
  if (spec_id < 0 || spec_id >= static_cast<int>(kv_.size()) || layer < 0 ||
      layer >= kv_[spec_id].spec.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("Attention: no layer ", layer, " of spec ", spec_id));
  }
  const KvLayers& kv = kv_[spec_id];
  const AttentionSpec& spec = kv.spec;
  const int64_t q_cols = int64_t{spec.num_heads} * spec.head_dim;
  const int64_t kv_cols = int64_t{spec.num_kv_heads} * spec.head_dim;
  QUIRE_RETURN_IF_ERROR(CheckView("Attention: qkv", qkv, cpu_step.num_tokens,
                                  q_cols + 2 * kv_cols));
  QUIRE_RETURN_IF_ERROR(
      CheckView("Attention: out", out, cpu_step.num_tokens, q_cols));
  if (cpu_step.num_tokens == 0) return absl::OkStatus();
  if (MeasuresHeads(spec)) {
    QUIRE_RETURN_IF_ERROR(MeasureHeads(cpu_step, spec, qkv));
  }
  WriteKv(cpu_step, kv, layer, qkv);
  PagedAttentionParams params;
  params.rows = cpu_step.attention_rows;
  params.q = qkv.row<const float>(0);
  params.q_stride = qkv.row_stride;
  params.out = out.row<float>(0);
  params.out_stride = out.row_stride;
  params.kv = kv.memory.data() + layer * kv.layer_bytes;
  params.kv_dtype = spec.kv_dtype;
  params.block_bytes = kv.layout.BlockBytes();
  params.num_heads = spec.num_heads;
  params.num_kv_heads = spec.num_kv_heads;
  params.head_dim = spec.head_dim;
  params.block_size = shape_.block_size;
  params.sliding_window = spec.sliding_window;
  params.scale = spec.scale;
  params.softcap = spec.softcap;
  PagedAttention(pool_, isa_, params, *attention_scratch_);
  return absl::OkStatus();
}

absl::Status CpuBackend::Logits(Step& step, TensorView hidden,
                                const Prologue& prologue,
                                const PackedWeight& vocab, float scale,
                                float softcap, TensorView out) {
  const CpuStep& cpu_step = AsCpuStep(step);
  const int64_t num_rows = cpu_step.num_logits;
  QUIRE_RETURN_IF_ERROR(
      CheckView("Logits: hidden", hidden, cpu_step.num_tokens, vocab.cols));
  QUIRE_RETURN_IF_ERROR(
      CheckPrologue(prologue, cpu_step.num_tokens, vocab.cols));
  const bool may_be_slice =
      shape_.tensor_ranks != nullptr && vocab.rows < shape_.vocab_size;
  if (vocab.kind != LinearKind::kVocab ||
      (vocab.rows != shape_.vocab_size && !may_be_slice)) {
    return absl::InvalidArgumentError(
        absl::StrCat("Logits: the weights have ", vocab.rows,
                     " rows, vocab_size is ", shape_.vocab_size));
  }
  QUIRE_RETURN_IF_ERROR(CheckView("Logits: out", out, num_rows, vocab.rows));
  if (num_rows == 0) return absl::OkStatus();
  ApplyPrologue(prologue, num_rows, cpu_step.logit_token.data(), hidden,
                normed_, normed_stride_);
  MatmulParams params;
  params.x = normed_;
  params.x_stride = normed_stride_;
  params.num_rows = num_rows;
  params.out = out.row<float>(0);
  params.out_stride = out.row_stride;
  params.out_scale = scale;
  Matmul(pool_, isa_, static_cast<const PackedMatrix&>(vocab), params,
         *matmul_scratch_);
  if (softcap > 0.0f) {
    constexpr int64_t kPieceCols = 8192;  // Tens of microseconds of tanh.
    const int64_t pieces = (vocab.rows + kPieceCols - 1) / kPieceCols;
    pool_.ParallelFor(num_rows * pieces, 1, [&](int64_t begin, int64_t, int) {
      const int64_t col = begin % pieces * kPieceCols;
      SoftcapRow(isa_, softcap, std::min(kPieceCols, vocab.rows - col),
                 out.row<float>(begin / pieces) + col);
    });
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::GatherLogitRows(Step& step, TensorView x,
                                         TensorView out) {
  const CpuStep& cpu_step = AsCpuStep(step);
  QUIRE_RETURN_IF_ERROR(
      CheckView("GatherLogitRows: x", x, cpu_step.num_tokens, x.cols));
  QUIRE_RETURN_IF_ERROR(
      CheckView("GatherLogitRows: out", out, cpu_step.num_logits, x.cols));
  for (int32_t i = 0; i < cpu_step.num_logits; ++i) {
    std::copy_n(x.row<float>(cpu_step.logit_token[i]), x.cols,
                out.row<float>(i));
  }
  return absl::OkStatus();
}

// Adds x' of every token, which lies in normed_, to its slot's sum.
absl::Status CpuBackend::AddToPooledSums(const CpuStep& step) {
  for (const StepRowState& state : step.rows) {
    SlotState& slot = slots_[state.row.slot];
    if (slot.num_pooled_tokens != state.first_position) {
      return absl::FailedPreconditionError(absl::StrCat(
          "Pool: slot ", state.row.slot, " has pooled ", slot.num_pooled_tokens,
          " tokens and goes on at position ", state.first_position));
    }
    slot.num_pooled_tokens += state.row.num_tokens;
  }
  // One thread adds a column's values, in order of position: the sum is the
  // same for every chunking. 64 columns: a few cache lines of each token.
  constexpr int64_t kPieceCols = 64;
  const int64_t cols = shape_.pooled_cols;
  const int64_t pieces = (cols + kPieceCols - 1) / kPieceCols;
  pool_.ParallelFor(
      step.rows.size() * pieces, 4, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          const StepRowState& state = step.rows[i / pieces];
          double* sum = slots_[state.row.slot].pooled_sum;
          const int64_t first_col = i % pieces * kPieceCols;
          const int64_t end_col = std::min(first_col + kPieceCols, cols);
          for (int32_t t = 0; t < state.row.num_tokens; ++t) {
            const float* x = normed_ + (state.first_token + t) * normed_stride_;
            for (int64_t c = first_col; c < end_col; ++c) sum[c] += x[c];
          }
        }
      });
  return absl::OkStatus();
}

void CpuBackend::PoolRow(CpuStep& step, size_t result_idx, Pooling pooling) {
  const StepRowState& state = step.rows[step.sampled_rows[result_idx]];
  const SlotState& slot = slots_[state.row.slot];
  const int64_t cols = shape_.pooled_cols;
  float* out = step.embeddings.data() + result_idx * cols;
  if (pooling == Pooling::kMean) {
    const double count = static_cast<double>(slot.num_pooled_tokens);
    for (int64_t c = 0; c < cols; ++c) {
      out[c] = static_cast<float>(slot.pooled_sum[c] / count);
    }
  } else {
    std::copy_n(normed_ + result_idx * normed_stride_, cols, out);
  }
  RowResult& result = step.results[result_idx];
  result = RowResult();
  result.slot = state.row.slot;
  result.embedding = absl::MakeConstSpan(out, cols);
  result.non_finite =
      !std::all_of(out, out + cols, [](float x) { return std::isfinite(x); });
}

absl::Status CpuBackend::Pool(Step& step, TensorView hidden,
                              const Prologue& prologue, Pooling pooling) {
  CpuStep& cpu_step = AsCpuStep(step);
  if (cpu_step.is_sampled) {
    return absl::FailedPreconditionError("Pool after Sample or Pool");
  }
  if (pooling == Pooling::kNone || shape_.pooled_cols == 0) {
    return absl::InvalidArgumentError("Pool: no pooling was prepared");
  }
  for (const StepRowState& state : cpu_step.rows) {
    if (state.row.num_drafts > 0) {
      return absl::InvalidArgumentError("Pool: a row has drafts");
    }
  }
  QUIRE_RETURN_IF_ERROR(CheckView("Pool: hidden", hidden, cpu_step.num_tokens,
                                  shape_.pooled_cols));
  QUIRE_RETURN_IF_ERROR(
      CheckPrologue(prologue, cpu_step.num_tokens, shape_.pooled_cols));
  if (pooling == Pooling::kMean) {
    ApplyPrologue(prologue, cpu_step.num_tokens, nullptr, hidden, normed_,
                  normed_stride_);
    QUIRE_RETURN_IF_ERROR(AddToPooledSums(cpu_step));
  } else {
    ApplyPrologue(prologue, cpu_step.num_logits, cpu_step.logit_token.data(),
                  hidden, normed_, normed_stride_);
  }
  cpu_step.is_sampled = true;
  cpu_step.results.resize(cpu_step.sampled_rows.size());
  cpu_step.embeddings.resize(cpu_step.sampled_rows.size() * shape_.pooled_cols);
  for (size_t i = 0; i < cpu_step.sampled_rows.size(); ++i) {
    PoolRow(cpu_step, i, pooling);
  }
  for (const StepRowState& state : cpu_step.rows) {
    slots_[state.row.slot].num_computed_tokens += state.row.num_tokens;
  }
  return absl::OkStatus();
}

}  // namespace quire
