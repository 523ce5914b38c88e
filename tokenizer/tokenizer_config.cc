#include "tokenizer/tokenizer_config.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/json_component.h"
#include "tokenizer/json_scanner.h"
#include "tokenizer/unicode.h"
#include "tokenizer/vocabulary.h"

namespace quire {
namespace {

// The parsed file; a null value if there is none.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path) {
  absl::StatusOr<std::string> text = ReadWholeFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return nlohmann::json();
  if (!text.ok()) return text.status();
  if (!IsValidUtf8(*text)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not UTF-8"));
  }
  // The library's parser has no limit on nesting; this pass has.
  JsonScanner scanner(*text);
  absl::string_view extent;
  if (absl::Status s = scanner.SkipValue(&extent); !s.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", s.message()));
  }
  nlohmann::json json =
      nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is not a JSON object"));
  }
  return json;
}

bool IsSpecialTokenName(absl::string_view name) {
  constexpr absl::string_view kSuffix = "_token";
  return name.size() > kSuffix.size() &&
         name.substr(name.size() - kSuffix.size()) == kSuffix &&
         name.substr(0, 4) != "add_";
}

// "bos_token": "<s>", or {"content": "<s>", ...}; keeps what is there already.
absl::Status ReadSpecialTokens(const nlohmann::json& json,
                               const std::string& file,
                               TokenizerConfig* config) {
  for (auto it = json.begin(); it != json.end(); ++it) {
    if (!IsSpecialTokenName(it.key()) || it->is_null()) continue;
    if (it->is_boolean()) continue;  // A setting, no token.
    const nlohmann::json* text = &*it;
    if (text->is_object()) {
      const auto content = text->find("content");
      if (content != text->end()) text = &*content;
    }
    if (!text->is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(
          file, ": ", it.key(), ": must be a string or have a content"));
    }
    config->special_tokens.emplace(it.key(),
                                   text->get_ref<const std::string&>());
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokensDecoder(const nlohmann::json& json,
                                    const std::string& file,
                                    TokenizerConfig* config) {
  const std::string path = absl::StrCat(file, ": added_tokens_decoder");
  QUIRE_ASSIGN_OR_RETURN(const JsonComponent decoder,
                         JsonComponent::Create(json, path));
  std::map<int32_t, AddedToken> by_id;
  for (auto it = json.begin(); it != json.end(); ++it) {
    AddedToken token;
    if (!absl::SimpleAtoi(it.key(), &token.id) || token.id < 0 ||
        token.id > Vocabulary::kMaxId) {
      return decoder.Error(it.key(), absl::StrCat("must be an id in [0, ",
                                                  Vocabulary::kMaxId, "]"));
    }
    QUIRE_ASSIGN_OR_RETURN(
        const JsonComponent entry,
        JsonComponent::Create(*it, absl::StrCat(path, ".", it.key())));
    QUIRE_ASSIGN_OR_RETURN(token.content, entry.String("content"));
    if (token.content.size() > kMaxAddedTokenBytes) {
      return entry.Error("content",
                         absl::StrCat("has ", token.content.size(),
                                      " bytes, at most ", kMaxAddedTokenBytes));
    }
    QUIRE_ASSIGN_OR_RETURN(token.special, entry.Bool("special", false));
    QUIRE_ASSIGN_OR_RETURN(token.lstrip, entry.Bool("lstrip", false));
    QUIRE_ASSIGN_OR_RETURN(token.rstrip, entry.Bool("rstrip", false));
    QUIRE_ASSIGN_OR_RETURN(token.single_word, entry.Bool("single_word", false));
    QUIRE_ASSIGN_OR_RETURN(token.normalized,
                           entry.Bool("normalized", !token.special));
    const int32_t id = token.id;
    if (!by_id.emplace(id, std::move(token)).second) {
      return decoder.Error(it.key(), "the id is listed twice");
    }
  }
  for (auto& [id, token] : by_id) {
    config->added_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokensFile(const nlohmann::json& json,
                                 const std::string& file,
                                 TokenizerConfig* config) {
  std::map<int64_t, std::string> by_id;
  for (auto it = json.begin(); it != json.end(); ++it) {
    int64_t id = 0;
    if (!ReadInteger(*it, Vocabulary::kMaxId, &id)) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": ", it.key(),
                                                     ": must be an id in [0, ",
                                                     Vocabulary::kMaxId, "]"));
    }
    if (it.key().size() > kMaxAddedTokenBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": the token of id ", id, " has ", it.key().size(),
                       " bytes, at most ", kMaxAddedTokenBytes));
    }
    if (!by_id.emplace(id, it.key()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": ", it.key(), ": id ", id, " is listed twice"));
    }
  }
  for (auto& [id, content] : by_id) {
    AddedToken token;
    token.content = std::move(content);
    token.id = static_cast<int32_t>(id);
    config->added_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// A string, or a list of {"name": ..., "template": ...} of which "default"
// counts.
absl::Status ReadChatTemplate(const nlohmann::json& json,
                              const std::string& file,
                              TokenizerConfig* config) {
  const absl::Status malformed = absl::InvalidArgumentError(
      absl::StrCat(file,
                   ": chat_template: must be a string or a list of "
                   "{\"name\", \"template\"}"));
  if (json.is_string()) {
    config->chat_template = json.get_ref<const std::string&>();
    return absl::OkStatus();
  }
  if (!json.is_array()) return malformed;
  for (const nlohmann::json& entry : json) {
    if (!entry.is_object()) return malformed;
    const auto name = entry.find("name");
    const auto text = entry.find("template");
    if (name == entry.end() || text == entry.end() || !name->is_string() ||
        !text->is_string()) {
      return malformed;
    }
    if (name->get_ref<const std::string&>() == "default") {
      config->chat_template = text->get_ref<const std::string&>();
    }
  }
  return absl::OkStatus();
}

absl::Status ReadMainFile(const nlohmann::json& json, const std::string& file,
                          TokenizerConfig* config) {
  QUIRE_ASSIGN_OR_RETURN(const JsonComponent component,
                         JsonComponent::Create(json, file));
  QUIRE_RETURN_IF_ERROR(ReadSpecialTokens(json, file, config));
  if (const nlohmann::json* added = component.Find("added_tokens_decoder")) {
    QUIRE_RETURN_IF_ERROR(ReadAddedTokensDecoder(*added, file, config));
  }
  if (component.Find("add_bos_token") != nullptr) {
    QUIRE_ASSIGN_OR_RETURN(config->add_bos_token,
                           component.Bool("add_bos_token"));
  }
  if (component.Find("add_eos_token") != nullptr) {
    QUIRE_ASSIGN_OR_RETURN(config->add_eos_token,
                           component.Bool("add_eos_token"));
  }
  if (const nlohmann::json* chat_template = component.Find("chat_template")) {
    QUIRE_RETURN_IF_ERROR(ReadChatTemplate(*chat_template, file, config));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadWholeFile(const std::string& path,
                                          int64_t max_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const std::string message = absl::StrCat(path, ": ", std::strerror(errno));
    if (errno == ENOENT || errno == ENOTDIR) {
      return absl::NotFoundError(message);
    }
    return absl::InvalidArgumentError(message);
  }
  struct stat info;
  absl::Status status;
  std::string text;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    status = absl::InvalidArgumentError(
        absl::StrCat(path, ": is not a regular file"));
  } else if (info.st_size > max_bytes) {
    status = absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", info.st_size, " bytes, at most ",
                     max_bytes, " are read"));
  } else {
    text.resize(static_cast<size_t>(info.st_size));
    size_t num_read = 0;
    while (num_read < text.size()) {
      const ssize_t n =
          read(fd, text.data() + num_read, text.size() - num_read);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      num_read += static_cast<size_t>(n);
    }
    if (num_read < text.size()) {
      status = absl::InvalidArgumentError(absl::StrCat(
          path, ": only ", num_read, " of ", text.size(), " bytes are there"));
    }
  }
  close(fd);
  if (!status.ok()) return status;
  return text;
}

absl::StatusOr<TokenizerConfig> LoadTokenizerConfig(
    const std::string& directory) {
  TokenizerConfig config;
  const auto path = [&directory](const char* name) {
    return absl::StrCat(directory, "/", name);
  };
  const std::string main_path = path("tokenizer_config.json");
  QUIRE_ASSIGN_OR_RETURN(const nlohmann::json main, ReadJsonFile(main_path));
  if (!main.is_null()) {
    QUIRE_RETURN_IF_ERROR(ReadMainFile(main, main_path, &config));
  }
  const std::string special_path = path("special_tokens_map.json");
  QUIRE_ASSIGN_OR_RETURN(const nlohmann::json special,
                         ReadJsonFile(special_path));
  if (!special.is_null()) {
    QUIRE_RETURN_IF_ERROR(ReadSpecialTokens(special, special_path, &config));
  }
  if (config.added_tokens.empty()) {
    const std::string added_path = path("added_tokens.json");
    QUIRE_ASSIGN_OR_RETURN(const nlohmann::json added,
                           ReadJsonFile(added_path));
    if (!added.is_null()) {
      QUIRE_RETURN_IF_ERROR(ReadAddedTokensFile(added, added_path, &config));
    }
  }
  const std::string template_path = path("chat_template.jinja");
  absl::StatusOr<std::string> chat_template =
      ReadWholeFile(template_path, kMaxConfigBytes);
  if (chat_template.ok()) {
    if (!IsValidUtf8(*chat_template)) {
      return absl::InvalidArgumentError(
          absl::StrCat(template_path, ": is not UTF-8"));
    }
    config.chat_template = *std::move(chat_template);
  } else if (!absl::IsNotFound(chat_template.status())) {
    return chat_template.status();
  }
  return config;
}

}  // namespace quire
