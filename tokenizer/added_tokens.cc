#include "tokenizer/added_tokens.h"

#include <algorithm>

#include "tokenizer/unicode.h"

namespace quire {
namespace {

bool IsWordAt(absl::string_view text, size_t pos) {
  return (ClassOf(DecodeCodePoint(text, pos).value) & kClassWord) != 0;
}

// Down to `first` at most.
size_t SkipSpacesBack(absl::string_view text, size_t pos, size_t first) {
  while (pos > first) {
    const size_t start = PreviousCodePoint(text, pos);
    if (!(ClassOf(DecodeCodePoint(text, start).value) & kClassSpace)) break;
    pos = start;
  }
  return pos;
}

size_t SkipSpaces(absl::string_view text, size_t pos) {
  while (pos < text.size()) {
    const CodePoint c = DecodeCodePoint(text, pos);
    if (!(ClassOf(c.value) & kClassSpace)) break;
    pos += c.num_bytes;
  }
  return pos;
}

}  // namespace

int32_t AddedTokenMatcher::Child(int32_t node, uint8_t byte) const {
  const auto& children = nodes_[node].children;
  const auto it = std::lower_bound(children.begin(), children.end(),
                                   std::pair<uint8_t, int32_t>(byte, 0));
  return it != children.end() && it->first == byte ? it->second : 0;
}

void AddedTokenMatcher::Add(absl::string_view text, const AddedToken& token) {
  if (text.empty()) return;
  if (nodes_.empty()) nodes_.emplace_back();  // Unused, so that 0 means none.
  const auto new_node = [this] {
    nodes_.emplace_back();
    return static_cast<int32_t>(nodes_.size() - 1);
  };
  int32_t& first = root_[static_cast<uint8_t>(text[0])];
  if (first == 0) first = new_node();
  int32_t node = first;
  for (const char c : text.substr(1)) {
    const uint8_t byte = static_cast<uint8_t>(c);
    int32_t child = Child(node, byte);
    if (child == 0) {
      child = new_node();
      auto& children = nodes_[node].children;
      const std::pair<uint8_t, int32_t> entry(byte, child);
      children.insert(std::lower_bound(children.begin(), children.end(), entry),
                      entry);
    }
    node = child;
  }
  if (nodes_[node].token_idx >= 0) return;
  nodes_[node].token_idx = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

std::pair<int32_t, size_t> AddedTokenMatcher::Longest(absl::string_view text,
                                                      size_t pos,
                                                      size_t end) const {
  std::pair<int32_t, size_t> best(-1, 0);
  int32_t node = root_[static_cast<uint8_t>(text[pos])];
  for (size_t i = pos + 1; node != 0; ++i) {
    if (nodes_[node].token_idx >= 0) best = {nodes_[node].token_idx, i - pos};
    if (i >= end) break;
    node = Child(node, static_cast<uint8_t>(text[i]));
  }
  return best;
}

std::vector<TextPart> AddedTokenMatcher::Split(
    absl::string_view text, const std::vector<TextRange>& allowed) const {
  std::vector<TextPart> parts;
  size_t covered = 0;
  // The spaces that were skipped last: tokens of spaces lie within.
  TextRange spaces = {0, 0};
  for (const TextRange& range : allowed) {
    if (tokens_.empty()) break;
    for (size_t pos = range.begin; pos < range.end;) {
      if (root_[static_cast<uint8_t>(text[pos])] == 0) {
        ++pos;
        continue;
      }
      const auto [token_idx, size] = Longest(text, pos, range.end);
      if (token_idx < 0) {
        ++pos;
        continue;
      }
      const AddedToken& token = tokens_[token_idx];
      size_t begin = pos;
      size_t end = pos + size;
      pos = end;
      if (token.single_word) {
        const bool has_word_before =
            begin > 0 && IsWordAt(text, PreviousCodePoint(text, begin));
        const bool has_word_after = end < text.size() && IsWordAt(text, end);
        if (has_word_before || has_word_after) continue;
      }
      if (token.lstrip) {
        begin = std::max(SkipSpacesBack(text, begin, covered), covered);
      }
      if (token.rstrip) {
        if (end < spaces.begin || end > spaces.end) {
          spaces = {end, SkipSpaces(text, end)};
        }
        end = spaces.end;
      }
      if (covered < begin) parts.push_back({{covered, begin}, -1});
      parts.push_back({{begin, end}, token.id});
      covered = end;
    }
  }
  if (covered < text.size()) parts.push_back({{covered, text.size()}, -1});
  return parts;
}

}  // namespace quire
