// Loads a decoder: shards, packs and uploads its weights, and tells the backend
// of its attention and its buffers.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/model/decoder.h"
#include "engine/model/pack_linear.h"
#include "engine/model/rope.h"

namespace quire {
namespace {

// What the names of all tensors begin with.
std::string FindPrefix(const ModelConfig& config, const WeightLoader& weights) {
  for (const std::string& prefix : config.tensors.prefixes) {
    if (weights.Has(
            absl::StrCat(prefix, config.tensors.embedding, ".weight"))) {
      return prefix;
    }
  }
  return config.tensors.prefixes[0];  // The error will name it.
}

}  // namespace

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

  struct KnownRopeTable {
    RopeConfig rope;
    int head_dim = 0;
    bool is_long = false;
    TensorView table;
  };

  absl::Status BuildVocabulary();
  absl::Status BuildPositions();
  absl::Status BuildHead();
  absl::Status BuildLayer(int layer_idx, const LayerConfig& layer,
                          HeadShard heads);
  absl::Status BuildQkv(int layer_idx, const LayerConfig& layer,
                        HeadShard heads);
  absl::Status BuildMlp(int layer_idx, const LayerConfig& layer);
  absl::Status AddAttentionSpecs();
  absl::Status AddBuffers();
  // Of the tensors `prefix`.weight and .bias; kNone if `name` is empty.
  absl::StatusOr<NormSpec> Norm(const std::string& prefix,
                                const std::string& name);
  absl::StatusOr<NormSpec> HeadNorm(const std::string& name, QkNorm kind,
                                    int num_heads, IndexRange own_heads,
                                    int head_dim);
  // Whether this rank adds the bias of a matrix whose products are summed over
  // ranks: the sum must hold it once.
  bool HasBias(const std::string& name, bool has_bias) {
    if (!has_bias || TensorShard().rank == 0) return has_bias;
    weights_.LeaveToOthers(absl::StrCat(name, ".bias"));
    return false;
  }
  // The part of the vocabulary's matrix that makes this rank's logits.
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackHead(
      const std::string& name);
  ShardSpec TensorShard() const {
    return {options_.parallel.tensor_rank(), options_.parallel.tensor_size};
  }
  bool IsSharded() const { return options_.parallel.tensor_size > 1; }
  bool IsFirstStage() const { return options_.parallel.pipeline_rank() == 0; }
  bool IsLastStage() const {
    return options_.parallel.pipeline_rank() + 1 ==
           options_.parallel.pipeline_size;
  }
  absl::StatusOr<std::unique_ptr<PackedWeight>> Pack(
      LinearKind kind, const std::vector<LinearSource>& sources,
      int num_column_segments = 1);
  // Of a matrix whose products are summed over the ranks.
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackSummed(
      const LinearSource& source) {
    return Pack(LinearKind::kPlain, {source},
                ColumnSegments(source.cols, source.col_range, TensorShard(),
                               kMaxColumnSegments));
  }
  absl::StatusOr<TensorView> RopeTableFor(const LayerConfig& layer,
                                          bool is_long);
  std::string LayerPrefix(int layer_idx) const {
    return absl::StrCat(prefix_, "layers.", layer_idx, ".");
  }

  const ModelConfig& config_;
  const ModelOptions& options_;
  WeightLoader& weights_;
  Backend& backend_;
  std::unique_ptr<Decoder> decoder_;
  std::string prefix_;  // One of TensorNames::prefixes.
  // Per layer; kNone without QK-norm.
  std::vector<NormSpec> q_norms_, k_norms_;
  std::vector<KnownRopeTable> rope_tables_;
};

absl::StatusOr<NormSpec> DecoderBuilder::Norm(const std::string& prefix,
                                              const std::string& name) {
  NormSpec norm;
  if (name.empty()) return norm;
  const bool is_layer = config_.norm_kind == NormKind::kLayer;
  norm.kind = is_layer ? NormSpec::Kind::kLayer : NormSpec::Kind::kRms;
  norm.eps = config_.norm_eps;
  norm.weight_offset = config_.norm_weight_offset;
  const auto upload = [&](const char* part) -> absl::StatusOr<TensorView> {
    QUIRE_ASSIGN_OR_RETURN(
        const std::vector<float> values,
        weights_.Vector(absl::StrCat(prefix, name, part), config_.hidden_size));
    return backend_.Upload(
        TensorView::Vector(values.data(), DType::kF32, values.size()));
  };
  QUIRE_ASSIGN_OR_RETURN(norm.weight, upload(".weight"));
  if (config_.norms_have_bias) {
    QUIRE_ASSIGN_OR_RETURN(norm.bias, upload(".bias"));
  }
  return norm;
}

absl::StatusOr<NormSpec> DecoderBuilder::HeadNorm(const std::string& name,
                                                  QkNorm kind, int num_heads,
                                                  IndexRange own_heads,
                                                  int head_dim) {
  NormSpec norm;
  const bool is_layer = config_.norm_kind == NormKind::kLayer;
  norm.kind = is_layer ? NormSpec::Kind::kLayer : NormSpec::Kind::kRms;
  norm.eps = config_.norm_eps;
  norm.weight_offset = config_.norm_weight_offset;
  const bool is_each = kind == QkNorm::kEachHead;
  const bool is_all = kind == QkNorm::kAllHeads;
  if (is_all && is_layer && IsSharded()) {
    return absl::UnimplementedError(absl::StrCat(
        config_.architecture, " on ", options_.parallel.tensor_size,
        " ranks: the means of its heads span them"));
  }
  const int64_t rows = is_each ? own_heads.size() : 1;
  const int64_t cols = is_all ? own_heads.size() * head_dim : head_dim;
  std::vector<float> values;
  for (int head = 0; head < (is_each ? num_heads : 1); ++head) {
    QUIRE_ASSIGN_OR_RETURN(
        const std::vector<float> stored,
        weights_.Vector(is_each ? absl::StrCat(name, ".", head, ".weight")
                                : absl::StrCat(name, ".weight"),
                        is_all ? num_heads * head_dim : head_dim));
    if (is_each && (head < own_heads.begin || head >= own_heads.end)) continue;
    const auto first =
        stored.begin() + (is_all ? own_heads.begin * head_dim : 0);
    values.insert(values.end(), first, first + cols);
  }
  QUIRE_ASSIGN_OR_RETURN(norm.weight,
                         backend_.Upload(TensorView::Matrix(
                             values.data(), DType::kF32, rows, cols)));
  return norm;
}

absl::StatusOr<std::unique_ptr<PackedWeight>> DecoderBuilder::Pack(
    LinearKind kind, const std::vector<LinearSource>& sources,
    int num_column_segments) {
  QUIRE_ASSIGN_OR_RETURN(LinearSpec spec, weights_.Linear(kind, sources));
  spec.model_dtype = decoder_->dtype_;
  spec.num_column_segments = num_column_segments;
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<PackedWeight> packed,
                         PackLinear(spec, sources, weights_, backend_));
  decoder_->weights_bytes_ += packed->num_bytes;
  return packed;
}

absl::Status DecoderBuilder::BuildVocabulary() {
  // Every rank looks up by itself: a collective less, for a few percent of
  // memory.
  const int64_t hidden_size = config_.hidden_size;
  const int64_t embedding_size = config_.embedding_size;
  const TensorNames& names = config_.tensors;
  if (IsFirstStage()) {
    QUIRE_ASSIGN_OR_RETURN(decoder_->embedding_,
                           Pack(LinearKind::kVocab, {{prefix_ + names.embedding,
                                                      config_.vocab_size,
                                                      embedding_size,
                                                      {0, config_.vocab_size},
                                                      {0, embedding_size},
                                                      /*has_bias=*/false}}));
  } else {
    weights_.LeaveToOthers(absl::StrCat(prefix_, names.embedding, "."));
  }
  if (!names.project_in.empty()) {
    QUIRE_ASSIGN_OR_RETURN(
        decoder_->project_in_,
        Pack(LinearKind::kPlain, {{prefix_ + names.project_in,
                                   hidden_size,
                                   embedding_size,
                                   {0, hidden_size},
                                   {0, embedding_size},
                                   /*has_bias=*/false}}));
    QUIRE_ASSIGN_OR_RETURN(
        decoder_->project_out_,
        Pack(LinearKind::kPlain, {{prefix_ + names.project_out,
                                   embedding_size,
                                   hidden_size,
                                   {0, embedding_size},
                                   {0, hidden_size},
                                   /*has_bias=*/false}}));
  }
  QUIRE_RETURN_IF_ERROR(BuildPositions());
  return BuildHead();
}

absl::Status DecoderBuilder::BuildPositions() {
  if (config_.tensors.positions.empty()) return absl::OkStatus();
  if (!IsFirstStage()) {
    weights_.LeaveToOthers(
        absl::StrCat(prefix_, config_.tensors.positions, "."));
    return absl::OkStatus();
  }
  const int64_t offset = config_.position_offset;
  if (options_.max_model_len > config_.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat(
        weights_.path(), ": max_model_len ", options_.max_model_len,
        " exceeds the ", config_.max_position_embeddings,
        " positions that the model has learned"));
  }
  QUIRE_ASSIGN_OR_RETURN(
      decoder_->positions_,
      Pack(LinearKind::kVocab, {{prefix_ + config_.tensors.positions,
                                 config_.max_position_embeddings + offset,
                                 config_.hidden_size,
                                 {offset, offset + options_.max_model_len},
                                 {0, config_.hidden_size},
                                 /*has_bias=*/false,
                                 /*keeps_precision=*/true}}));
  return absl::OkStatus();
}

absl::Status DecoderBuilder::BuildHead() {
  const std::vector<std::string>& names = config_.tensors.heads;
  const bool is_tied = config_.tie_word_embeddings;
  if (is_tied || options_.pooling != Pooling::kNone || !IsLastStage()) {
    // Some writers store the shared table twice; embeddings need no head.
    const bool is_others = !is_tied && options_.pooling == Pooling::kNone;
    for (const std::string& name : names) {
      if (is_others) {
        weights_.LeaveToOthers(absl::StrCat(name, "."));
      } else {
        weights_.Ignore(absl::StrCat(name, ".weight"));
      }
    }
    // One rank of one stage has the embedding's table for both.
    const bool has_table = IsFirstStage() && !IsSharded();
    if (options_.pooling != Pooling::kNone || !IsLastStage() || has_table) {
      return absl::OkStatus();
    }
  }
  std::string head = names[0];
  for (const std::string& name : names) {
    if (weights_.Has(absl::StrCat(name, ".weight"))) head = name;
  }
  if (is_tied) head = prefix_ + config_.tensors.embedding;
  QUIRE_ASSIGN_OR_RETURN(decoder_->head_, PackHead(head));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<PackedWeight>> DecoderBuilder::PackHead(
    const std::string& name) {
  QUIRE_ASSIGN_OR_RETURN(const VocabShard vocab,
                         ShardVocab(config_.vocab_size, TensorShard()));
  return Pack(LinearKind::kVocab, {{name,
                                    config_.vocab_size,
                                    config_.embedding_size,
                                    vocab.ids,
                                    {0, config_.embedding_size},
                                    /*has_bias=*/false}});
}

absl::Status DecoderBuilder::BuildQkv(int layer_idx, const LayerConfig& layer,
                                      HeadShard heads) {
  const LayerTensorNames& names = config_.tensors.layer;
  const std::string prefix = LayerPrefix(layer_idx);
  const int64_t head_dim = layer.head_dim;
  const int64_t q_size = layer.num_heads * head_dim;
  const int64_t kv_size = layer.num_kv_heads * head_dim;
  const IndexRange all_hidden{0, config_.hidden_size};
  const bool is_fused = !names.qkv.empty();
  std::vector<LinearSource> parts;
  int64_t first_row = 0;  // Of the part in the fused matrix.
  const auto add = [&](const std::string& name, int64_t size,
                       const IndexRange& own_heads) {
    parts.push_back({prefix + (is_fused ? names.qkv : name),
                     is_fused ? q_size + 2 * kv_size : size,
                     config_.hidden_size,
                     {first_row + own_heads.begin * head_dim,
                      first_row + own_heads.end * head_dim},
                     all_hidden,
                     layer.has_qkv_bias});
    if (is_fused) first_row += size;
  };
  add(names.q, q_size, heads.heads);
  add(names.k, kv_size, heads.kv_heads);
  add(names.v, kv_size, heads.kv_heads);
  QUIRE_ASSIGN_OR_RETURN(decoder_->layers_[layer_idx].qkv,
                         Pack(LinearKind::kQkv, parts));
  if (layer.qk_norm == QkNorm::kNone) return absl::OkStatus();
  QUIRE_ASSIGN_OR_RETURN(
      q_norms_[layer_idx],
      HeadNorm(prefix + names.q_norm, layer.qk_norm, layer.num_heads,
               heads.heads, layer.head_dim));
  QUIRE_ASSIGN_OR_RETURN(
      k_norms_[layer_idx],
      HeadNorm(prefix + names.k_norm, layer.qk_norm, layer.num_kv_heads,
               heads.kv_heads, layer.head_dim));
  return absl::OkStatus();
}

absl::Status DecoderBuilder::BuildMlp(int layer_idx, const LayerConfig& layer) {
  DecoderLayer& built = decoder_->layers_[layer_idx];
  const LayerTensorNames& names = config_.tensors.layer;
  const std::string prefix = LayerPrefix(layer_idx);
  const int64_t inner_size = layer.intermediate_size;
  const IndexRange all_hidden{0, config_.hidden_size};
  QUIRE_ASSIGN_OR_RETURN(
      const IndexRange inner,
      MlpColumns(config_, weights_, layer_idx, TensorShard()));
  const bool is_fused = !names.gate_up.empty();
  const bool is_gated = is_fused || !names.gate.empty();
  std::vector<LinearSource> parts;
  if (is_gated) {
    parts.push_back({prefix + (is_fused ? names.gate_up : names.gate),
                     is_fused ? 2 * inner_size : inner_size,
                     config_.hidden_size, inner, all_hidden,
                     layer.has_mlp_bias});
  }
  const int64_t first_row = is_fused ? inner_size : 0;
  parts.push_back({prefix + (is_fused ? names.gate_up : names.up),
                   is_fused ? 2 * inner_size : inner_size,
                   config_.hidden_size,
                   {first_row + inner.begin, first_row + inner.end},
                   all_hidden,
                   layer.has_mlp_bias});
  QUIRE_ASSIGN_OR_RETURN(
      built.gate_up,
      Pack(is_gated ? LinearKind::kGateUp : LinearKind::kPlain, parts));
  built.activation = layer.activation;
  QUIRE_ASSIGN_OR_RETURN(
      built.down,
      PackSummed({prefix + names.down, config_.hidden_size, inner_size,
                  all_hidden, inner,
                  HasBias(prefix + names.down, layer.has_mlp_bias)}));
  return absl::OkStatus();
}

absl::Status DecoderBuilder::BuildLayer(int layer_idx, const LayerConfig& layer,
                                        HeadShard heads) {
  DecoderLayer& built = decoder_->layers_[layer_idx];
  const LayerTensorNames& names = config_.tensors.layer;
  const std::string prefix = LayerPrefix(layer_idx);
  const int64_t head_dim = layer.head_dim;
  QUIRE_ASSIGN_OR_RETURN(built.attention_norm,
                         Norm(prefix, names.attention_norm));
  QUIRE_RETURN_IF_ERROR(BuildQkv(layer_idx, layer, heads));
  QUIRE_ASSIGN_OR_RETURN(
      built.output,
      PackSummed({prefix + names.output,
                  config_.hidden_size,
                  layer.num_heads * head_dim,
                  {0, config_.hidden_size},
                  {heads.heads.begin * head_dim, heads.heads.end * head_dim},
                  HasBias(prefix + names.output, layer.has_output_bias)}));
  QUIRE_ASSIGN_OR_RETURN(built.attention_branch_norm,
                         Norm(prefix, names.attention_branch_norm));
  QUIRE_ASSIGN_OR_RETURN(built.attention_sum_norm,
                         Norm(prefix, names.attention_sum_norm));
  QUIRE_ASSIGN_OR_RETURN(built.mlp_norm, Norm(prefix, names.mlp_norm));
  QUIRE_RETURN_IF_ERROR(BuildMlp(layer_idx, layer));
  QUIRE_ASSIGN_OR_RETURN(built.mlp_branch_norm,
                         Norm(prefix, names.mlp_branch_norm));
  QUIRE_ASSIGN_OR_RETURN(built.mlp_sum_norm, Norm(prefix, names.mlp_sum_norm));
  built.is_parallel = layer.is_parallel;
  return absl::OkStatus();
}

absl::StatusOr<TensorView> DecoderBuilder::RopeTableFor(
    const LayerConfig& layer, bool is_long) {
  for (const KnownRopeTable& known : rope_tables_) {
    if (known.rope == layer.rope && known.head_dim == layer.head_dim &&
        known.is_long == is_long) {
      return known.table;
    }
  }
  const int rotary_dim = RotaryDim(layer.rope, layer.head_dim);
  if (rotary_dim == 0) return TensorView();
  const std::vector<float> frequencies =
      RopeFrequencies(layer.rope, layer.head_dim, is_long);
  // Of 131,072 positions: 4 million sines and cosines, 40 ms of one thread.
  // Uninitialized: every element is written below.
  const int64_t num_positions = options_.max_model_len;
  const std::unique_ptr<float[]> values(new float[num_positions * rotary_dim]);
  weights_.RunRanges(num_positions, [&](int64_t begin, int64_t end) {
    FillRopeRows(layer.rope, frequencies, begin, end, values.get());
  });
  QUIRE_ASSIGN_OR_RETURN(
      const TensorView table,
      backend_.Upload(TensorView::Matrix(values.get(), DType::kF32,
                                         num_positions, rotary_dim)));
  rope_tables_.push_back({layer.rope, layer.head_dim, is_long, table});
  return table;
}

absl::Status DecoderBuilder::AddAttentionSpecs() {
  std::vector<SpecEntry> entries;
  const IndexRange range = decoder_->layer_range_;
  for (int i = static_cast<int>(range.begin); i < range.end; ++i) {
    const LayerConfig& layer = config_.layers[i];
    SpecEntry* entry = nullptr;
    for (SpecEntry& known : entries) {
      if (known.layer == layer && layer.qk_norm == QkNorm::kNone)
        entry = &known;
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
        ShardHeads(layer.num_heads, layer.num_kv_heads, TensorShard()));
    AttentionSpec spec;
    spec.num_layers = static_cast<int>(entry.layers.size());
    spec.num_heads = static_cast<int>(heads.heads.size());
    spec.num_kv_heads = static_cast<int>(heads.kv_heads.size());
    spec.head_dim = layer.head_dim;
    // A window that no sequence can fill is full attention.
    spec.sliding_window = layer.sliding_window < options_.max_model_len
                              ? layer.sliding_window
                              : 0;
    spec.scale = layer.attention_scale;
    spec.softcap = layer.attention_softcap;
    spec.q_norm = q_norms_[entry.first_layer];
    spec.k_norm = k_norms_[entry.first_layer];
    if (layer.qk_norm == QkNorm::kAllHeads) {
      spec.norm_ranks = options_.parallel.tensor;
    }
    QUIRE_ASSIGN_OR_RETURN(spec.rope_table, RopeTableFor(layer, false));
    const int64_t original = layer.rope.original_max_position_embeddings;
    if (layer.rope.type == RopeType::kLongRope &&
        options_.max_model_len > original) {
      QUIRE_ASSIGN_OR_RETURN(spec.long_rope_table, RopeTableFor(layer, true));
      spec.long_rope_after = original;
    }
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
  const IndexRange range = decoder_->layer_range_;
  for (int64_t i = range.begin; i < range.end; ++i) {
    const DecoderLayer& layer = decoder_->layers_[i];
    if (IsSharded() ||
        layer.attention_branch_norm.kind != NormSpec::Kind::kNone ||
        layer.mlp_branch_norm.kind != NormSpec::Kind::kNone) {
      qkv_cols = std::max<int64_t>(qkv_cols, config_.hidden_size);
    }
    qkv_cols = std::max(qkv_cols, layer.qkv->rows);
    attention_cols = std::max(attention_cols, layer.output->cols);
    mlp_cols = std::max(mlp_cols, layer.down->cols);
  }
  const DType dtype = backend_.ActivationDType(decoder_->dtype_);
  const auto tokens = ActivationRows::kTokens;
  Decoder::Buffers& ids = decoder_->buffers_;
  if (decoder_->project_in_ != nullptr) {
    ids.embedded =
        backend_.AddActivation(config_.embedding_size, dtype, tokens);
  }
  ids.hidden = backend_.AddActivation(config_.hidden_size, dtype, tokens);
  ids.qkv = backend_.AddActivation(qkv_cols, dtype, tokens);
  ids.attention = backend_.AddActivation(attention_cols, dtype, tokens);
  ids.mlp = backend_.AddActivation(mlp_cols, dtype, tokens);
  for (size_t i = 0; i < options_.taps.size(); ++i) {
    decoder_->tap_buffers_.push_back(
        backend_.AddActivation(config_.hidden_size, dtype, tokens));
  }
  if (options_.pooling == Pooling::kNone && IsLastStage()) {
    QUIRE_ASSIGN_OR_RETURN(const VocabShard vocab,
                           ShardVocab(config_.vocab_size, TensorShard()));
    ids.logits = backend_.AddActivation(vocab.slice_size, DType::kF32,
                                        ActivationRows::kLogitRows);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Model>> DecoderBuilder::Build() {
  const int num_layers = static_cast<int>(config_.layers.size());
  decoder_->layers_.resize(num_layers);
  decoder_->pooling_ = options_.pooling;
  decoder_->taps_ = options_.taps;
  for (const int tap : options_.taps) {
    if (tap != ModelOptions::kAfterFinalNorm &&
        (tap < 0 || tap >= num_layers)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the draft head wants what enters layer ", tap, " of ", num_layers));
    }
  }
  const ParallelConfig& parallel = options_.parallel;
  decoder_->tensor_ranks_ = parallel.tensor;
  decoder_->pipeline_ranks_ = parallel.pipeline;
  decoder_->progress_ = parallel.progress;
  QUIRE_ASSIGN_OR_RETURN(decoder_->layer_range_,
                         LayersOfStage(config_, {parallel.pipeline_rank(),
                                                 parallel.pipeline_size}));
  q_norms_.resize(num_layers);
  k_norms_.resize(num_layers);
  prefix_ = FindPrefix(config_, weights_);
  QUIRE_ASSIGN_OR_RETURN(decoder_->dtype_, WeightDType(config_, weights_));
  decoder_->embedding_scale_ = config_.embedding_scale;
  if (config_.rounds_embedding_scale && decoder_->dtype_ == DType::kBF16) {
    decoder_->embedding_scale_ =
        Bf16ToFloat(FloatToBf16(config_.embedding_scale));
  } else if (config_.rounds_embedding_scale &&
             decoder_->dtype_ == DType::kF16) {
    decoder_->embedding_scale_ =
        HalfToFloat(FloatToHalf(config_.embedding_scale));
  }
  decoder_->residual_scale_ = config_.residual_scale;
  decoder_->logits_scale_ = config_.logits_scale;
  decoder_->logits_softcap_ = config_.logits_softcap;
  QUIRE_RETURN_IF_ERROR(BuildVocabulary());
  for (int i = 0; i < num_layers; ++i) {
    if (i < decoder_->layer_range_.begin || i >= decoder_->layer_range_.end) {
      weights_.LeaveToOthers(LayerPrefix(i));
      continue;
    }
    const LayerConfig& layer = config_.layers[i];
    QUIRE_ASSIGN_OR_RETURN(
        const HeadShard heads,
        ShardHeads(layer.num_heads, layer.num_kv_heads, TensorShard()));
    QUIRE_RETURN_IF_ERROR(BuildLayer(i, layer, heads));
  }
  QUIRE_ASSIGN_OR_RETURN(decoder_->final_norm_,
                         Norm(prefix_, config_.tensors.final_norm));
  for (const std::string& prefix : config_.tensors.ignored_prefixes) {
    weights_.IgnoreAll(prefix);
  }
  QUIRE_RETURN_IF_ERROR(AddAttentionSpecs());
  QUIRE_RETURN_IF_ERROR(AddBuffers());
  return std::unique_ptr<Model>(std::move(decoder_));
}

absl::StatusOr<std::unique_ptr<Model>> CreateDecoder(
    const ModelConfig& config, const ModelOptions& options,
    WeightLoader& weights, Backend& backend) {
  return DecoderBuilder(config, options, weights, backend).Build();
}

absl::StatusOr<IndexRange> MlpColumns(const ModelConfig& config,
                                      const WeightLoader& weights,
                                      int layer_idx, ShardSpec shard) {
  const int64_t size = config.layers[layer_idx].intermediate_size;
  const int64_t unit =
      weights.CutUnit(absl::StrCat(FindPrefix(config, weights), "layers.",
                                   layer_idx, ".", config.tensors.layer.down),
                      size);
  return ShardUnits(size, unit, shard, "intermediate_size");
}

absl::StatusOr<DType> WeightDType(const ModelConfig& config,
                                  const WeightLoader& weights) {
  return weights.PackedDType(
      absl::StrCat(FindPrefix(config, weights), "layers.0.",
                   config.tensors.layer.down, ".weight"));
}

}  // namespace quire
