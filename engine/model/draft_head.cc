#include "engine/model/draft_head.h"

#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/model/pack_linear.h"
#include "engine/model/rope.h"

namespace quire {
namespace {

// d2t holds, for each id of the draft vocabulary, how much larger the target's
// id is.
absl::StatusOr<std::vector<int32_t>> ReadTargetIds(const Checkpoint& checkpoint,
                                                   int draft_vocab_size,
                                                   int vocab_size) {
  const StoredTensor* tensor = checkpoint.Find("d2t");
  if (tensor == nullptr) {
    if (draft_vocab_size == vocab_size) return std::vector<int32_t>();
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": tensor \"d2t\" is missing"));
  }
  const auto fail = [&](const auto&... what) {
    return absl::InvalidArgumentError(
        absl::StrCat(*tensor->path, ": tensor \"d2t\" ", what...));
  };
  if (tensor->dtype != StoredDType::kI64 ||
      tensor->shape != std::vector<int64_t>{draft_vocab_size}) {
    return fail("is ", StoredDTypeName(tensor->dtype), " ",
                ShapeString(tensor->shape), ", must be I64 [", draft_vocab_size,
                "]");
  }
  std::vector<int32_t> ids(draft_vocab_size);
  for (int i = 0; i < draft_vocab_size; ++i) {
    int64_t offset;
    std::memcpy(&offset, tensor->data.data() + i * sizeof(offset),
                sizeof(offset));
    // Compared this way, nothing overflows.
    if (offset < -int64_t{i} || offset >= int64_t{vocab_size} - i) {
      return fail("leads from ", i, " by ", offset, " out of a vocabulary of ",
                  vocab_size);
    }
    ids[i] = static_cast<int32_t>(i + offset);
  }
  return ids;
}

}  // namespace

class DraftHeadBuilder {
 public:
  DraftHeadBuilder(const DraftHeadConfig& config, const ModelOptions& options,
                   const Checkpoint& checkpoint, WeightLoader& weights,
                   Backend& backend)
      : config_(config),
        layer_(config.model.layers[0]),
        options_(options),
        checkpoint_(checkpoint),
        weights_(weights),
        backend_(backend),
        head_(new DraftHead) {}

  absl::StatusOr<std::unique_ptr<DraftHead>> Build();

 private:
  struct Columns {
    int64_t total = 0;
    IndexRange range;
  };
  // Rows [rows] of `cols`, one of several parts of the matrix.
  absl::StatusOr<std::unique_ptr<PackedWeight>> Pack(
      LinearKind kind, std::vector<LinearSource> sources);
  LinearSource Source(const std::string& name, int64_t rows, Columns cols,
                      bool has_bias = false) const {
    return {name, rows, cols.total, {0, rows}, cols.range, has_bias};
  }
  Columns All(int64_t cols) const { return {cols, {0, cols}}; }
  absl::StatusOr<NormSpec> Norm(const std::string& name);
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackQkv(Columns cols,
                                                        bool has_bias);
  absl::Status BuildEagle();
  absl::Status BuildMtp();
  absl::Status BuildLayer();
  absl::Status AddAttention();
  void AddBuffers();

  const DraftHeadConfig& config_;
  const LayerConfig& layer_;
  const ModelOptions& options_;
  const Checkpoint& checkpoint_;
  WeightLoader& weights_;
  Backend& backend_;
  std::unique_ptr<DraftHead> head_;
  std::string prefix_;  // Of the layer.
};

absl::StatusOr<std::unique_ptr<PackedWeight>> DraftHeadBuilder::Pack(
    LinearKind kind, std::vector<LinearSource> sources) {
  QUIRE_ASSIGN_OR_RETURN(LinearSpec spec, weights_.Linear(kind, sources));
  spec.model_dtype = head_->dtype_;
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<PackedWeight> packed,
                         PackLinear(spec, sources, weights_, backend_));
  head_->weights_bytes_ += packed->num_bytes;
  return packed;
}

absl::StatusOr<NormSpec> DraftHeadBuilder::Norm(const std::string& name) {
  NormSpec norm;
  norm.kind = NormSpec::Kind::kRms;
  norm.eps = config_.model.norm_eps;
  QUIRE_ASSIGN_OR_RETURN(const std::vector<float> values,
                         weights_.Vector(absl::StrCat(name, ".weight"),
                                         config_.model.hidden_size));
  QUIRE_ASSIGN_OR_RETURN(norm.weight,
                         backend_.Upload(TensorView::Vector(
                             values.data(), DType::kF32, values.size())));
  return norm;
}

absl::StatusOr<std::unique_ptr<PackedWeight>> DraftHeadBuilder::PackQkv(
    Columns cols, bool has_bias) {
  const int64_t q_size = int64_t{layer_.num_heads} * layer_.head_dim;
  const int64_t kv_size = int64_t{layer_.num_kv_heads} * layer_.head_dim;
  return Pack(LinearKind::kQkv,
              {Source(prefix_ + "self_attn.q_proj", q_size, cols, has_bias),
               Source(prefix_ + "self_attn.k_proj", kv_size, cols, has_bias),
               Source(prefix_ + "self_attn.v_proj", kv_size, cols, has_bias)});
}

absl::Status DraftHeadBuilder::BuildEagle() {
  const int64_t hidden_size = config_.model.hidden_size;
  const int64_t tap_size = config_.target_hidden_size;
  prefix_ =
      weights_.Has("midlayer.hidden_norm.weight") ? "midlayer." : "layers.0.";
  QUIRE_ASSIGN_OR_RETURN(head_->dtype_, weights_.PackedDType("fc.weight"));
  const int64_t num_taps = static_cast<int64_t>(config_.taps.size());
  for (int64_t i = 0; i < num_taps; ++i) {
    QUIRE_ASSIGN_OR_RETURN(
        head_->fc_.emplace_back(),
        Pack(LinearKind::kPlain,
             {Source(
                 "fc", hidden_size,
                 {num_taps * tap_size, {i * tap_size, (i + 1) * tap_size}})}));
  }
  QUIRE_ASSIGN_OR_RETURN(head_->embedding_norm_,
                         Norm(prefix_ + "input_layernorm"));
  QUIRE_ASSIGN_OR_RETURN(head_->hidden_norm_, Norm(prefix_ + "hidden_norm"));
  // The embedding comes first, and the bias is added once.
  QUIRE_ASSIGN_OR_RETURN(
      head_->of_embedding_,
      PackQkv({2 * hidden_size, {0, hidden_size}}, layer_.has_qkv_bias));
  QUIRE_ASSIGN_OR_RETURN(
      head_->of_hidden_,
      PackQkv({2 * hidden_size, {hidden_size, 2 * hidden_size}}, false));
  QUIRE_RETURN_IF_ERROR(BuildLayer());
  QUIRE_ASSIGN_OR_RETURN(head_->final_norm_, Norm("norm"));
  QUIRE_ASSIGN_OR_RETURN(
      head_->own_head_,
      Pack(LinearKind::kVocab,
           {Source("lm_head", config_.model.vocab_size, All(hidden_size))}));
  if (weights_.Has("embed_tokens.weight")) {
    QUIRE_ASSIGN_OR_RETURN(
        head_->own_embedding_,
        Pack(LinearKind::kVocab, {Source("embed_tokens", config_.num_input_ids,
                                         All(hidden_size))}));
  }
  QUIRE_ASSIGN_OR_RETURN(head_->target_ids_,
                         ReadTargetIds(checkpoint_, config_.model.vocab_size,
                                       config_.num_input_ids));
  weights_.Ignore("d2t");
  weights_.Ignore("t2d");  // Of training.
  return absl::OkStatus();
}

absl::Status DraftHeadBuilder::BuildMtp() {
  const int64_t hidden_size = config_.model.hidden_size;
  prefix_ = "model.mtp_layers.0.";
  QUIRE_ASSIGN_OR_RETURN(head_->dtype_, weights_.PackedDType(absl::StrCat(
                                            prefix_, "mlp.down_proj.weight")));
  QUIRE_ASSIGN_OR_RETURN(head_->embedding_norm_,
                         Norm(prefix_ + "token_layernorm"));
  QUIRE_ASSIGN_OR_RETURN(head_->hidden_norm_,
                         Norm(prefix_ + "hidden_layernorm"));
  const std::string projection = prefix_ + "input_proj";
  QUIRE_ASSIGN_OR_RETURN(
      head_->of_hidden_,
      Pack(LinearKind::kPlain, {Source(projection, hidden_size,
                                       {2 * hidden_size, {0, hidden_size}})}));
  QUIRE_ASSIGN_OR_RETURN(
      head_->of_embedding_,
      Pack(LinearKind::kPlain,
           {Source(projection, hidden_size,
                   {2 * hidden_size, {hidden_size, 2 * hidden_size}})}));
  QUIRE_ASSIGN_OR_RETURN(head_->attention_norm_,
                         Norm(prefix_ + "input_layernorm"));
  QUIRE_ASSIGN_OR_RETURN(head_->qkv_,
                         PackQkv(All(hidden_size), layer_.has_qkv_bias));
  QUIRE_RETURN_IF_ERROR(BuildLayer());
  QUIRE_ASSIGN_OR_RETURN(head_->final_norm_, Norm(prefix_ + "final_layernorm"));
  return absl::OkStatus();
}

absl::Status DraftHeadBuilder::BuildLayer() {
  const int64_t hidden_size = config_.model.hidden_size;
  const int64_t inner_size = layer_.intermediate_size;
  QUIRE_ASSIGN_OR_RETURN(
      head_->output_,
      Pack(LinearKind::kPlain,
           {Source(prefix_ + "self_attn.o_proj", hidden_size,
                   All(int64_t{layer_.num_heads} * layer_.head_dim),
                   layer_.has_output_bias)}));
  QUIRE_ASSIGN_OR_RETURN(head_->mlp_norm_,
                         Norm(prefix_ + "post_attention_layernorm"));
  QUIRE_ASSIGN_OR_RETURN(
      head_->gate_up_,
      Pack(LinearKind::kGateUp,
           {Source(prefix_ + "mlp.gate_proj", inner_size, All(hidden_size)),
            Source(prefix_ + "mlp.up_proj", inner_size, All(hidden_size))}));
  QUIRE_ASSIGN_OR_RETURN(
      head_->down_,
      Pack(LinearKind::kPlain,
           {Source(prefix_ + "mlp.down_proj", hidden_size, All(inner_size))}));
  return absl::OkStatus();
}

absl::Status DraftHeadBuilder::AddAttention() {
  AttentionSpec spec;
  spec.num_layers = 1;
  spec.num_heads = layer_.num_heads;
  spec.num_kv_heads = layer_.num_kv_heads;
  spec.head_dim = layer_.head_dim;
  spec.scale = layer_.attention_scale;
  spec.kv_dtype = options_.kv_dtype;
  const std::vector<float> table =
      RopeTable(layer_.rope, layer_.head_dim, options_.max_model_len);
  QUIRE_ASSIGN_OR_RETURN(spec.rope_table,
                         backend_.Upload(TensorView::Matrix(
                             table.data(), DType::kF32, options_.max_model_len,
                             RotaryDim(layer_.rope, layer_.head_dim))));
  QUIRE_ASSIGN_OR_RETURN(head_->attention_, backend_.AddAttention(spec));
  return absl::OkStatus();
}

void DraftHeadBuilder::AddBuffers() {
  const int64_t hidden_size = config_.model.hidden_size;
  const DType dtype = backend_.ActivationDType(head_->dtype_);
  head_->activation_dtype_ = dtype;
  const auto tokens = ActivationRows::kTokens;
  DraftHead::Buffers& ids = head_->buffers_;
  const PackedWeight& qkv =
      head_->qkv_ != nullptr ? *head_->qkv_ : *head_->of_embedding_;
  ids.embedded = backend_.AddActivation(hidden_size, dtype, tokens);
  ids.input = backend_.AddActivation(hidden_size, dtype, tokens);
  ids.stream = backend_.AddActivation(hidden_size, dtype, tokens);
  ids.normed = backend_.AddActivation(hidden_size, dtype, tokens);
  ids.gathered =
      backend_.AddActivation(hidden_size, dtype, ActivationRows::kLogitRows);
  ids.qkv = backend_.AddActivation(qkv.rows, dtype, tokens);
  ids.attention = backend_.AddActivation(head_->output_->cols, dtype, tokens);
  ids.mlp = backend_.AddActivation(head_->down_->cols, dtype, tokens);
  ids.logits = backend_.AddActivation(config_.model.vocab_size, DType::kF32,
                                      ActivationRows::kLogitRows);
}

absl::StatusOr<std::unique_ptr<DraftHead>> DraftHeadBuilder::Build() {
  head_->config_ = config_;
  if (layer_.rope.type == RopeType::kLongRope ||
      layer_.qk_norm != QkNorm::kNone || layer_.has_mlp_bias ||
      layer_.activation != Epilogue::Activation::kSwiGlu) {
    return absl::UnimplementedError(
        absl::StrCat(weights_.path(),
                     ": a draft head of another kind than "
                     "Llama's and Qwen 2's layers"));
  }
  const bool is_eagle = config_.kind == DraftHeadKind::kEagle3;
  QUIRE_RETURN_IF_ERROR(is_eagle ? BuildEagle() : BuildMtp());
  QUIRE_RETURN_IF_ERROR(AddAttention());
  AddBuffers();
  return std::move(head_);
}

absl::StatusOr<std::unique_ptr<DraftHead>> DraftHead::Create(
    const DraftHeadConfig& config, const ModelOptions& options,
    const Checkpoint& checkpoint, WeightLoader& weights, Backend& backend) {
  return DraftHeadBuilder(config, options, checkpoint, weights, backend)
      .Build();
}

absl::Status DraftHead::SetTarget(const Model& target,
                                  const Backend& target_backend) {
  embedding_ =
      own_embedding_ != nullptr ? own_embedding_.get() : target.embedding();
  head_ = own_head_ != nullptr ? own_head_.get() : target.head();
  if (embedding_ == nullptr || head_ == nullptr ||
      embedding_->cols != config_.model.hidden_size ||
      head_->cols != config_.model.hidden_size) {
    return absl::InvalidArgumentError(
        "the draft head has no token embedding of its own, and the model's "
        "does not fit it");
  }
  QUIRE_CHECK(target.tap_buffers().size() == config_.taps.size());
  taps_.clear();
  for (const int buffer : target.tap_buffers()) {
    taps_.push_back(target_backend.Activation(buffer));
    if (taps_.back().dtype != activation_dtype_) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the draft head computes in ", DTypeName(activation_dtype_),
          ", the model in ", DTypeName(taps_.back().dtype)));
    }
  }
  return absl::OkStatus();
}

absl::Status DraftHead::FinishLayer(Backend& backend, Step& step,
                                    TensorView stream, TensorView residual) {
  const TensorView qkv = backend.Activation(buffers_.qkv);
  const TensorView attention = backend.Activation(buffers_.attention);
  const TensorView mlp = backend.Activation(buffers_.mlp);
  QUIRE_RETURN_IF_ERROR(
      backend.Attention(step, attention_, /*layer=*/0, qkv, attention));
  Epilogue add;
  add.residual = residual;
  QUIRE_RETURN_IF_ERROR(
      backend.Linear(step, attention, Prologue(), *output_, add, stream));
  Prologue norm;
  norm.norm = mlp_norm_;
  Epilogue activated;
  activated.activation = Epilogue::Activation::kSwiGlu;
  QUIRE_RETURN_IF_ERROR(
      backend.Linear(step, stream, norm, *gate_up_, activated, mlp));
  add.residual = stream;
  return backend.Linear(step, mlp, Prologue(), *down_, add, stream);
}

absl::Status DraftHead::ForwardEagle(Backend& backend, Step& step,
                                     TensorView input) {
  const TensorView embedded = backend.Activation(buffers_.embedded);
  const TensorView qkv = backend.Activation(buffers_.qkv);
  const TensorView stream = backend.Activation(buffers_.stream);
  if (reads_taps_) {
    input = backend.Activation(buffers_.input);
    Epilogue add;
    for (size_t i = 0; i < taps_.size(); ++i) {
      QUIRE_RETURN_IF_ERROR(
          backend.Linear(step, taps_[i], Prologue(), *fc_[i], add, input));
      add.residual = input;
    }
  }
  Prologue norm;
  norm.norm = embedding_norm_;
  QUIRE_RETURN_IF_ERROR(
      backend.Linear(step, embedded, norm, *of_embedding_, Epilogue(), qkv));
  norm.norm = hidden_norm_;
  Epilogue add;
  add.residual = qkv;
  QUIRE_RETURN_IF_ERROR(
      backend.Linear(step, input, norm, *of_hidden_, add, qkv));
  if (config_.norm_before_residual) {
    const TensorView normed = backend.Activation(buffers_.normed);
    QUIRE_RETURN_IF_ERROR(backend.Norm(step, input, norm, normed));
    input = normed;
  }
  QUIRE_RETURN_IF_ERROR(FinishLayer(backend, step, stream, input));
  QUIRE_RETURN_IF_ERROR(backend.GatherLogitRows(
      step, stream, backend.Activation(buffers_.gathered)));
  Prologue final_norm;
  final_norm.norm = final_norm_;
  return backend.Logits(step, stream, final_norm, *head_, 1.0f, 0.0f,
                        backend.Activation(buffers_.logits));
}

absl::Status DraftHead::ForwardMtp(Backend& backend, Step& step,
                                   TensorView input) {
  const TensorView embedded = backend.Activation(buffers_.embedded);
  const TensorView stream = backend.Activation(buffers_.stream);
  const TensorView normed = backend.Activation(buffers_.normed);
  Prologue norm;
  norm.norm = hidden_norm_;
  QUIRE_RETURN_IF_ERROR(
      backend.Linear(step, input, norm, *of_hidden_, Epilogue(), stream));
  norm.norm = embedding_norm_;
  Epilogue add;
  add.residual = stream;
  QUIRE_RETURN_IF_ERROR(
      backend.Linear(step, embedded, norm, *of_embedding_, add, stream));
  norm.norm = attention_norm_;
  QUIRE_RETURN_IF_ERROR(backend.Linear(step, stream, norm, *qkv_, Epilogue(),
                                       backend.Activation(buffers_.qkv)));
  QUIRE_RETURN_IF_ERROR(FinishLayer(backend, step, stream, stream));
  Prologue final_norm;
  final_norm.norm = final_norm_;
  QUIRE_RETURN_IF_ERROR(backend.Norm(step, stream, final_norm, normed));
  QUIRE_RETURN_IF_ERROR(backend.GatherLogitRows(
      step, normed, backend.Activation(buffers_.gathered)));
  return backend.Logits(
      step, normed, Prologue(), *head_, config_.model.logits_scale,
      config_.model.logits_softcap, backend.Activation(buffers_.logits));
}

absl::Status DraftHead::Forward(Backend& backend, Step& step) {
  QUIRE_RETURN_IF_ERROR(backend.Embed(step, *embedding_, nullptr, 1.0f,
                                      backend.Activation(buffers_.embedded)));
  const TensorView input =
      reads_taps_ ? taps_[0] : backend.Activation(buffers_.gathered);
  QUIRE_RETURN_IF_ERROR(config_.kind == DraftHeadKind::kEagle3
                            ? ForwardEagle(backend, step, input)
                            : ForwardMtp(backend, step, input));
  return backend.Sample(step, backend.Activation(buffers_.logits));
}

}  // namespace quire
