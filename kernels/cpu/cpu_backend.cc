#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cpu/cpu_step.h"
#include "kernels/engine_shape.h"

namespace quire {
namespace {

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

bool IsDenseDType(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

absl::Status CheckLinearSpec(const LinearSpec& spec) {
  const size_t num_parts = spec.parts.size();
  const bool suits = spec.kind == LinearKind::kQkv      ? num_parts == 3
                     : spec.kind == LinearKind::kGateUp ? num_parts == 2
                     : spec.kind == LinearKind::kVocab  ? num_parts == 1
                                                        : num_parts >= 1;
  if (!suits) {
    return absl::InvalidArgumentError(
        absl::StrCat("a linear layer of kind ", static_cast<int>(spec.kind),
                     " cannot have ", num_parts, " parts"));
  }
  int64_t rows = 0;
  for (const WeightPart& part : spec.parts) {
    const TensorView& data = part.data;
    if (data.empty() || data.rows < 1 || data.cols < 1 ||
        data.row_stride < data.cols || !IsPackable(data.dtype, part.format)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a part of a linear layer is ", QuantFormatName(part.format), " ",
          DTypeName(data.dtype), " [", data.rows, ", ", data.cols, "]"));
    }
    const WeightPart& first = spec.parts[0];
    if (part.cols() != first.cols()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "parts of a linear layer disagree: ", QuantFormatName(part.format),
          " [", part.rows(), ", ", part.cols(), "] and ",
          QuantFormatName(first.format), " [", first.rows(), ", ", first.cols(),
          "]"));
    }
    rows += data.rows;
  }
  if (spec.kind == LinearKind::kGateUp &&
      spec.parts[0].data.rows != spec.parts[1].data.rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("gate has ", spec.parts[0].data.rows, " rows, up has ",
                     spec.parts[1].data.rows));
  }
  if (!spec.bias.empty()) return CheckView("bias", spec.bias, 1, rows);
  return absl::OkStatus();
}

// The shapes that AttentionSpec allows for a QK-norm.
absl::Status CheckHeadNorm(const char* name, const NormSpec& norm,
                           int num_heads, int head_dim) {
  if (norm.kind == NormSpec::Kind::kNone) return absl::OkStatus();
  const int64_t rows = norm.weight.rows;
  if (norm.weight.cols == head_dim && (rows == 1 || rows == num_heads)) {
    QUIRE_RETURN_IF_ERROR(CheckNorm(name, norm, head_dim));
  } else {
    QUIRE_RETURN_IF_ERROR(CheckNorm(name, norm, int64_t{num_heads} * head_dim));
    if (rows != 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          name, " has ", rows, " rows of all ", num_heads, " heads"));
    }
  }
  if (norm.kind == NormSpec::Kind::kLayer && !norm.bias.empty() &&
      norm.bias.rows != rows) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": weight has ", rows, " rows, bias ", norm.bias.rows));
  }
  return absl::OkStatus();
}

bool HasRmsNormsOfAllHeads(const AttentionSpec& spec) {
  const auto spans_all = [&](const NormSpec& norm, int num_heads) {
    return norm.kind == NormSpec::Kind::kRms && norm.weight.rows == 1 &&
           norm.weight.cols == int64_t{num_heads} * spec.head_dim;
  };
  return spans_all(spec.q_norm, spec.num_heads) &&
         spans_all(spec.k_norm, spec.num_kv_heads);
}

absl::Status CheckNormRanks(const AttentionSpec& spec) {
  if (spec.norm_ranks == nullptr || HasRmsNormsOfAllHeads(spec)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "attention: only RMS norms of all heads together span ranks");
}

}  // namespace

bool MeasuresHeads(const AttentionSpec& spec) {
  return spec.norm_ranks != nullptr ||
         (HasRmsNormsOfAllHeads(spec) &&
          spec.q_norm.weight.cols != spec.head_dim);
}

absl::Status CheckView(const char* name, const TensorView& view, int64_t rows,
                       int64_t cols) {
  if (view.empty() || view.dtype != DType::kF32 || view.rows < rows ||
      view.cols != cols || view.row_stride < cols) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, " is ", view.empty() ? "empty " : "", DTypeName(view.dtype), " [",
        view.rows, ", ", view.cols, "], not f32 [>= ", rows, ", ", cols, "]"));
  }
  return absl::OkStatus();
}

absl::Status CheckNorm(const char* name, const NormSpec& norm, int64_t cols) {
  if (norm.kind == NormSpec::Kind::kNone) return absl::OkStatus();
  QUIRE_RETURN_IF_ERROR(CheckView(name, norm.weight, 1, cols));
  if (norm.kind == NormSpec::Kind::kLayer && !norm.bias.empty()) {
    QUIRE_RETURN_IF_ERROR(CheckView(name, norm.bias, 1, cols));
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------- loading

absl::StatusOr<std::unique_ptr<CpuBackend>> CpuBackend::Create(
    const CpuBackendOptions& options) {
  Isa isa;
  if (options.isa.has_value()) {
    isa = *options.isa;
    const std::vector<Isa> supported = SupportedIsas();
    if (std::find(supported.begin(), supported.end(), isa) == supported.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("this CPU lacks ", IsaName(isa)));
    }
  } else {
    QUIRE_ASSIGN_OR_RETURN(isa, SelectIsa());
  }
  QUIRE_ASSIGN_OR_RETURN(ThreadPlacement placement,
                         PlaceThreads(options.threads));
  return std::unique_ptr<CpuBackend>(
      new CpuBackend(isa, std::make_shared<ThreadPool>(std::move(placement))));
}

CpuBackend::CpuBackend(Isa isa, std::shared_ptr<ThreadPool> pool)
    : isa_(isa), shared_pool_(std::move(pool)), pool_(*shared_pool_) {}

absl::StatusOr<std::unique_ptr<Backend>> CpuBackend::CreateCompanion() {
  return std::unique_ptr<Backend>(new CpuBackend(isa_, shared_pool_));
}

CpuBackend::~CpuBackend() = default;

std::string CpuBackend::Description() const {
  return absl::StrCat("cpu (", IsaName(isa_), ", ", pool_.num_threads(),
                      pool_.num_threads() == 1 ? " thread)" : " threads)");
}

DType CpuBackend::ActivationDType(DType weights) const { return DType::kF32; }

bool CpuBackend::SupportsLinear(DType weights, QuantFormat format) const {
  return IsPackable(weights, format);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> CpuBackend::PackLinear(
    const LinearSpec& spec) {
  QUIRE_RETURN_IF_ERROR(CheckLinearSpec(spec));
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<PackedMatrix> packed,
                         PackMatrix(spec, isa_, pool_));
  weights_bytes_ += packed->num_bytes;
  max_cols_ = std::max(max_cols_, packed->cols);
  return packed;
}

absl::StatusOr<TensorView> CpuBackend::Upload(TensorView host) {
  if (host.empty() || !IsDenseDType(host.dtype) || host.rows < 1 ||
      host.cols < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot upload a ", DTypeName(host.dtype), " [", host.rows,
                     ", ", host.cols, "] tensor"));
  }
  const int64_t num_bytes = host.rows * host.cols * int64_t{sizeof(float)};
  QUIRE_ASSIGN_OR_RETURN(
      MappedMemory memory,
      MappedMemory::Create(num_bytes, MappedMemory::Pages::kSmall));
  const TensorView view =
      TensorView::Matrix(memory.data(), DType::kF32, host.rows, host.cols);
  const auto copy_rows = [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      float* out = view.row<float>(row);
      if (host.dtype == DType::kF32) {
        std::memcpy(out, host.row<const float>(row), host.cols * sizeof(float));
        continue;
      }
      const uint16_t* from = host.row<const uint16_t>(row);
      for (int64_t col = 0; col < host.cols; ++col) {
        out[col] = host.dtype == DType::kF16 ? HalfToFloat(from[col])
                                             : Bf16ToFloat(from[col]);
      }
    }
  };
  // A table of RoPE has 131,072 rows, a norm has one.
  pool_.ParallelFor(host.rows, 1024, copy_rows);
  weights_bytes_ += num_bytes;
  uploads_.push_back(std::move(memory));
  return view;
}

absl::StatusOr<int> CpuBackend::AddAttention(const AttentionSpec& spec) {
  if (spec.num_layers < 1 || spec.num_kv_heads < 1 || spec.num_heads < 1 ||
      spec.num_heads % spec.num_kv_heads != 0 || spec.head_dim < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "attention: ", spec.num_layers, " layers, ", spec.num_heads, " heads, ",
        spec.num_kv_heads, " KV heads, head_dim ", spec.head_dim));
  }
  if (!IsDenseDType(spec.kv_dtype) && spec.kv_dtype != DType::kF8E4M3 &&
      spec.kv_dtype != DType::kI8) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention: a KV cache in ", DTypeName(spec.kv_dtype),
                     " (--kv-cache-dtype); on the CPU it is in bf16, f16 or "
                     "f32"));
  }
  if (spec.sliding_window < 0 || !(spec.softcap >= 0.0f) ||
      !(spec.scale > 0.0f)) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention: sliding_window ", spec.sliding_window,
                     ", softcap ", spec.softcap, ", scale ", spec.scale));
  }
  QUIRE_RETURN_IF_ERROR(
      CheckHeadNorm("q_norm", spec.q_norm, spec.num_heads, spec.head_dim));
  QUIRE_RETURN_IF_ERROR(
      CheckHeadNorm("k_norm", spec.k_norm, spec.num_kv_heads, spec.head_dim));
  QUIRE_RETURN_IF_ERROR(CheckNormRanks(spec));
  for (const TensorView* rope : {&spec.rope_table, &spec.long_rope_table}) {
    if (rope->empty()) continue;
    if (rope->dtype != DType::kF32 || rope->cols < 2 || rope->cols % 2 != 0 ||
        rope->cols > spec.head_dim || rope->cols != spec.rope_table.cols) {
      return absl::InvalidArgumentError(
          absl::StrCat("attention: rotary_dim ", rope->cols, " of head_dim ",
                       spec.head_dim));
    }
  }
  KvLayers layers;
  layers.spec = spec;
  kv_.push_back(std::move(layers));
  return static_cast<int>(kv_.size()) - 1;
}

int CpuBackend::AddActivation(int64_t cols, DType dtype, ActivationRows rows) {
  activations_.push_back({cols, dtype, rows, {}});
  return static_cast<int>(activations_.size()) - 1;
}

absl::Status CpuBackend::CheckShape(const EngineShape& shape) const {
  QUIRE_RETURN_IF_ERROR(ValidateEngineShape(shape));
  for (const KvLayers& kv : kv_) {
    for (const TensorView* rope :
         {&kv.spec.rope_table, &kv.spec.long_rope_table}) {
      if (!rope->empty() && rope->rows < shape.max_model_len) {
        return absl::InvalidArgumentError(
            absl::StrCat("the RoPE table has ", rope->rows,
                         " positions, max_model_len is ", shape.max_model_len));
      }
    }
  }
  for (const ActivationSpec& activation : activations_) {
    if (activation.dtype != DType::kF32 || activation.cols < 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "activations are f32 here, not ", DTypeName(activation.dtype), " [, ",
          activation.cols, "]"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int> CpuBackend::NumBlocks(const EngineShape& shape) const {
  const int64_t blocks_per_seq =
      (int64_t{shape.max_model_len} + shape.block_size - 1) / shape.block_size;
  int64_t bytes_per_block = 0;
  for (const KvLayers& kv : kv_) bytes_per_block += kv.BytesPerBlock();
  if (bytes_per_block == 0) return static_cast<int>(blocks_per_seq);
  const int64_t num_blocks =
      std::min<int64_t>(shape.kv_bytes / bytes_per_block,
                        std::numeric_limits<int32_t>::max() / shape.block_size);
  if (num_blocks < blocks_per_seq) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the KV cache of ", shape.kv_bytes, " bytes holds ",
        num_blocks * shape.block_size,
        " tokens; one sequence of max_model_len ", shape.max_model_len,
        " needs ", blocks_per_seq * bytes_per_block, " bytes"));
  }
  return static_cast<int>(num_blocks);
}

absl::Status CpuBackend::AllocateKv() {
  for (KvLayers& kv : kv_) {
    kv.layer_bytes = num_blocks_ * kv.layout.BlockBytes();
    QUIRE_ASSIGN_OR_RETURN(
        kv.memory, MappedMemory::Create(kv.layer_bytes * kv.spec.num_layers,
                                        MappedMemory::Pages::kHuge));
    // Any thread may read any block.
    if (pool_.node_ids().size() > 1) kv.memory.InterleaveOver(pool_.node_ids());
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::AllocateWorkspace() {
  const int64_t max_rows =
      std::max(shape_.max_num_tokens, shape_.max_logit_rows);
  normed_stride_ =
      RoundUp(std::max<int64_t>({max_cols_, shape_.pooled_cols, 1}), 16);
  // The first pass measures, the second places.
  for (int pass = 0; pass < 2; ++pass) {
    ArenaCursor cursor(workspace_.data());
    for (ActivationSpec& activation : activations_) {
      const int64_t rows = activation.rows == ActivationRows::kTokens
                               ? shape_.max_num_tokens
                               : shape_.max_logit_rows;
      activation.view =
          TensorView::Matrix(cursor.Take<float>(rows * activation.cols),
                             DType::kF32, rows, activation.cols);
    }
    normed_ = cursor.Take<float>(max_rows * normed_stride_);
    if (pass == 0) {
      QUIRE_ASSIGN_OR_RETURN(
          workspace_,
          MappedMemory::Create(cursor.num_bytes(), MappedMemory::Pages::kHuge));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<MemoryPlan> CpuBackend::Prepare(const EngineShape& shape) {
  if (is_prepared_) {
    return absl::FailedPreconditionError("Prepare was called before");
  }
  QUIRE_RETURN_IF_ERROR(CheckShape(shape));
  int max_heads = 1;
  int max_head_dim = 1;
  for (KvLayers& kv : kv_) {
    kv.layout = {kv.spec.kv_dtype, kv.spec.num_kv_heads, kv.spec.head_dim,
                 shape.block_size};
    max_heads = std::max(max_heads, kv.spec.num_heads);
    max_head_dim = std::max(max_head_dim, kv.spec.head_dim);
  }
  QUIRE_ASSIGN_OR_RETURN(num_blocks_, NumBlocks(shape));
  shape_ = shape;
  QUIRE_RETURN_IF_ERROR(AllocateKv());
  QUIRE_RETURN_IF_ERROR(AllocateWorkspace());
  QUIRE_ASSIGN_OR_RETURN(slots_, SlotTable::Create(shape, num_blocks_));
  slot_step_.assign(shape.max_num_seqs, 0);
  matmul_scratch_ = std::make_unique<MatmulScratch>(
      std::max(shape.max_num_tokens, shape.max_logit_rows),
      std::max<int64_t>(max_cols_, 1),
      QuantScratchBytes(isa_, pool_.num_threads()));
  attention_scratch_ = std::make_unique<AttentionScratch>(
      pool_.num_threads(), max_heads, max_head_dim, shape.max_model_len);
  // Whole cache lines, so that threads share none.
  kv_row_bytes_ = RoundUp(max_head_dim * int64_t{sizeof(float)}, 64) + 64;
  kv_rows_.resize(pool_.num_threads() * kv_row_bytes_);
  for (int i = 0; i < pool_.num_threads(); ++i) {
    sampling_scratch_.emplace_back(shape.vocab_size,
                                   SlotTable::MaxHistoryTokens(shape));
  }
  if (shape.tensor_ranks != nullptr) ReserveForRanks();
  if (std::any_of(kv_.begin(), kv_.end(),
                  [](const KvLayers& kv) { return MeasuresHeads(kv.spec); })) {
    norm_factors_.resize(int64_t{2} * shape.max_num_tokens);
  }
  for (int i = 0; i < shape.steps_in_flight; ++i) {
    steps_.push_back(std::make_unique<CpuStep>());
    ReserveResults(*steps_.back());
  }
  is_prepared_ = true;

  MemoryPlan plan;
  plan.weights_bytes = weights_bytes_;
  plan.workspace_bytes =
      workspace_.num_bytes() + slots_.num_bytes() +
      pool_.num_threads() *
          SamplingScratch::NumBytes(shape.vocab_size,
                                    SlotTable::MaxHistoryTokens(shape));
  for (const KvLayers& kv : kv_) plan.kv_bytes += kv.memory.num_bytes();
  plan.num_blocks = num_blocks_;
  return plan;
}

// What the ranks exchange beside activations.
void CpuBackend::ReserveForRanks() {
  if (shape_.pooled_cols > 0) return;
  // Enough for all threads to have a row, and for the drafts of one: 19 MB for
  // a vocabulary of 152,000.
  constexpr int64_t kMaxWholeRows = 32;
  num_whole_rows_ = std::min<int64_t>(kMaxWholeRows, shape_.max_logit_rows);
  // Slices are padded, see ShardVocab.
  whole_logits_stride_ =
      shape_.vocab_size + int64_t{64} * shape_.tensor_ranks->size();
  whole_logits_.resize(num_whole_rows_ * whole_logits_stride_);
}

void CpuBackend::ReserveResults(CpuStep& step) {
  // More log-probabilities than this make a step allocate: OpenAI's API allows
  // 20 alternatives.
  constexpr int kReservedLogprobs = 20;
  step.rows.reserve(shape_.max_num_seqs);
  step.attention_rows.reserve(shape_.max_num_seqs);
  step.sampled_rows.reserve(shape_.max_num_seqs);
  step.results.reserve(shape_.max_num_seqs);
  step.token_ids.reserve(shape_.max_num_tokens);
  step.positions.reserve(shape_.max_num_tokens);
  step.token_row.reserve(shape_.max_num_tokens);
  step.logit_token.reserve(shape_.max_logit_rows);
  step.tokens.reserve(shape_.max_logit_rows);
  step.logprobs.reserve(shape_.max_logit_rows);
  step.scored_ids.reserve(shape_.max_logit_rows);
  step.scored_logits.reserve(shape_.max_logit_rows);
  step.ranks.reserve(shape_.max_logit_rows);
  step.is_non_finite.reserve(shape_.max_logit_rows);
  step.top_begin.reserve(shape_.max_logit_rows);
  step.embeddings.reserve(int64_t{shape_.max_logit_rows} * shape_.pooled_cols);
  if (shape_.tensor_ranks != nullptr) {
    step.records.reserve(shape_.max_logit_rows);
    step.draws.reserve(shape_.max_logit_rows);
    step.gathered.reserve(shape_.max_logit_rows);
    step.own_records.reserve(int64_t{2} * shape_.max_logit_rows);
    step.all_records.reserve(int64_t{2} * shape_.max_logit_rows *
                             shape_.tensor_ranks->size());
  }
  step.top_ids.reserve(shape_.max_logit_rows * kReservedLogprobs);
  step.top_logprobs.reserve(shape_.max_logit_rows * kReservedLogprobs);
}

TensorView CpuBackend::Activation(int id) const {
  QUIRE_CHECK(is_prepared_ && id >= 0 &&
              id < static_cast<int>(activations_.size()));
  return activations_[id].view;
}

// ---------------------------------------------------------------- a step

namespace {

template <typename... What>
absl::Status RowError(const StepRow& row, const What&... what) {
  return absl::InvalidArgumentError(
      absl::StrCat("step row of slot ", row.slot, ": ", what...));
}

}  // namespace

// Whether the step and the sequence have room for what the row asks for.
absl::Status CpuBackend::CheckRow(const StepRow& row, const SlotState& slot,
                                  const CpuStep& step) const {
  const int32_t num_drawn = row.num_logits - row.num_scored;
  const bool logits_ok =
      row.num_drafts > 0
          ? row.num_scored == 0 && row.num_logits == 1 + row.num_drafts
          : row.num_scored >= 0 && (num_drawn == 0 || num_drawn == 1);
  if (row.num_tokens < 1 || row.num_drafts < 0 || !logits_ok ||
      row.num_logits > row.num_tokens) {
    return RowError(row, row.num_tokens, " tokens, ", row.num_logits,
                    " logits, ", row.num_scored, " scored, ", row.num_drafts,
                    " drafts");
  }
  const int64_t end = slot.num_computed_tokens + row.num_tokens;
  if (end > shape_.max_model_len ||
      end > int64_t{slot.num_blocks} * shape_.block_size) {
    return RowError(row, "positions up to ", end, " with max_model_len ",
                    shape_.max_model_len, " and ", slot.num_blocks,
                    " blocks of ", shape_.block_size);
  }
  if (int64_t{step.num_tokens} + row.num_tokens > shape_.max_num_tokens ||
      int64_t{step.num_logits} + row.num_logits > shape_.max_logit_rows) {
    return RowError(row, "the step exceeds ", shape_.max_num_tokens,
                    " tokens or ", shape_.max_logit_rows, " logit rows");
  }
  return absl::OkStatus();
}

// Appends the row's tokens, of which *next_token is the first in `token_ids`.
absl::Status CpuBackend::AddTokenIds(const StepRow& row, const SlotState& slot,
                                     absl::Span<const int32_t> token_ids,
                                     size_t* next_token, CpuStep& step) const {
  if (row.source == TokenSource::kDeviceLast) {
    if (row.num_tokens != 1 || slot.last_token < 0) {
      return RowError(row, "kDeviceLast with ", row.num_tokens,
                      " tokens and last token ", slot.last_token);
    }
    step.token_ids.push_back(slot.last_token);
    return absl::OkStatus();
  }
  if (token_ids.size() - *next_token < static_cast<size_t>(row.num_tokens)) {
    return RowError(row, "token_ids ends before its tokens");
  }
  for (int i = 0; i < row.num_tokens; ++i) {
    const int32_t id = token_ids[(*next_token)++];
    if (id < 0 || id >= NumInputIds(shape_)) {
      return RowError(row, "token id ", id, " with vocab_size ",
                      NumInputIds(shape_));
    }
    step.token_ids.push_back(id);
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::AddRow(const StepRow& row,
                                absl::Span<const int32_t> token_ids,
                                size_t* next_token, CpuStep& step) {
  if (row.slot < 0 || row.slot >= slots_.num_slots() ||
      !slots_[row.slot].is_active) {
    return RowError(row, "the slot holds no sequence");
  }
  SlotState& slot = slots_[row.slot];
  if (slot_step_[row.slot] == num_steps_) return RowError(row, "named twice");
  slot_step_[row.slot] = num_steps_;
  if (row.first_position >= 0) {
    if (row.first_position > slot.num_computed_tokens) {
      return RowError(row, "begins at ", row.first_position, " with ",
                      slot.num_computed_tokens, " tokens computed");
    }
    slot.num_computed_tokens = row.first_position;
  }
  QUIRE_RETURN_IF_ERROR(CheckRow(row, slot, step));
  StepRowState state;
  state.row = row;
  state.first_position = slot.num_computed_tokens;
  state.first_token = step.num_tokens;
  state.first_logit = step.num_logits;
  const int32_t row_idx = static_cast<int32_t>(step.rows.size());
  QUIRE_RETURN_IF_ERROR(AddTokenIds(row, slot, token_ids, next_token, step));
  for (int i = 0; i < row.num_tokens; ++i) {
    step.positions.push_back(static_cast<int32_t>(state.first_position) + i);
    step.token_row.push_back(row_idx);
  }
  for (int i = row.num_tokens - row.num_logits; i < row.num_tokens; ++i) {
    step.logit_token.push_back(state.first_token + i);
  }
  if (row.num_logits > 0) step.sampled_rows.push_back(row_idx);
  for (int i = 0; i < row.num_scored; ++i) {
    step.scored_logits.push_back(state.first_logit + i);
  }
  AttentionRow attention_row;
  attention_row.block_table = slot.block_table;
  attention_row.first_position = state.first_position;
  attention_row.num_tokens = row.num_tokens;
  attention_row.first_token = state.first_token;
  step.attention_rows.push_back(attention_row);
  step.num_tokens += row.num_tokens;
  step.num_logits += row.num_logits;
  step.rows.push_back(state);
  return absl::OkStatus();
}

void CpuBackend::CopyBlocks(
    absl::Span<const std::pair<int32_t, int32_t>> copies) {
  for (const KvLayers& kv : kv_) {
    const int64_t block_bytes = kv.layout.BlockBytes();
    // In order: a later copy may read what an earlier one wrote.
    pool_.ParallelFor(
        kv.spec.num_layers, 1, [&](int64_t begin, int64_t end, int) {
          for (int64_t layer = begin; layer < end; ++layer) {
            char* base = kv.memory.data() + layer * kv.layer_bytes;
            for (const auto& [from, to] : copies) {
              std::memmove(base + to * block_bytes, base + from * block_bytes,
                           block_bytes);
            }
          }
        });
  }
}

absl::StatusOr<Step*> CpuBackend::BeginStep(const StepPlan& plan) {
  QUIRE_CHECK(is_prepared_);
  pool_.PinCaller();
  CpuStep* step = nullptr;
  for (const auto& candidate : steps_) {
    if (candidate->state == CpuStep::State::kFree) step = candidate.get();
  }
  if (step == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "all ", shape_.steps_in_flight, " steps in flight are uncollected"));
  }
  for (const auto& [from, to] : plan.block_copies) {
    if (from < 0 || from >= num_blocks_ || to < 0 || to >= num_blocks_) {
      return absl::InvalidArgumentError(absl::StrCat("copy of block ", from,
                                                     " to ", to, " with ",
                                                     num_blocks_, " blocks"));
    }
  }
  for (const SlotUpdate& update : plan.updates) {
    QUIRE_RETURN_IF_ERROR(slots_.Apply(update));
  }
  ++num_steps_;
  step->is_sampled = false;
  step->status = absl::OkStatus();
  step->num_tokens = 0;
  step->num_logits = 0;
  step->rows.clear();
  step->attention_rows.clear();
  step->token_ids.clear();
  step->positions.clear();
  step->token_row.clear();
  step->logit_token.clear();
  step->sampled_rows.clear();
  step->scored_ids.assign(plan.scored_ids.begin(), plan.scored_ids.end());
  step->scored_logits.clear();
  step->results.clear();
  size_t next_token = 0;
  for (const StepRow& row : plan.rows) {
    QUIRE_RETURN_IF_ERROR(AddRow(row, plan.token_ids, &next_token, *step));
  }
  if (next_token != plan.token_ids.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the step has ", plan.token_ids.size(),
                     " token ids, its rows use ", next_token));
  }
  if (step->scored_ids.size() != step->scored_logits.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the step has ", step->scored_ids.size(),
        " ids to score, its rows ask for ", step->scored_logits.size()));
  }
  for (const int32_t id : step->scored_ids) {
    if (id < 0 || id >= shape_.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("cannot score token id ",
                                                     id, " with vocab_size ",
                                                     shape_.vocab_size));
    }
  }
  CopyBlocks(plan.block_copies);
  step->state = CpuStep::State::kBegun;
  return reinterpret_cast<Step*>(step);
}

absl::Status CpuBackend::Run(Step& step, const GraphKey& key,
                             absl::FunctionRef<absl::Status()> enqueue) {
  CpuStep& cpu_step = AsCpuStep(step);
  QUIRE_CHECK(cpu_step.state == CpuStep::State::kBegun);
  cpu_step.status.Update(enqueue());
  return cpu_step.status;
}

absl::Status CpuBackend::EndStep(Step& step) {
  CpuStep& cpu_step = AsCpuStep(step);
  QUIRE_CHECK(cpu_step.state == CpuStep::State::kBegun);
  cpu_step.state = CpuStep::State::kEnded;
  if (cpu_step.status.ok() && !cpu_step.is_sampled) {
    if (cpu_step.num_logits > 0) {
      cpu_step.status = absl::FailedPreconditionError(
          "the step asked for logits and was not sampled");
    } else {
      // Inner prefill chunks only: there is nothing to draw.
      for (const StepRowState& state : cpu_step.rows) {
        slots_[state.row.slot].num_computed_tokens += state.row.num_tokens;
      }
    }
  }
  return cpu_step.status;
}

bool CpuBackend::Done(const Step& step) const {
  return AsCpuStep(const_cast<Step&>(step)).state != CpuStep::State::kBegun;
}

absl::StatusOr<absl::Span<const RowResult>> CpuBackend::Collect(Step& step) {
  CpuStep& cpu_step = AsCpuStep(step);
  QUIRE_CHECK(cpu_step.state == CpuStep::State::kEnded);
  cpu_step.state = CpuStep::State::kFree;
  QUIRE_RETURN_IF_ERROR(cpu_step.status);
  return absl::Span<const RowResult>(cpu_step.results);
}

}  // namespace quire
