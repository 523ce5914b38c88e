#include "engine/model/decoder.h"

#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/model/rope.h"

namespace quire {
namespace {

constexpr char kEmbedding[] = "model.embed_tokens";
constexpr char kHead[] = "lm_head";

struct DecoderLayer {
  NormSpec attention_norm;
  std::unique_ptr<PackedWeight> qkv;
  int attention_spec = 0;
  int attention_layer = 0;  // Among the layers of the spec.
  std::unique_ptr<PackedWeight> output;
  NormSpec mlp_norm;
  std::unique_ptr<PackedWeight> gate_up;
  std::unique_ptr<PackedWeight> down;
};

class Decoder : public Model {
 public:
  absl::Status Forward(Backend& backend, Step& step) override;
  int64_t weights_bytes() const override { return weights_bytes_; }
  DType dtype() const override { return dtype_; }

 private:
  friend class DecoderBuilder;

  absl::Status ForwardLayer(Backend& backend, Step& step,
                            const DecoderLayer& layer);

  std::vector<DecoderLayer> layers_;
  std::unique_ptr<PackedWeight> embedding_;
  std::unique_ptr<PackedWeight> head_;  // Null: the embedding's table.
  NormSpec final_norm_;
  int64_t weights_bytes_ = 0;
  DType dtype_ = DType::kF32;
  Pooling pooling_ = Pooling::kNone;

  // Activation buffers: ids, resolved to views after Prepare.
  struct Buffers {
    int hidden = 0;     // [num_tokens, hidden_size], the residual stream.
    int qkv = 0;        // [num_tokens, widest qkv].
    int attention = 0;  // [num_tokens, widest num_heads * head_dim].
    int mlp = 0;        // [num_tokens, widest intermediate_size].
    int logits = 0;     // [num_logit_rows, vocab_size], f32.
  } buffers_;
};

// Packs in file order: layer by layer, so that pages are read once and in
// sequence.
class DecoderBuilder {
 public:
  DecoderBuilder(const ModelConfig& config, const ModelOptions& options,
                 WeightLoader& weights, Backend& backend)
      : config_(config),
        options_(options),
        weights_(weights),
        backend_(backend),
        decoder_(new Decoder) {}

  absl::StatusOr<std::unique_ptr<Model>> Build();

 private:
  // What makes layers share one AttentionSpec; layers with norms of their own
  // in the attention never do.
  struct SpecEntry {
    LayerConfig layer;
    int first_layer = 0;
    std::vector<int> layers;
  };

  absl::Status BuildVocabulary();
  absl::Status BuildLayer(int layer_idx, const LayerConfig& layer,
                          HeadShard heads);
  absl::Status AddAttentionSpecs();
  absl::Status AddBuffers();
  absl::StatusOr<NormSpec> Norm(const std::string& name, int64_t size);
  absl::StatusOr<std::unique_ptr<PackedWeight>> Pack(
      LinearKind kind, const std::vector<LinearSource>& sources);
  absl::StatusOr<TensorView> RopeTableFor(const LayerConfig& layer);

  const ModelConfig& config_;
  const ModelOptions& options_;
  WeightLoader& weights_;
  Backend& backend_;
  std::unique_ptr<Decoder> decoder_;
  // Per layer, RMS norms over head_dim; kNone without has_qk_norm.
  std::vector<NormSpec> q_norms_, k_norms_;
  std::vector<std::pair<LayerConfig, TensorView>> rope_tables_;
};

std::string LayerName(int layer_idx, const char* part) {
  return absl::StrCat("model.layers.", layer_idx, ".", part);
}

absl::StatusOr<NormSpec> DecoderBuilder::Norm(const std::string& name,
                                              int64_t size) {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<float> values,
                         weights_.Vector(absl::StrCat(name, ".weight"), size));
  NormSpec norm;
  norm.kind = NormSpec::Kind::kRms;
  norm.eps = config_.rms_norm_eps;
  QUIRE_ASSIGN_OR_RETURN(norm.weight,
                         backend_.Upload(TensorView::Vector(
                             values.data(), DType::kF32, values.size())));
  return norm;
}

absl::StatusOr<std::unique_ptr<PackedWeight>> DecoderBuilder::Pack(
    LinearKind kind, const std::vector<LinearSource>& sources) {
  QUIRE_ASSIGN_OR_RETURN(const LinearSpec spec, weights_.Linear(kind, sources));
  for (size_t i = 0; i < spec.parts.size(); ++i) {
    const WeightPart& part = spec.parts[i];
    if (!backend_.SupportsLinear(part.data.dtype, part.format)) {
      return absl::InvalidArgumentError(absl::StrCat(
          weights_.path(), ": tensor \"", sources[i].name,
          ".weight\": ", backend_.Description(), " does not compute with ",
          DTypeName(part.data.dtype), " weights"));
    }
  }
  absl::StatusOr<std::unique_ptr<PackedWeight>> packed =
      backend_.PackLinear(spec);
  if (!packed.ok()) {
    return absl::Status(
        packed.status().code(),
        absl::StrCat(weights_.path(), ": tensor \"", sources[0].name,
                     ".weight\": ", packed.status().message()));
  }
  decoder_->weights_bytes_ += (*packed)->num_bytes;
  return packed;
}

absl::Status DecoderBuilder::BuildVocabulary() {
  // Not sharded: a rank embeds and samples by itself.
  const IndexRange rows{0, config_.vocab_size};
  const IndexRange cols{0, config_.hidden_size};
  const auto source = [&](const char* name) {
    return LinearSource{name, config_.vocab_size, config_.hidden_size, rows,
                        cols, /*has_bias=*/false};
  };
  QUIRE_ASSIGN_OR_RETURN(decoder_->embedding_,
                         Pack(LinearKind::kVocab, {source(kEmbedding)}));
  if (config_.tie_word_embeddings || options_.pooling != Pooling::kNone) {
    // Some writers store the shared table twice; embeddings need no head.
    weights_.Ignore(absl::StrCat(kHead, ".weight"));
    return absl::OkStatus();
  }
  QUIRE_ASSIGN_OR_RETURN(decoder_->head_,
                         Pack(LinearKind::kVocab, {source(kHead)}));
  return absl::OkStatus();
}

absl::Status DecoderBuilder::BuildLayer(int layer_idx, const LayerConfig& layer,
                                        HeadShard heads) {
  DecoderLayer& built = decoder_->layers_[layer_idx];
  const int64_t hidden_size = config_.hidden_size;
  const int64_t head_dim = layer.head_dim;
  const int64_t q_size = layer.num_heads * head_dim;
  const int64_t kv_size = layer.num_kv_heads * head_dim;
  const IndexRange all_hidden{0, hidden_size};
  const IndexRange q_rows{heads.heads.begin * head_dim,
                          heads.heads.end * head_dim};
  const IndexRange kv_rows{heads.kv_heads.begin * head_dim,
                           heads.kv_heads.end * head_dim};
  QUIRE_ASSIGN_OR_RETURN(const IndexRange inner,
                         ShardEvenly(layer.intermediate_size, options_.shard,
                                     "intermediate_size"));
  const auto name = [&](const char* part) {
    return LayerName(layer_idx, part);
  };
  // The sum over ranks must hold a bias once: rank 0 adds it.
  const bool adds_bias = options_.shard.rank == 0;

  QUIRE_ASSIGN_OR_RETURN(built.attention_norm,
                         Norm(name("input_layernorm"), hidden_size));
  const bool qkv_bias = layer.has_qkv_bias;
  QUIRE_ASSIGN_OR_RETURN(
      built.qkv,
      Pack(LinearKind::kQkv, {{name("self_attn.q_proj"), q_size, hidden_size,
                               q_rows, all_hidden, qkv_bias},
                              {name("self_attn.k_proj"), kv_size, hidden_size,
                               kv_rows, all_hidden, qkv_bias},
                              {name("self_attn.v_proj"), kv_size, hidden_size,
                               kv_rows, all_hidden, qkv_bias}}));
  if (layer.has_qk_norm) {
    QUIRE_ASSIGN_OR_RETURN(q_norms_[layer_idx],
                           Norm(name("self_attn.q_norm"), head_dim));
    QUIRE_ASSIGN_OR_RETURN(k_norms_[layer_idx],
                           Norm(name("self_attn.k_norm"), head_dim));
  }
  QUIRE_ASSIGN_OR_RETURN(
      built.output,
      Pack(LinearKind::kPlain,
           {{name("self_attn.o_proj"), hidden_size, q_size, all_hidden, q_rows,
             layer.has_output_bias && adds_bias}}));
  QUIRE_ASSIGN_OR_RETURN(built.mlp_norm,
                         Norm(name("post_attention_layernorm"), hidden_size));
  QUIRE_ASSIGN_OR_RETURN(
      built.gate_up,
      Pack(LinearKind::kGateUp,
           {{name("mlp.gate_proj"), layer.intermediate_size, hidden_size, inner,
             all_hidden, layer.has_mlp_bias},
            {name("mlp.up_proj"), layer.intermediate_size, hidden_size, inner,
             all_hidden, layer.has_mlp_bias}}));
  QUIRE_ASSIGN_OR_RETURN(
      built.down,
      Pack(LinearKind::kPlain,
           {{name("mlp.down_proj"), hidden_size, layer.intermediate_size,
             all_hidden, inner, layer.has_mlp_bias && adds_bias}}));
  return absl::OkStatus();
}

absl::StatusOr<TensorView> DecoderBuilder::RopeTableFor(
    const LayerConfig& layer) {
  for (const auto& [known, table] : rope_tables_) {
    if (known.rope == layer.rope && known.head_dim == layer.head_dim) {
      return table;
    }
  }
  const std::vector<float> values =
      RopeTable(layer.rope, layer.head_dim, options_.max_model_len);
  QUIRE_ASSIGN_OR_RETURN(
      const TensorView table,
      backend_.Upload(TensorView::Matrix(
          values.data(), DType::kF32, options_.max_model_len, layer.head_dim)));
  rope_tables_.emplace_back(layer, table);
  return table;
}

absl::Status DecoderBuilder::AddAttentionSpecs() {
  std::vector<SpecEntry> entries;
  for (int i = 0; i < static_cast<int>(config_.layers.size()); ++i) {
    const LayerConfig& layer = config_.layers[i];
    SpecEntry* entry = nullptr;
    for (SpecEntry& known : entries) {
      if (known.layer == layer && !layer.has_qk_norm) entry = &known;
    }
    if (entry == nullptr) {
      entries.push_back({layer, i, {}});
      entry = &entries.back();
    }
    entry->layers.push_back(i);
  }
  for (const SpecEntry& entry : entries) {
    const LayerConfig& layer = entry.layer;
    QUIRE_ASSIGN_OR_RETURN(
        const HeadShard heads,
        ShardHeads(layer.num_heads, layer.num_kv_heads, options_.shard));
    AttentionSpec spec;
    spec.num_layers = static_cast<int>(entry.layers.size());
    spec.num_heads = static_cast<int>(heads.heads.size());
    spec.num_kv_heads = static_cast<int>(heads.kv_heads.size());
    spec.head_dim = layer.head_dim;
    // A window that no sequence can fill is full attention.
    spec.sliding_window = layer.sliding_window < options_.max_model_len
                              ? layer.sliding_window
                              : 0;
    spec.scale = static_cast<float>(1.0 / std::sqrt(double(layer.head_dim)));
    spec.q_norm = q_norms_[entry.first_layer];
    spec.k_norm = k_norms_[entry.first_layer];
    QUIRE_ASSIGN_OR_RETURN(spec.rope_table, RopeTableFor(layer));
    spec.kv_dtype = options_.kv_dtype;
    QUIRE_ASSIGN_OR_RETURN(const int id, backend_.AddAttention(spec));
    for (size_t i = 0; i < entry.layers.size(); ++i) {
      decoder_->layers_[entry.layers[i]].attention_spec = id;
      decoder_->layers_[entry.layers[i]].attention_layer = static_cast<int>(i);
    }
  }
  return absl::OkStatus();
}

absl::Status DecoderBuilder::AddBuffers() {
  int64_t qkv_cols = 0, attention_cols = 0, mlp_cols = 0;
  for (const DecoderLayer& layer : decoder_->layers_) {
    qkv_cols = std::max(qkv_cols, layer.qkv->rows);
    attention_cols = std::max(attention_cols, layer.output->cols);
    mlp_cols = std::max(mlp_cols, layer.down->cols);
  }
  const DType dtype = backend_.ActivationDType(decoder_->dtype_);
  const auto tokens = ActivationRows::kTokens;
  Decoder::Buffers& ids = decoder_->buffers_;
  ids.hidden = backend_.AddActivation(config_.hidden_size, dtype, tokens);
  ids.qkv = backend_.AddActivation(qkv_cols, dtype, tokens);
  ids.attention = backend_.AddActivation(attention_cols, dtype, tokens);
  ids.mlp = backend_.AddActivation(mlp_cols, dtype, tokens);
  if (options_.pooling == Pooling::kNone) {
    ids.logits = backend_.AddActivation(config_.vocab_size, DType::kF32,
                                        ActivationRows::kLogitRows);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Model>> DecoderBuilder::Build() {
  const int num_layers = static_cast<int>(config_.layers.size());
  decoder_->layers_.resize(num_layers);
  decoder_->pooling_ = options_.pooling;
  q_norms_.resize(num_layers);
  k_norms_.resize(num_layers);
  QUIRE_ASSIGN_OR_RETURN(decoder_->dtype_, weights_.PackedDType(LayerName(
                                               0, "mlp.down_proj.weight")));
  QUIRE_RETURN_IF_ERROR(BuildVocabulary());
  for (int i = 0; i < num_layers; ++i) {
    const LayerConfig& layer = config_.layers[i];
    QUIRE_ASSIGN_OR_RETURN(
        const HeadShard heads,
        ShardHeads(layer.num_heads, layer.num_kv_heads, options_.shard));
    QUIRE_RETURN_IF_ERROR(BuildLayer(i, layer, heads));
  }
  QUIRE_ASSIGN_OR_RETURN(decoder_->final_norm_,
                         Norm("model.norm", config_.hidden_size));
  QUIRE_RETURN_IF_ERROR(AddAttentionSpecs());
  QUIRE_RETURN_IF_ERROR(AddBuffers());
  return std::unique_ptr<Model>(std::move(decoder_));
}

absl::Status Decoder::ForwardLayer(Backend& backend, Step& step,
                                   const DecoderLayer& layer) {
  const TensorView hidden = backend.Activation(buffers_.hidden);
  // Layers narrower than the widest use the front of each row.
  const auto narrowed = [&](int id, int64_t cols) {
    TensorView view = backend.Activation(id);
    view.cols = cols;
    return view;
  };
  const TensorView qkv = narrowed(buffers_.qkv, layer.qkv->rows);
  const TensorView attention = narrowed(buffers_.attention, layer.output->cols);
  const TensorView mlp = narrowed(buffers_.mlp, layer.down->cols);
  Prologue prologue;
  Epilogue plain;
  Epilogue add_to_hidden;
  add_to_hidden.residual = hidden;
  Epilogue gated;
  gated.activation = Epilogue::Activation::kSwiGlu;

  prologue.norm = layer.attention_norm;
  QUIRE_RETURN_IF_ERROR(
      backend.Linear(step, hidden, prologue, *layer.qkv, plain, qkv));
  QUIRE_RETURN_IF_ERROR(backend.Attention(
      step, layer.attention_spec, layer.attention_layer, qkv, attention));
  QUIRE_RETURN_IF_ERROR(backend.Linear(step, attention, Prologue(),
                                       *layer.output, add_to_hidden, hidden));
  prologue.norm = layer.mlp_norm;
  QUIRE_RETURN_IF_ERROR(
      backend.Linear(step, hidden, prologue, *layer.gate_up, gated, mlp));
  return backend.Linear(step, mlp, Prologue(), *layer.down, add_to_hidden,
                        hidden);
}

absl::Status Decoder::Forward(Backend& backend, Step& step) {
  const TensorView hidden = backend.Activation(buffers_.hidden);
  QUIRE_RETURN_IF_ERROR(
      backend.Embed(step, *embedding_, nullptr, 1.0f, hidden));
  for (const DecoderLayer& layer : layers_) {
    QUIRE_RETURN_IF_ERROR(ForwardLayer(backend, step, layer));
  }
  Prologue prologue;
  prologue.norm = final_norm_;
  if (pooling_ != Pooling::kNone) {
    return backend.Pool(step, hidden, prologue, pooling_);
  }
  const TensorView logits = backend.Activation(buffers_.logits);
  QUIRE_RETURN_IF_ERROR(backend.Logits(
      step, hidden, prologue, head_ != nullptr ? *head_ : *embedding_,
      /*scale=*/1.0f, /*softcap=*/0.0f, logits));
  return backend.Sample(step, logits);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> CreateDecoder(
    const ModelConfig& config, const ModelOptions& options,
    WeightLoader& weights, Backend& backend) {
  return DecoderBuilder(config, options, weights, backend).Build();
}

}  // namespace quire
