// What an answer repeats of its prompt: the text, and where each token stands
// in it.
#ifndef QUIRE_SERVER_PROMPT_TEXT_H_
#define QUIRE_SERVER_PROMPT_TEXT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tokenizer/tokenizer.h"

namespace quire {

// Code points of valid UTF-8.
int64_t CountCharacters(absl::string_view text);

struct PromptText {
  std::string text;  // Valid UTF-8 if what it was made of is.
  // [num tokens], in characters, as OpenAI counts. A token that is not part of
  // the text (a begin token that the tokenizer added) and one that only begins
  // a character stand where the next one does.
  std::vector<int64_t> offsets;
};

// `given`: the text whose encoding `token_ids` are; it is kept as it is. None:
// the decoded tokens, special ones left out if `skip_special_tokens`. Where the
// tokens do not spell the given text (a normalizing tokenizer), the offsets are
// those in the decoded one, cut to the given one's length.
PromptText MakePromptText(const Tokenizer& tokenizer,
                          absl::Span<const int32_t> token_ids,
                          const std::optional<std::string>& given,
                          bool skip_special_tokens);

}  // namespace quire

#endif  // QUIRE_SERVER_PROMPT_TEXT_H_
