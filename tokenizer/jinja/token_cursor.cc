#include "tokenizer/jinja/token_cursor.h"

#include "absl/strings/str_cat.h"

namespace quire::jinja {

void TokenCursor::Fail(absl::string_view message) {
  if (status_.ok()) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat("chat template line ", Current().line, ": ", message));
  }
  pos_ = tokens_.size() - 1;
}

std::string TokenCursor::Describe(const Token& token) {
  switch (token.type) {
    case TokenType::kText:
      return "text";
    case TokenType::kBlockBegin:
      return "'{%'";
    case TokenType::kBlockEnd:
      return "end of statement block";
    case TokenType::kVariableBegin:
      return "'{{'";
    case TokenType::kVariableEnd:
      return "end of print statement";
    case TokenType::kEnd:
      return "end of template";
    default:
      return absl::StrCat("'", token.text, "'");
  }
}

bool TokenCursor::SkipOperator(absl::string_view op) {
  if (!IsOperator(op)) return false;
  Next();
  return true;
}

bool TokenCursor::SkipName(absl::string_view name) {
  if (!IsName(name)) return false;
  Next();
  return true;
}

void TokenCursor::ExpectOperator(absl::string_view op) {
  if (!SkipOperator(op)) {
    Fail(absl::StrCat("expected '", op, "', got ", Describe(Current())));
  }
}

void TokenCursor::ExpectName(absl::string_view name) {
  if (!SkipName(name)) {
    Fail(absl::StrCat("expected '", name, "', got ", Describe(Current())));
  }
}

void TokenCursor::ExpectType(TokenType type) {
  if (Current().type == type) {
    Next();
    return;
  }
  Fail(absl::StrCat("expected ", Describe({type, "token", 0}), ", got ",
                    Describe(Current())));
}
std::string TokenCursor::ExpectAnyName() {
  if (Current().type != TokenType::kName) {
    Fail(absl::StrCat("expected a name, got ", Describe(Current())));
    return "";
  }
  std::string name = Current().text;
  Next();
  return name;
}

}  // namespace quire::jinja
