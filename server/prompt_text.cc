#include "server/prompt_text.h"

#include <algorithm>

#include "tokenizer/incremental_detokenizer.h"

namespace quire {

int64_t CountCharacters(absl::string_view text) {
  // All bytes but the continuation bytes.
  return std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<uint8_t>(c) & 0xc0) != 0x80;
  });
}

PromptText MakePromptText(const Tokenizer& tokenizer,
                          absl::Span<const int32_t> token_ids,
                          const std::optional<std::string>& given,
                          bool skip_special_tokens) {
  PromptText prompt;
  prompt.offsets.reserve(token_ids.size());
  // Special tokens that the given text spells out are part of it; one that it
  // does not spell at this place was added by the tokenizer.
  IncrementalDetokenizer detokenizer(&tokenizer,
                                     given.has_value() || skip_special_tokens);
  int64_t num_characters = 0;
  absl::string_view rest = given.has_value() ? absl::string_view(*given) : "";
  for (const int32_t id : token_ids) {
    prompt.offsets.push_back(num_characters);
    std::string piece;
    if (given.has_value() && tokenizer.IsSpecial(id)) {
      const std::string special = tokenizer.TokenBytes(id);
      if (!special.empty() && rest.substr(0, special.size()) == special) {
        piece = special;
      }
    } else {
      piece = detokenizer.Append(id);
    }
    num_characters += CountCharacters(piece);
    rest.remove_prefix(std::min(piece.size(), rest.size()));
    if (!given.has_value()) prompt.text += piece;
  }
  if (!given.has_value()) {
    prompt.text += detokenizer.Finish();
    return prompt;
  }
  prompt.text = *given;
  const int64_t length = CountCharacters(prompt.text);
  for (int64_t& offset : prompt.offsets) offset = std::min(offset, length);
  return prompt;
}

}  // namespace quire
