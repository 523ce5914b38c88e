// All substrings of some token sequences, with how often each occurs: the
// suffix automaton. A state stands for the substrings that occur at the same
// places; it has at most 2 states and 3 edges per token, so some 170 bytes, and
// grows by a token in constant time on average. It answers what a suffix tree
// answers (the tree of the reversed text is the tree of its links).
// Blumer et al. 1985, "The smallest automaton recognizing the subwords of a
// text"; for several sequences: Mohri, Moreno and Weinstein 2009.
#ifndef QUIRE_ENGINE_SPECULATIVE_SUFFIX_AUTOMATON_H_
#define QUIRE_ENGINE_SPECULATIVE_SUFFIX_AUTOMATON_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace quire {

// A context: the last `length` tokens of some text, as they occur here.
struct SuffixMatch {
  int32_t state = 0;   // Of SuffixAutomaton; 0: the empty context.
  int32_t length = 0;  // 0 only then.
};

// Thread-compatible.
class SuffixAutomaton {
 public:
  SuffixAutomaton();

  // Begins another sequence.
  void BeginSequence() { last_ = 0; }
  // Appends a token to the sequence begun last.
  void Append(int32_t token);

  int64_t num_tokens() const { return num_tokens_; }
  // Of memory behind this object, what allocators add included.
  int64_t num_heap_bytes() const;

  // What the sequence ends with and had occurred before its last token.
  // Requires: it is the only sequence.
  SuffixMatch EndMatch() const {
    const int32_t link = states_[last_].link;
    return {link < 0 ? 0 : link, link < 0 ? 0 : states_[link].length};
  }

  // The longest context that ends with `token`, at most max_length long, given
  // the longest one before it. `match` may be older than the last Append.
  SuffixMatch Extend(SuffixMatch match, int32_t token, int max_length) const;
  // The longest shorter one that occurs at more places; empty if there is none.
  SuffixMatch Shorten(SuffixMatch match) const;

  // The likeliest token after a state, and the state reached. `share`: of the
  // occurrences that are followed by a token. False if there is none.
  bool Follow(int32_t* state, int32_t* token, float* share) const;

  // How often the context occurs; for tests.
  int CountOf(SuffixMatch match) const { return states_[match.state].count; }

 private:
  struct State {
    int32_t length = 0;  // Of the longest substring.
    int32_t link = -1;   // State of its longest suffix that is another state.
    int32_t count = 0;   // Occurrences.
    int32_t first_edge = -1;
  };
  struct Edge {
    int32_t token = 0;
    int32_t target = 0;
    int32_t next = -1;  // Of the same state.
  };

  // With the state that the context of this length has now.
  SuffixMatch Normalized(SuffixMatch match) const;

  static uint64_t KeyOf(int32_t state, int32_t token) {
    return (uint64_t{static_cast<uint32_t>(state)} << 32) |
           static_cast<uint32_t>(token);
  }
  int32_t EdgeOf(int32_t state, int32_t token) const;
  void AddEdge(int32_t state, int32_t token, int32_t target);
  // Splits off the substrings of `state` that are at most `length` long, and
  // leads the edges by `token` from `from` and its links there.
  int32_t Split(int32_t state, int32_t length, int32_t from, int32_t token);

  std::vector<State> states_;
  std::vector<Edge> edges_;
  absl::flat_hash_map<uint64_t, int32_t> edge_of_;  // By KeyOf.
  int32_t last_ = 0;                                // Of the whole sequence.
  int64_t num_tokens_ = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_SUFFIX_AUTOMATON_H_
