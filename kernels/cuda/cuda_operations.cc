// The operations of the CUDA backend: checks of shapes, and calls of the
// kernels.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_step.h"
#include "kernels/cuda/large_linear.h"
#include "kernels/cuda/linear.h"

namespace quire {
namespace {

cuda::LinearActivation ToLinearActivation(Epilogue::Activation activation) {
  switch (activation) {
    case Epilogue::Activation::kSwiGlu:
      return cuda::LinearActivation::kSwiGlu;
    case Epilogue::Activation::kGeGlu:
      return cuda::LinearActivation::kGeGlu;
    case Epilogue::Activation::kGelu:
      return cuda::LinearActivation::kGelu;
    case Epilogue::Activation::kRelu:
      return cuda::LinearActivation::kRelu;
    case Epilogue::Activation::kGeGluErf:
      return cuda::LinearActivation::kGeGluErf;
    case Epilogue::Activation::kGeluErf:
      return cuda::LinearActivation::kGeluErf;
    case Epilogue::Activation::kNone:
      break;
  }
  return cuda::LinearActivation::kNone;
}

bool IsEmpty(const Prologue& prologue) {
  return prologue.norm.kind == NormSpec::Kind::kNone &&
         prologue.residual.empty() && prologue.residual_out.empty();
}

absl::Status CheckCols(const char* operation, int64_t cols) {
  if (cols % 8 == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      operation, ": ", cols, " columns; on a GPU they are a multiple of 8"));
}

void SetNorm(const NormSpec& norm, cuda::NormArguments* arguments) {
  using Kind = cuda::NormArguments::Kind;
  arguments->kind = Kind::kNone;
  if (norm.kind == NormSpec::Kind::kNone) return;
  arguments->weight = norm.weight.row<const float>(0);
  arguments->eps = norm.eps;
  if (norm.kind == NormSpec::Kind::kLayer) {
    arguments->kind = Kind::kLayer;
    if (!norm.bias.empty()) arguments->bias = norm.bias.row<const float>(0);
  } else {
    arguments->kind = Kind::kRms;
    arguments->weight_offset = norm.weight_offset;
  }
}

bool Overlap(const TensorView& a, const TensorView& b) {
  if (a.empty() || b.empty()) return false;
  const auto end = [](const TensorView& view) {
    return static_cast<const char*>(view.data) +
           view.rows * view.row_stride * DTypeSize(view.dtype);
  };
  return a.data < end(b) && b.data < end(a);
}

// Whether a norm in every CTA of the linear layer would read what another CTA
// may have written.
bool IsOverwritten(const TensorView& x, const Prologue& prologue,
                   const TensorView& epilogue_residual, const TensorView& out) {
  const TensorView& sum = prologue.residual_out;
  return Overlap(out, x) || Overlap(out, prologue.residual) ||
         Overlap(sum, x) || Overlap(sum, prologue.residual) ||
         Overlap(sum, epilogue_residual) || Overlap(sum, out);
}

cuda::GatherArguments GatherOf(const CudaWeight& table, const CudaStep& step,
                               TensorView x) {
  cuda::GatherArguments arguments;
  arguments.dtype = table.dtype;
  arguments.table = table.data.data<const uint16_t>();
  arguments.x = x.row<uint16_t>(0);
  arguments.num_tokens = step.num_tokens;
  arguments.cols = static_cast<int>(table.cols);
  return arguments;
}

absl::Status LaunchGather(cuda::Device& device,
                          const cuda::GatherArguments& arguments) {
  return cuda::LaunchGather(arguments, device.stream())
             ? absl::OkStatus()
             : device.LaunchError("Gather");
}

}  // namespace

absl::Status CudaBackend::Embed(Step& step, const PackedWeight& vocab,
                                const PackedWeight* positions, float scale,
                                TensorView out) {
  const CudaStep& cuda_step = AsCudaStep(step);
  const auto& table = static_cast<const CudaWeight&>(vocab);
  QUIRE_RETURN_IF_ERROR(CheckCudaView("Embed: out", out, table.dtype,
                                      cuda_step.num_tokens, vocab.cols));
  if (vocab.rows < shape_.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("Embed: the table has ", vocab.rows,
                     " rows, vocab_size is ", shape_.vocab_size));
  }
  cuda::GatherArguments arguments = GatherOf(table, cuda_step, out);
  arguments.entries = cuda_step.d_token_ids;
  arguments.scale = scale;
  QUIRE_RETURN_IF_ERROR(LaunchGather(*device_, arguments));
  return positions == nullptr ? absl::OkStatus()
                              : AddPositions(step, *positions, out);
}

absl::Status CudaBackend::AddPositions(Step& step,
                                       const PackedWeight& positions,
                                       TensorView x) {
  const CudaStep& cuda_step = AsCudaStep(step);
  const auto& table = static_cast<const CudaWeight&>(positions);
  QUIRE_RETURN_IF_ERROR(CheckCudaView("AddPositions: x", x, table.dtype,
                                      cuda_step.num_tokens, table.cols));
  if (table.rows < shape_.max_model_len) {
    return absl::InvalidArgumentError(
        absl::StrCat("AddPositions: the table has ", table.rows,
                     " rows, max_model_len is ", shape_.max_model_len));
  }
  cuda::GatherArguments arguments = GatherOf(table, cuda_step, x);
  arguments.entries = cuda_step.d_positions;
  arguments.adds = true;
  return LaunchGather(*device_, arguments);
}

absl::Status CudaBackend::MakeNorm(const Prologue& prologue, TensorView x,
                                   int64_t num_rows,
                                   cuda::NormArguments* arguments) const {
  if (x.dtype != DType::kBF16 && x.dtype != DType::kF16) {
    return absl::InvalidArgumentError(
        absl::StrCat("norm of activations in ", DTypeName(x.dtype)));
  }
  QUIRE_RETURN_IF_ERROR(CheckCudaView("x", x, x.dtype, num_rows, x.cols));
  QUIRE_RETURN_IF_ERROR(CheckCols("norm", x.cols));
  QUIRE_RETURN_IF_ERROR(CheckCudaNorm("norm weight", prologue.norm, x.cols));
  SetNorm(prologue.norm, arguments);
  arguments->dtype = x.dtype;
  arguments->x = x.row<const uint16_t>(0);
  arguments->num_tokens = static_cast<int>(num_rows);
  arguments->cols = static_cast<int>(x.cols);
  if (!prologue.residual.empty()) {
    QUIRE_RETURN_IF_ERROR(CheckCudaView("residual", prologue.residual, x.dtype,
                                        num_rows, x.cols));
    arguments->residual = prologue.residual.row<const uint16_t>(0);
  }
  if (!prologue.residual_out.empty()) {
    QUIRE_RETURN_IF_ERROR(CheckCudaView("residual_out", prologue.residual_out,
                                        x.dtype, num_rows, x.cols));
    arguments->residual_out = prologue.residual_out.row<uint16_t>(0);
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::Norm(Step& step, TensorView x,
                               const Prologue& prologue, TensorView out) {
  const int64_t num_tokens = AsCudaStep(step).num_tokens;
  cuda::NormArguments arguments;
  QUIRE_RETURN_IF_ERROR(MakeNorm(prologue, x, num_tokens, &arguments));
  QUIRE_RETURN_IF_ERROR(
      CheckCudaView("Norm: out", out, x.dtype, num_tokens, x.cols));
  arguments.out = out.row<uint16_t>(0);
  if (!cuda::LaunchNorm(arguments, device_->stream())) {
    return device_->LaunchError("Norm");
  }
  return absl::OkStatus();
}

// LaunchLinear of norm(x), in one kernel or two.
absl::Status CudaBackend::LaunchNormedLinear(TensorView x,
                                             const Prologue& prologue,
                                             cuda::NormArguments norm,
                                             const PackedWeight& weight,
                                             const Epilogue& epilogue,
                                             float softcap, TensorView out) {
  const auto& packed = static_cast<const CudaWeight&>(weight);
  const cuda::DeviceProperties& properties = device_->properties();
  if (packed.column_order.num_bytes() == 0 &&
      cuda::FitsSkinnyNorm(norm.num_tokens, norm.cols,
                           properties.shared_bytes_of_sm) &&
      !IsOverwritten(x, prologue, epilogue.residual, out)) {
    return LaunchLinear(x, norm.num_tokens, weight, epilogue, softcap, out,
                        &norm);
  }
  norm.out = normed_.data<uint16_t>();
  if (!cuda::LaunchNorm(norm, device_->stream())) {
    return device_->LaunchError("Norm");
  }
  return LaunchLinear(
      TensorView::Matrix(normed_.data(), norm.dtype, norm.num_tokens, x.cols),
      norm.num_tokens, weight, epilogue, softcap, out, nullptr);
}

// out = scale * activation(x W^T + bias) + residual, then the softcap.
//   norm: applied to x first; null: none.
absl::Status CudaBackend::LaunchLinear(TensorView x, int64_t num_tokens,
                                       const PackedWeight& weight,
                                       const Epilogue& epilogue, float softcap,
                                       TensorView out,
                                       const cuda::NormArguments* norm) {
  const auto& packed = static_cast<const CudaWeight&>(weight);
  cuda::LinearArguments arguments;
  arguments.dtype = x.dtype;
  arguments.weight = packed.data.data<const uint16_t>();
  arguments.x = x.row<const uint16_t>(0);
  arguments.x_stride = x.row_stride;
  arguments.out = out.data;
  arguments.out_stride = out.row_stride;
  arguments.num_tokens = static_cast<int>(num_tokens);
  arguments.rows = static_cast<int>(packed.rows);
  arguments.cols = static_cast<int>(packed.cols);
  arguments.epilogue.bias = packed.bias.data<const float>();
  arguments.epilogue.scale = epilogue.scale;
  arguments.epilogue.softcap = softcap;
  arguments.epilogue.activation = ToLinearActivation(epilogue.activation);
  arguments.epilogue.is_out_f32 = out.dtype == DType::kF32;
  if (!epilogue.residual.empty()) {
    arguments.epilogue.residual = epilogue.residual.row<const uint16_t>(0);
    arguments.epilogue.residual_stride = epilogue.residual.row_stride;
  }
  if (norm != nullptr) {
    arguments.has_norm = true;
    arguments.norm = *norm;
    arguments.num_ctas = cuda::NumCtasOfSkinnyNorm(
        arguments.rows, device_->properties().num_sms);
  }
  if (packed.format != QuantFormat::kDense) {
    return LaunchQuantized(packed, arguments);
  }
  if (num_tokens >= cuda::LargeLinear::kFewestTokens) {
    return large_linear_->Launch(arguments);
  }
  return cuda::LaunchSkinnyLinear(arguments, device_->stream())
             ? absl::OkStatus()
             : device_->LaunchError("Linear");
}

absl::Status CudaBackend::LaunchQuantized(const CudaWeight& weight,
                                          const cuda::LinearArguments& linear) {
  const simt::Stream stream = device_->stream();
  const auto check = [&](bool is_launched) {
    return is_launched ? absl::OkStatus() : device_->LaunchError("Linear");
  };
  cuda::QuantizedLinearArguments arguments;
  arguments.linear = linear;
  arguments.weight = weight.quantized;
  if (weight.column_order.num_bytes() > 0) {
    QUIRE_RETURN_IF_ERROR(check(cuda::LaunchPermuteColumns(
        {.x = linear.x,
         .x_stride = linear.x_stride,
         .order = weight.column_order.data<const int32_t>(),
         .out = permuted_.data<uint16_t>(),
         .num_tokens = linear.num_tokens,
         .cols = linear.cols},
        stream)));
    arguments.linear.x = permuted_.data<const uint16_t>();
    arguments.linear.x_stride = linear.cols;
  }
  if (linear.num_tokens <= cuda::kMaxSkinnyTokens) {
    return check(cuda::LaunchSkinnyQuantizedLinear(arguments, stream));
  }
  if (!RoundsToFp8(weight)) {
    return check(cuda::LaunchTiledQuantizedLinear(arguments, stream));
  }
  arguments.x_fp8 = fp8_x_.data<const uint8_t>();
  arguments.x_scales = fp8_scales_.data<const float>();
  QUIRE_RETURN_IF_ERROR(
      check(cuda::LaunchQuantizeRows({.dtype = linear.dtype,
                                      .x = arguments.linear.x,
                                      .x_stride = arguments.linear.x_stride,
                                      .out = fp8_x_.data<uint8_t>(),
                                      .scales = fp8_scales_.data<float>(),
                                      .input_scale = weight.input_scale,
                                      .group_size = weight.quantized.group_size,
                                      .num_tokens = linear.num_tokens,
                                      .cols = linear.cols},
                                     stream)));
  return large_linear_->LaunchFp8(arguments);
}

bool CudaBackend::RoundsToFp8(const CudaWeight& weight) const {
  const cuda::DeviceProperties& properties = device_->properties();
  return weight.format == QuantFormat::kFp8 &&
         properties.major * 10 + properties.minor >= 89;
}

absl::Status CudaBackend::Linear(Step& step, TensorView x,
                                 const Prologue& prologue,
                                 const PackedWeight& weight,
                                 const Epilogue& epilogue, TensorView out) {
  const int64_t num_tokens = AsCudaStep(step).num_tokens;
  const DType dtype =
      static_cast<const CudaWeight&>(weight).InputDType(x.dtype);
  if (dtype != DType::kBF16 && dtype != DType::kF16) {
    return absl::InvalidArgumentError(
        absl::StrCat("Linear: activations in ", DTypeName(dtype)));
  }
  const bool is_gated = IsGated(epilogue.activation);
  if (is_gated != (weight.kind == LinearKind::kGateUp)) {
    return absl::InvalidArgumentError(
        "Linear: a gated activation goes with kGateUp weights");
  }
  const int64_t out_cols = is_gated ? weight.rows / 2 : weight.rows;
  QUIRE_RETURN_IF_ERROR(
      CheckCudaView("Linear: x", x, dtype, num_tokens, weight.cols));
  QUIRE_RETURN_IF_ERROR(
      CheckCudaView("Linear: out", out, dtype, num_tokens, out_cols));
  const bool is_reduced = epilogue.all_reduce != nullptr;
  if (is_reduced && epilogue.activation != Epilogue::Activation::kNone) {
    return absl::InvalidArgumentError(
        "Linear: an activation of a sum over ranks");
  }
  const bool has_norm =
      epilogue.norm.kind != NormSpec::Kind::kNone || is_reduced;
  // norm_input may be part of a wider buffer; what lies in it is ours to place.
  TensorView product = has_norm ? epilogue.norm_input : out;
  if (product.row_stride >= product.cols) product.row_stride = product.cols;
  QUIRE_RETURN_IF_ERROR(CheckCudaView("Linear: norm_input", product, dtype,
                                      num_tokens, out_cols));
  if (!epilogue.residual.empty()) {
    QUIRE_RETURN_IF_ERROR(CheckCudaView("Linear: residual", epilogue.residual,
                                        dtype, num_tokens, out_cols));
  }
  if (out.data == x.data || product.data == x.data ||
      (has_norm &&
       (product.data == out.data || product.data == epilogue.residual.data))) {
    return absl::InvalidArgumentError(
        "Linear: out and norm_input must not alias x or each other");
  }
  cuda::NormArguments norm;
  if (!IsEmpty(prologue)) {
    QUIRE_RETURN_IF_ERROR(MakeNorm(prologue, x, num_tokens, &norm));
  }
  cuda::NormArguments epilogue_norm;
  Epilogue of_product = epilogue;
  if (has_norm) {
    Prologue as_prologue;
    as_prologue.norm = epilogue.norm;
    QUIRE_RETURN_IF_ERROR(
        MakeNorm(as_prologue, product, num_tokens, &epilogue_norm));
    of_product.scale = 1.0f;
    of_product.residual = TensorView();
  }
  if (num_tokens == 0) return absl::OkStatus();
  QUIRE_RETURN_IF_ERROR(IsEmpty(prologue)
                            ? LaunchLinear(x, num_tokens, weight, of_product,
                                           0.0f, product, nullptr)
                            : LaunchNormedLinear(x, prologue, norm, weight,
                                                 of_product, 0.0f, product));
  if (!has_norm) return absl::OkStatus();
  if (is_reduced) {
    product.rows = num_tokens;
    QUIRE_RETURN_IF_ERROR(AllReduce(*epilogue.all_reduce, product));
  }
  epilogue_norm.scale = epilogue.scale;
  if (!epilogue.residual.empty()) {
    epilogue_norm.addend = epilogue.residual.row<const uint16_t>(0);
  }
  epilogue_norm.out = out.row<uint16_t>(0);
  return cuda::LaunchNorm(epilogue_norm, device_->stream())
             ? absl::OkStatus()
             : device_->LaunchError("Norm");
}

absl::Status CudaBackend::Attention(Step& step, int spec_id, int layer,
                                    TensorView qkv, TensorView out) {
  const CudaStep& cuda_step = AsCudaStep(step);
  if (spec_id < 0 || spec_id >= static_cast<int>(attentions_.size()) ||
      layer < 0 || layer >= attentions_[spec_id].spec.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("Attention: no layer ", layer, " of spec ", spec_id));
  }
  const CudaAttention& attention = attentions_[spec_id];
  const AttentionSpec& spec = attention.spec;
  const int64_t q_cols = int64_t{spec.num_heads} * spec.head_dim;
  const int64_t qkv_cols =
      q_cols + int64_t{2} * spec.num_kv_heads * spec.head_dim;
  const DType dtype =
      spec.kv_dtype == DType::kF8E4M3 ? qkv.dtype : spec.kv_dtype;
  QUIRE_RETURN_IF_ERROR(CheckCudaView("Attention: qkv", qkv, dtype,
                                      cuda_step.num_tokens, qkv_cols));
  QUIRE_RETURN_IF_ERROR(CheckCudaView("Attention: out", out, dtype,
                                      cuda_step.num_tokens, q_cols));
  if (cuda_step.num_tokens == 0) return absl::OkStatus();
  char* kv = attention.kv.data() + int64_t{layer} * attention.layer_elements *
                                       DTypeSize(spec.kv_dtype);
  cuda::RopeArguments rope;
  rope.dtype = dtype;
  rope.kv_dtype = spec.kv_dtype;
  rope.num_heads = spec.num_heads;
  rope.num_kv_heads = spec.num_kv_heads;
  rope.head_dim = spec.head_dim;
  rope.block_size = shape_.block_size;
  rope.q_norm = attention.q_norm;
  rope.k_norm = attention.k_norm;
  rope.statistics = head_statistics_.data<float>();
  if (!spec.rope_table.empty()) {
    rope.rope_table = spec.rope_table.row<const float>(0);
    rope.rotary_dim = static_cast<int>(spec.rope_table.cols);
    rope.is_interleaved = spec.rope_interleaved;
  }
  if (!spec.long_rope_table.empty()) {
    rope.long_rope_table = spec.long_rope_table.row<const float>(0);
    rope.long_rope_after = spec.long_rope_after;
    rope.start_tokens = cuda_step.d_start_tokens;
  }
  rope.qkv = qkv.row<uint16_t>(0);
  rope.qkv_stride = qkv.row_stride;
  rope.kv_cache = kv;
  rope.positions = cuda_step.d_positions;
  rope.table_rows = cuda_step.d_slots;
  rope.block_tables = block_tables_.data<const int32_t>();
  rope.block_table_stride = max_blocks_per_seq_;
  rope.num_tokens = cuda_step.num_tokens;
  if (spec.norm_ranks != nullptr) {
    rope.num_norm_ranks = spec.norm_ranks->size();
    if (!cuda::LaunchHeadSquares(rope, device_->stream())) {
      return device_->LaunchError("HeadSquares");
    }
    QUIRE_RETURN_IF_ERROR(AllReduce(
        *spec.norm_ranks,
        TensorView::Matrix(rope.statistics, DType::kF32, rope.num_tokens, 4)));
  }
  if (!cuda::LaunchRopeAndCache(rope, device_->stream())) {
    return device_->LaunchError("RopeAndCache");
  }
  cuda::AttentionArguments arguments;
  arguments.shape = attention.shape;
  arguments.dtype = dtype;
  arguments.kv_dtype = spec.kv_dtype;
  arguments.q = qkv.data;
  arguments.q_stride = qkv.row_stride;
  arguments.out = out.data;
  arguments.kv_cache = kv;
  arguments.block_tables = rope.block_tables;
  arguments.block_table_stride = rope.block_table_stride;
  arguments.partial_out = partial_out_.data<float>();
  arguments.partial_stats = partial_stats_.data<float>();
  for (const auto tile :
       {cuda::AttentionTile::kWarpgroup, cuda::AttentionTile::kPrefill,
        cuda::AttentionTile::kDecode}) {
    const AttentionBatch& batch =
        cuda_step.attention[BatchIndex(attention.plan_idx, tile)];
    arguments.work = batch.work;
    arguments.num_tasks = batch.num_task_ctas;
    arguments.num_merges = batch.num_merge_ctas;
    if (batch.num_task_ctas > 0 &&
        !cuda::LaunchAttention(arguments, tile, device_->stream())) {
      return device_->LaunchError("Attention");
    }
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::Logits(Step& step, TensorView hidden,
                                 const Prologue& prologue,
                                 const PackedWeight& vocab, float scale,
                                 float softcap, TensorView out) {
  const CudaStep& cuda_step = AsCudaStep(step);
  const auto& table = static_cast<const CudaWeight&>(vocab);
  const int64_t num_rows = cuda_step.num_logits;
  QUIRE_RETURN_IF_ERROR(CheckCudaView("Logits: hidden", hidden, table.dtype,
                                      cuda_step.num_tokens, vocab.cols));
  const bool may_be_slice =
      shape_.tensor_ranks != nullptr && vocab.rows < shape_.vocab_size;
  if (vocab.kind != LinearKind::kVocab ||
      (vocab.rows != shape_.vocab_size && !may_be_slice)) {
    return absl::InvalidArgumentError(
        absl::StrCat("Logits: the weights have ", vocab.rows,
                     " rows, vocab_size is ", shape_.vocab_size));
  }
  TensorView dense = out;
  if (out.row_stride >= out.cols) dense.row_stride = out.cols;
  QUIRE_RETURN_IF_ERROR(
      CheckCudaView("Logits: out", dense, DType::kF32, num_rows, vocab.rows));
  cuda::NormArguments norm;
  QUIRE_RETURN_IF_ERROR(
      MakeNorm(prologue, hidden, cuda_step.num_tokens, &norm));
  if (num_rows == 0) return absl::OkStatus();
  norm.num_tokens = static_cast<int>(num_rows);
  norm.rows = cuda_step.d_logit_tokens;
  Epilogue epilogue;
  epilogue.scale = scale;
  return LaunchNormedLinear(hidden, prologue, norm, vocab, epilogue, softcap,
                            out);
}

absl::Status CudaBackend::GatherLogitRows(Step& step, TensorView x,
                                          TensorView out) {
  const CudaStep& cuda_step = AsCudaStep(step);
  cuda::NormArguments norm;
  QUIRE_RETURN_IF_ERROR(MakeNorm(Prologue(), x, cuda_step.num_tokens, &norm));
  QUIRE_RETURN_IF_ERROR(CheckCudaView("GatherLogitRows: out", out, x.dtype,
                                      cuda_step.num_logits, x.cols));
  if (cuda_step.num_logits == 0) return absl::OkStatus();
  norm.num_tokens = static_cast<int>(cuda_step.num_logits);
  norm.rows = cuda_step.d_logit_tokens;
  norm.out = out.row<uint16_t>(0);
  return cuda::LaunchNorm(norm, device_->stream())
             ? absl::OkStatus()
             : device_->LaunchError("Norm");
}

absl::Status CudaBackend::CheckPool(const CudaStep& step,
                                    Pooling pooling) const {
  for (const CudaStepRow& state : step.rows) {
    if (state.row.num_drafts > 0 || state.row.num_logits > 1) {
      return absl::InvalidArgumentError(
          "Pool: a row has drafts or several logits");
    }
    const CudaSlot& slot = slots_[state.row.slot];
    if (pooling == Pooling::kMean &&
        slot.num_pooled_tokens != state.first_position) {
      return absl::FailedPreconditionError(absl::StrCat(
          "Pool: slot ", state.row.slot, " has pooled ", slot.num_pooled_tokens,
          " tokens and goes on at position ", state.first_position));
    }
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::Pool(Step& step, TensorView hidden,
                               const Prologue& prologue, Pooling pooling) {
  CudaStep& cuda_step = AsCudaStep(step);
  if (cuda_step.is_sampled) {
    return absl::FailedPreconditionError("Pool after Sample or Pool");
  }
  if (pooling == Pooling::kNone || shape_.pooled_cols == 0) {
    return absl::InvalidArgumentError("Pool: no pooling was prepared");
  }
  QUIRE_RETURN_IF_ERROR(CheckPool(cuda_step, pooling));
  if (hidden.cols != shape_.pooled_cols) {
    return absl::InvalidArgumentError(
        absl::StrCat("Pool: hidden has ", hidden.cols, " columns, not ",
                     shape_.pooled_cols));
  }
  cuda::NormArguments norm;
  QUIRE_RETURN_IF_ERROR(
      MakeNorm(prologue, hidden, cuda_step.num_tokens, &norm));
  cuda_step.is_sampled = true;
  cuda_step.pooling = pooling;
  if (pooling == Pooling::kLast) {
    norm.num_tokens = cuda_step.num_logits;
    norm.rows = cuda_step.d_logit_tokens;
    norm.out_f32 = embeddings_.data<float>();
    return cuda::LaunchNorm(norm, device_->stream())
               ? absl::OkStatus()
               : device_->LaunchError("Norm");
  }
  norm.out_f32 = pooled_x_.data<float>();
  if (!cuda::LaunchNorm(norm, device_->stream())) {
    return device_->LaunchError("Norm");
  }
  return cuda::LaunchMeanPool({.x = pooled_x_.data<const float>(),
                               .rows = cuda_step.d_pool_rows,
                               .num_rows = cuda_step.num_rows,
                               .cols = shape_.pooled_cols,
                               .sums = pooled_sums_.data<double>(),
                               .out = embeddings_.data<float>()},
                              device_->stream())
             ? absl::OkStatus()
             : device_->LaunchError("MeanPool");
}

}  // namespace quire
