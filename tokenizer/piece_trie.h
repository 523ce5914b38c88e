// All pieces of a vocabulary that begin at a place of a text.
#ifndef QUIRE_TOKENIZER_PIECE_TRIE_H_
#define QUIRE_TOKENIZER_PIECE_TRIE_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace quire {

// A trie over bytes in a double array: the child of node n by byte c is at
// base[n] + c if check there is n, so that a step is one memory access.
// Aoe 1989, "An efficient digital search algorithm by using a double-array
// structure". Immutable once built; const methods are thread-safe.
class PieceTrie {
 public:
  static constexpr int32_t kRoot = 0;
  static constexpr int32_t kNone = -1;
  // More nodes are refused, since pieces come from a file: 12 bytes each.
  static constexpr size_t kMaxNodes = size_t{1} << 26;
  static constexpr size_t kMaxPieceBytes = 1024;

  // Replaces the content. Of equal pieces the last one counts; empty ones are
  // ignored. INVALID_ARGUMENT if a piece or all of them together are too long.
  // Requires: values >= 0.
  absl::Status Build(std::vector<std::pair<absl::string_view, int32_t>> pieces);

  // The node after `byte`, or kNone.
  int32_t Step(int32_t node, uint8_t byte) const {
    const int32_t child = units_[node].base + byte;
    return units_[child].check == node ? child : kNone;
  }
  // The value of the piece that ends at `node`, or kNone.
  int32_t Value(int32_t node) const { return units_[node].value; }

  // Length of the longest piece that `text` starts with, below `from`; 0 if
  // there is none. `value` is set to its value.
  size_t LongestPrefix(absl::string_view text, int32_t from,
                       int32_t* value) const {
    size_t longest = 0;
    int32_t node = from;
    for (size_t i = 0; i < text.size(); ++i) {
      node = Step(node, static_cast<uint8_t>(text[i]));
      if (node == kNone) break;
      if (Value(node) != kNone) {
        longest = i + 1;
        *value = Value(node);
      }
    }
    return longest;
  }
  // The node that spells `text`, or kNone.
  int32_t Find(absl::string_view text) const {
    int32_t node = kRoot;
    for (size_t i = 0; i < text.size() && node != kNone; ++i) {
      node = Step(node, static_cast<uint8_t>(text[i]));
    }
    return node;
  }

 private:
  struct Unit {
    int32_t base = 0;
    int32_t check = kNone;
    int32_t value = kNone;
  };
  // Sorted pieces [begin, end) share `depth` bytes, spelled by `node`.
  struct Pending {
    size_t begin;
    size_t end;
    size_t depth;
    int32_t node;
  };
  // A base whose places for all of `bytes` (ascending) are free.
  int32_t FindBase(const std::vector<uint8_t>& bytes, size_t* first_free) const;

  // One without children, so that every step has a place to look at.
  std::vector<Unit> units_ = std::vector<Unit>(257);
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_PIECE_TRIE_H_
