// Strings that remember who wrote each byte: the template or a message.
//
// A special token counts only where the template wrote it. Every string
// operation of the interpreter is built on the few below, so that text of a
// user keeps its mark through slicing, joining, replacing and the rest.
#ifndef QUIRE_TOKENIZER_JINJA_TEXT_H_
#define QUIRE_TOKENIZER_JINJA_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace quire::jinja {

// UTF-8 bytes with provenance in runs. Not thread-safe while it is modified.
// Invariants: 1. runs_ is empty (every byte is `uniform_`) or holds at least
// two runs with rising ends, the last one at the size. 2. neighbouring runs
// differ.
class Text {
 public:
  Text() = default;
  Text(absl::string_view bytes, bool is_control)
      : bytes_(bytes.data(), bytes.size()), uniform_(is_control) {}

  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }

  void Append(absl::string_view bytes, bool is_control);
  void Append(const Text& other) { AppendRange(other, 0, other.size()); }
  // Appends bytes [begin, end) of `other`. Requires: begin <= end <= its size;
  // `other` is not *this.
  void AppendRange(const Text& other, size_t begin, size_t end);
  Text Slice(size_t begin, size_t end) const;

  bool IsControlAt(size_t pos) const;
  // True if no byte came from a message.
  bool IsAllControl() const {
    return bytes_.empty() || (runs_.empty() && uniform_);
  }

  // Calls visit(absl::string_view bytes, bool is_control) for each run.
  template <typename Visitor>
  void ForEachRun(Visitor visit) const {
    if (bytes_.empty()) return;
    if (runs_.empty()) {
      visit(absl::string_view(bytes_), uniform_);
      return;
    }
    size_t begin = 0;
    for (const Run& run : runs_) {
      visit(absl::string_view(bytes_).substr(begin, run.end - begin),
            run.is_control);
      begin = run.end;
    }
  }

 private:
  struct Run {
    size_t end;
    bool is_control;
  };

  std::string bytes_;
  bool uniform_ = true;
  std::vector<Run> runs_;
};

// Decodes the code point at `pos` and returns its length in bytes. A byte that
// is not valid UTF-8 counts as one code point U+FFFD of length 1.
// Requires: pos < bytes.size().
int DecodeUtf8(absl::string_view bytes, size_t pos, int32_t* code_point);
void AppendUtf8(int32_t code_point, std::string* out);
int64_t CountCodePoints(absl::string_view bytes);
// Byte offsets of every code point, and the size as the last entry.
std::vector<size_t> CodePointOffsets(absl::string_view bytes);

// Where `part` begins in `text` at or after `from`, or npos; an empty one
// there. Takes time for the sum of their sizes, as find() does not: that
// compares all of `part` at each place.
size_t FindText(absl::string_view text, absl::string_view part,
                size_t from = 0);

// str.isspace(), isalpha(), ... of Python for one code point.
bool IsSpace(int32_t code_point);
bool IsAlpha(int32_t code_point);
bool IsDigit(int32_t code_point);
bool IsUpper(int32_t code_point);
bool IsLower(int32_t code_point);
bool IsPrintable(int32_t code_point);

// The whole text in another case. The mark of a byte follows its letter.
Text ToUpper(const Text& text);
Text ToLower(const Text& text);
// Appends one code point in upper (title) case; `ß` becomes two letters.
void AppendUpper(int32_t code_point, std::string* out);

// Bounds of `text` without the code points at either end that are in `chars`,
// or white space where `chars` is null.
std::pair<size_t, size_t> StripBounds(absl::string_view text,
                                      const absl::string_view* chars, bool left,
                                      bool right);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_TEXT_H_
