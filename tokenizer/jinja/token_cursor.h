// A place in the tokens of a template, and the first error.
#ifndef QUIRE_TOKENIZER_JINJA_TOKEN_CURSOR_H_
#define QUIRE_TOKENIZER_JINJA_TOKEN_CURSOR_H_

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "tokenizer/jinja/lexer.h"

namespace quire::jinja {

// After an error it stands at the end of the tokens: status() tells, and loops
// end at kEnd. Thread-compatible.
class TokenCursor {
 public:
  // Requires: the last token is kEnd.
  explicit TokenCursor(std::vector<Token> tokens)
      : tokens_(std::move(tokens)) {}

  const Token& Current() const { return tokens_[pos_]; }
  const Token& Look() const {
    return tokens_[std::min(pos_ + 1, tokens_.size() - 1)];
  }
  void Next() {
    if (pos_ + 1 < tokens_.size()) ++pos_;
  }
  bool AtEnd() const { return Current().type == TokenType::kEnd; }

  // INVALID_ARGUMENT with the line; the first one counts.
  void Fail(absl::string_view message);
  const absl::Status& status() const { return status_; }
  // A token as error messages name it.
  static std::string Describe(const Token& token);

  bool IsOperator(absl::string_view op) const {
    return Current().type == TokenType::kOperator && Current().text == op;
  }
  bool IsName(absl::string_view name) const {
    return Current().type == TokenType::kName && Current().text == name;
  }
  // Past it, if it is there.
  bool SkipOperator(absl::string_view op);
  bool SkipName(absl::string_view name);
  // Past it, or an error.
  void ExpectOperator(absl::string_view op);
  void ExpectName(absl::string_view name);
  void ExpectType(TokenType type);
  std::string ExpectAnyName();

 private:
  const std::vector<Token> tokens_;
  size_t pos_ = 0;
  absl::Status status_;
};

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_TOKEN_CURSOR_H_
