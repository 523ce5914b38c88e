#include "engine/speculative/link/link_drafter.h"

#include <algorithm>

#include "engine/base/status.h"

namespace quire {

void LinkDrafter::Open(RequestId id, int n) {
  std::lock_guard<std::mutex> lock(mu_);
  const bool is_new = chains_.emplace(id, std::vector<Chain>(n)).second;
  QUIRE_CHECK(is_new);
}

void LinkDrafter::Close(RequestId id) {
  std::lock_guard<std::mutex> lock(mu_);
  chains_.erase(id);
}

void LinkDrafter::Put(RequestId id, const LinkDrafts& drafts) {
  std::lock_guard<std::mutex> lock(mu_);
  const auto found = chains_.find(id);
  if (found == chains_.end() || drafts.choice_idx < 0 ||
      drafts.choice_idx >= static_cast<int>(found->second.size())) {
    return;
  }
  Chain& chain = found->second[drafts.choice_idx];
  if (chain.chain_no == drafts.chain_no && chain.is_broken) return;
  const bool has_probabilities =
      drafts.probabilities.size() == drafts.token_ids.size();
  const bool continues =
      chain.chain_no == drafts.chain_no && !chain.token_ids.empty() &&
      chain.num_generated + static_cast<int64_t>(chain.token_ids.size()) ==
          drafts.num_generated &&
      chain.probabilities.empty() != has_probabilities;
  if (!continues) {
    chain.chain_no = drafts.chain_no;
    chain.is_broken = false;
    chain.num_generated = drafts.num_generated;
    chain.token_ids.clear();
    chain.probabilities.clear();
  }
  for (size_t i = 0; i < drafts.token_ids.size(); ++i) {
    const int32_t token_id = drafts.token_ids[i];
    if (token_id < 0 || token_id >= vocab_size_ ||
        chain.token_ids.size() >= kMaxLinkDrafts) {
      break;
    }
    chain.token_ids.push_back(token_id);
    if (has_probabilities) {
      // Also what is no number becomes one in [0, 1].
      const float p = drafts.probabilities[i];
      chain.probabilities.push_back(p > 0 ? std::min(p, 1.0f) : 0.0f);
    }
  }
}

void LinkDrafter::Advance(const DraftSequence& sequence, Chain* chain) {
  const int64_t num_generated =
      static_cast<int64_t>(sequence.token_ids.size()) -
      sequence.num_prompt_tokens;
  const int64_t num_drafts = chain->token_ids.size();
  const int64_t num_passed = num_generated - chain->num_generated;
  const int64_t num_compared = std::min(num_passed, num_drafts);
  // An edge has never heard more than there is.
  chain->is_broken = num_passed < 0;
  if (!chain->is_broken) {
    const auto drawn = sequence.token_ids.subspan(sequence.num_prompt_tokens +
                                                  chain->num_generated);
    chain->is_broken =
        !std::equal(chain->token_ids.begin(),
                    chain->token_ids.begin() + num_compared, drawn.begin());
  }
  const int64_t num_dropped = chain->is_broken ? num_drafts : num_compared;
  chain->num_generated += num_dropped;
  chain->token_ids.erase(chain->token_ids.begin(),
                         chain->token_ids.begin() + num_dropped);
  if (!chain->probabilities.empty()) {
    chain->probabilities.erase(chain->probabilities.begin(),
                               chain->probabilities.begin() + num_dropped);
  }
}

absl::Status LinkDrafter::Propose(absl::Span<const DraftSequence> sequences,
                                  absl::Span<Draft> drafts) {
  asked_.clear();
  {
    std::lock_guard<std::mutex> lock(mu_);
    for (size_t i = 0; i < sequences.size(); ++i) {
      const DraftSequence& sequence = sequences[i];
      const auto found = chains_.find(sequence.request_id);
      if (found != chains_.end()) {
        Chain& chain = found->second[sequence.choice_idx];
        if (!chain.token_ids.empty()) Advance(sequence, &chain);
        const size_t count =
            std::min<size_t>(chain.token_ids.size(), sequence.max_num_drafts);
        drafts[i].token_ids.assign(chain.token_ids.begin(),
                                   chain.token_ids.begin() + count);
        if (!chain.probabilities.empty()) {
          drafts[i].probabilities.assign(chain.probabilities.begin(),
                                         chain.probabilities.begin() + count);
        }
      }
      if (drafts[i].token_ids.empty()) asked_.push_back(i);
    }
  }
  if (inner_ == nullptr || asked_.empty()) return absl::OkStatus();
  if (asked_.size() == sequences.size()) {
    return inner_->Propose(sequences, drafts);
  }
  return AskInner(sequences, drafts);
}

absl::Status LinkDrafter::AskInner(absl::Span<const DraftSequence> sequences,
                                   absl::Span<Draft> drafts) {
  inner_sequences_.clear();
  inner_drafts_.resize(asked_.size());
  for (size_t i = 0; i < asked_.size(); ++i) {
    inner_sequences_.push_back(sequences[asked_[i]]);
    inner_drafts_[i].token_ids.clear();
    inner_drafts_[i].probabilities.clear();
  }
  QUIRE_RETURN_IF_ERROR(
      inner_->Propose(inner_sequences_, absl::MakeSpan(inner_drafts_)));
  for (size_t i = 0; i < asked_.size(); ++i) {
    std::swap(drafts[asked_[i]], inner_drafts_[i]);
  }
  return absl::OkStatus();
}

}  // namespace quire
