// Splits a template into text and tokens, with the white space rules that the
// rest then need not know: trim_blocks and lstrip_blocks are always on.
#ifndef QUIRE_TOKENIZER_JINJA_LEXER_H_
#define QUIRE_TOKENIZER_JINJA_LEXER_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quire::jinja {

enum class TokenType {
  kText,           // Literal output.
  kBlockBegin,     // {%
  kBlockEnd,       // %}
  kVariableBegin,  // {{
  kVariableEnd,    // }}
  kName,
  kString,   // `text` is unescaped.
  kInteger,  // `text` as in the source, without underscores.
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenType type;
  std::string text;
  int line;
};

// The tokens of `source`, the last one kEnd. INVALID_ARGUMENT with the line
// number for anything that is not a token.
absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_LEXER_H_
