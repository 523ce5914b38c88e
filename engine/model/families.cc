#include "engine/model/families.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

using nlohmann::json;

// A field that is a number and may be left out.
absl::Status ReadNumber(JsonFields& fields, const char* name, double min,
                        double max, float& value) {
  QUIRE_ASSIGN_OR_RETURN(const auto number, fields.Number(name, min, max));
  if (number) value = static_cast<float>(*number);
  return absl::OkStatus();
}

// ------------------------------------------------------------------ Gemma

// Gemma Team 2024, arXiv:2408.00118, section 2: norms before and after each
// branch, soft-capped scores and logits.
absl::Status AdaptGemma(JsonFields& fields, float default_attention_softcap,
                        float default_logits_softcap, ModelConfig& config) {
  config.norm_weight_offset = 1.0f;
  config.embedding_scale =
      static_cast<float>(std::sqrt(static_cast<double>(config.hidden_size)));
  config.rounds_embedding_scale = true;
  LayerTensorNames& names = config.tensors.layer;
  names.attention_branch_norm = "post_attention_layernorm";
  names.mlp_norm = "pre_feedforward_layernorm";
  names.mlp_branch_norm = "post_feedforward_layernorm";
  // Null says none; only an absent field means the default.
  float attention_softcap = fields.IsNull("attn_logit_softcapping")
                                ? 0.0f
                                : default_attention_softcap;
  config.logits_softcap =
      fields.IsNull("final_logit_softcapping") ? 0.0f : default_logits_softcap;
  QUIRE_RETURN_IF_ERROR(ReadNumber(fields, "attn_logit_softcapping", 1e-3, 1e6,
                                   attention_softcap));
  QUIRE_RETURN_IF_ERROR(ReadNumber(fields, "final_logit_softcapping", 1e-3, 1e6,
                                   config.logits_softcap));
  QUIRE_ASSIGN_OR_RETURN(const auto scalar,
                         fields.Number("query_pre_attn_scalar", 1e-3, 1e9));
  for (LayerConfig& layer : config.layers) {
    layer.attention_softcap = attention_softcap;
    layer.attention_scale =
        static_cast<float>(1.0 / std::sqrt(scalar.value_or(256)));
  }
  return absl::OkStatus();
}

absl::Status AdaptGemma2(JsonFields& fields, const std::string& path,
                         const Family& family, ModelConfig& config) {
  return AdaptGemma(fields, 50.0f, 30.0f, config);
}

// Gemma Team 2025, arXiv:2503.19786, section 2: QK-norm in place of the caps
// and a RoPE of their own for the layers with a window.
absl::Status AdaptGemma3(JsonFields& fields, const std::string& path,
                         const Family& family, ModelConfig& config) {
  QUIRE_RETURN_IF_ERROR(AdaptGemma(fields, 0.0f, 0.0f, config));
  RopeDefaults defaults = family.rope;
  defaults.max_positions = config.max_position_embeddings;
  defaults.head_dim = config.layers[0].head_dim;
  RopeDefaults local_defaults = defaults;
  QUIRE_ASSIGN_OR_RETURN(const auto local_theta,
                         fields.Number("rope_local_base_freq", 1.0, 1e12));
  local_defaults.theta = local_theta.value_or(10000.0);
  RopeConfig global, local;
  local.theta = local_defaults.theta;
  QUIRE_ASSIGN_OR_RETURN(const json* parameters,
                         fields.Object("rope_parameters"));
  const bool is_nested =
      parameters != nullptr && (parameters->contains("full_attention") ||
                                parameters->contains("sliding_attention"));
  if (!is_nested) {
    QUIRE_ASSIGN_OR_RETURN(global, ParseRope(fields, path, defaults));
  } else {
    if (fields.Has("rope_scaling")) {
      return fields.Error("rope_scaling",
                          "not supported beside nested rope_parameters");
    }
    QUIRE_ASSIGN_OR_RETURN(const auto theta,
                           fields.Number("rope_theta", 1.0, 1e12));
    defaults.theta = theta.value_or(defaults.theta);
    global.theta = defaults.theta;
    JsonFields outer(*parameters, path, "rope_parameters.");
    for (const bool is_local : {false, true}) {
      const char* name = is_local ? "sliding_attention" : "full_attention";
      QUIRE_ASSIGN_OR_RETURN(const json* object, outer.Object(name));
      if (object == nullptr) continue;
      JsonFields inner(*object, path,
                       absl::StrCat("rope_parameters.", name, "."));
      QUIRE_ASSIGN_OR_RETURN(
          (is_local ? local : global),
          ParseRopeObject(inner, is_local ? local_defaults : defaults));
    }
    for (const std::string& unread : outer.Unread()) {
      return outer.Error(unread, "not supported");
    }
  }
  for (LayerConfig& layer : config.layers) {
    layer.rope = layer.sliding_window > 0 ? local : global;
  }
  return absl::OkStatus();
}

// -------------------------------------------------------------------- OPT

// Zhang et al. 2022, arXiv:2205.01068: learned positions, LayerNorm, biases,
// ReLU. The 350m model normalizes after the residual and embeds in fewer
// dimensions.
absl::Status AdaptOpt(JsonFields& fields, const std::string& path,
                      const Family& family, ModelConfig& config) {
  QUIRE_ASSIGN_OR_RETURN(const auto norm_before,
                         fields.Bool("do_layer_norm_before"));
  QUIRE_ASSIGN_OR_RETURN(const auto no_final_norm,
                         fields.Bool("_remove_final_layer_norm"));
  QUIRE_ASSIGN_OR_RETURN(const auto bias, fields.Bool("enable_bias"));
  QUIRE_ASSIGN_OR_RETURN(const auto affine,
                         fields.Bool("layer_norm_elementwise_affine"));
  QUIRE_ASSIGN_OR_RETURN(const auto embedding_size,
                         fields.Int("word_embed_proj_dim", 1, 1 << 17));
  if (!affine.value_or(true)) {
    return fields.Error("layer_norm_elementwise_affine",
                        "false is not supported");
  }
  config.norm_kind = NormKind::kLayer;
  config.norms_have_bias = true;
  config.position_offset = 2;
  config.embedding_size = embedding_size.value_or(config.hidden_size);
  TensorNames& names = config.tensors;
  // Old checkpoints are of the bare decoder.
  names.prefixes = {"model.decoder.", "decoder."};
  names.positions = "embed_positions";
  if (config.embedding_size != config.hidden_size) {
    names.project_in = "project_in";
    names.project_out = "project_out";
  }
  names.layer.output = "self_attn.out_proj";
  names.layer.gate = "";
  names.layer.up = "fc1";
  names.layer.down = "fc2";
  const bool is_pre_norm = norm_before.value_or(true);
  names.final_norm =
      is_pre_norm && !no_final_norm.value_or(false) ? "final_layer_norm" : "";
  names.layer.attention_norm = is_pre_norm ? "self_attn_layer_norm" : "";
  names.layer.mlp_norm = is_pre_norm ? "final_layer_norm" : "";
  names.layer.attention_sum_norm = is_pre_norm ? "" : "self_attn_layer_norm";
  names.layer.mlp_sum_norm = is_pre_norm ? "" : "final_layer_norm";
  for (LayerConfig& layer : config.layers) {
    layer.has_qkv_bias = layer.has_output_bias = layer.has_mlp_bias =
        bias.value_or(true);
  }
  return absl::OkStatus();
}

// -------------------------------------------------- the relatives of Llama

// Abdin et al. 2024, arXiv:2404.14219: Llama's layers with fused matrices.
absl::Status AdaptPhi3(JsonFields& fields, const std::string& path,
                       const Family& family, ModelConfig& config) {
  LayerTensorNames& names = config.tensors.layer;
  names.q = names.k = names.v = names.gate = names.up = "";
  names.qkv = "self_attn.qkv_proj";
  names.gate_up = "mlp.gate_up_proj";
  const RopeType type = config.layers[0].rope.type;
  if (type != RopeType::kDefault && type != RopeType::kLongRope) {
    return fields.Error("rope_scaling",
                        "model_type \"phi3\" has longrope or none");
  }
  return absl::OkStatus();
}

// Xiaomi 2025, arXiv:2505.07608: Qwen 2's layers, and layers that draft.
absl::Status AdaptMimo(JsonFields& fields, const std::string& path,
                       const Family& family, ModelConfig& config) {
  QUIRE_ASSIGN_OR_RETURN(const auto num_layers,
                         fields.Int("num_nextn_predict_layers", 0, 64));
  config.num_mtp_layers = static_cast<int>(num_layers.value_or(0));
  config.tensors.ignored_prefixes = {"model.mtp_layers."};
  return absl::OkStatus();
}

absl::Status AdaptGranite(JsonFields& fields, const std::string& path,
                          const Family& family, ModelConfig& config) {
  float attention_scale = 1.0f, logits_scaling = 1.0f;
  QUIRE_RETURN_IF_ERROR(ReadNumber(fields, "embedding_multiplier", 1e-6, 1e6,
                                   config.embedding_scale));
  QUIRE_RETURN_IF_ERROR(ReadNumber(fields, "residual_multiplier", 1e-6, 1e6,
                                   config.residual_scale));
  QUIRE_RETURN_IF_ERROR(
      ReadNumber(fields, "attention_multiplier", 1e-6, 1e6, attention_scale));
  QUIRE_RETURN_IF_ERROR(
      ReadNumber(fields, "logits_scaling", 1e-6, 1e6, logits_scaling));
  config.logits_scale = 1.0f / logits_scaling;
  for (LayerConfig& layer : config.layers) {
    layer.attention_scale = attention_scale;
  }
  return absl::OkStatus();
}

// OLMo Team 2024, arXiv:2501.00656, section 3.2: norms of what the branches
// computed in place of norms of their input, and QK-norm over all heads.
absl::Status AdaptOlmo2(JsonFields& fields, const std::string& path,
                        const Family& family, ModelConfig& config) {
  LayerTensorNames& names = config.tensors.layer;
  names.attention_norm = names.mlp_norm = "";
  names.attention_branch_norm = "post_attention_layernorm";
  names.mlp_branch_norm = "post_feedforward_layernorm";
  return absl::OkStatus();
}

// Layers without positions: Yang et al. 2025, arXiv:2501.18795 (RNoPE).
absl::Status AdaptSmolLm3(JsonFields& fields, const std::string& path,
                          const Family& family, ModelConfig& config) {
  const int64_t num_layers = config.layers.size();
  QUIRE_ASSIGN_OR_RETURN(const auto interval,
                         fields.Int("no_rope_layer_interval", 1, 1 << 20));
  QUIRE_ASSIGN_OR_RETURN(std::vector<int64_t> has_rope,
                         fields.Ints("no_rope_layers", 0, 1));
  if (!fields.Has("no_rope_layers")) {
    for (int64_t i = 0; i < num_layers; ++i) {
      has_rope.push_back((i + 1) % interval.value_or(4) != 0);
    }
  }
  // Models that were cut have entries left over.
  if (static_cast<int64_t>(has_rope.size()) < num_layers) {
    return fields.Error("no_rope_layers",
                        absl::StrCat("has ", has_rope.size(), " entries for ",
                                     num_layers, " layers"));
  }
  QUIRE_ASSIGN_OR_RETURN(const auto window,
                         fields.Int("sliding_window", 1, INT32_MAX));
  QUIRE_ASSIGN_OR_RETURN(const auto use_window,
                         fields.Bool("use_sliding_window"));
  const bool has_window =
      use_window.value_or(false) && !fields.Has("layer_types");
  for (int64_t i = 0; i < num_layers; ++i) {
    if (has_rope[i] != 0) continue;
    config.layers[i].rope = {.type = RopeType::kNone};
    if (has_window) config.layers[i].sliding_window = window.value_or(0);
  }
  return absl::OkStatus();
}

// Bellagente et al. 2024, arXiv:2402.17834, section 2; parallel blocks as in
// Wang & Komatsuzaki 2021 (GPT-J).
absl::Status AdaptStableLm(JsonFields& fields, const std::string& path,
                           const Family& family, ModelConfig& config) {
  QUIRE_ASSIGN_OR_RETURN(const auto qkv_bias, fields.Bool("use_qkv_bias"));
  QUIRE_ASSIGN_OR_RETURN(const auto qk_norm, fields.Bool("qk_layernorm"));
  QUIRE_ASSIGN_OR_RETURN(const auto is_parallel,
                         fields.Bool("use_parallel_residual"));
  config.norm_kind = NormKind::kLayer;
  config.norms_have_bias = true;
  LayerTensorNames& names = config.tensors.layer;
  names.q_norm = "self_attn.q_layernorm.norms";
  names.k_norm = "self_attn.k_layernorm.norms";
  if (is_parallel.value_or(false)) names.mlp_norm = "";
  for (LayerConfig& layer : config.layers) {
    layer.has_qkv_bias = qkv_bias.value_or(false);
    layer.qk_norm = qk_norm.value_or(false) ? QkNorm::kEachHead : QkNorm::kNone;
    layer.is_parallel = is_parallel.value_or(false);
  }
  return absl::OkStatus();
}

std::vector<Family> MakeFamilies() {
  std::vector<Family> families;
  families.push_back({.model_type = "llama",
                      .architecture = "LlamaForCausalLM",
                      .reads_attention_bias = true,
                      .reads_mlp_bias = true});
  families.push_back({.model_type = "mistral",
                      .architecture = "MistralForCausalLM",
                      .default_kv_heads = 8,
                      .default_positions = 131072,
                      .window = WindowPattern::kAllLayers,
                      .default_window = 4096});
  families.push_back({.model_type = "qwen2",
                      .architecture = "Qwen2ForCausalLM",
                      .default_kv_heads = 32,
                      .default_positions = 32768,
                      .always_has_qkv_bias = true,
                      .window = WindowPattern::kQwen,
                      .default_window = 4096});
  families.push_back({.model_type = "mimo",
                      .architecture = "MiMoForCausalLM",
                      .default_kv_heads = 32,
                      .default_positions = 32768,
                      .always_has_qkv_bias = true,
                      .window = WindowPattern::kQwen,
                      .default_window = 4096,
                      .adapt = &AdaptMimo});
  families.push_back({.model_type = "qwen3",
                      .architecture = "Qwen3ForCausalLM",
                      .default_kv_heads = 32,
                      .default_head_dim = 128,
                      .default_positions = 32768,
                      .reads_attention_bias = true,
                      .window = WindowPattern::kQwen,
                      .default_window = 4096,
                      .qk_norm = QkNorm::kHead});
  Family gemma2 = {.model_type = "gemma2",
                   .architecture = "Gemma2ForCausalLM",
                   .default_vocab_size = 256000,
                   .default_heads = 8,
                   .default_kv_heads = 4,
                   .default_head_dim = 256,
                   .default_positions = 8192,
                   .default_tied = true,
                   .default_activation = Epilogue::Activation::kGeGlu,
                   .activation_field = "hidden_activation",
                   .reads_attention_bias = true,
                   .window = WindowPattern::kPeriodic,
                   .default_window = 4096,
                   .default_period = 2,
                   .adapt = AdaptGemma2};
  families.push_back(gemma2);
  Family gemma3 = gemma2;
  gemma3.model_type = "gemma3_text";
  gemma3.architecture = "Gemma3ForCausalLM";
  gemma3.default_vocab_size = 262208;
  gemma3.default_positions = 131072;
  gemma3.default_period = 6;
  gemma3.rope.theta = 1e6;
  gemma3.has_rope_by_layer = true;
  gemma3.qk_norm = QkNorm::kHead;
  gemma3.adapt = AdaptGemma3;
  families.push_back(gemma3);
  families.push_back({.model_type = "gemma3",
                      .architecture = "Gemma3ForConditionalGeneration",
                      .text_model_type = "gemma3_text"});
  families.push_back({.model_type = "granite",
                      .architecture = "GraniteForCausalLM",
                      .reads_attention_bias = true,
                      .reads_mlp_bias = true,
                      .adapt = AdaptGranite});
  families.push_back({.model_type = "olmo2",
                      .architecture = "Olmo2ForCausalLM",
                      .default_eps = 1e-5,
                      .reads_attention_bias = true,
                      .qk_norm = QkNorm::kAllHeads,
                      .adapt = AdaptOlmo2});
  families.push_back({.model_type = "opt",
                      .architecture = "OPTForCausalLM",
                      .default_eps = 1e-5,
                      .default_tied = true,
                      .default_activation = Epilogue::Activation::kRelu,
                      .intermediate_field = "ffn_dim",
                      .activation_field = "activation_function",
                      .eps_field = "",
                      .has_rope = false,
                      .adapt = AdaptOpt});
  families.push_back({.model_type = "phi3",
                      .architecture = "Phi3ForCausalLM",
                      .default_positions = 4096,
                      .default_eps = 1e-5,
                      .rope = {.reads_partial_rotary_factor = true,
                               .original_max_positions = 4096},
                      .window = WindowPattern::kAllLayers,
                      .adapt = AdaptPhi3});
  families.push_back({.model_type = "smollm3",
                      .architecture = "SmolLM3ForCausalLM",
                      .default_kv_heads = 4,
                      .default_positions = 32768,
                      .default_tied = true,
                      .rope = {.theta = 2e6},
                      .reads_attention_bias = true,
                      .reads_mlp_bias = true,
                      .window = WindowPattern::kLayerTypes,
                      .adapt = AdaptSmolLm3});
  families.push_back({.model_type = "stablelm",
                      .architecture = "StableLmForCausalLM",
                      .default_kv_heads = 32,
                      .default_positions = 4096,
                      .default_eps = 1e-5,
                      .rope = {.partial_rotary_factor = 0.25,
                               .reads_partial_rotary_factor = true},
                      .eps_field = "layer_norm_eps",
                      .adapt = AdaptStableLm});
  return families;
}

}  // namespace

absl::Span<const Family> Families() {
  static const std::vector<Family>* const families =
      new std::vector<Family>(MakeFamilies());
  return *families;
}

}  // namespace quire
