// The files beside tokenizer.json or tokenizer.model.
#ifndef QUIRE_TOKENIZER_TOKENIZER_CONFIG_H_
#define QUIRE_TOKENIZER_TOKENIZER_CONFIG_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tokenizer/added_tokens.h"

namespace quire {

struct TokenizerConfig {
  // Texts by name: "bos_token", "eos_token", "unk_token", "pad_token", ...
  std::map<std::string, std::string> special_tokens;
  // From added_tokens_decoder; without it, from added_tokens.json.
  std::vector<AddedToken> added_tokens;
  std::optional<bool> add_bos_token;
  std::optional<bool> add_eos_token;
  std::string chat_template;
};

// Largest of these files that is read.
inline constexpr int64_t kMaxConfigBytes = 16 << 20;

// Reads tokenizer_config.json, special_tokens_map.json, added_tokens.json and
// chat_template.jinja of `directory`, where present; chat_template.jinja counts
// before the config's. INVALID_ARGUMENT naming file and field.
absl::StatusOr<TokenizerConfig> LoadTokenizerConfig(
    const std::string& directory);

// The whole file; NOT_FOUND if there is none, INVALID_ARGUMENT naming it if it
// is larger than `max_bytes` or no regular file.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path,
                                          int64_t max_bytes);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_TOKENIZER_CONFIG_H_
