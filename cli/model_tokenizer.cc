#include "cli/model_tokenizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/model/gguf_model.h"
#include "engine/weights/gguf.h"
#include "tokenizer/gguf_tokenizer.h"

namespace quire {
namespace {

constexpr int64_t kMaxId = int64_t{1} << 40;

// Key of an id, and the name by which templates and options know the token.
constexpr std::pair<const char*, const char*> kSpecialIds[] = {
    {"bos_token_id", "bos_token"},     {"eos_token_id", "eos_token"},
    {"unknown_token_id", "unk_token"}, {"seperator_token_id", "sep_token"},
    {"padding_token_id", "pad_token"}, {"mask_token_id", "mask_token"},
    {"cls_token_id", "cls_token"},
};

// What the views of GgufTokenizerKeys point to.
struct KeyMemory {
  std::vector<int64_t> token_types;
  std::vector<float> scores;
};

absl::Status ReadKeys(const GgufFile& file, KeyMemory* memory,
                      GgufTokenizerKeys* keys) {
  const auto key = [](absl::string_view name) {
    return absl::StrCat("tokenizer.ggml.", name);
  };
  QUIRE_ASSIGN_OR_RETURN(const auto model, file.String(key("model")));
  keys->model = model.value_or("");
  QUIRE_ASSIGN_OR_RETURN(keys->pre, file.String(key("pre")));
  QUIRE_ASSIGN_OR_RETURN(const auto* tokens, file.Strings(key("tokens")));
  if (tokens != nullptr) keys->tokens = *tokens;
  QUIRE_ASSIGN_OR_RETURN(const auto* merges, file.Strings(key("merges")));
  if (merges != nullptr) keys->merges = *merges;
  QUIRE_ASSIGN_OR_RETURN(memory->token_types,
                         file.Ints(key("token_type"), INT32_MIN, INT32_MAX));
  keys->token_types = memory->token_types;
  QUIRE_ASSIGN_OR_RETURN(memory->scores, file.Floats(key("scores")));
  keys->scores = memory->scores;
  QUIRE_ASSIGN_OR_RETURN(keys->precompiled_charsmap,
                         file.Bytes(key("precompiled_charsmap")));
  for (const auto& [name, token] : kSpecialIds) {
    QUIRE_ASSIGN_OR_RETURN(const auto id, file.Int(key(name), 0, kMaxId));
    if (id) keys->special_ids[token] = *id;
  }
  for (const auto& [name, value] :
       {std::pair("add_bos_token", &keys->add_bos_token),
        std::pair("add_eos_token", &keys->add_eos_token),
        std::pair("add_space_prefix", &keys->add_space_prefix),
        std::pair("remove_extra_whitespaces",
                  &keys->remove_extra_whitespaces)}) {
    QUIRE_ASSIGN_OR_RETURN(*value, file.Bool(key(name)));
  }
  // A list of named ones beside it is of other uses.
  for (const char* name :
       {"tokenizer.chat_template", "tokenizer.chat_template.default"}) {
    QUIRE_ASSIGN_OR_RETURN(const auto text, file.String(name));
    if (text && keys->chat_template.empty()) keys->chat_template = *text;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeGgufTokenizer(
    const GgufFile& file, std::vector<std::string>* warnings) {
  KeyMemory memory;
  GgufTokenizerKeys keys;
  QUIRE_RETURN_IF_ERROR(ReadKeys(file, &memory, &keys));
  std::vector<std::string> own_warnings;
  auto tokenizer = CreateGgufTokenizer(keys, &own_warnings);
  for (const std::string& warning : own_warnings) {
    warnings->push_back(absl::StrCat(file.path(), ": ", warning));
  }
  if (tokenizer.ok()) return tokenizer;
  return absl::Status(
      tokenizer.status().code(),
      absl::StrCat(file.path(), ": ", tokenizer.status().message()));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> OpenModelTokenizer(
    const std::string& path, std::vector<std::string>* warnings) {
  if (!IsGgufPath(path)) return Tokenizer::Create(path);
  QUIRE_ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> file,
                         GgufFile::Open(path));
  return MakeGgufTokenizer(*file, warnings);
}

}  // namespace quire
