#include "engine/speculative/suffix_automaton.h"

#include <algorithm>

namespace quire {
namespace {

// Links followed to count an occurrence. There are few, but for a text that
// repeats one token, where counts of the shortest contexts then stay behind.
constexpr int kMaxLinks = 64;
// Continuations compared. A context with more says little about the next token.
constexpr int kMaxEdges = 64;

}  // namespace

SuffixAutomaton::SuffixAutomaton() { states_.emplace_back(); }

int64_t SuffixAutomaton::num_heap_bytes() const {
  // Three allocations of up to 32 bytes more each; a table has a control byte
  // for each entry that it has room for.
  const int64_t num_slots = edge_of_.capacity();
  return 3 * 32 + static_cast<int64_t>(states_.capacity() * sizeof(State)) +
         static_cast<int64_t>(edges_.capacity() * sizeof(Edge)) +
         num_slots *
             static_cast<int64_t>(sizeof(decltype(edge_of_)::value_type) + 1);
}

int32_t SuffixAutomaton::EdgeOf(int32_t state, int32_t token) const {
  const auto it = edge_of_.find(KeyOf(state, token));
  return it == edge_of_.end() ? -1 : it->second;
}

void SuffixAutomaton::AddEdge(int32_t state, int32_t token, int32_t target) {
  const int32_t edge = static_cast<int32_t>(edges_.size());
  edges_.push_back({token, target, states_[state].first_edge});
  states_[state].first_edge = edge;
  edge_of_[KeyOf(state, token)] = edge;
}

int32_t SuffixAutomaton::Split(int32_t state, int32_t length, int32_t from,
                               int32_t token) {
  const int32_t clone = static_cast<int32_t>(states_.size());
  states_.push_back({length, states_[state].link, states_[state].count, -1});
  for (int32_t i = states_[state].first_edge; i >= 0; i = edges_[i].next) {
    const Edge edge = edges_[i];  // AddEdge moves them.
    AddEdge(clone, edge.token, edge.target);
  }
  states_[state].link = clone;
  for (int32_t p = from; p >= 0; p = states_[p].link) {
    const int32_t edge = EdgeOf(p, token);
    if (edge < 0 || edges_[edge].target != state) break;
    edges_[edge].target = clone;
  }
  return clone;
}

void SuffixAutomaton::Append(int32_t token) {
  ++num_tokens_;
  const int32_t length = states_[last_].length + 1;
  int32_t current = -1;
  const int32_t known = EdgeOf(last_, token);
  if (known >= 0) {
    // Another sequence had this beginning.
    const int32_t target = edges_[known].target;
    current = states_[target].length == length
                  ? target
                  : Split(target, length, last_, token);
  } else {
    current = static_cast<int32_t>(states_.size());
    states_.push_back({length, 0, 0, -1});
    int32_t p = last_;
    int32_t edge = -1;
    while (p >= 0 && (edge = EdgeOf(p, token)) < 0) {
      AddEdge(p, token, current);
      p = states_[p].link;
    }
    if (p >= 0) {
      const int32_t target = edges_[edge].target;
      const int32_t suffix_length = states_[p].length + 1;
      const int32_t link = states_[target].length == suffix_length
                               ? target
                               : Split(target, suffix_length, p, token);
      states_[current].link = link;
    }
  }
  last_ = current;
  int num_links = 0;
  for (int32_t state = current; state > 0 && num_links < kMaxLinks;
       state = states_[state].link, ++num_links) {
    ++states_[state].count;
  }
}

SuffixMatch SuffixAutomaton::Extend(SuffixMatch match, int32_t token,
                                    int max_length) const {
  // A split since may have given the context a state of its own.
  match = Normalized(match);
  int32_t edge = -1;
  while ((edge = EdgeOf(match.state, token)) < 0) {
    if (match.state == 0) return {};
    match = Shorten(match);
  }
  return Normalized(
      {edges_[edge].target, std::min(match.length + 1, max_length)});
}

SuffixMatch SuffixAutomaton::Normalized(SuffixMatch match) const {
  while (match.state > 0 &&
         states_[states_[match.state].link].length >= match.length) {
    match.state = states_[match.state].link;
  }
  return match;
}

SuffixMatch SuffixAutomaton::Shorten(SuffixMatch match) const {
  if (match.state == 0) return {};
  const int32_t link = states_[match.state].link;
  return {link, states_[link].length};
}

bool SuffixAutomaton::Follow(int32_t* state, int32_t* token,
                             float* share) const {
  int64_t total = 0;
  int32_t best = -1;
  int num_edges = 0;
  // The newest edges come first; so do they among equals.
  for (int32_t i = states_[*state].first_edge; i >= 0 && num_edges < kMaxEdges;
       i = edges_[i].next, ++num_edges) {
    const int32_t count = states_[edges_[i].target].count;
    total += count;
    if (best < 0 || count > states_[edges_[best].target].count) best = i;
  }
  if (best < 0) return false;
  *token = edges_[best].token;
  *state = edges_[best].target;
  *share = total <= 0 ? 0.0f
                      : static_cast<float>(states_[*state].count) /
                            static_cast<float>(total);
  return true;
}

}  // namespace quire
