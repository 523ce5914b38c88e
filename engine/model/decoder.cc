// What a step of the decoder enqueues; decoder_builder.cc makes it.
#include "engine/model/decoder.h"

#include "engine/base/status.h"

namespace quire {

// The hidden states that the first layer here meets.
absl::Status Decoder::Embed(Backend& backend, Step& step) {
  const TensorView hidden = backend.Activation(buffers_.hidden);
  if (!is_first_stage()) {
    return backend.Transfer(step, TransferKind::kReceive, *pipeline_ranks_,
                            pipeline_ranks_->rank() - 1, hidden);
  }
  if (project_in_ == nullptr) {
    return backend.Embed(step, *embedding_, positions_.get(), embedding_scale_,
                         hidden);
  }
  const TensorView embedded = backend.Activation(buffers_.embedded);
  QUIRE_RETURN_IF_ERROR(
      backend.Embed(step, *embedding_, nullptr, embedding_scale_, embedded));
  QUIRE_RETURN_IF_ERROR(backend.Linear(step, embedded, Prologue(), *project_in_,
                                       Epilogue(), hidden));
  if (positions_ == nullptr) return absl::OkStatus();
  return backend.AddPositions(step, *positions_, hidden);
}

absl::Status Decoder::AddBranch(Backend& backend, Step& step, TensorView x,
                                const PackedWeight& weight,
                                const NormSpec& branch_norm,
                                const NormSpec& sum_norm) {
  const TensorView hidden = backend.Activation(buffers_.hidden);
  Epilogue epilogue;
  epilogue.all_reduce = tensor_ranks_;
  epilogue.norm = branch_norm;
  if (tensor_ranks_ != nullptr || branch_norm.kind != NormSpec::Kind::kNone) {
    epilogue.norm_input =
        Narrowed(backend.Activation(buffers_.qkv), hidden.cols);
  }
  epilogue.scale = residual_scale_;
  epilogue.residual = hidden;
  QUIRE_RETURN_IF_ERROR(
      backend.Linear(step, x, Prologue(), weight, epilogue, hidden));
  if (sum_norm.kind == NormSpec::Kind::kNone) return absl::OkStatus();
  Prologue norm;
  norm.norm = sum_norm;
  return backend.Norm(step, hidden, norm, hidden);
}

absl::Status Decoder::ForwardLayer(Backend& backend, Step& step,
                                   const DecoderLayer& layer) {
  const TensorView hidden = backend.Activation(buffers_.hidden);
  const TensorView qkv =
      Narrowed(backend.Activation(buffers_.qkv), layer.qkv->rows);
  const TensorView attention =
      Narrowed(backend.Activation(buffers_.attention), layer.output->cols);
  const TensorView mlp =
      Narrowed(backend.Activation(buffers_.mlp), layer.down->cols);
  Prologue attention_prologue;
  attention_prologue.norm = layer.attention_norm;
  Prologue mlp_prologue;
  mlp_prologue.norm = layer.is_parallel ? layer.attention_norm : layer.mlp_norm;
  Epilogue activated;
  activated.activation = layer.activation;
  const auto up = [&] {
    return backend.Linear(step, hidden, mlp_prologue, *layer.gate_up, activated,
                          mlp);
  };

  QUIRE_RETURN_IF_ERROR(backend.Linear(step, hidden, attention_prologue,
                                       *layer.qkv, Epilogue(), qkv));
  QUIRE_RETURN_IF_ERROR(backend.Attention(
      step, layer.attention_spec, layer.attention_layer, qkv, attention));
  // Side by side, both branches read `hidden` before either is added.
  if (layer.is_parallel) QUIRE_RETURN_IF_ERROR(up());
  QUIRE_RETURN_IF_ERROR(AddBranch(backend, step, attention, *layer.output,
                                  layer.attention_branch_norm,
                                  layer.attention_sum_norm));
  if (!layer.is_parallel) QUIRE_RETURN_IF_ERROR(up());
  return AddBranch(backend, step, mlp, *layer.down, layer.mlp_branch_norm,
                   layer.mlp_sum_norm);
}

absl::Status Decoder::Logits(Backend& backend, Step& step, TensorView logits) {
  const PackedWeight& head = head_ != nullptr ? *head_ : *embedding_;
  TensorView hidden = backend.Activation(buffers_.hidden);
  Prologue prologue;
  prologue.norm = final_norm_;
  if (project_out_ != nullptr) {
    const TensorView embedded = backend.Activation(buffers_.embedded);
    QUIRE_RETURN_IF_ERROR(backend.Linear(step, hidden, prologue, *project_out_,
                                         Epilogue(), embedded));
    hidden = embedded;
    prologue = Prologue();
  }
  // The last slice of a vocabulary is not filled.
  logits.cols = head.rows;
  return backend.Logits(step, hidden, prologue, head, logits_scale_,
                        logits_softcap_, logits);
}

absl::Status Decoder::Tap(Backend& backend, Step& step, int place,
                          const NormSpec& norm) {
  for (size_t i = 0; i < taps_.size(); ++i) {
    if (taps_[i] != place) continue;
    Prologue prologue;
    prologue.norm = norm;
    QUIRE_RETURN_IF_ERROR(
        backend.Norm(step, backend.Activation(buffers_.hidden), prologue,
                     backend.Activation(tap_buffers_[i])));
  }
  return absl::OkStatus();
}

absl::Status Decoder::Forward(Backend& backend, Step& step) {
  QUIRE_RETURN_IF_ERROR(Embed(backend, step));
  for (int64_t i = layer_range_.begin; i < layer_range_.end; ++i) {
    QUIRE_RETURN_IF_ERROR(Tap(backend, step, static_cast<int>(i), NormSpec()));
    QUIRE_RETURN_IF_ERROR(ForwardLayer(backend, step, layers_[i]));
    if (progress_ != nullptr) ++*progress_;
  }
  QUIRE_RETURN_IF_ERROR(
      Tap(backend, step, ModelOptions::kAfterFinalNorm, final_norm_));
  if (!is_last_stage()) {
    QUIRE_RETURN_IF_ERROR(backend.Transfer(
        step, TransferKind::kSend, *pipeline_ranks_,
        pipeline_ranks_->rank() + 1, backend.Activation(buffers_.hidden)));
    return backend.Advance(step);
  }
  if (pooling_ != Pooling::kNone) {
    Prologue prologue;
    prologue.norm = final_norm_;
    return backend.Pool(step, backend.Activation(buffers_.hidden), prologue,
                        pooling_);
  }
  const TensorView logits = backend.Activation(buffers_.logits);
  QUIRE_RETURN_IF_ERROR(Logits(backend, step, logits));
  return backend.Sample(step, logits);
}

}  // namespace quire
