#include "engine/model/model_config.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "engine/model/families.h"
#include "engine/model/json_fields.h"
#include "engine/model/quantization_fields.h"
#include "engine/model/rope_config.h"
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

// Fields that do not change what a forward pass computes: notes of training and
// of the library that wrote the file.
constexpr const char* kHarmlessFields[] = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "activation_dropout",
    "attention_dropout",
    "auto_map",
    "begin_suppress_tokens",
    "cache_implementation",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "dropout",
    "embd_pdrop",
    "finetuning_task",
    "for_teacher_forcing",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "init_std",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "layerdrop",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",  // Splits the same products; the result is the same.
    "problem_type",
    "prefix",
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
  for (const Family& family : Families()) {
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

// An integer in [1, max]; absent, it is `default_value` or, if that is 0, an
// error.
absl::StatusOr<int64_t> IntOr(JsonFields& fields, const char* name, int64_t max,
                              int64_t default_value) {
  if (default_value == 0) return fields.RequiredInt(name, 1, max);
  QUIRE_ASSIGN_OR_RETURN(const auto value, fields.Int(name, 1, max));
  return value.value_or(default_value);
}

// Rejects fields of modules that the family does not have, unless they are
// switched off. Call when everything else was read.
absl::Status RejectUnsupported(JsonFields& fields) {
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
                           "use_qkv_bias",
                           "use_parallel_residual",
                           "use_bidirectional_attention",
                           "clip_qkv",
                           "block_configs",
                           "add_cross_attention",
                           "rope_interleaved",
                           "use_mrope",
                           "is_encoder_decoder",
                           "tie_encoder_decoder",
                           "cross_attention_hidden_size"}) {
    if (fields.WasRead(name)) continue;  // The family has it.
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
  // RoPE reads this one; without RoPE it cannot be meant.
  if (fields.WasRead("partial_rotary_factor")) return absl::OkStatus();
  return fields.RequireOff("partial_rotary_factor");
}

// sliding_window of each layer, 0 for full attention.
absl::StatusOr<std::vector<int>> ParseWindows(JsonFields& fields,
                                              const Family& family,
                                              int64_t num_layers) {
  std::vector<int> windows(num_layers, 0);
  QUIRE_ASSIGN_OR_RETURN(const auto stated,
                         fields.Int("sliding_window", 1, kMaxPositions));
  QUIRE_ASSIGN_OR_RETURN(const auto enabled, fields.Bool("use_sliding_window"));
  QUIRE_ASSIGN_OR_RETURN(const auto max_window_layers,
                         fields.Int("max_window_layers", 0, 1 << 30));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::string> layer_types,
                         fields.Strings("layer_types"));
  // Null says none; only an absent field means the family's default.
  const int window = fields.IsNull("sliding_window")
                         ? 0
                         : stated.value_or(family.default_window);
  bool may_choose = enabled.value_or(false) && window != 0;
  switch (family.window) {
    case WindowPattern::kNone:
      if (stated) {
        return fields.Error("sliding_window",
                            absl::StrCat("not supported for model_type \"",
                                         family.model_type, "\""));
      }
      may_choose = false;
      break;
    case WindowPattern::kAllLayers:
      windows.assign(num_layers, window);
      may_choose = false;
      break;
    case WindowPattern::kQwen:
      for (int64_t i = max_window_layers.value_or(28);
           may_choose && i < num_layers; ++i) {
        windows[i] = window;
      }
      break;
    case WindowPattern::kPeriodic: {
      QUIRE_ASSIGN_OR_RETURN(const auto period,
                             fields.Int("sliding_window_pattern", 1, 1 << 20));
      for (int64_t i = 0; i < num_layers; ++i) {
        const bool is_full =
            (i + 1) % period.value_or(family.default_period) == 0;
        windows[i] = is_full ? 0 : window;
      }
      may_choose = window != 0;
      break;
    }
    case WindowPattern::kLayerTypes:
      break;
  }
  if (layer_types.empty()) return windows;
  if (static_cast<int64_t>(layer_types.size()) != num_layers) {
    return fields.Error(
        "layer_types", absl::StrCat("has ", layer_types.size(), " entries for ",
                                    num_layers, " layers"));
  }
  for (int64_t i = 0; i < num_layers; ++i) {
    const bool is_sliding = layer_types[i] == "sliding_attention";
    if (!is_sliding && layer_types[i] != "full_attention") {
      return fields.Error(
          "layer_types",
          absl::StrCat("\"", layer_types[i], "\" is not supported (supported: ",
                       "full_attention, sliding_attention)"));
    }
    if (may_choose) {
      windows[i] = is_sliding ? window : 0;
    } else if (is_sliding != (windows[i] != 0)) {
      return fields.Error("layer_types",
                          absl::StrCat("layer ", i, " is ", layer_types[i],
                                       ", which sliding_window and ",
                                       "use_sliding_window contradict"));
    }
  }
  return windows;
}

// Query, key and value heads.
absl::Status ParseHeads(JsonFields& fields, const Family& family,
                        int64_t hidden_size, LayerConfig& layer) {
  QUIRE_ASSIGN_OR_RETURN(
      layer.num_heads,
      IntOr(fields, "num_attention_heads", kMaxHeads, family.default_heads));
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
  layer.attention_scale =
      static_cast<float>(1.0 / std::sqrt(double(layer.head_dim)));
  layer.qk_norm = family.qk_norm;
  return absl::OkStatus();
}

absl::Status ParseActivation(JsonFields& fields, const Family& family,
                             LayerConfig& layer) {
  const bool is_gated = IsGated(family.default_activation);
  layer.activation = family.default_activation;
  // Some writers use the name that the family's code does not read as well.
  for (const std::string& name :
       {std::string("hidden_act"), std::string("hidden_activation"),
        family.activation_field}) {
    QUIRE_ASSIGN_OR_RETURN(const std::optional<std::string> act,
                           fields.String(name.c_str()));
    if (!act) continue;
    const bool is_silu = *act == "silu" || *act == "swish";
    const bool is_gelu = *act == "gelu_pytorch_tanh" || *act == "gelu_new";
    Epilogue::Activation found;
    if (is_gated && is_silu) {
      found = Epilogue::Activation::kSwiGlu;
    } else if (is_gelu) {
      found =
          is_gated ? Epilogue::Activation::kGeGlu : Epilogue::Activation::kGelu;
    } else if (*act == "gelu") {
      found = is_gated ? Epilogue::Activation::kGeGluErf
                       : Epilogue::Activation::kGeluErf;
    } else if (!is_gated && *act == "relu") {
      found = Epilogue::Activation::kRelu;
    } else {
      return fields.Error(
          name, absl::StrCat("\"", *act, "\" is not supported (supported: ",
                             is_gated ? "silu" : "relu",
                             ", gelu, gelu_pytorch_tanh)"));
    }
    if (name != family.activation_field && found != layer.activation) {
      return fields.Error(name, absl::StrCat("\"", *act,
                                             "\" is not supported for "
                                             "model_type \"",
                                             family.model_type, "\""));
    }
    layer.activation = found;
  }
  return absl::OkStatus();
}

absl::Status ParseBiases(JsonFields& fields, const Family& family,
                         LayerConfig& layer) {
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
  return absl::OkStatus();
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

// Ids that the object states; others stay as they are.
absl::Status ParseSpecialIds(JsonFields& fields, ModelConfig& config) {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int32_t> eos,
                         TokenIds(fields, "eos_token_id", config.vocab_size));
  if (!eos.empty()) config.eos_token_ids = eos;
  QUIRE_ASSIGN_OR_RETURN(const auto bos,
                         TokenId(fields, "bos_token_id", config.vocab_size));
  if (bos) config.bos_token_id = bos;
  QUIRE_ASSIGN_OR_RETURN(const auto pad, PadId(fields, config.vocab_size));
  if (pad) config.pad_token_id = pad;
  return absl::OkStatus();
}

void AddWarnings(const JsonFields& fields, const std::string& path,
                 ModelConfig& config) {
  for (const std::string& name : fields.Unread()) {
    if (IsHarmless(name)) continue;
    config.warnings.push_back(absl::StrCat(
        path, ": field \"", name, "\" is not known to quire and ignored"));
  }
}

// What every decoder has; the family's own fields are left to its adapt.
absl::StatusOr<ModelConfig> ParseDecoder(JsonFields& fields,
                                         const std::string& path,
                                         const Family& family) {
  ModelConfig config;
  config.model_type = family.model_type;
  config.architecture = family.architecture;
  QUIRE_ASSIGN_OR_RETURN(
      config.vocab_size,
      IntOr(fields, "vocab_size", kMaxVocabSize, family.default_vocab_size));
  QUIRE_ASSIGN_OR_RETURN(config.hidden_size,
                         fields.RequiredInt("hidden_size", 1, kMaxHiddenSize));
  config.embedding_size = config.hidden_size;
  QUIRE_ASSIGN_OR_RETURN(
      const int64_t num_layers,
      fields.RequiredInt("num_hidden_layers", 1, kMaxLayers));
  QUIRE_ASSIGN_OR_RETURN(
      const auto max_positions,
      fields.Int("max_position_embeddings", 1, kMaxPositions));
  config.max_position_embeddings =
      max_positions.value_or(family.default_positions);
  std::optional<double> eps;
  if (!family.eps_field.empty()) {
    QUIRE_ASSIGN_OR_RETURN(eps,
                           fields.Number(family.eps_field.c_str(), 0.0, 1.0));
  }
  config.norm_eps = static_cast<float>(eps.value_or(family.default_eps));
  QUIRE_ASSIGN_OR_RETURN(const auto tied, fields.Bool("tie_word_embeddings"));
  config.tie_word_embeddings = tied.value_or(family.default_tied);

  LayerConfig layer;
  QUIRE_ASSIGN_OR_RETURN(layer.intermediate_size,
                         fields.RequiredInt(family.intermediate_field.c_str(),
                                            1, kMaxIntermediateSize));
  QUIRE_RETURN_IF_ERROR(ParseHeads(fields, family, config.hidden_size, layer));
  QUIRE_RETURN_IF_ERROR(ParseActivation(fields, family, layer));
  QUIRE_RETURN_IF_ERROR(ParseBiases(fields, family, layer));
  layer.rope.type = RopeType::kNone;
  if (family.has_rope && !family.has_rope_by_layer) {
    RopeDefaults defaults = family.rope;
    defaults.max_positions = config.max_position_embeddings;
    defaults.head_dim = layer.head_dim;
    QUIRE_ASSIGN_OR_RETURN(layer.rope, ParseRope(fields, path, defaults));
  }
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int> windows,
                         ParseWindows(fields, family, num_layers));
  config.layers.assign(num_layers, layer);
  for (int64_t i = 0; i < num_layers; ++i) {
    config.layers[i].sliding_window = windows[i];
  }
  if (family.adapt != nullptr) {
    QUIRE_RETURN_IF_ERROR(family.adapt(fields, path, family, config));
  }
  QUIRE_RETURN_IF_ERROR(RejectUnsupported(fields));
  QUIRE_RETURN_IF_ERROR(ParseQuantization(fields, path, config.quantization));

  QUIRE_ASSIGN_OR_RETURN(config.dtype, ParseDType(fields));
  QUIRE_RETURN_IF_ERROR(ParseSpecialIds(fields, config));
  AddWarnings(fields, path, config);
  return config;
}

// A model of several modes whose text part is the object text_config.
absl::StatusOr<ModelConfig> ParseNested(JsonFields& fields,
                                        const std::string& path,
                                        const Family& family) {
  QUIRE_ASSIGN_OR_RETURN(const json* object, fields.Object("text_config"));
  if (object == nullptr) return fields.Error("text_config", "missing");
  JsonFields inner(*object, path, "text_config.");
  QUIRE_ASSIGN_OR_RETURN(const auto type, inner.String("model_type"));
  if (type && *type != family.text_model_type) {
    return inner.Error(
        "model_type",
        absl::StrCat("\"", *type, "\" is not supported ",
                     "(supported: ", family.text_model_type, ")"));
  }
  inner.Has("architectures");  // Of the text model alone: it says nothing new.
  const auto text_family = std::find_if(
      Families().begin(), Families().end(), [&](const Family& candidate) {
        return candidate.model_type == family.text_model_type;
      });
  QUIRE_CHECK(text_family != Families().end());
  QUIRE_ASSIGN_OR_RETURN(ModelConfig config,
                         ParseDecoder(inner, path, *text_family));
  config.model_type = family.model_type;
  config.architecture = family.architecture;
  config.tensors.prefixes = {"model.language_model.", "language_model.model."};
  config.tensors.heads = {"lm_head", "language_model.lm_head"};
  // What the outer object says as well goes first.
  QUIRE_ASSIGN_OR_RETURN(const auto tied, fields.Bool("tie_word_embeddings"));
  config.tie_word_embeddings = tied.value_or(config.tie_word_embeddings);
  QUIRE_ASSIGN_OR_RETURN(const auto dtype, ParseDType(fields));
  if (dtype) config.dtype = dtype;
  QUIRE_RETURN_IF_ERROR(ParseSpecialIds(fields, config));
  for (const char* name :
       {"vision_config", "boi_token_index", "eoi_token_index",
        "image_token_index", "mm_tokens_per_image"}) {
    fields.Has(name);  // Of the images, which are left out.
  }
  QUIRE_RETURN_IF_ERROR(RejectUnsupported(fields));
  QUIRE_RETURN_IF_ERROR(ParseQuantization(fields, path, config.quantization));
  AddWarnings(fields, path, config);
  config.warnings.push_back(absl::StrCat(path, ": only the text model of ",
                                         family.architecture,
                                         " is used: images are not supported"));
  return config;
}

}  // namespace

int ModelConfig::RopeSwitchLength() const {
  for (const LayerConfig& layer : layers) {
    if (layer.rope.type == RopeType::kLongRope) {
      return layer.rope.original_max_position_embeddings;
    }
  }
  return 0;
}

std::vector<std::string> SupportedModelTypes() {
  std::vector<std::string> names;
  for (const Family& family : Families()) names.push_back(family.model_type);
  return names;
}

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view text,
                                             const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(const json document, ParseObject(text, path));
  JsonFields fields(document, path);
  bool is_trunk = false;
  QUIRE_ASSIGN_OR_RETURN(const Family* family, FindFamily(fields, &is_trunk));
  QUIRE_ASSIGN_OR_RETURN(ModelConfig config,
                         family->text_model_type.empty()
                             ? ParseDecoder(fields, path, *family)
                             : ParseNested(fields, path, *family));
  config.is_trunk = is_trunk;
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
