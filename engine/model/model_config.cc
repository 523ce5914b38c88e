#include "engine/model/model_config.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "engine/model/json_fields.h"
#include "engine/weights/mapped_file.h"

namespace quire {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 16 << 20;

// Limits on what an untrusted file can ask for. The largest dense models have
// hidden_size 16384, 126 layers and 128 heads.
constexpr int64_t kMaxVocabSize = 4 << 20;
constexpr int64_t kMaxHiddenSize = 1 << 17;
constexpr int64_t kMaxIntermediateSize = 1 << 20;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxPositions = 1 << 26;

// Beside head counts and sizes, all that tells the families apart.
struct Family {
  const char* model_type;
  const char* architecture;
  int64_t default_kv_heads;  // 0: num_attention_heads.
  int64_t default_head_dim;  // 0: hidden_size / num_attention_heads.
  int64_t default_positions;
  bool has_qk_norm;
  // Whether config.json's attention_bias and mlp_bias are read.
  bool reads_attention_bias;
  bool reads_mlp_bias;
  bool always_has_qkv_bias;
  enum class Window { kNone, kAllLayers, kQwen } window;
};

constexpr Family kFamilies[] = {
    {"llama", "LlamaForCausalLM", 0, 0, 2048, false, true, true, false,
     Family::Window::kNone},
    {"mistral", "MistralForCausalLM", 8, 0, 131072, false, false, false, false,
     Family::Window::kAllLayers},
    {"qwen2", "Qwen2ForCausalLM", 32, 0, 32768, false, false, false, true,
     Family::Window::kQwen},
    {"qwen3", "Qwen3ForCausalLM", 32, 128, 32768, true, true, false, false,
     Family::Window::kQwen},
};

// Fields that do not change what a forward pass computes: notes of training and
// of the library that wrote the file.
constexpr const char* kHarmlessFields[] = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "attention_dropout",
    "auto_map",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "embd_pdrop",
    "finetuning_task",
    "for_teacher_forcing",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",  // Splits the same products; the result is the same.
    "problem_type",
    "rescale_grad",
    "resid_pdrop",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "tokenizer_class",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
};

bool IsHarmless(const std::string& name) {
  return std::any_of(std::begin(kHarmlessFields), std::end(kHarmlessFields),
                     [&](const char* known) { return name == known; });
}

// "Qwen3Model" for "Qwen3ForCausalLM": what the library calls the same model
// without its head, saved alone.
std::string TrunkName(absl::string_view architecture) {
  return absl::StrCat(absl::StripSuffix(architecture, "ForCausalLM"), "Model");
}

absl::StatusOr<const Family*> FindFamily(JsonFields& fields, bool* is_trunk) {
  QUIRE_ASSIGN_OR_RETURN(const std::optional<std::string> model_type,
                         fields.String("model_type"));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::string> architectures,
                         fields.Strings("architectures"));
  const std::string supported = absl::StrJoin(SupportedModelTypes(), ", ");
  if (!model_type) {
    return fields.Error("model_type",
                        absl::StrCat("missing (supported: ", supported, ")"));
  }
  for (const Family& family : kFamilies) {
    if (*model_type != family.model_type) continue;
    *is_trunk = !architectures.empty() &&
                architectures[0] == TrunkName(family.architecture);
    // A classifier on the same trunk has other outputs.
    if (!architectures.empty() && architectures[0] != family.architecture &&
        !*is_trunk) {
      return fields.Error(
          "architectures",
          absl::StrCat("\"", architectures[0], "\" is not supported for ",
                       "model_type \"", *model_type,
                       "\" (supported: ", family.architecture, ")"));
    }
    return &family;
  }
  return fields.Error("model_type",
                      absl::StrCat("\"", *model_type, "\" is not supported",
                                   " (supported: ", supported, ")"));
}

// Rejects fields of modules that this engine does not have, unless they are
// switched off.
absl::Status RejectUnsupported(JsonFields& fields) {
  for (const char* name : {"hidden_act", "hidden_activation"}) {
    QUIRE_ASSIGN_OR_RETURN(const std::optional<std::string> act,
                           fields.String(name));
    if (act && *act != "silu" && *act != "swish") {
      return fields.Error(
          name,
          absl::StrCat("\"", *act, "\" is not supported (supported: silu)"));
    }
  }
  for (const char* name :
       {"quantization_config", "compression_config", "quantization"}) {
    if (fields.Has(name)) {
      return fields.Error(name, "quantized weights are not supported");
    }
  }
  for (const char* name : {"num_experts",
                           "num_local_experts",
                           "n_routed_experts",
                           "attn_logit_softcapping",
                           "final_logit_softcapping",
                           "logits_scaling",
                           "embedding_multiplier",
                           "residual_multiplier",
                           "attention_multiplier",
                           "query_pre_attn_scalar",
                           "pruned_heads",
                           "vision_config",
                           "audio_config",
                           "no_rope_layers",
                           "use_qk_norm",
                           "qk_layernorm",
                           "block_configs",
                           "add_cross_attention",
                           "rope_interleaved",
                           "use_mrope",
                           "is_encoder_decoder",
                           "tie_encoder_decoder",
                           "cross_attention_hidden_size"}) {
    // Writers spell "off" as null, false, 0 or an empty value.
    QUIRE_RETURN_IF_ERROR(fields.RequireOff(name));
  }
  // Embedding models may have been trained to look both ways.
  QUIRE_ASSIGN_OR_RETURN(const std::optional<bool> is_causal,
                         fields.Bool("is_causal"));
  if (!is_causal.value_or(true)) {
    return fields.Error("is_causal",
                        "bidirectional attention is not supported");
  }
  QUIRE_RETURN_IF_ERROR(fields.RequireOff("use_bidirectional_attention"));
  QUIRE_ASSIGN_OR_RETURN(const std::optional<double> partial,
                         fields.Number("partial_rotary_factor", 0, 1e9));
  if (partial && *partial != 1.0) {
    return fields.Error("partial_rotary_factor",
                        absl::StrCat(*partial, " is not supported"));
  }
  return absl::OkStatus();
}

// Peng et al. 2023, arXiv:2309.00071, section 3.4 (sqrt(1/t) =
// 0.1 ln(s) + 1), with the mscale weights of transformers'
// _compute_yarn_parameters.
double YarnMagnitude(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

absl::Status ParseYarn(JsonFields& fields, RopeConfig& rope) {
  QUIRE_ASSIGN_OR_RETURN(const auto beta_fast,
                         fields.Number("beta_fast", 0, 1e6));
  QUIRE_ASSIGN_OR_RETURN(const auto beta_slow,
                         fields.Number("beta_slow", 0, 1e6));
  QUIRE_ASSIGN_OR_RETURN(const auto attention_factor,
                         fields.Number("attention_factor", 0, 1e6));
  QUIRE_ASSIGN_OR_RETURN(const auto mscale, fields.Number("mscale", 0, 1e6));
  QUIRE_ASSIGN_OR_RETURN(const auto mscale_all_dim,
                         fields.Number("mscale_all_dim", 0, 1e6));
  QUIRE_ASSIGN_OR_RETURN(const auto truncate, fields.Bool("truncate"));
  // As transformers: 0 counts as absent for these four.
  if (beta_fast.value_or(0) != 0) rope.beta_fast = *beta_fast;
  if (beta_slow.value_or(0) != 0) rope.beta_slow = *beta_slow;
  rope.truncate = truncate.value_or(true);
  if (attention_factor) {
    rope.attention_factor = *attention_factor;
  } else if (mscale.value_or(0) != 0 && mscale_all_dim.value_or(0) != 0) {
    rope.attention_factor = YarnMagnitude(rope.factor, *mscale) /
                            YarnMagnitude(rope.factor, *mscale_all_dim);
  } else {
    rope.attention_factor = YarnMagnitude(rope.factor, 1.0);
  }
  return absl::OkStatus();
}

absl::Status ParseScaledRope(JsonFields& fields, int64_t max_positions,
                             std::optional<int64_t> outer_original,
                             RopeConfig& rope) {
  QUIRE_ASSIGN_OR_RETURN(const auto factor, fields.Number("factor", 1e-3, 1e6));
  if (rope.type != RopeType::kLinear) {
    QUIRE_ASSIGN_OR_RETURN(
        const auto original,
        fields.Int("original_max_position_embeddings", 1, kMaxPositions));
    rope.original_max_position_embeddings =
        outer_original.value_or(original.value_or(max_positions));
  }
  if (factor) {
    rope.factor = *factor;
  } else if (rope.type == RopeType::kYarn) {
    rope.factor = static_cast<double>(max_positions) /
                  rope.original_max_position_embeddings;
  } else {
    return fields.Error("factor", "missing");
  }
  if (rope.type == RopeType::kYarn) return ParseYarn(fields, rope);
  if (rope.type == RopeType::kLlama3) {
    QUIRE_ASSIGN_OR_RETURN(const auto low,
                           fields.Number("low_freq_factor", 1e-3, 1e6));
    QUIRE_ASSIGN_OR_RETURN(const auto high,
                           fields.Number("high_freq_factor", 1e-3, 1e6));
    if (!low) return fields.Error("low_freq_factor", "missing");
    if (!high) return fields.Error("high_freq_factor", "missing");
    if (*high <= *low) {
      return fields.Error(
          "high_freq_factor",
          absl::StrCat(*high, " must exceed low_freq_factor ", *low));
    }
    rope.low_freq_factor = *low;
    rope.high_freq_factor = *high;
  }
  return absl::OkStatus();
}

// RoPE is spelled in two ways: rope_theta beside an optional rope_scaling, or
// (transformers 5) rope_parameters with both in it.
absl::StatusOr<RopeConfig> ParseRope(JsonFields& fields,
                                     const std::string& path,
                                     int64_t max_positions) {
  RopeConfig rope;
  QUIRE_ASSIGN_OR_RETURN(const auto outer_theta,
                         fields.Number("rope_theta", 1.0, 1e12));
  QUIRE_ASSIGN_OR_RETURN(
      const auto outer_original,
      fields.Int("original_max_position_embeddings", 1, kMaxPositions));
  rope.theta = outer_theta.value_or(rope.theta);
  QUIRE_ASSIGN_OR_RETURN(const json* parameters,
                         fields.Object("rope_parameters"));
  QUIRE_ASSIGN_OR_RETURN(const json* scaling, fields.Object("rope_scaling"));
  // transformers lets rope_scaling win where both are given.
  const char* name = scaling != nullptr ? "rope_scaling" : "rope_parameters";
  const json* object = scaling != nullptr ? scaling : parameters;
  if (object == nullptr || object->empty()) return rope;

  JsonFields inner(*object, path, absl::StrCat(name, "."));
  QUIRE_ASSIGN_OR_RETURN(const auto theta,
                         inner.Number("rope_theta", 1.0, 1e12));
  rope.theta = theta.value_or(rope.theta);
  QUIRE_ASSIGN_OR_RETURN(const auto new_type, inner.String("rope_type"));
  QUIRE_ASSIGN_OR_RETURN(const auto old_type, inner.String("type"));
  const std::string type = new_type.value_or(old_type.value_or("default"));
  if (type == "linear") {
    rope.type = RopeType::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeType::kLlama3;
  } else if (type == "yarn") {
    rope.type = RopeType::kYarn;
  } else if (type != "default") {
    return inner.Error(
        new_type ? "rope_type" : "type",
        absl::StrCat("\"", type, "\" is not supported (",
                     "supported: default, linear, llama3, ", "yarn)"));
  }
  if (rope.type != RopeType::kDefault) {
    QUIRE_RETURN_IF_ERROR(
        ParseScaledRope(inner, max_positions, outer_original, rope));
  }
  QUIRE_ASSIGN_OR_RETURN(const auto partial,
                         inner.Number("partial_rotary_factor", 0, 1e9));
  if (partial && *partial != 1.0) {
    return inner.Error("partial_rotary_factor",
                       absl::StrCat(*partial, " is not supported"));
  }
  // A field of RoPE always changes results, so none is passed over.
  for (const std::string& unread : inner.Unread()) {
    return inner.Error(
        unread, absl::StrCat("not supported for rope_type \"", type, "\""));
  }
  return rope;
}

// sliding_window of each layer, 0 for full attention.
absl::StatusOr<std::vector<int>> ParseWindows(JsonFields& fields,
                                              const Family& family,
                                              int64_t num_layers) {
  std::vector<int> windows(num_layers, 0);
  const bool is_stated = fields.Has("sliding_window");
  QUIRE_ASSIGN_OR_RETURN(const auto window,
                         fields.Int("sliding_window", 1, kMaxPositions));
  QUIRE_ASSIGN_OR_RETURN(const auto enabled, fields.Bool("use_sliding_window"));
  QUIRE_ASSIGN_OR_RETURN(const auto max_window_layers,
                         fields.Int("max_window_layers", 0, 1 << 30));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::string> layer_types,
                         fields.Strings("layer_types"));
  switch (family.window) {
    case Family::Window::kNone:
      if (is_stated) {
        return fields.Error("sliding_window",
                            absl::StrCat("not supported for model_type \"",
                                         family.model_type, "\""));
      }
      break;
    case Family::Window::kAllLayers:
      // Null says none; only an absent field means the family's default.
      if (window || !fields.IsNull("sliding_window")) {
        windows.assign(num_layers, window.value_or(4096));
      }
      break;
    case Family::Window::kQwen:
      if (enabled.value_or(false) && !fields.IsNull("sliding_window")) {
        for (int64_t i = max_window_layers.value_or(28); i < num_layers; ++i) {
          windows[i] = window.value_or(4096);
        }
      }
      break;
  }
  if (layer_types.empty()) return windows;
  if (static_cast<int64_t>(layer_types.size()) != num_layers) {
    return fields.Error(
        "layer_types", absl::StrCat("has ", layer_types.size(), " entries for ",
                                    num_layers, " layers"));
  }
  const bool may_choose =
      family.window == Family::Window::kQwen && enabled.value_or(false);
  for (int64_t i = 0; i < num_layers; ++i) {
    const bool is_sliding = layer_types[i] == "sliding_attention";
    if (!is_sliding && layer_types[i] != "full_attention") {
      return fields.Error(
          "layer_types",
          absl::StrCat("\"", layer_types[i], "\" is not supported (supported: ",
                       "full_attention, sliding_attention)"));
    }
    if (may_choose && !fields.IsNull("sliding_window")) {
      windows[i] = is_sliding ? window.value_or(4096) : 0;
    } else if (is_sliding != (windows[i] != 0)) {
      return fields.Error("layer_types",
                          absl::StrCat("layer ", i, " is ", layer_types[i],
                                       ", which sliding_window and ",
                                       "use_sliding_window contradict"));
    }
  }
  return windows;
}

absl::StatusOr<LayerConfig> ParseLayer(JsonFields& fields, const Family& family,
                                       int64_t hidden_size) {
  LayerConfig layer;
  QUIRE_ASSIGN_OR_RETURN(
      layer.intermediate_size,
      fields.RequiredInt("intermediate_size", 1, kMaxIntermediateSize));
  QUIRE_ASSIGN_OR_RETURN(
      layer.num_heads, fields.RequiredInt("num_attention_heads", 1, kMaxHeads));
  QUIRE_ASSIGN_OR_RETURN(const auto kv_heads,
                         fields.Int("num_key_value_heads", 1, kMaxHeads));
  // An explicit null means as many as query heads, in every family.
  const bool by_heads =
      family.default_kv_heads == 0 || fields.IsNull("num_key_value_heads");
  layer.num_kv_heads =
      kv_heads.value_or(by_heads ? layer.num_heads : family.default_kv_heads);
  if (layer.num_heads % layer.num_kv_heads != 0) {
    return fields.Error(
        "num_key_value_heads",
        absl::StrCat(layer.num_kv_heads,
                     " does not divide num_attention_heads ", layer.num_heads));
  }
  QUIRE_ASSIGN_OR_RETURN(const auto head_dim,
                         fields.Int("head_dim", 2, kMaxHeadDim));
  if (head_dim) {
    layer.head_dim = *head_dim;
  } else if (family.default_head_dim != 0) {
    layer.head_dim = family.default_head_dim;
  } else {
    if (hidden_size % layer.num_heads != 0) {
      return fields.Error(
          "num_attention_heads",
          absl::StrCat(layer.num_heads, " does not divide hidden_size ",
                       hidden_size, ", and there is no head_dim"));
    }
    layer.head_dim = hidden_size / layer.num_heads;
  }
  if (layer.head_dim % 2 != 0 || layer.head_dim > kMaxHeadDim) {
    return fields.Error("head_dim",
                        absl::StrCat(layer.head_dim, " must be even and at ",
                                     "most ", kMaxHeadDim, " for RoPE"));
  }
  layer.has_qk_norm = family.has_qk_norm;
  QUIRE_ASSIGN_OR_RETURN(const auto attention_bias,
                         fields.Bool("attention_bias"));
  QUIRE_ASSIGN_OR_RETURN(const auto mlp_bias, fields.Bool("mlp_bias"));
  const bool says_bias = attention_bias.value_or(false);
  layer.has_qkv_bias =
      family.always_has_qkv_bias || (family.reads_attention_bias && says_bias);
  layer.has_output_bias = family.reads_attention_bias && says_bias;
  layer.has_mlp_bias = family.reads_mlp_bias && mlp_bias.value_or(false);
  // Where a family's code does not read the field, a value other than what the
  // code does cannot be meant.
  if (!family.reads_attention_bias && attention_bias &&
      says_bias != family.always_has_qkv_bias) {
    return fields.Error("attention_bias",
                        absl::StrCat(says_bias ? "true" : "false",
                                     " is not supported for model_type \"",
                                     family.model_type, "\""));
  }
  if (!family.reads_mlp_bias && mlp_bias.value_or(false)) {
    return fields.Error("mlp_bias",
                        absl::StrCat("true is not supported for model_type \"",
                                     family.model_type, "\""));
  }
  return layer;
}

absl::StatusOr<std::vector<int32_t>> TokenIds(JsonFields& fields,
                                              const char* name,
                                              int64_t vocab_size) {
  // -1 is how some writers spell "none" (pad_token_id of Llama 2).
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int64_t> ids,
                         fields.Ints(name, -1, vocab_size - 1));
  std::vector<int32_t> result;
  for (const int64_t id : ids) {
    if (id >= 0) result.push_back(static_cast<int32_t>(id));
  }
  return result;
}

absl::StatusOr<std::optional<int32_t>> TokenId(JsonFields& fields,
                                               const char* name,
                                               int64_t vocab_size) {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                         TokenIds(fields, name, vocab_size));
  if (ids.empty()) return std::optional<int32_t>();
  return std::optional<int32_t>(ids[0]);
}

// Fine-tuned models often name a padding token that was added to the tokenizer
// but not to the embedding; nothing is ever padded here, so it is no error.
absl::StatusOr<std::optional<int32_t>> PadId(JsonFields& fields,
                                             int64_t vocab_size) {
  QUIRE_ASSIGN_OR_RETURN(const std::optional<int32_t> id,
                         TokenId(fields, "pad_token_id", kMaxVocabSize));
  return id && *id < vocab_size ? id : std::nullopt;
}

absl::StatusOr<std::optional<DType>> ParseDType(JsonFields& fields) {
  // transformers 5 writes dtype, earlier versions torch_dtype.
  for (const char* name : {"dtype", "torch_dtype"}) {
    QUIRE_ASSIGN_OR_RETURN(const auto text, fields.String(name));
    if (!text) continue;
    if (*text == "float32") return std::optional<DType>(DType::kF32);
    if (*text == "float16") return std::optional<DType>(DType::kF16);
    if (*text == "bfloat16") return std::optional<DType>(DType::kBF16);
  }
  return std::optional<DType>();
}

absl::StatusOr<json> ParseObject(absl::string_view text,
                                 const std::string& path) {
  json document = json::parse(text.begin(), text.end(), nullptr,
                              /*allow_exceptions=*/false);
  if (!document.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a valid JSON object"));
  }
  return document;
}

}  // namespace

std::vector<std::string> SupportedModelTypes() {
  std::vector<std::string> names;
  for (const Family& family : kFamilies) names.push_back(family.model_type);
  return names;
}

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view text,
                                             const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(const json document, ParseObject(text, path));
  JsonFields fields(document, path);
  ModelConfig config;
  QUIRE_ASSIGN_OR_RETURN(const Family* family,
                         FindFamily(fields, &config.is_trunk));
  QUIRE_RETURN_IF_ERROR(RejectUnsupported(fields));

  config.model_type = family->model_type;
  config.architecture = family->architecture;
  QUIRE_ASSIGN_OR_RETURN(config.vocab_size,
                         fields.RequiredInt("vocab_size", 1, kMaxVocabSize));
  QUIRE_ASSIGN_OR_RETURN(config.hidden_size,
                         fields.RequiredInt("hidden_size", 1, kMaxHiddenSize));
  QUIRE_ASSIGN_OR_RETURN(
      const int64_t num_layers,
      fields.RequiredInt("num_hidden_layers", 1, kMaxLayers));
  QUIRE_ASSIGN_OR_RETURN(
      const auto max_positions,
      fields.Int("max_position_embeddings", 1, kMaxPositions));
  config.max_position_embeddings =
      max_positions.value_or(family->default_positions);
  QUIRE_ASSIGN_OR_RETURN(const auto eps,
                         fields.Number("rms_norm_eps", 0.0, 1.0));
  config.rms_norm_eps = static_cast<float>(eps.value_or(1e-6));
  QUIRE_ASSIGN_OR_RETURN(const auto tied, fields.Bool("tie_word_embeddings"));
  config.tie_word_embeddings = tied.value_or(false);

  QUIRE_ASSIGN_OR_RETURN(LayerConfig layer,
                         ParseLayer(fields, *family, config.hidden_size));
  QUIRE_ASSIGN_OR_RETURN(
      layer.rope, ParseRope(fields, path, config.max_position_embeddings));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int> windows,
                         ParseWindows(fields, *family, num_layers));
  config.layers.assign(num_layers, layer);
  for (int64_t i = 0; i < num_layers; ++i) {
    config.layers[i].sliding_window = windows[i];
  }

  QUIRE_ASSIGN_OR_RETURN(config.dtype, ParseDType(fields));
  QUIRE_ASSIGN_OR_RETURN(config.eos_token_ids,
                         TokenIds(fields, "eos_token_id", config.vocab_size));
  QUIRE_ASSIGN_OR_RETURN(config.bos_token_id,
                         TokenId(fields, "bos_token_id", config.vocab_size));
  QUIRE_ASSIGN_OR_RETURN(config.pad_token_id, PadId(fields, config.vocab_size));
  for (const std::string& name : fields.Unread()) {
    if (IsHarmless(name)) continue;
    config.warnings.push_back(absl::StrCat(
        path, ": field \"", name, "\" is not known to quire and ignored"));
  }
  return config;
}

absl::StatusOr<GenerationConfig> ParseGenerationConfig(absl::string_view text,
                                                       const std::string& path,
                                                       int vocab_size) {
  QUIRE_ASSIGN_OR_RETURN(const json document, ParseObject(text, path));
  JsonFields fields(document, path);
  GenerationConfig config;
  QUIRE_ASSIGN_OR_RETURN(config.eos_token_ids,
                         TokenIds(fields, "eos_token_id", vocab_size));
  QUIRE_ASSIGN_OR_RETURN(config.bos_token_id,
                         TokenId(fields, "bos_token_id", vocab_size));
  QUIRE_ASSIGN_OR_RETURN(config.pad_token_id, PadId(fields, vocab_size));
  QUIRE_ASSIGN_OR_RETURN(const auto do_sample, fields.Bool("do_sample"));
  config.do_sample = do_sample.value_or(true);
  QUIRE_ASSIGN_OR_RETURN(config.temperature,
                         fields.Number("temperature", 0.0, 100.0));
  QUIRE_ASSIGN_OR_RETURN(config.top_p, fields.Number("top_p", 0.0, 1.0));
  QUIRE_ASSIGN_OR_RETURN(config.min_p, fields.Number("min_p", 0.0, 1.0));
  QUIRE_ASSIGN_OR_RETURN(config.top_k, fields.Int("top_k", -1, INT32_MAX));
  if (config.top_k && *config.top_k < 0) config.top_k = 0;  // -1: all, as 0.
  QUIRE_ASSIGN_OR_RETURN(config.repetition_penalty,
                         fields.Number("repetition_penalty", 1e-3, 1e3));
  QUIRE_ASSIGN_OR_RETURN(config.max_new_tokens,
                         fields.Int("max_new_tokens", 1, INT32_MAX));
  return config;
}

absl::StatusOr<ModelDirectoryConfig> ReadModelDirectoryConfig(
    const std::string& directory) {
  ModelDirectoryConfig result;
  const std::string path = absl::StrCat(directory, "/config.json");
  QUIRE_ASSIGN_OR_RETURN(const std::string text,
                         ReadTextFile(path, kMaxConfigBytes));
  QUIRE_ASSIGN_OR_RETURN(result.model, ParseModelConfig(text, path));

  const std::string generation_path =
      absl::StrCat(directory, "/generation_config.json");
  const absl::StatusOr<std::string> generation_text =
      ReadTextFile(generation_path, kMaxConfigBytes);
  if (generation_text.ok()) {
    QUIRE_ASSIGN_OR_RETURN(
        result.generation,
        ParseGenerationConfig(*generation_text, generation_path,
                              result.model.vocab_size));
  } else if (!absl::IsNotFound(generation_text.status())) {
    return generation_text.status();
  }
  GenerationConfig& generation = result.generation;
  if (generation.eos_token_ids.empty()) {
    generation.eos_token_ids = result.model.eos_token_ids;
  }
  if (!generation.bos_token_id) {
    generation.bos_token_id = result.model.bos_token_id;
  }
  if (!generation.pad_token_id) {
    generation.pad_token_id = result.model.pad_token_id;
  }
  return result;
}

}  // namespace quire
