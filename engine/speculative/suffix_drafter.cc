#include "engine/speculative/suffix_drafter.h"

#include <algorithm>
#include <utility>

namespace quire {
namespace {

// Contexts tried, from the longest to shorter ones that occur more often.
constexpr int kMaxContexts = 6;

// Of an allocation, for the allocator itself.
constexpr int64_t kHeapBytes = 16;

}  // namespace

void SuffixDrafter::CatchUp(const DraftSequence& sequence, Local* local) {
  const size_t size = sequence.token_ids.size();
  if (local->num_tokens == 0) {
    local->has_index = num_local_tokens_ + static_cast<int64_t>(size) <=
                       options_.max_local_tokens;
  }
  if (!local->has_index) return;
  for (; local->num_tokens < size; ++local->num_tokens) {
    local->tokens.Append(sequence.token_ids[local->num_tokens]);
    ++num_local_tokens_;
  }
}

void SuffixDrafter::MoveCursor(const DraftSequence& sequence,
                               const Generation& generation,
                               Cursor* cursor) const {
  const size_t size = sequence.token_ids.size();
  const size_t depth = options_.max_tree_depth;
  if (cursor->serial_no != generation.serial_no ||
      cursor->num_tokens + depth < size) {
    cursor->serial_no = generation.serial_no;
    cursor->num_tokens = size > depth ? size - depth : 0;
    cursor->match = {};
  }
  for (; cursor->num_tokens < size; ++cursor->num_tokens) {
    cursor->match = generation.answers.Extend(
        cursor->match, sequence.token_ids[cursor->num_tokens],
        options_.max_tree_depth);
  }
}

void SuffixDrafter::GuessFrom(const SuffixAutomaton& automaton,
                              SuffixMatch match, int max_drafts, Guess* best) {
  for (int i = 0; i < kMaxContexts && match.length > 0; ++i) {
    const int length = std::min(match.length, options_.max_tree_depth);
    const int limit =
        std::min(max_drafts, static_cast<int>(options_.max_spec_factor *
                                              static_cast<float>(length)));
    guess_.token_ids.clear();
    guess_.probabilities.clear();
    guess_.cells.clear();
    guess_.score = 0;
    int32_t state = match.state;
    float chance = 1;
    int32_t token = 0;
    float share = 0;
    while (static_cast<int>(guess_.token_ids.size()) < limit &&
           automaton.Follow(&state, &token, &share)) {
      const uint8_t cell = MatchRecord::CellOf(
          match.length + static_cast<int>(guess_.token_ids.size()), share);
      const float probability = record_.ProbabilityOf(cell);
      chance *= probability;
      if (chance < options_.min_token_prob) break;
      guess_.token_ids.push_back(token);
      guess_.probabilities.push_back(probability);
      guess_.cells.push_back(cell);
      guess_.score += chance;
    }
    if (guess_.score > best->score) std::swap(guess_, *best);
    match = automaton.Shorten(match);
  }
}

absl::Status SuffixDrafter::Propose(absl::Span<const DraftSequence> sequences,
                                    absl::Span<Draft> drafts) {
  for (size_t i = 0; i < sequences.size(); ++i) {
    const DraftSequence& sequence = sequences[i];
    std::unique_ptr<Local>& local = locals_[sequence.sequence_id];
    if (local == nullptr) local = std::make_unique<Local>();
    record_.Learn(sequence.token_ids, &local->proposal);
    CatchUp(sequence, local.get());
    best_.token_ids.clear();
    best_.probabilities.clear();
    best_.cells.clear();
    best_.score = 0;
    if (local->has_index) {
      GuessFrom(local->tokens, local->tokens.EndMatch(),
                sequence.max_num_drafts, &best_);
    }
    const auto it = recent_of_.find(sequence.cache_namespace);
    if (it != recent_of_.end()) {
      const Recent& recent = *it->second;
      recent_.splice(recent_.begin(), recent_, it->second);
      int cursor_idx = 0;
      for (const Generation* generation :
           {recent.current.get(), recent.previous.get()}) {
        Cursor* cursor = &local->cursors[cursor_idx++];
        if (generation == nullptr) continue;
        MoveCursor(sequence, *generation, cursor);
        GuessFrom(generation->answers, cursor->match, sequence.max_num_drafts,
                  &best_);
      }
    }
    local->proposal.position = sequence.token_ids.size();
    local->proposal.token_ids = best_.token_ids;
    local->proposal.cells = best_.cells;
    drafts[i].token_ids.assign(best_.token_ids.begin(), best_.token_ids.end());
    drafts[i].probabilities.assign(best_.probabilities.begin(),
                                   best_.probabilities.end());
  }
  return absl::OkStatus();
}

void SuffixDrafter::Forget(Generation* generation) {
  if (generation != nullptr) {
    num_cached_tokens_ -= generation->answers.num_tokens();
  }
}

SuffixDrafter::Recent* SuffixDrafter::UseNamespace(absl::string_view name) {
  const auto it = recent_of_.find(name);
  if (it != recent_of_.end()) {
    recent_.splice(recent_.begin(), recent_, it->second);
  } else {
    recent_.emplace_front();
    recent_.front().name = std::string(name);
    recent_of_.emplace(recent_.front().name, recent_.begin());
  }
  return &recent_.front();
}

void SuffixDrafter::CountBytes(Recent* recent) {
  using Entry = decltype(recent_of_)::value_type;
  // A node of the list, and an entry of a table that is half full.
  int64_t num_bytes = kHeapBytes + 2 * sizeof(void*) + sizeof(Recent) +
                      2 * (sizeof(Entry) + 1) + kHeapBytes +
                      recent->name.capacity();
  for (const Generation* generation :
       {recent->current.get(), recent->previous.get()}) {
    if (generation == nullptr) continue;
    num_bytes +=
        kHeapBytes + sizeof(Generation) + generation->answers.num_heap_bytes();
  }
  num_cached_bytes_ += num_bytes - recent->num_bytes;
  recent->num_bytes = num_bytes;
}

void SuffixDrafter::ForgetOldestNamespace() {
  Recent& oldest = recent_.back();
  Forget(oldest.previous.get());
  Forget(oldest.current.get());
  num_cached_bytes_ -= oldest.num_bytes;
  recent_of_.erase(oldest.name);
  recent_.pop_back();
}

void SuffixDrafter::End(uint64_t sequence_id,
                        absl::Span<const int32_t> token_ids,
                        int32_t num_prompt_tokens,
                        absl::string_view cache_namespace) {
  if (const auto it = locals_.find(sequence_id); it != locals_.end()) {
    record_.Learn(token_ids, &it->second->proposal);
    num_local_tokens_ -= it->second->tokens.num_tokens();
    locals_.erase(it);
  }
  absl::Span<const int32_t> answer = token_ids.subspan(num_prompt_tokens);
  // Of an answer that would fill the memory the end is as good as all of it.
  const size_t max_size = options_.max_cached_tokens / 4;
  if (answer.size() > max_size) answer.remove_prefix(answer.size() - max_size);
  if (options_.max_cached_requests <= 0 || answer.empty()) return;
  Recent* const recent = UseNamespace(cache_namespace);
  if (recent->current != nullptr &&
      (recent->current->num_requests >=
           std::max(1, options_.max_cached_requests / 2) ||
       recent->current->answers.num_tokens() +
               static_cast<int64_t>(answer.size()) >
           options_.max_cached_tokens / 4)) {
    Forget(recent->previous.get());
    recent->previous = std::move(recent->current);
  }
  if (recent->current == nullptr) {
    recent->current = std::make_unique<Generation>();
    recent->current->serial_no = next_serial_no_++;
  }
  ++recent->current->num_requests;
  recent->current->answers.BeginSequence();
  for (int32_t token : answer) recent->current->answers.Append(token);
  num_cached_tokens_ += static_cast<int64_t>(answer.size());
  CountBytes(recent);
  // This namespace is the last to go.
  while (num_cached_tokens_ > options_.max_cached_tokens ||
         num_cached_bytes_ > options_.max_cached_bytes) {
    ForgetOldestNamespace();
  }
}

}  // namespace quire
