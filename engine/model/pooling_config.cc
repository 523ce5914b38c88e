#include "engine/model/pooling_config.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/model/json_fields.h"
#include "engine/weights/mapped_file.h"

namespace quire {
namespace {

using nlohmann::json;

constexpr int64_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxModules = 64;

using ReadFile =
    absl::FunctionRef<absl::StatusOr<std::string>(const std::string& path)>;

absl::StatusOr<json> ParseFile(const std::string& path, ReadFile read) {
  QUIRE_ASSIGN_OR_RETURN(const std::string text, read(path));
  return json::parse(text, nullptr, /*allow_exceptions=*/false);
}

absl::Status FileError(const std::string& path, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", problem));
}

// The folder of a stage lies in the model's directory.
bool IsPlainFolder(const std::string& path) {
  return !absl::StartsWith(path, "/") && !absl::StrContains(path, "..");
}

// sentence_bert_config.json, which old and encoder models have.
absl::Status ReadInputLimits(const std::string& directory, ReadFile read,
                             EmbeddingConfig* config) {
  const std::string path =
      absl::StrCat(directory, "/sentence_bert_config.json");
  const absl::StatusOr<json> document = ParseFile(path, read);
  if (absl::IsNotFound(document.status())) return absl::OkStatus();
  QUIRE_RETURN_IF_ERROR(document.status());
  if (!document->is_object()) return FileError(path, "not a JSON object");
  JsonFields fields(*document, path);
  QUIRE_ASSIGN_OR_RETURN(const auto length,
                         fields.Int("max_seq_length", 1, 1 << 26));
  QUIRE_RETURN_IF_ERROR(fields.RequireOff("do_lower_case"));
  config->max_input_tokens = static_cast<int>(length.value_or(0));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Pooling> ParsePoolingConfig(absl::string_view text,
                                           const std::string& path,
                                           int hidden_size) {
  const json document = json::parse(text.begin(), text.end(), nullptr,
                                    /*allow_exceptions=*/false);
  if (!document.is_object()) return FileError(path, "not a JSON object");
  JsonFields fields(document, path);
  for (const char* name : {"word_embedding_dimension", "embedding_dimension"}) {
    QUIRE_ASSIGN_OR_RETURN(const auto size, fields.Int(name, 1, 1 << 20));
    if (size && *size != hidden_size) {
      return fields.Error(
          name, absl::StrCat(*size, " is not the hidden_size ", hidden_size));
    }
  }
  // Of instruction models, whose prompts would have to be told from the text.
  QUIRE_ASSIGN_OR_RETURN(const auto include_prompt,
                         fields.Bool("include_prompt"));
  if (!include_prompt.value_or(true)) {
    return fields.Error("include_prompt", "false is not supported");
  }
  // The first token of a causal model has seen nothing of the text.
  for (const char* name : {"pooling_mode_cls_token", "pooling_mode_max_tokens",
                           "pooling_mode_mean_sqrt_len_tokens",
                           "pooling_mode_weightedmean_tokens"}) {
    QUIRE_ASSIGN_OR_RETURN(const auto is_on, fields.Bool(name));
    if (is_on.value_or(false)) {
      return fields.Error(name,
                          "is not supported (supported: "
                          "pooling_mode_lasttoken, pooling_mode_mean_tokens)");
    }
  }
  QUIRE_ASSIGN_OR_RETURN(const auto last,
                         fields.Bool("pooling_mode_lasttoken"));
  QUIRE_ASSIGN_OR_RETURN(const auto mean,
                         fields.Bool("pooling_mode_mean_tokens"));
  // sentence-transformers 5 writes one name.
  QUIRE_ASSIGN_OR_RETURN(const auto mode, fields.String("pooling_mode"));
  const bool is_last = mode ? *mode == "lasttoken" : last.value_or(false);
  const bool is_mean = mode ? *mode == "mean" : mean.value_or(false);
  if (mode && !is_last && !is_mean) {
    return fields.Error("pooling_mode",
                        absl::StrCat("\"", *mode, "\" is not supported ",
                                     "(supported: lasttoken, mean)"));
  }
  if (is_last && is_mean) {
    return fields.Error("pooling_mode_mean_tokens",
                        "two poolings side by side are not supported");
  }
  if (!is_last && !is_mean) {
    return fields.Error("pooling_mode_lasttoken", "no pooling is switched on");
  }
  return is_mean ? Pooling::kMean : Pooling::kLast;
}

absl::StatusOr<std::optional<EmbeddingConfig>> ReadEmbeddingConfig(
    const std::string& directory, int hidden_size) {
  return ParseEmbeddingConfig(directory, hidden_size,
                              [](const std::string& path) {
                                return ReadTextFile(path, kMaxFileBytes);
                              });
}

absl::StatusOr<std::optional<EmbeddingConfig>> ParseEmbeddingConfig(
    const std::string& directory, int hidden_size, ReadFile read) {
  const std::string path = absl::StrCat(directory, "/modules.json");
  const absl::StatusOr<json> modules = ParseFile(path, read);
  if (absl::IsNotFound(modules.status())) {
    return std::optional<EmbeddingConfig>();
  }
  QUIRE_RETURN_IF_ERROR(modules.status());
  if (!modules->is_array() || modules->size() > kMaxModules) {
    return FileError(path, "not a list of modules");
  }
  EmbeddingConfig config;
  config.normalize = false;
  bool has_pooling = false;
  for (const json& module : *modules) {
    if (!module.is_object()) return FileError(path, "a module is no object");
    JsonFields fields(module, path);
    QUIRE_ASSIGN_OR_RETURN(const auto type, fields.String("type"));
    QUIRE_ASSIGN_OR_RETURN(const auto folder, fields.String("path"));
    if (!type) return fields.Error("type", "missing");
    // "sentence_transformers.models.Pooling", or a longer path to it.
    const std::string name = type->substr(type->rfind('.') + 1);
    if (name == "Transformer") continue;
    if (name == "Normalize") {
      config.normalize = true;
    } else if (name == "Pooling" && !has_pooling) {
      has_pooling = true;
      if (!IsPlainFolder(folder.value_or(""))) {
        return fields.Error("path", "not a folder of the model");
      }
      const std::string pooling_path =
          absl::StrCat(directory, "/", folder.value_or(""), "/config.json");
      QUIRE_ASSIGN_OR_RETURN(const std::string text, read(pooling_path));
      QUIRE_ASSIGN_OR_RETURN(
          config.pooling, ParsePoolingConfig(text, pooling_path, hidden_size));
    } else {
      return fields.Error(
          "type",
          absl::StrCat("\"", *type, "\" is not supported ",
                       "(supported: Transformer, Pooling, ", "Normalize)"));
    }
  }
  if (!has_pooling) return std::optional<EmbeddingConfig>();
  QUIRE_RETURN_IF_ERROR(ReadInputLimits(directory, read, &config));
  return std::optional<EmbeddingConfig>(config);
}

absl::StatusOr<std::optional<EmbeddingConfig>> ResolveEmbedding(
    const std::string& directory, const ModelConfig& config, ModelTask task,
    std::optional<Pooling> pooling) {
  // Files for another use do not matter to who wants text.
  if (task == ModelTask::kGenerate) {
    if (config.is_trunk && !config.tie_word_embeddings) {
      return FileError(
          absl::StrCat(directory, "/config.json"),
          absl::StrCat("the model has no lm_head (architecture ",
                       config.architecture,
                       " without its head): it makes embeddings and cannot "
                       "generate"));
    }
    return std::optional<EmbeddingConfig>();
  }
  QUIRE_ASSIGN_OR_RETURN(std::optional<EmbeddingConfig> embedding,
                         ReadEmbeddingConfig(directory, config.hidden_size));
  if (!embedding && (task == ModelTask::kEmbed || config.is_trunk)) {
    // The last token is the one that has seen the whole text.
    embedding.emplace();
  }
  if (embedding && pooling) embedding->pooling = *pooling;
  return embedding;
}

}  // namespace quire
