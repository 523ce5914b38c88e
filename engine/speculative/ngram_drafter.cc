#include "engine/speculative/ngram_drafter.h"

#include <algorithm>

#include "engine/base/random.h"

namespace quire {
namespace {

// Occurrences looked at. The most recent ones come first, and a longer match
// is rarely further back.
constexpr int kMaxOccurrences = 32;

}  // namespace

uint64_t NgramIndex::HashBefore(absl::Span<const int32_t> token_ids,
                                int end) const {
  uint64_t hash = 0;
  for (int i = end - min_n_; i < end; ++i) {
    hash = MixBits(hash, static_cast<uint64_t>(token_ids[i]));
  }
  return hash;
}

void NgramIndex::Propose(absl::Span<const int32_t> token_ids, int max_drafts,
                         std::vector<int32_t>* draft) {
  const int size = static_cast<int>(token_ids.size());
  // The end itself is looked for, and is indexed once something follows it.
  if (static_cast<int>(previous_end_.size()) < std::min(min_n_, size)) {
    previous_end_.resize(std::min(min_n_, size), -1);
  }
  for (int end = static_cast<int>(previous_end_.size()); end < size; ++end) {
    const auto [it, is_new] =
        last_end_.try_emplace(HashBefore(token_ids, end), end);
    previous_end_.push_back(is_new ? -1 : it->second);
    it->second = end;
  }
  if (size <= min_n_) return;
  const auto it = last_end_.find(HashBefore(token_ids, size));
  if (it == last_end_.end()) return;
  int best_end = -1;
  int best_length = min_n_ - 1;
  int end = it->second;
  for (int i = 0; i < kMaxOccurrences && end >= 0; ++i) {
    int length = 0;
    while (length < std::min(max_n_, end) &&
           token_ids[end - 1 - length] == token_ids[size - 1 - length]) {
      ++length;
    }
    if (length > best_length) {
      best_length = length;
      best_end = end;
      if (length == max_n_) break;
    }
    end = previous_end_[end];
  }
  if (best_end < 0) return;  // Equal hashes of different tokens.
  const size_t first = draft->size();
  for (int i = best_end; i < best_end + max_drafts; ++i) {
    draft->push_back(i < size ? token_ids[i] : (*draft)[first + i - size]);
  }
}

absl::Status NgramDrafter::Propose(absl::Span<const DraftSequence> sequences,
                                   absl::Span<Draft> drafts) {
  for (size_t i = 0; i < sequences.size(); ++i) {
    indexes_.try_emplace(sequences[i].sequence_id, min_n_, max_n_)
        .first->second.Propose(sequences[i].token_ids,
                               sequences[i].max_num_drafts,
                               &drafts[i].token_ids);
  }
  return absl::OkStatus();
}

void NgramDrafter::End(uint64_t sequence_id,
                       absl::Span<const int32_t> /*token_ids*/,
                       int32_t /*num_prompt_tokens*/,
                       absl::string_view /*cache_namespace*/) {
  indexes_.erase(sequence_id);
}

}  // namespace quire
