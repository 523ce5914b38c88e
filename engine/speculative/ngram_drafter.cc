#include "engine/speculative/ngram_drafter.h"

#include <algorithm>

#include "engine/base/random.h"

namespace quire {
namespace {

// Occurrences looked at. The most recent ones come first, and a longer match
// is rarely further back.
constexpr int kMaxOccurrences = 32;

uint64_t HashBefore(absl::Span<const int32_t> token_ids, int end, int length) {
  uint64_t hash = 0;
  for (int i = end - length; i < end; ++i) {
    hash = MixBits(hash, static_cast<uint64_t>(token_ids[i]));
  }
  return hash;
}

}  // namespace

NgramIndex::NgramIndex(int min_n, int max_n) : max_n_(max_n) {
  int last = 0;
  for (const int length : {max_n, (min_n + max_n) / 2, min_n}) {
    if (length == last) continue;
    levels_.emplace_back();
    levels_.back().length = last = length;
  }
}

void NgramIndex::CatchUp(absl::Span<const int32_t> token_ids, Level* level) {
  const int size = static_cast<int>(token_ids.size());
  const int first = std::min(level->length, size);
  std::vector<int32_t>& previous_end = level->previous_end;
  if (static_cast<int>(previous_end.size()) < first) {
    previous_end.resize(first, -1);
  }
  // The end itself is looked for, and is indexed once something follows it.
  for (int end = static_cast<int>(previous_end.size()); end < size; ++end) {
    const auto [it, is_new] = level->last_end.try_emplace(
        HashBefore(token_ids, end, level->length), end);
    previous_end.push_back(is_new ? -1 : it->second);
    it->second = end;
  }
}

int NgramIndex::FindMatch(absl::Span<const int32_t> token_ids,
                          const Level& level, int* length) const {
  const int size = static_cast<int>(token_ids.size());
  if (size <= level.length) return -1;
  const auto it =
      level.last_end.find(HashBefore(token_ids, size, level.length));
  if (it == level.last_end.end()) return -1;
  int best_end = -1;
  *length = level.length - 1;
  int end = it->second;
  for (int i = 0; i < kMaxOccurrences && end >= 0; ++i) {
    int common = 0;
    while (common < std::min(max_n_, end) &&
           token_ids[end - 1 - common] == token_ids[size - 1 - common]) {
      ++common;
    }
    if (common > *length) {
      *length = common;
      best_end = end;
      if (common == max_n_) break;
    }
    end = level.previous_end[end];
  }
  return best_end;  // -1: equal hashes of different tokens.
}

int NgramIndex::Propose(absl::Span<const int32_t> token_ids, int max_drafts,
                        std::vector<int32_t>* draft) {
  const int size = static_cast<int>(token_ids.size());
  int best_end = -1;
  int length = 0;
  for (Level& level : levels_) {
    CatchUp(token_ids, &level);
    if (best_end < 0) best_end = FindMatch(token_ids, level, &length);
  }
  if (best_end < 0) return 0;
  const size_t first = draft->size();
  for (int i = best_end; i < best_end + max_drafts; ++i) {
    draft->push_back(i < size ? token_ids[i] : (*draft)[first + i - size]);
  }
  return length;
}

absl::Status NgramDrafter::Propose(absl::Span<const DraftSequence> sequences,
                                   absl::Span<Draft> drafts) {
  for (size_t i = 0; i < sequences.size(); ++i) {
    const DraftSequence& sequence = sequences[i];
    Draft& draft = drafts[i];
    Known& known =
        known_.try_emplace(sequence.sequence_id, min_n_, max_n_).first->second;
    record_.Learn(sequence.token_ids, &known.proposal);
    const int length = known.index.Propose(
        sequence.token_ids, sequence.max_num_drafts, &draft.token_ids);
    known.proposal.position = sequence.token_ids.size();
    known.proposal.token_ids = draft.token_ids;
    for (size_t k = 0; k < draft.token_ids.size(); ++k) {
      const uint8_t cell =
          MatchRecord::CellOf(length + static_cast<int>(k), 1.0f);
      known.proposal.cells.push_back(cell);
      draft.probabilities.push_back(record_.ProbabilityOf(cell));
    }
  }
  return absl::OkStatus();
}

void NgramDrafter::End(uint64_t sequence_id,
                       absl::Span<const int32_t> token_ids,
                       int32_t /*num_prompt_tokens*/,
                       absl::string_view /*cache_namespace*/) {
  const auto it = known_.find(sequence_id);
  if (it == known_.end()) return;
  record_.Learn(token_ids, &it->second.proposal);
  known_.erase(it);
}

}  // namespace quire
