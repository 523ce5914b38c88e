#include "engine/model/draft_head_config.h"

#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "engine/model/json_fields.h"
#include "engine/weights/mapped_file.h"
#include "nlohmann/json.hpp"

namespace quire {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int kNumTaps = 3;

// The layers that the published heads were trained on: after the second one, in
// the middle, and three before the end (EAGLE's ea_model; vLLM's
// get_eagle3_aux_hidden_state_layers).
std::vector<int> DefaultTaps(int num_layers) {
  return {2, num_layers / 2, num_layers - 3};
}

constexpr char kLayerIds[] = "eagle_aux_hidden_state_layer_ids";

// Named in eagle_config, or beside it (speculators).
absl::StatusOr<std::vector<int>> ReadTaps(JsonFields& fields,
                                          const std::string& path,
                                          int num_layers) {
  QUIRE_ASSIGN_OR_RETURN(std::vector<int64_t> layers,
                         fields.Ints(kLayerIds, 0, num_layers - 1));
  if (!layers.empty() && layers.size() != kNumTaps) {
    return fields.Error(kLayerIds, "must have 3 layers");
  }
  QUIRE_ASSIGN_OR_RETURN(const json* eagle, fields.Object("eagle_config"));
  if (eagle != nullptr) {
    JsonFields inner(*eagle, path, "eagle_config.");
    QUIRE_ASSIGN_OR_RETURN(const auto uses_them,
                           inner.Bool("use_aux_hidden_state"));
    if (!uses_them.value_or(true)) {
      return inner.Error("use_aux_hidden_state", "false is not supported");
    }
    QUIRE_ASSIGN_OR_RETURN(const std::vector<int64_t> inner_layers,
                           inner.Ints(kLayerIds, 0, num_layers - 1));
    if (!inner_layers.empty()) {
      if (inner_layers.size() != kNumTaps) {
        return inner.Error(kLayerIds, "must have 3 layers");
      }
      layers = inner_layers;
    }
  }
  if (!layers.empty()) return std::vector<int>(layers.begin(), layers.end());
  std::vector<int> taps = DefaultTaps(num_layers);
  if (taps.back() < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": eagle_config names no layers, and the model has only ",
        num_layers));
  }
  return taps;
}

// A head as github.com/vllm-project/speculators writes it has the configuration
// of its layer in a field of its own, and beside it what is its own. Makes of
// `document` what the other layouts have; what is not told is as vLLM takes it
// (vllm/transformers_utils/configs/speculators/algos.py).
absl::Status FlattenSpeculator(const std::string& path, json* document) {
  JsonFields fields(*document, path);
  QUIRE_ASSIGN_OR_RETURN(const auto type,
                         fields.String("speculators_model_type"));
  if (type != "eagle3") {
    return fields.Error("speculators_model_type",
                        absl::StrCat("\"", type.value_or(""),
                                     "\" is no EAGLE-3 head (eagle3)"));
  }
  QUIRE_ASSIGN_OR_RETURN(const json* layer,
                         fields.Object("transformer_layer_config"));
  if (layer == nullptr) {
    return fields.Error("transformer_layer_config", "is missing");
  }
  QUIRE_ASSIGN_OR_RETURN(const auto norms_taps, fields.Bool("norm_before_fc"));
  if (norms_taps.value_or(false)) {
    return fields.Error("norm_before_fc", "true is not supported");
  }
  JsonFields inner(*layer, path, "transformer_layer_config.");
  QUIRE_ASSIGN_OR_RETURN(const auto layer_type, inner.String("model_type"));
  if (layer_type.value_or("llama") != "llama") {
    return inner.Error("model_type", absl::StrCat("\"", *layer_type,
                                                  "\" is not supported; heads "
                                                  "of Llama's layer are"));
  }
  QUIRE_ASSIGN_OR_RETURN(const auto num_layers,
                         inner.Int("num_hidden_layers", 1, 1 << 16));
  if (num_layers.value_or(1) != 1) {
    return inner.Error(
        "num_hidden_layers",
        absl::StrCat("is ", *num_layers, "; heads of one layer are supported"));
  }
  json flat = *layer;
  flat["architectures"] = {"LlamaForCausalLMEagle3"};
  flat["norm_before_residual"] = true;
  for (const char* name : {"draft_vocab_size", "target_hidden_size",
                           "norm_before_residual", kLayerIds}) {
    if (document->contains(name) && !(*document)[name].is_null()) {
      flat[name] = (*document)[name];
    }
  }
  *document = std::move(flat);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DraftHeadConfig> ReadEagle3Config(const std::string& directory,
                                                 const ModelConfig& target) {
  const std::string path = absl::StrCat(directory, "/config.json");
  QUIRE_ASSIGN_OR_RETURN(const std::string text,
                         ReadTextFile(path, kMaxConfigBytes));
  json document = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a valid JSON object"));
  }
  if (document.contains("speculators_model_type")) {
    QUIRE_RETURN_IF_ERROR(FlattenSpeculator(path, &document));
  }
  DraftHeadConfig config;
  JsonFields fields(document, path);
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::string> architectures,
                         fields.Strings("architectures"));
  // LlamaForCausalLMEagle3, Eagle3LlamaForCausalLM; the authors' own heads say
  // LlamaForCausalLM, and are told from models by draft_vocab_size. Loading
  // finds out whether the tensors are a head's.
  const bool is_named_head = architectures.size() == 1 &&
                             absl::StrContains(architectures[0], "Eagle3") &&
                             absl::StrContains(architectures[0], "Llama");
  const bool is_plain_head = architectures.size() == 1 &&
                             architectures[0] == "LlamaForCausalLM" &&
                             document.contains("draft_vocab_size");
  if (!is_named_head && !is_plain_head) {
    return fields.Error(
        "architectures",
        absl::StrCat("[\"", absl::StrJoin(architectures, "\", \""),
                     "\"] is no EAGLE-3 head of Llama's kind "
                     "(LlamaForCausalLMEagle3, or LlamaForCausalLM with "
                     "draft_vocab_size)"));
  }
  QUIRE_ASSIGN_OR_RETURN(
      config.taps,
      ReadTaps(fields, path, static_cast<int>(target.layers.size())));
  QUIRE_ASSIGN_OR_RETURN(const auto draft_vocab_size,
                         fields.Int("draft_vocab_size", 1, 1 << 24));
  QUIRE_ASSIGN_OR_RETURN(const auto target_hidden_size,
                         fields.Int("target_hidden_size", 1, 1 << 17));
  QUIRE_ASSIGN_OR_RETURN(const auto norm_before_residual,
                         fields.Bool("norm_before_residual"));
  config.norm_before_residual = norm_before_residual.value_or(false);
  // The rest is as of a Llama.
  document["architectures"] = {"LlamaForCausalLM"};
  // A head has one layer; some published ones repeat what their target has.
  document["num_hidden_layers"] = 1;
  for (const char* name : {"draft_vocab_size", "target_hidden_size",
                           "norm_before_residual", "eagle_config", kLayerIds}) {
    document.erase(name);
  }
  QUIRE_ASSIGN_OR_RETURN(
      config.model,
      ParseModelConfig(
          document.dump(-1, ' ', false, json::error_handler_t::replace), path));
  QUIRE_CHECK(config.model.layers.size() == 1);
  if (config.model.vocab_size != target.vocab_size) {
    return fields.Error("vocab_size",
                        absl::StrCat("is ", config.model.vocab_size,
                                     ", the model's is ", target.vocab_size));
  }
  config.num_input_ids = target.vocab_size;
  config.target_hidden_size =
      static_cast<int>(target_hidden_size.value_or(config.model.hidden_size));
  if (config.target_hidden_size != target.hidden_size) {
    return fields.Error(
        target_hidden_size ? "target_hidden_size" : "hidden_size",
        absl::StrCat("is ", config.target_hidden_size, ", the model's is ",
                     target.hidden_size));
  }
  config.model.vocab_size =
      static_cast<int>(draft_vocab_size.value_or(target.vocab_size));
  if (config.model.vocab_size > target.vocab_size) {
    return fields.Error(
        "draft_vocab_size",
        absl::StrCat("is ", config.model.vocab_size,
                     ", the model's vocabulary has ", target.vocab_size));
  }
  return config;
}

bool IsEagle3Head(const std::string& directory) {
  const absl::StatusOr<std::string> text =
      ReadTextFile(absl::StrCat(directory, "/config.json"), kMaxConfigBytes);
  if (!text.ok()) return false;
  const json document = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) return false;
  if (document.contains("draft_vocab_size") ||
      document.value("speculators_model_type", json()) == "eagle3") {
    return true;
  }
  const json architectures = document.value("architectures", json());
  return architectures.is_array() && architectures.size() == 1 &&
         architectures[0].is_string() &&
         absl::StrContains(architectures[0].get<std::string>(), "Eagle3");
}

absl::StatusOr<DraftHeadConfig> MakeMtpConfig(const std::string& path,
                                              const ModelConfig& target) {
  if (target.num_mtp_layers < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": the model has no layers that draft (MTP, as MiMo-7B has)"));
  }
  DraftHeadConfig config;
  config.kind = DraftHeadKind::kMtp;
  config.model = target;
  config.model.layers = {target.layers.back()};
  config.model.layers[0].sliding_window = 0;
  config.num_input_ids = target.vocab_size;
  config.target_hidden_size = target.hidden_size;
  config.taps = {-1};  // ModelOptions::kAfterFinalNorm
  return config;
}

}  // namespace quire
