#include "tokenizer/json_scanner.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/unicode.h"

namespace quire {

absl::Status JsonScanner::Error(absl::string_view what) const {
  return absl::InvalidArgumentError(
      absl::StrCat("JSON syntax error at byte ", pos_, ": ", what));
}

char JsonScanner::Peek() {
  while (pos_ < text_.size()) {
    const char c = text_[pos_];
    if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return c;
    ++pos_;
  }
  return 0;
}

bool JsonScanner::Consume(char c) {
  if (Peek() != c || pos_ >= text_.size()) return false;
  ++pos_;
  return true;
}

absl::Status JsonScanner::ReadString(std::deque<std::string>* arena,
                                     absl::string_view* out) {
  if (!Consume('"')) return Error("expected a string");
  const size_t begin = pos_;
  while (pos_ < text_.size()) {
    const unsigned char c = static_cast<unsigned char>(text_[pos_]);
    if (c == '"') {
      *out = text_.substr(begin, pos_ - begin);
      ++pos_;
      return absl::OkStatus();
    }
    if (c < 0x20) return Error("control character in a string");
    if (c == '\\') {
      arena->emplace_back(text_.substr(begin, pos_ - begin));
      QUIRE_RETURN_IF_ERROR(Unescape(&arena->back()));
      *out = arena->back();
      return absl::OkStatus();
    }
    ++pos_;
  }
  return Error("string without end");
}

bool JsonScanner::ReadHex4(uint32_t* value) {
  *value = 0;
  if (text_.size() - pos_ < 4) return false;
  for (int i = 0; i < 4; ++i) {
    const char c = text_[pos_++];
    uint32_t digit;
    if (c >= '0' && c <= '9') {
      digit = c - '0';
    } else if (c >= 'a' && c <= 'f') {
      digit = c - 'a' + 10;
    } else if (c >= 'A' && c <= 'F') {
      digit = c - 'A' + 10;
    } else {
      return false;
    }
    *value = *value << 4 | digit;
  }
  return true;
}

// From the first backslash to the closing quote.
absl::Status JsonScanner::Unescape(std::string* out) {
  while (pos_ < text_.size()) {
    const char c = text_[pos_++];
    if (c == '"') return absl::OkStatus();
    if (static_cast<unsigned char>(c) < 0x20) {
      return Error("control character in a string");
    }
    if (c != '\\') {
      out->push_back(c);
      continue;
    }
    if (pos_ >= text_.size()) break;
    const char escape = text_[pos_++];
    constexpr absl::string_view kEscapes = "\"\\/bfnrt";
    constexpr absl::string_view kMeanings = "\"\\/\b\f\n\r\t";
    if (const size_t i = kEscapes.find(escape); i != absl::string_view::npos) {
      out->push_back(kMeanings[i]);
      continue;
    }
    uint32_t code_point = 0;
    if (escape != 'u' || !ReadHex4(&code_point)) return Error("bad escape");
    if (code_point >= 0xD800 && code_point < 0xDC00) {
      uint32_t low = 0;
      if (text_.substr(pos_, 2) != "\\u") return Error("lone surrogate");
      pos_ += 2;
      if (!ReadHex4(&low) || low < 0xDC00 || low > 0xDFFF) {
        return Error("lone surrogate");
      }
      code_point = 0x10000 + ((code_point - 0xD800) << 10) + (low - 0xDC00);
    } else if (code_point >= 0xDC00 && code_point < 0xE000) {
      return Error("lone surrogate");
    }
    AppendUtf8(code_point, out);
  }
  return Error("string without end");
}

absl::Status JsonScanner::ReadInteger(int64_t max, int64_t* out) {
  Peek();
  const size_t begin = pos_;
  int64_t value = 0;
  while (pos_ < text_.size() && text_[pos_] >= '0' && text_[pos_] <= '9') {
    value = value * 10 + (text_[pos_] - '0');
    if (value > max) {
      return Error(absl::StrCat("number above ", max));
    }
    ++pos_;
  }
  const bool is_fraction =
      pos_ < text_.size() &&
      (text_[pos_] == '.' || text_[pos_] == 'e' || text_[pos_] == 'E');
  if (pos_ == begin || is_fraction) {
    return Error(absl::StrCat("expected an integer in [0, ", max, "]"));
  }
  *out = value;
  return absl::OkStatus();
}

absl::Status JsonScanner::SkipValue(absl::string_view* extent) {
  Peek();
  const size_t begin = pos_;
  int depth = 0;
  do {
    const char c = Peek();
    if (pos_ >= text_.size()) return Error("unexpected end");
    if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) {
        return Error(absl::StrCat("nested deeper than ", kMaxDepth));
      }
      ++pos_;
    } else if (c == '}' || c == ']') {
      if (--depth < 0) return Error("expected a value");
      ++pos_;
    } else if (c == '"') {
      for (++pos_; pos_ < text_.size() && text_[pos_] != '"'; ++pos_) {
        if (text_[pos_] == '\\') ++pos_;
      }
      if (pos_ >= text_.size()) return Error("string without end");
      ++pos_;
    } else if (depth > 0 && (c == ',' || c == ':')) {
      ++pos_;
    } else {
      const size_t word = pos_;
      while (pos_ < text_.size() &&
             absl::string_view(" \n\t\r{}[]\",:").find(text_[pos_]) ==
                 absl::string_view::npos) {
        ++pos_;
      }
      if (pos_ == word) return Error("expected a value");
    }
  } while (depth > 0);
  *extent = text_.substr(begin, pos_ - begin);
  return absl::OkStatus();
}

}  // namespace quire
