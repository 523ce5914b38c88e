#include "tokenizer/tokenizer_json.h"

#include <algorithm>
#include <deque>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/json_component.h"
#include "tokenizer/json_scanner.h"
#include "tokenizer/model_json.h"
#include "tokenizer/unicode.h"

namespace quire {
namespace {

// The file, cut into its parts. Texts are views of the file or of `arena`.
struct Document {
  std::deque<std::string> arena;
  nlohmann::json fields = nlohmann::json::object();  // All but "model".
  bool has_model = false;
  ModelDocument model;
};

absl::Status At(absl::string_view field, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(field, ": ", status.message()));
}

absl::Status ReadDocument(absl::string_view text, Document* document) {
  JsonScanner scanner(text);
  QUIRE_RETURN_IF_ERROR(scanner.ReadObject(
      &document->arena, [&](absl::string_view field) -> absl::Status {
        const bool is_repeated = (field == "model" && document->has_model) ||
                                 document->fields.contains(std::string(field));
        if (is_repeated) {
          return At(field, scanner.Error("the field is there twice"));
        }
        if (field == "model" && scanner.Peek() == '{') {
          document->has_model = true;
          return ReadModelDocument(&scanner, &document->arena,
                                   &document->model);
        }
        const absl::Status status =
            ReadJsonValue(&scanner, &document->fields[std::string(field)]);
        return status.ok() ? status : At(field, status);
      }));
  if (!scanner.AtEnd()) return scanner.Error("text after the end");
  return absl::OkStatus();
}

absl::Status CheckFields(const Document& document) {
  static constexpr absl::string_view kKnown[] = {
      "version",    "truncation",    "padding",        "added_tokens",
      "normalizer", "pre_tokenizer", "post_processor", "decoder"};
  for (auto it = document.fields.begin(); it != document.fields.end(); ++it) {
    if (std::find(std::begin(kKnown), std::end(kKnown),
                  absl::string_view(it.key())) == std::end(kKnown)) {
      return absl::InvalidArgumentError(
          absl::StrCat(it.key(), ": unknown field"));
    }
  }
  const auto version = document.fields.find("version");
  if (version != document.fields.end() && *version != "1.0") {
    return absl::InvalidArgumentError("version: must be \"1.0\"");
  }
  if (!document.has_model) {
    return absl::InvalidArgumentError("model: is missing");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(
    const nlohmann::json& fields) {
  std::vector<AddedToken> tokens;
  const auto list = fields.find("added_tokens");
  if (list == fields.end()) return tokens;
  if (!list->is_array()) {
    return absl::InvalidArgumentError("added_tokens: must be an array");
  }
  std::vector<int32_t> ids;
  for (size_t i = 0; i < list->size(); ++i) {
    QUIRE_ASSIGN_OR_RETURN(
        const JsonComponent entry,
        JsonComponent::Create((*list)[i],
                              absl::StrCat("added_tokens[", i, "]")));
    QUIRE_RETURN_IF_ERROR(
        entry.CheckFields({"id", "content", "single_word", "lstrip", "rstrip",
                           "normalized", "special"}));
    AddedToken token;
    QUIRE_ASSIGN_OR_RETURN(const int64_t id,
                           entry.Integer("id", Vocabulary::kMaxId));
    token.id = static_cast<int32_t>(id);
    QUIRE_ASSIGN_OR_RETURN(token.content, entry.String("content"));
    if (token.content.size() > kMaxAddedTokenBytes) {
      return entry.Error("content",
                         absl::StrCat("has ", token.content.size(),
                                      " bytes, at most ", kMaxAddedTokenBytes));
    }
    QUIRE_ASSIGN_OR_RETURN(token.single_word, entry.Bool("single_word"));
    QUIRE_ASSIGN_OR_RETURN(token.lstrip, entry.Bool("lstrip"));
    QUIRE_ASSIGN_OR_RETURN(token.rstrip, entry.Bool("rstrip"));
    QUIRE_ASSIGN_OR_RETURN(token.normalized, entry.Bool("normalized"));
    QUIRE_ASSIGN_OR_RETURN(token.special, entry.Bool("special"));
    ids.push_back(token.id);
    tokens.push_back(std::move(token));
  }
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice != ids.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("added_tokens: id ", *twice, " is listed twice"));
  }
  return tokens;
}

// A pair ["text", id].
absl::StatusOr<int32_t> ReadTokenPair(const JsonComponent& processor,
                                      absl::string_view field) {
  QUIRE_ASSIGN_OR_RETURN(const nlohmann::json* pair, processor.Array(field));
  int64_t id = 0;
  if (pair->size() != 2 || !(*pair)[0].is_string() ||
      !ReadInteger((*pair)[1], Vocabulary::kMaxId, &id)) {
    return processor.Error(field, "must be a pair of text and id");
  }
  return static_cast<int32_t>(id);
}

absl::Status ReadTemplate(const nlohmann::json& config, const std::string& path,
                          AffixIds* affixes) {
  QUIRE_ASSIGN_OR_RETURN(const JsonComponent processor,
                         JsonComponent::Create(config, path));
  QUIRE_RETURN_IF_ERROR(
      processor.CheckFields({"single", "pair", "special_tokens"}));
  QUIRE_ASSIGN_OR_RETURN(const nlohmann::json* single,
                         processor.Array("single"));
  AffixIds around;
  bool has_text = false;
  for (size_t i = 0; i < single->size(); ++i) {
    const std::string piece_path = absl::StrCat(path, ".single[", i, "]");
    QUIRE_ASSIGN_OR_RETURN(const JsonComponent piece,
                           JsonComponent::Create((*single)[i], piece_path));
    QUIRE_RETURN_IF_ERROR(piece.CheckFields({"Sequence", "SpecialToken"}));
    if (const nlohmann::json* sequence = piece.Find("Sequence")) {
      QUIRE_ASSIGN_OR_RETURN(
          const JsonComponent value,
          JsonComponent::Create(*sequence, piece_path + ".Sequence"));
      QUIRE_ASSIGN_OR_RETURN(const std::string id, value.String("id"));
      if (id != "A" || has_text) {
        return value.Error("id", "a template must hold \"A\" once");
      }
      has_text = true;
      continue;
    }
    const nlohmann::json* special = piece.Find("SpecialToken");
    if (special == nullptr) {
      return piece.Error("SpecialToken", "or Sequence is missing");
    }
    QUIRE_ASSIGN_OR_RETURN(
        const JsonComponent value,
        JsonComponent::Create(*special, piece_path + ".SpecialToken"));
    QUIRE_ASSIGN_OR_RETURN(const std::string name, value.String("id"));
    const nlohmann::json* tokens = processor.Find("special_tokens");
    const std::string tokens_path = path + ".special_tokens";
    if (tokens == nullptr || !tokens->is_object() || !tokens->contains(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(tokens_path, ".", name, ": is missing"));
    }
    QUIRE_ASSIGN_OR_RETURN(
        const JsonComponent token,
        JsonComponent::Create((*tokens)[name], tokens_path + "." + name));
    QUIRE_ASSIGN_OR_RETURN(const nlohmann::json* ids, token.Array("ids"));
    for (const nlohmann::json& element : *ids) {
      int64_t id = 0;
      if (!ReadInteger(element, Vocabulary::kMaxId, &id)) {
        return token.Error("ids", "must be ids");
      }
      (has_text ? around.suffix : around.prefix)
          .push_back(static_cast<int32_t>(id));
    }
  }
  if (!has_text) return processor.Error("single", "holds no sequence");
  affixes->prefix.insert(affixes->prefix.begin(), around.prefix.begin(),
                         around.prefix.end());
  affixes->suffix.insert(affixes->suffix.end(), around.suffix.begin(),
                         around.suffix.end());
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const nlohmann::json& config,
                               const std::string& path, int depth,
                               AffixIds* affixes) {
  if (config.is_null()) return absl::OkStatus();
  constexpr int kMaxDepth = 16;
  if (depth > kMaxDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": nested deeper than ", kMaxDepth));
  }
  QUIRE_ASSIGN_OR_RETURN(const JsonComponent processor,
                         JsonComponent::Create(config, path));
  QUIRE_ASSIGN_OR_RETURN(const std::string type, processor.String("type"));
  if (type == "Sequence") {
    QUIRE_RETURN_IF_ERROR(processor.CheckFields({"processors"}));
    QUIRE_ASSIGN_OR_RETURN(const nlohmann::json* list,
                           processor.Array("processors"));
    for (size_t i = 0; i < list->size(); ++i) {
      QUIRE_RETURN_IF_ERROR(ReadPostProcessor(
          (*list)[i], absl::StrCat(path, ".processors[", i, "]"), depth + 1,
          affixes));
    }
    return absl::OkStatus();
  }
  if (type == "TemplateProcessing") return ReadTemplate(config, path, affixes);
  if (type == "ByteLevel") return absl::OkStatus();  // Offsets only.
  if (type != "BertProcessing" && type != "RobertaProcessing") {
    return processor.Error("type",
                           absl::StrCat("\"", type, "\" is not supported"));
  }
  QUIRE_RETURN_IF_ERROR(processor.CheckFields(
      {"sep", "cls", "trim_offsets", "add_prefix_space"}));
  QUIRE_ASSIGN_OR_RETURN(const int32_t cls, ReadTokenPair(processor, "cls"));
  QUIRE_ASSIGN_OR_RETURN(const int32_t sep, ReadTokenPair(processor, "sep"));
  affixes->prefix.insert(affixes->prefix.begin(), cls);
  affixes->suffix.push_back(sep);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<PipelineTokenizer>> ParseTokenizerJson(
    absl::string_view text, TokenizerConfig config) {
  if (static_cast<int64_t>(text.size()) > kMaxTokenizerJsonBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", text.size(), " bytes, at most ",
                     kMaxTokenizerJsonBytes, " are read"));
  }
  const size_t valid = ValidUtf8Prefix(text);
  if (valid != text.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("is not UTF-8 at byte ", valid));
  }
  Document document;
  QUIRE_RETURN_IF_ERROR(ReadDocument(text, &document));
  QUIRE_RETURN_IF_ERROR(CheckFields(document));
  return BuildPipelineTokenizer(document.fields, document.model,
                                std::move(config));
}

absl::StatusOr<std::unique_ptr<PipelineTokenizer>> BuildPipelineTokenizer(
    const nlohmann::json& fields, const ModelDocument& model,
    TokenizerConfig config) {
  const auto field = [&](const char* name) -> const nlohmann::json& {
    static const nlohmann::json* const null = new nlohmann::json();
    const auto it = fields.find(name);
    return it == fields.end() ? *null : *it;
  };
  PipelineParts parts;
  QUIRE_ASSIGN_OR_RETURN(parts.added_tokens, ReadAddedTokens(fields));
  QUIRE_ASSIGN_OR_RETURN(parts.normalizer,
                         Normalizer::Create(field("normalizer"), "normalizer"));
  QUIRE_ASSIGN_OR_RETURN(
      parts.pre_tokenizer,
      PreTokenizer::Create(field("pre_tokenizer"), "pre_tokenizer"));
  QUIRE_ASSIGN_OR_RETURN(parts.decoder,
                         TextDecoder::Create(field("decoder"), "decoder"));
  QUIRE_RETURN_IF_ERROR(ReadPostProcessor(field("post_processor"),
                                          "post_processor", 0, &parts.affixes));
  const bool are_words_bytes =
      parts.pre_tokenizer.ends_in_byte_level() && CanTakeBytes(model);
  if (are_words_bytes) parts.pre_tokenizer.DropFinalByteLevel();
  QUIRE_ASSIGN_OR_RETURN(parts.model, CreateWordModel(model, are_words_bytes));
  return PipelineTokenizer::Create(std::move(parts), std::move(config));
}

}  // namespace quire
