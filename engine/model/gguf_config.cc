#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "engine/base/status.h"
#include "engine/model/gguf_families.h"
#include "engine/model/gguf_model.h"
#include "nlohmann/json.hpp"

namespace quire {
namespace {

using nlohmann::json;

// Any integer that a size can be; ParseModelConfig has the limits that count.
constexpr int64_t kMaxInt = int64_t{1} << 53;
constexpr double kMaxNumber = 1e15;

// Texts of tokens that end an answer. Files name one or two of them by id
// (eos, eot, eom) and chat models end with others as well.
constexpr absl::string_view kEndTokens[] = {
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "</s>",
    "<|return|>",
    "<EOT>",
    "_<EOT>",
    "<|END_OF_TURN_TOKEN|>",
};

// Collects fields of a config.json and remembers which key each came from.
class Translator {
 public:
  Translator(const GgufFile& file, const GgufFamily& family)
      : file_(file), family_(family) {}

  json& config() { return config_; }
  const GgufFile& file() const { return file_; }

  // "attention.head_count" to the architecture's own.
  std::string Key(absl::string_view key) {
    std::string full = absl::StrCat(family_.architecture, ".", key);
    read_.insert(full);
    return full;
  }

  // One integer, or a list that says the same for each layer.
  absl::StatusOr<std::optional<int64_t>> ReadInt(absl::string_view name) {
    const std::string key = Key(name);
    QUIRE_ASSIGN_OR_RETURN(const std::vector<int64_t> values,
                           file_.Ints(key, 0, kMaxInt));
    if (values.empty()) return std::optional<int64_t>();
    if (std::adjacent_find(values.begin(), values.end(),
                           std::not_equal_to<>()) != values.end()) {
      return file_.Error(key, "differs between layers, which is not supported");
    }
    return std::optional<int64_t>(values[0]);
  }

  absl::Status Int(absl::string_view name, const char* field,
                   bool is_required = false) {
    QUIRE_ASSIGN_OR_RETURN(const std::optional<int64_t> value, ReadInt(name));
    if (value) return Set(field, name, *value);
    return is_required ? file_.Error(Key(name), "missing") : absl::OkStatus();
  }

  absl::StatusOr<std::optional<double>> ReadNumber(absl::string_view name) {
    return file_.Number(Key(name), -kMaxNumber, kMaxNumber);
  }

  absl::Status Number(absl::string_view name, const char* field) {
    QUIRE_ASSIGN_OR_RETURN(const std::optional<double> value, ReadNumber(name));
    return value ? Set(field, name, *value) : absl::OkStatus();
  }

  template <typename T>
  absl::Status Set(const char* field, absl::string_view name, T value) {
    config_[field] = std::move(value);
    Names(field, name);
    return absl::OkStatus();
  }

  // Errors about `field` are about the key `name`.
  void Names(absl::string_view field, absl::string_view name) {
    replacements_.emplace_back(absl::StrCat("field \"", field, "\""),
                               absl::StrCat("key \"", Key(name), "\""));
  }

  // A message about fields as one about keys.
  absl::Status Translated(const absl::Status& status) const {
    return absl::Status(status.code(),
                        absl::StrReplaceAll(status.message(), replacements_));
  }

  // Keys of the architecture that nobody asked for, one warning each.
  std::vector<std::string> UnreadWarnings() const {
    const std::string prefix = absl::StrCat(family_.architecture, ".");
    std::vector<std::string> warnings;
    for (const auto& [key, value] : file_.metadata()) {
      if (!absl::StartsWith(key, prefix) || read_.count(key) != 0) continue;
      warnings.push_back(absl::StrCat(
          file_.path(), ": key \"", key,
          "\" is not known to quire for this architecture and ignored"));
    }
    return warnings;
  }

 private:
  const GgufFile& file_;
  const GgufFamily& family_;
  json config_ = json::object();
  std::vector<std::pair<std::string, std::string>> replacements_;
  std::set<std::string> read_;
};

absl::StatusOr<const GgufFamily*> FindFamily(const GgufFile& file) {
  constexpr char kKey[] = "general.architecture";
  QUIRE_ASSIGN_OR_RETURN(const auto name, file.String(kKey));
  const std::string supported =
      absl::StrJoin(SupportedGgufArchitectures(), ", ");
  if (!name) {
    return file.Error(kKey,
                      absl::StrCat("missing (supported: ", supported, ")"));
  }
  for (const GgufFamily& family : GgufFamilies()) {
    if (*name == family.architecture) return &family;
  }
  return file.Error(
      kKey, absl::StrCat("\"", name->substr(0, 100),
                         "\" is not supported (supported: ", supported, ")"));
}

// The elements of a small table of f32.
absl::StatusOr<std::vector<float>> FloatTable(const StoredTensor& tensor) {
  if (tensor.dtype != StoredDType::kF32 || tensor.shape.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(*tensor.path, ": tensor \"", tensor.name,
                     "\": expected one row of F32"));
  }
  std::vector<float> values(tensor.num_elements);
  if (!values.empty()) {
    std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  }
  return values;
}

absl::Status TranslateSizes(Translator& keys) {
  const GgufFile& file = keys.file();
  const StoredTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": tensor \"token_embd.weight\" is missing or no matrix"));
  }
  keys.config()["vocab_size"] = embedding->shape[0];
  keys.Names("vocab_size", "vocab_size");
  QUIRE_RETURN_IF_ERROR(keys.Int("embedding_length", "hidden_size", true));
  QUIRE_RETURN_IF_ERROR(keys.Int("block_count", "num_hidden_layers", true));
  QUIRE_RETURN_IF_ERROR(
      keys.Int("feed_forward_length", "intermediate_size", true));
  QUIRE_RETURN_IF_ERROR(
      keys.Int("attention.head_count", "num_attention_heads", true));
  QUIRE_RETURN_IF_ERROR(
      keys.Int("context_length", "max_position_embeddings", true));
  // Absent: as many as heads, which is what null says.
  keys.config()["num_key_value_heads"] = nullptr;
  QUIRE_RETURN_IF_ERROR(
      keys.Int("attention.head_count_kv", "num_key_value_heads"));
  QUIRE_ASSIGN_OR_RETURN(const auto key_length,
                         keys.ReadInt("attention.key_length"));
  QUIRE_ASSIGN_OR_RETURN(const auto value_length,
                         keys.ReadInt("attention.value_length"));
  if (value_length && value_length != key_length) {
    return file.Error(keys.Key("attention.value_length"),
                      absl::StrCat(*value_length, " is another length than ",
                                   "that of keys, which is not supported"));
  }
  int64_t head_dim = key_length.value_or(0);
  if (!key_length) {
    const int64_t heads = keys.config()["num_attention_heads"];
    const int64_t hidden = keys.config()["hidden_size"];
    if (heads == 0 || hidden % heads != 0) {
      return file.Error(
          keys.Key("attention.head_count"),
          absl::StrCat(heads, " does not divide ", keys.Key("embedding_length"),
                       " ", hidden, ", and there is no key_length"));
    }
    head_dim = hidden / heads;
  }
  return keys.Set("head_dim", "attention.key_length", head_dim);
}

// The share of a head that is rotated, such that RotaryDim gives that back.
absl::Status TranslateRotaryDim(Translator& keys) {
  QUIRE_ASSIGN_OR_RETURN(const auto rotary_dim,
                         keys.ReadInt("rope.dimension_count"));
  const int64_t head_dim = keys.config()["head_dim"];
  keys.Names("partial_rotary_factor", "rope.dimension_count");
  if (!rotary_dim || head_dim < 1) return absl::OkStatus();
  double factor = static_cast<double>(*rotary_dim) / head_dim;
  if (static_cast<int64_t>(head_dim * factor) < *rotary_dim) {
    factor = std::nextafter(factor, 2.0);
  }
  keys.config()["partial_rotary_factor"] = factor;
  return absl::OkStatus();
}

absl::StatusOr<json> YarnScaling(Translator& keys, double factor) {
  QUIRE_ASSIGN_OR_RETURN(const auto extrapolation,
                         keys.ReadNumber("rope.scaling.yarn_ext_factor"));
  if (extrapolation.value_or(1) >= 0 && extrapolation.value_or(1) != 1) {
    return keys.file().Error(keys.Key("rope.scaling.yarn_ext_factor"),
                             "only 1 is supported");
  }
  json scaling = {{"rope_type", "yarn"}, {"factor", factor}};
  QUIRE_ASSIGN_OR_RETURN(const auto original,
                         keys.ReadInt("rope.scaling.original_context_length"));
  if (original) scaling["original_max_position_embeddings"] = *original;
  for (const auto& [name, field] :
       {std::pair("rope.scaling.yarn_beta_fast", "beta_fast"),
        std::pair("rope.scaling.yarn_beta_slow", "beta_slow")}) {
    QUIRE_ASSIGN_OR_RETURN(const auto value, keys.ReadNumber(name));
    if (value) scaling[field] = *value;
  }
  // Here the factor multiplies the usual one; in config.json it replaces it.
  QUIRE_ASSIGN_OR_RETURN(const auto attention,
                         keys.ReadNumber("rope.scaling.yarn_attn_factor"));
  if (attention) {
    const double usual = factor > 1 ? 0.1 * std::log(factor) + 1 : 1;
    scaling["attention_factor"] = *attention * usual;
  }
  return scaling;
}

// A divisor for each pair: rope_factors_short and rope_factors_long, or
// rope_freqs (Llama 3.1) for all lengths.
absl::StatusOr<json> FactorScaling(Translator& keys, const StoredTensor& first,
                                   const StoredTensor& second) {
  json scaling = {{"rope_type", "longrope"}};
  QUIRE_ASSIGN_OR_RETURN(const auto attention,
                         keys.ReadNumber("rope.scaling.attn_factor"));
  scaling["attention_factor"] = attention.value_or(1);
  QUIRE_ASSIGN_OR_RETURN(scaling["short_factor"], FloatTable(first));
  QUIRE_ASSIGN_OR_RETURN(scaling["long_factor"], FloatTable(second));
  QUIRE_ASSIGN_OR_RETURN(const auto original,
                         keys.ReadInt("rope.scaling.original_context_length"));
  const json& positions = keys.config()["max_position_embeddings"];
  // One table for all lengths: there is nothing to switch. Outside of the
  // scaling, where it goes before a family's default.
  keys.config()["original_max_position_embeddings"] =
      original && &first != &second ? json(*original) : positions;
  return scaling;
}

absl::StatusOr<json> TranslateScaling(Translator& keys) {
  const GgufFile& file = keys.file();
  const std::string type_key = keys.Key("rope.scaling.type");
  QUIRE_ASSIGN_OR_RETURN(const auto stated, file.String(type_key));
  QUIRE_ASSIGN_OR_RETURN(auto factor, keys.ReadNumber("rope.scaling.factor"));
  QUIRE_ASSIGN_OR_RETURN(const auto old_factor,
                         keys.ReadNumber("rope.scale_linear"));
  keys.Key("rope.scaling.finetuned");  // A note of training.
  absl::string_view type = stated.value_or("none");
  if (!stated && old_factor.value_or(1) != 1) {
    type = "linear";
    factor = old_factor;
  }
  const StoredTensor* freqs = file.FindTensor("rope_freqs.weight");
  const StoredTensor* longs = file.FindTensor("rope_factors_long.weight");
  const StoredTensor* shorts = file.FindTensor("rope_factors_short.weight");
  if ((longs == nullptr) != (shorts == nullptr)) {
    return file.Error(type_key,
                      "one of the tensors rope_factors_long.weight "
                      "and rope_factors_short.weight is missing");
  }
  const bool has_factors = freqs != nullptr || longs != nullptr;
  if (type == "longrope" || type == "none") {
    if (longs != nullptr) return FactorScaling(keys, *shorts, *longs);
    if (freqs != nullptr) return FactorScaling(keys, *freqs, *freqs);
    if (type == "none") return json();
    return file.Error(type_key,
                      "\"longrope\" without rope_factors_long.weight");
  }
  if (has_factors) {
    return file.Error(type_key, absl::StrCat("\"", type, "\" is not supported ",
                                             "beside a table of factors"));
  }
  if (type != "linear" && type != "yarn") {
    return file.Error(type_key,
                      absl::StrCat("\"", type.substr(0, 100),
                                   "\" is not supported (supported: none, ",
                                   "linear, longrope, yarn)"));
  }
  if (!factor || *factor <= 0) {
    return file.Error(keys.Key("rope.scaling.factor"), "missing or not > 0");
  }
  if (type == "yarn") return YarnScaling(keys, *factor);
  return json({{"rope_type", "linear"}, {"factor", *factor}});
}

absl::Status TranslateRope(Translator& keys) {
  QUIRE_RETURN_IF_ERROR(keys.Number("rope.freq_base", "rope_theta"));
  QUIRE_RETURN_IF_ERROR(TranslateRotaryDim(keys));
  QUIRE_ASSIGN_OR_RETURN(json scaling, TranslateScaling(keys));
  for (const auto& [field, name] :
       {std::pair("factor", "rope.scaling.factor"),
        std::pair("original_max_position_embeddings",
                  "rope.scaling.original_context_length"),
        std::pair("attention_factor", "rope.scaling.attn_factor")}) {
    keys.Names(absl::StrCat("rope_scaling.", field), name);
  }
  keys.Names("original_max_position_embeddings",
             "rope.scaling.original_context_length");
  if (!scaling.is_null()) keys.config()["rope_scaling"] = std::move(scaling);
  return absl::OkStatus();
}

absl::Status TranslateWindow(Translator& keys, const GgufFamily& family) {
  QUIRE_ASSIGN_OR_RETURN(const auto window,
                         keys.ReadInt("attention.sliding_window"));
  keys.Names("sliding_window", "attention.sliding_window");
  const std::string pattern_key = keys.Key("attention.sliding_window_pattern");
  const bool is_gemma3 = family.architecture == std::string("gemma3");
  if (window.value_or(0) == 0) {
    // Gemma 3 has none then; Gemma 2 has its usual one.
    if (is_gemma3) keys.config()["sliding_window"] = nullptr;
    return absl::OkStatus();
  }
  keys.config()["sliding_window"] = *window;
  if (!keys.file().Has(pattern_key)) return absl::OkStatus();
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int64_t> pattern,
                         keys.file().Ints(pattern_key, 0, 1 << 20));
  if (pattern.size() == 1 && pattern[0] > 0) {
    return keys.Set("sliding_window_pattern",
                    "attention.sliding_window_pattern", pattern[0]);
  }
  json types = json::array();
  for (const int64_t is_sliding : pattern) {
    types.push_back(is_sliding != 0 ? "sliding_attention" : "full_attention");
  }
  return keys.Set("layer_types", "attention.sliding_window_pattern", types);
}

// What only some families have.
absl::Status TranslateFamily(Translator& keys, const GgufFamily& family) {
  const GgufFile& file = keys.file();
  const std::string type = family.model_type;
  if (type == "stablelm") {
    QUIRE_RETURN_IF_ERROR(
        keys.Number("attention.layer_norm_epsilon", "layer_norm_eps"));
    keys.Key("use_parallel_residual");  // The tensors say it.
    keys.config()["use_parallel_residual"] =
        file.FindTensor("blk.0.ffn_norm.weight") == nullptr;
    keys.config()["qk_layernorm"] =
        file.FindTensor("blk.0.attn_q_norm.weight") != nullptr;
  } else {
    QUIRE_RETURN_IF_ERROR(
        keys.Number("attention.layer_norm_rms_epsilon", "rms_norm_eps"));
  }
  if (type == "granite") {
    QUIRE_RETURN_IF_ERROR(
        keys.Number("attention.scale", "attention_multiplier"));
    QUIRE_RETURN_IF_ERROR(
        keys.Number("embedding_scale", "embedding_multiplier"));
    QUIRE_RETURN_IF_ERROR(keys.Number("residual_scale", "residual_multiplier"));
    QUIRE_RETURN_IF_ERROR(keys.Number("logit_scale", "logits_scaling"));
    if (!keys.config().contains("attention_multiplier")) {
      const double head_dim = keys.config()["head_dim"];
      keys.config()["attention_multiplier"] = 1 / std::sqrt(head_dim);
    }
  }
  if (type == "gemma2" || type == "gemma3_text") {
    QUIRE_RETURN_IF_ERROR(
        keys.Number("attn_logit_softcapping", "attn_logit_softcapping"));
    QUIRE_RETURN_IF_ERROR(
        keys.Number("final_logit_softcapping", "final_logit_softcapping"));
    QUIRE_RETURN_IF_ERROR(
        keys.Number("rope.freq_base_swa", "rope_local_base_freq"));
    // The files do not say the scale. The 27B models' is by head, the others'
    // by the size of a head, as in llama.cpp, which knows them by their layers.
    const int64_t layers = keys.config()["num_hidden_layers"];
    const int64_t heads = keys.config()["num_attention_heads"];
    const int64_t hidden = keys.config()["hidden_size"];
    const bool is_27b = layers == (type == "gemma2" ? 46 : 62) && heads > 0;
    double scalar = keys.config()["head_dim"];
    if (is_27b) scalar = static_cast<double>(hidden / heads);
    QUIRE_ASSIGN_OR_RETURN(const auto scale,
                           keys.ReadNumber("attention.scale"));
    if (scale.value_or(0) > 0) scalar = 1 / (*scale * *scale);
    keys.config()["query_pre_attn_scalar"] = scalar;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int64_t>> EndTokens(const GgufFile& file) {
  std::vector<int64_t> ids;
  const auto add = [&ids](int64_t id) {
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  };
  for (const char* name : {"eos", "eot", "eom"}) {
    QUIRE_ASSIGN_OR_RETURN(
        const auto id,
        file.Int(absl::StrCat("tokenizer.ggml.", name, "_token_id"), 0,
                 kMaxInt));
    if (id) add(*id);
  }
  QUIRE_ASSIGN_OR_RETURN(const auto* tokens,
                         file.Strings("tokenizer.ggml.tokens"));
  QUIRE_ASSIGN_OR_RETURN(
      const std::vector<int64_t> types,
      file.Ints("tokenizer.ggml.token_type", INT32_MIN, INT32_MAX));
  for (size_t i = 0; tokens != nullptr && i < tokens->size(); ++i) {
    constexpr int64_t kControl = 3, kUserDefined = 4;
    const bool is_special =
        i < types.size() && (types[i] == kControl || types[i] == kUserDefined);
    if (is_special && std::find(std::begin(kEndTokens), std::end(kEndTokens),
                                (*tokens)[i]) != std::end(kEndTokens)) {
      add(static_cast<int64_t>(i));
    }
  }
  return ids;
}

absl::Status TranslateTokenIds(Translator& keys) {
  const GgufFile& file = keys.file();
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int64_t> ends, EndTokens(file));
  if (!ends.empty()) keys.config()["eos_token_id"] = ends;
  for (const auto& [key, field] :
       {std::pair("tokenizer.ggml.bos_token_id", "bos_token_id"),
        std::pair("tokenizer.ggml.padding_token_id", "pad_token_id")}) {
    QUIRE_ASSIGN_OR_RETURN(const auto id, file.Int(key, 0, kMaxInt));
    if (id) keys.config()[field] = *id;
  }
  return absl::OkStatus();
}

absl::Status ReadSampling(const GgufFile& file, GenerationConfig* generation) {
  const auto number = [&](const char* name, double min, double max,
                          std::optional<float>* value) {
    const auto found =
        file.Number(absl::StrCat("general.sampling.", name), min, max);
    if (found.ok() && *found) *value = static_cast<float>(**found);
    return found.status();
  };
  QUIRE_RETURN_IF_ERROR(number("temp", 0, 100, &generation->temperature));
  QUIRE_RETURN_IF_ERROR(number("top_p", 0, 1, &generation->top_p));
  QUIRE_RETURN_IF_ERROR(number("min_p", 0, 1, &generation->min_p));
  QUIRE_RETURN_IF_ERROR(
      number("penalty_repeat", 1e-3, 1e3, &generation->repetition_penalty));
  QUIRE_ASSIGN_OR_RETURN(const auto top_k,
                         file.Int("general.sampling.top_k", -1, INT32_MAX));
  if (top_k)
    generation->top_k = static_cast<int32_t>(std::max<int64_t>(*top_k, 0));
  return absl::OkStatus();
}

// What the tensors rather than the keys say.
void AdaptToTensors(const GgufFile& file, ModelConfig* config) {
  LayerTensorNames& names = config->tensors.layer;
  const bool is_fused = file.FindTensor("blk.0.attn_qkv.weight") != nullptr;
  names.qkv = is_fused ? "self_attn.qkv_proj" : "";
  names.q = is_fused ? "" : "self_attn.q_proj";
  names.k = is_fused ? "" : "self_attn.k_proj";
  names.v = is_fused ? "" : "self_attn.v_proj";
  // Every family has gated layers; without a gate, `up` has both.
  const bool has_gate = file.FindTensor("blk.0.ffn_gate.weight") != nullptr;
  names.gate_up = has_gate ? "" : "mlp.gate_up_proj";
  names.gate = has_gate ? "mlp.gate_proj" : "";
  names.up = has_gate ? "mlp.up_proj" : "";
  for (size_t i = 0; i < config->layers.size(); ++i) {
    const auto has = [&](const char* name) {
      return file.FindTensor(absl::StrCat("blk.", i, ".", name, ".bias")) !=
             nullptr;
    };
    LayerConfig& layer = config->layers[i];
    layer.has_qkv_bias = has(is_fused ? "attn_qkv" : "attn_q");
    layer.has_output_bias = has("attn_output");
    layer.has_mlp_bias = has("ffn_up");
  }
  // The format stores 1 + weight.
  config->norm_weight_offset = 0.0f;
}

}  // namespace

bool IsGgufPath(absl::string_view path) {
  if (absl::EndsWithIgnoreCase(path, ".gguf")) return true;
  struct stat info;
  const std::string name(path);
  if (stat(name.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return false;
  std::FILE* file = std::fopen(name.c_str(), "re");
  if (file == nullptr) return false;
  char magic[4] = {};
  const size_t num_read = std::fread(magic, 1, sizeof(magic), file);
  std::fclose(file);
  return absl::string_view(magic, num_read) == "GGUF";
}

std::vector<std::string> SupportedGgufArchitectures() {
  std::vector<std::string> names;
  for (const GgufFamily& family : GgufFamilies()) {
    names.push_back(family.architecture);
  }
  return names;
}

absl::StatusOr<GgufModelConfig> ReadGgufModelConfig(const GgufFile& file) {
  QUIRE_ASSIGN_OR_RETURN(const GgufFamily* family, FindFamily(file));
  Translator keys(file, *family);
  QUIRE_RETURN_IF_ERROR(TranslateSizes(keys));
  QUIRE_RETURN_IF_ERROR(TranslateRope(keys));
  QUIRE_RETURN_IF_ERROR(TranslateWindow(keys, *family));
  QUIRE_RETURN_IF_ERROR(TranslateFamily(keys, *family));
  QUIRE_RETURN_IF_ERROR(TranslateTokenIds(keys));
  QUIRE_RETURN_IF_ERROR(keys.Int("expert_count", "num_local_experts"));
  std::string model_type = family->model_type;
  // Mistral's models are of this architecture as well.
  if (model_type == "llama" && keys.config().contains("sliding_window")) {
    model_type = "mistral";
  }
  keys.config()["model_type"] = model_type;
  keys.config()["tie_word_embeddings"] =
      file.FindTensor("output.weight") == nullptr;
  const std::string causal_key = keys.Key("attention.causal");
  QUIRE_ASSIGN_OR_RETURN(const auto is_causal, file.Bool(causal_key));
  if (!is_causal.value_or(true)) {
    return file.Error(causal_key, "bidirectional attention is not supported");
  }

  GgufModelConfig result;
  absl::StatusOr<ModelConfig> parsed =
      ParseModelConfig(keys.config().dump(), file.path());
  if (!parsed.ok()) return keys.Translated(parsed.status());
  result.model = *std::move(parsed);
  AdaptToTensors(file, &result.model);
  result.generation.eos_token_ids = result.model.eos_token_ids;
  result.generation.bos_token_id = result.model.bos_token_id;
  result.generation.pad_token_id = result.model.pad_token_id;
  QUIRE_RETURN_IF_ERROR(ReadSampling(file, &result.generation));
  // none, mean, cls, last, rank.
  const std::string pooling_key = keys.Key("pooling_type");
  QUIRE_ASSIGN_OR_RETURN(const auto pooling, file.Int(pooling_key, -1, 1000));
  if (pooling.value_or(0) > 0) {
    if (*pooling != 1 && *pooling != 3) {
      return file.Error(pooling_key,
                        absl::StrCat(*pooling, " is not supported (supported: ",
                                     "0 none, 1 mean, 3 last token)"));
    }
    result.is_embedding = true;
    result.is_mean_pooling = *pooling == 1;
  }
  for (std::string& warning : keys.UnreadWarnings()) {
    result.model.warnings.push_back(std::move(warning));
  }
  return result;
}

}  // namespace quire
