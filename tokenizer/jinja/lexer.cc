#include "tokenizer/jinja/lexer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/jinja/text.h"

namespace quire::jinja {
namespace {

bool IsNameByte(char c) {
  return absl::ascii_isalnum(c) || c == '_' || (c & 0x80) != 0;
}

bool IsHexDigits(absl::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isxdigit(c);
  });
}

// One line end is "\n", whatever the file says, and the last one is dropped.
std::string NormalizeNewlines(absl::string_view source) {
  std::string result;
  result.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      result.push_back(source[i]);
      continue;
    }
    result.push_back('\n');
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!result.empty() && result.back() == '\n') result.pop_back();
  return result;
}

class Lexer {
 public:
  explicit Lexer(absl::string_view source)
      : normalized_(NormalizeNewlines(source)), source_(normalized_) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (pos_ < source_.size()) {
      QUIRE_RETURN_IF_ERROR(LexText());
    }
    tokens_.push_back({TokenType::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  absl::Status Error(absl::string_view message) const {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template line ", line_, ": ", message));
  }

  char At(size_t pos) const {
    return pos < source_.size() ? source_[pos] : '\0';
  }

  // Moves to `pos` and counts the lines passed.
  void MoveTo(size_t pos) {
    line_ += static_cast<int>(
        std::count(source_.begin() + pos_, source_.begin() + pos, '\n'));
    pos_ = pos;
  }

  size_t SkipSpace(size_t pos) const {
    int32_t c;
    while (pos < source_.size()) {
      const int length = DecodeUtf8(source_, pos, &c);
      if (!IsSpace(c)) break;
      pos += length;
    }
    return pos;
  }

  // What is left of the text in front of a tag. `sign` follows the opening
  // delimiter: '-' strips all white space; without a sign, a block or comment
  // that is alone on its line strips the indentation.
  absl::string_view StripBeforeTag(absl::string_view text, char sign,
                                   bool is_variable) const {
    if (sign == '-') {
      return text.substr(0, StripBounds(text, nullptr, false, true).second);
    }
    if (sign == '+' || is_variable) return text;
    const size_t newline = text.rfind('\n');
    const size_t line_begin =
        newline == absl::string_view::npos ? 0 : newline + 1;
    if (line_begin == 0 && !line_starting_) return text;
    const absl::string_view indent = text.substr(line_begin);
    const bool is_blank =
        StripBounds(indent, nullptr, true, false).first == indent.size();
    return is_blank ? text.substr(0, line_begin) : text;
  }

  void AddText(absl::string_view text) {
    if (text.empty()) return;
    tokens_.push_back({TokenType::kText, std::string(text), line_});
  }

  // Length of the end of a block, comment or raw tag at `pos` (0: none), with
  // the white space it swallows: "-%}" all, "%}" one newline, "+%}" nothing.
  size_t TagEndLength(size_t pos, absl::string_view delimiter) const {
    const absl::string_view rest = source_.substr(pos);
    if (!rest.empty() && (rest[0] == '-' || rest[0] == '+')) {
      if (rest.substr(1, 2) != delimiter) return 0;
      if (rest[0] == '+') return 3;
      return SkipSpace(pos + 3) - pos;
    }
    if (rest.substr(0, 2) != delimiter) return 0;
    return At(pos + 2) == '\n' ? 3 : 2;
  }

  void FinishTag(size_t end) {
    line_starting_ = end > 0 && source_[end - 1] == '\n';
    MoveTo(end);
  }

  absl::Status LexText() {
    size_t begin = pos_;
    size_t tag = source_.find('{', begin);
    while (tag != absl::string_view::npos && At(tag + 1) != '{' &&
           At(tag + 1) != '%' && At(tag + 1) != '#') {
      tag = source_.find('{', tag + 1);
    }
    if (tag == absl::string_view::npos) {
      AddText(source_.substr(begin));
      MoveTo(source_.size());
      return absl::OkStatus();
    }
    const char kind = source_[tag + 1];
    size_t inner = tag + 2;
    char sign = At(inner);
    if (sign == '-' || sign == '+') {
      ++inner;
    } else {
      sign = '\0';
    }
    AddText(
        StripBeforeTag(source_.substr(begin, tag - begin), sign, kind == '{'));
    MoveTo(tag);
    if (kind == '#') return LexComment(inner);
    if (kind == '%') {
      const size_t raw_end = RawBeginEnd(inner);
      if (raw_end != 0) return LexRaw(raw_end);
    }
    const bool is_block = kind == '%';
    tokens_.push_back(
        {is_block ? TokenType::kBlockBegin : TokenType::kVariableBegin, "",
         line_});
    MoveTo(inner);
    return LexTag(is_block);
  }

  absl::Status LexComment(size_t begin) {
    size_t end = source_.find("#}", begin);
    if (end == absl::string_view::npos) {
      return Error("missing end of comment tag");
    }
    // A sign belongs to the end of the tag.
    if (end > begin && (source_[end - 1] == '-' || source_[end - 1] == '+')) {
      --end;
    }
    FinishTag(end + TagEndLength(end, "#}"));
    return absl::OkStatus();
  }

  // End of a `{% raw %}` tag whose inside begins at `pos`; 0 if it is none.
  size_t RawBeginEnd(size_t pos) const {
    pos = SkipSpace(pos);
    if (source_.substr(pos, 3) != "raw") return 0;
    pos = SkipSpace(pos + 3);
    if (source_.substr(pos, 2) == "%}") return pos + 2;
    if (source_.substr(pos, 3) == "-%}") return SkipSpace(pos + 3);
    return 0;
  }

  absl::Status LexRaw(size_t begin) {
    FinishTag(begin);
    for (size_t tag = source_.find("{%", begin); tag != absl::string_view::npos;
         tag = source_.find("{%", tag + 1)) {
      size_t pos = tag + 2;
      char sign = At(pos);
      if (sign == '-' || sign == '+') {
        ++pos;
      } else {
        sign = '\0';
      }
      pos = SkipSpace(pos);
      if (source_.substr(pos, 6) != "endraw") continue;
      pos = SkipSpace(pos + 6);
      const size_t length = TagEndLength(pos, "%}");
      if (length == 0) continue;
      AddText(StripBeforeTag(source_.substr(begin, tag - begin), sign, false));
      FinishTag(pos + length);
      return absl::OkStatus();
    }
    return Error("missing end of raw block");
  }

  // Tokens up to the end of a `{{` or `{%` tag. An end delimiter inside
  // brackets is not one: `{{ {'a': {}} }}`.
  absl::Status LexTag(bool is_block) {
    std::string brackets;
    while (true) {
      MoveTo(SkipSpace(pos_));
      if (pos_ >= source_.size()) return Error("unexpected end of template");
      if (brackets.empty()) {
        if (is_block) {
          const size_t length = TagEndLength(pos_, "%}");
          if (length != 0) {
            tokens_.push_back({TokenType::kBlockEnd, "", line_});
            FinishTag(pos_ + length);
            return absl::OkStatus();
          }
        } else {
          const bool strips = source_.substr(pos_, 3) == "-}}";
          if (strips || source_.substr(pos_, 2) == "}}") {
            tokens_.push_back({TokenType::kVariableEnd, "", line_});
            FinishTag(strips ? SkipSpace(pos_ + 3) : pos_ + 2);
            return absl::OkStatus();
          }
        }
      }
      QUIRE_RETURN_IF_ERROR(LexToken(&brackets));
    }
  }

  absl::Status LexToken(std::string* brackets) {
    const char c = source_[pos_];
    if (absl::ascii_isdigit(c)) return LexNumber();
    if (IsNameByte(c)) {
      size_t end = pos_;
      while (end < source_.size() && IsNameByte(source_[end])) ++end;
      Emit(TokenType::kName, end);
      return absl::OkStatus();
    }
    if (c == '\'' || c == '"') return LexString();
    static constexpr absl::string_view kTwo[] = {
        "//", "**", "==", "!=", ">=", "<="};
    for (const absl::string_view op : kTwo) {
      if (source_.substr(pos_, 2) == op) {
        Emit(TokenType::kOperator, pos_ + 2);
        return absl::OkStatus();
      }
    }
    if (absl::string_view("+-/*%~[](){}><=.:|,;").find(c) ==
        absl::string_view::npos) {
      return Error(absl::StrCat("unexpected character '",
                                absl::string_view(&c, 1), "'"));
    }
    if (c == '(') brackets->push_back(')');
    if (c == '[') brackets->push_back(']');
    if (c == '{') brackets->push_back('}');
    if (c == ')' || c == ']' || c == '}') {
      if (brackets->empty() || brackets->back() != c) {
        return Error(
            absl::StrCat("unexpected '", absl::string_view(&c, 1), "'"));
      }
      brackets->pop_back();
    }
    Emit(TokenType::kOperator, pos_ + 1);
    return absl::OkStatus();
  }

  void Emit(TokenType type, size_t end) {
    tokens_.push_back(
        {type, std::string(source_.substr(pos_, end - pos_)), line_});
    MoveTo(end);
  }

  // End of digits with single underscores between them, from `pos`.
  size_t DigitsEnd(size_t pos) const {
    while (absl::ascii_isdigit(At(pos)) ||
           (At(pos) == '_' && absl::ascii_isdigit(At(pos + 1)))) {
      ++pos;
    }
    return pos;
  }

  absl::Status LexNumber() {
    size_t end = pos_;
    TokenType type = TokenType::kInteger;
    const char prefix = absl::ascii_tolower(At(pos_ + 1));
    if (source_[pos_] == '0' &&
        (prefix == 'x' || prefix == 'b' || prefix == 'o')) {
      end += 2;
      while (absl::ascii_isxdigit(At(end)) || At(end) == '_') ++end;
    } else {
      end = DigitsEnd(pos_);
      const bool after_dot = pos_ > 0 && source_[pos_ - 1] == '.';
      if (!after_dot) {
        if (At(end) == '.' && absl::ascii_isdigit(At(end + 1))) {
          end = DigitsEnd(end + 1);
          type = TokenType::kFloat;
        }
        size_t exponent = end + 1;
        if (At(exponent) == '+' || At(exponent) == '-') ++exponent;
        if (absl::ascii_tolower(At(end)) == 'e' &&
            absl::ascii_isdigit(At(exponent))) {
          end = DigitsEnd(exponent);
          type = TokenType::kFloat;
        }
      }
      if (type == TokenType::kInteger && source_[pos_] == '0' &&
          source_.substr(pos_, end - pos_).find_first_not_of("0_") !=
              absl::string_view::npos) {
        return Error("a decimal integer must not begin with 0");
      }
    }
    Emit(type, end);
    std::string& text = tokens_.back().text;
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    return absl::OkStatus();
  }

  absl::Status LexString() {
    const char quote = source_[pos_];
    size_t end = pos_ + 1;
    while (end < source_.size() && source_[end] != quote) {
      end += source_[end] == '\\' ? 2 : 1;
    }
    if (end >= source_.size()) return Error("unterminated string");
    const absl::string_view body = source_.substr(pos_ + 1, end - pos_ - 1);
    std::string text;
    for (size_t i = 0; i < body.size();) {
      if (body[i] != '\\') {
        text.push_back(body[i++]);
        continue;
      }
      QUIRE_RETURN_IF_ERROR(Unescape(body, &i, &text));
    }
    tokens_.push_back({TokenType::kString, std::move(text), line_});
    MoveTo(end + 1);
    return absl::OkStatus();
  }

  // One escape sequence of a Python string literal at body[*i] == '\\'. An
  // unknown one stands for itself.
  absl::Status Unescape(absl::string_view body, size_t* i, std::string* text) {
    const char c = body[*i + 1];
    static constexpr absl::string_view kSimple = "abfnrtv\\'\"";
    static constexpr absl::string_view kMeaning = "\a\b\f\n\r\t\v\\'\"";
    const size_t simple = kSimple.find(c);
    if (simple != absl::string_view::npos) {
      text->push_back(kMeaning[simple]);
      *i += 2;
      return absl::OkStatus();
    }
    if (c == '\n') {
      *i += 2;
      return absl::OkStatus();
    }
    if (c >= '0' && c <= '7') {
      int value = 0;
      size_t pos = *i + 1;
      for (; pos < body.size() && pos < *i + 4 && body[pos] >= '0' &&
             body[pos] <= '7';
           ++pos) {
        value = value * 8 + (body[pos] - '0');
      }
      AppendUtf8(value, text);
      *i = pos;
      return absl::OkStatus();
    }
    const int num_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (num_digits == 0) {
      text->push_back('\\');
      ++*i;
      return absl::OkStatus();
    }
    const absl::string_view digits = body.substr(*i + 2, num_digits);
    if (digits.size() != static_cast<size_t>(num_digits) ||
        !IsHexDigits(digits)) {
      return Error("truncated \\x or \\u escape in a string");
    }
    const int64_t value = std::stoll(std::string(digits), nullptr, 16);
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
      return Error("escape in a string is not a Unicode character");
    }
    AppendUtf8(static_cast<int32_t>(value), text);
    *i += 2 + num_digits;
    return absl::OkStatus();
  }

  const std::string normalized_;
  const absl::string_view source_;
  size_t pos_ = 0;
  int line_ = 1;
  // Whether the text at pos_ begins a line.
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source) {
  return Lexer(source).Run();
}

}  // namespace quire::jinja
