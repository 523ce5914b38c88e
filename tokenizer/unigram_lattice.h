// The likeliest segmentation of a text under a unigram model.
// Kudo 2018, arXiv:1804.10959; the search is that of sentencepiece
// (unigram_model.cc, EncodeOptimized), which `tokenizers` follows.
#ifndef QUIRE_TOKENIZER_UNIGRAM_LATTICE_H_
#define QUIRE_TOKENIZER_UNIGRAM_LATTICE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "tokenizer/piece_trie.h"
#include "tokenizer/unicode.h"

namespace quire {

// A piece of the text, or (id < 0) one unknown character.
struct UnigramSegment {
  uint32_t begin;
  uint32_t end;
  int32_t id;
};

// Appends the segments of `text`, which cover it in order.
//   Score: the type that sums of scores are rounded to.
//   unknown_score: of a character that is no piece by itself.
//   extend(id, num_bytes, score): the sum `score` with a piece added, as
//     double; the first of equal sums wins.
// Where no piece crosses a place of the text, the path up to there is final and
// is taken out, so that memory is in proportion to the longest stretch between
// such places (a word, usually); the sum goes on, so that rounding is that of
// the whole text. Requires: valid UTF-8 below 4 GiB.
template <typename Score, typename Extend>
void FindBestSegments(const PieceTrie& trie, absl::string_view text,
                      Score unknown_score, Extend extend,
                      std::vector<UnigramSegment>* segments) {
  constexpr uint32_t kNoStart = 0xFFFFFFFF;
  struct Node {
    Score score;
    int32_t id;
    uint32_t start;
  };
  // The best path that ends at text[base + i].
  std::vector<Node> nodes(64, Node{0, -1, kNoStart});
  size_t base = 0;
  size_t reach = 0;
  const auto take = [&](size_t end) {
    const size_t first = segments->size();
    for (size_t at = end; at > base;) {
      const Node& node = nodes[at - base];
      segments->push_back({node.start, static_cast<uint32_t>(at), node.id});
      at = node.start;
    }
    std::reverse(segments->begin() + first, segments->end());
    nodes[0].score = nodes[end - base].score;
    std::fill(nodes.begin() + 1, nodes.begin() + (end - base) + 1,
              Node{0, -1, kNoStart});
    base = end;
  };
  for (size_t begin = 0; begin < text.size();) {
    if (begin == reach && begin > base) take(begin);
    const size_t size = DecodeCodePoint(text, begin).num_bytes;
    const Score score = nodes[begin - base].score;
    const auto offer = [&](size_t end, double candidate, int32_t id) {
      reach = std::max(reach, end);
      if (end - base >= nodes.size()) {
        nodes.resize(std::max(2 * nodes.size(), end - base + 1),
                     Node{0, -1, kNoStart});
      }
      Node& node = nodes[end - base];
      if (node.start == kNoStart || candidate > node.score) {
        node = {static_cast<Score>(candidate), id,
                static_cast<uint32_t>(begin)};
      }
    };
    bool is_known = false;
    int32_t at = PieceTrie::kRoot;
    for (size_t end = begin; end < text.size();) {
      at = trie.Step(at, static_cast<uint8_t>(text[end]));
      if (at == PieceTrie::kNone) break;
      ++end;
      const int32_t id = trie.Value(at);
      if (id == PieceTrie::kNone) continue;
      offer(end, extend(id, end - begin, score), id);
      is_known |= end - begin == size;
    }
    if (!is_known) {
      offer(begin + size, static_cast<Score>(unknown_score + score), -1);
    }
    begin += size;
  }
  take(text.size());
}

}  // namespace quire

#endif  // QUIRE_TOKENIZER_UNIGRAM_LATTICE_H_
