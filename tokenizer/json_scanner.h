// A forward reader of JSON text for the large parts of tokenizer.json: no tree,
// no copies. Smaller parts are cut out and given to the JSON library.
#ifndef QUIRE_TOKENIZER_JSON_SCANNER_H_
#define QUIRE_TOKENIZER_JSON_SCANNER_H_

#include <cstdint>
#include <deque>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace quire {

// Borrows the text, which must be valid UTF-8. Thread-compatible. After an
// error the position is undefined; every error is INVALID_ARGUMENT with the
// byte offset.
class JsonScanner {
 public:
  // Arrays and objects within each other.
  static constexpr int kMaxDepth = 64;

  explicit JsonScanner(absl::string_view text) : text_(text) {}

  // True, past `c` and the space before it, if `c` is next.
  bool Consume(char c);
  // The next character that is no space; 0 at the end.
  char Peek();
  // True if only space is left.
  bool AtEnd() { return Peek() == 0 && pos_ == text_.size(); }
  // A string without its quotes. Valid as long as the text and `arena`, which
  // keeps those that had to be unescaped.
  absl::Status ReadString(std::deque<std::string>* arena,
                          absl::string_view* out);
  // In [0, max].
  absl::Status ReadInteger(int64_t max, int64_t* out);
  // Passes over any value; `extent` is its text. Checks nesting only.
  absl::Status SkipValue(absl::string_view* extent);
  // Calls read(key) for each member of an object, positioned at its value,
  // which it must read.
  template <typename ReadMember>
  absl::Status ReadObject(std::deque<std::string>* arena, ReadMember read) {
    if (!Consume('{')) return Error("expected '{'");
    if (Consume('}')) return absl::OkStatus();
    do {
      absl::string_view key;
      if (absl::Status s = ReadString(arena, &key); !s.ok()) return s;
      if (!Consume(':')) return Error("expected ':'");
      if (absl::Status s = read(key); !s.ok()) return s;
    } while (Consume(','));
    return Consume('}') ? absl::OkStatus() : Error("expected ',' or '}'");
  }
  // Calls read() for each element of an array.
  template <typename ReadElement>
  absl::Status ReadArray(ReadElement read) {
    if (!Consume('[')) return Error("expected '['");
    if (Consume(']')) return absl::OkStatus();
    do {
      if (absl::Status s = read(); !s.ok()) return s;
    } while (Consume(','));
    return Consume(']') ? absl::OkStatus() : Error("expected ',' or ']'");
  }
  absl::Status Error(absl::string_view what) const;

 private:
  absl::Status Unescape(std::string* out);
  bool ReadHex4(uint32_t* value);

  absl::string_view text_;
  size_t pos_ = 0;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_JSON_SCANNER_H_
