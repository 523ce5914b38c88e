// Tokens that are found in the text before the model sees it.
#ifndef QUIRE_TOKENIZER_ADDED_TOKENS_H_
#define QUIRE_TOKENIZER_ADDED_TOKENS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace quire {

// Of the text of one: each place of a text is compared with as many.
inline constexpr size_t kMaxAddedTokenBytes = 1024;

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool single_word = false;  // Only where no word character is beside it.
  bool lstrip = false;       // Takes the white space before it.
  bool rstrip = false;       // Takes the white space after it.
  bool normalized = false;   // Sought in the normalized text.
  bool special = false;
};

// Half-open range of bytes.
struct TextRange {
  size_t begin;
  size_t end;
};

// A part of a text: an added token, or (id < 0) ordinary text.
struct TextPart {
  TextRange range;
  int32_t id;
};

// Finds literal texts, leftmost first and the longest of those that start
// there. Immutable once filled; const methods are thread-safe.
class AddedTokenMatcher {
 public:
  // Makes `text` find `token`. The first of equal texts counts; an empty one is
  // ignored.
  void Add(absl::string_view text, const AddedToken& token);
  bool empty() const { return tokens_.empty(); }

  // Splits `text` at the tokens that lie wholly within one of `allowed`
  // (ascending, disjoint). Words and white space around a token are looked at
  // across the borders of `allowed`. As the `tokenizers` library does:
  // a token refused by single_word still uses up its text.
  std::vector<TextPart> Split(absl::string_view text,
                              const std::vector<TextRange>& allowed) const;

 private:
  struct Node {
    std::vector<std::pair<uint8_t, int32_t>> children;
    int32_t token_idx = -1;
  };
  int32_t Child(int32_t node, uint8_t byte) const;
  // The longest token at text[pos, end): its index and length, or -1.
  std::pair<int32_t, size_t> Longest(absl::string_view text, size_t pos,
                                     size_t end) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<int32_t, 256> root_ = {};  // 0: no child.
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_ADDED_TOKENS_H_
