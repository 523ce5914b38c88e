#include "engine/speculative/link/draft_ahead.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/base/status.h"
#include "engine/speculative/link/link_messages.h"

namespace quire {
namespace {

// A running mean over the last ten or so.
void Fold(absl::Duration duration, double* mean) {
  const double seconds = std::max(0.0, absl::ToDoubleSeconds(duration));
  *mean = *mean == 0 ? seconds : *mean + (seconds - *mean) / 8;
}

}  // namespace

DraftChain::Outcome DraftChain::Hear(absl::Span<const int32_t> token_ids) {
  Outcome outcome;
  for (const int32_t token_id : token_ids) {
    const int64_t place = num_heard_++;
    if (place == static_cast<int64_t>(tokens_.size())) {
      tokens_.push_back(token_id);
      continue;
    }
    ++outcome.num_tested;
    if (tokens_[place] == token_id) {
      ++outcome.num_agreed;
      continue;
    }
    tokens_.resize(place);
    tokens_.push_back(token_id);
    ++chain_no_;
    outcome.is_broken = true;
  }
  return outcome;
}

DraftChain::Outcome DraftChain::Extend(int64_t position, int32_t token_id) {
  QUIRE_CHECK(position <= static_cast<int64_t>(tokens_.size()));
  Outcome outcome;
  if (position == static_cast<int64_t>(tokens_.size())) {
    tokens_.push_back(token_id);
    return outcome;
  }
  QUIRE_CHECK(position < num_heard_);
  outcome.num_tested = 1;
  if (tokens_[position] == token_id) {
    outcome.num_agreed = 1;
  } else {
    // Drafts that followed it would follow a token that is not there.
    tokens_.resize(num_heard_);
    ++chain_no_;
    outcome.is_broken = true;
  }
  return outcome;
}

void DraftAheadPolicy::NoteRoundTrip(absl::Duration round_trip) {
  Fold(round_trip, &round_trip_);
}

void DraftAheadPolicy::NoteStep(absl::Duration interval) {
  Fold(interval, &step_);
}

void DraftAheadPolicy::NoteDraft(absl::Duration per_token) {
  Fold(per_token, &draft_);
}

void DraftAheadPolicy::NoteOutcome(const DraftChain::Outcome& outcome) {
  if (outcome.num_tested == 0) return;
  const double fading = std::pow(0.99, outcome.num_tested);
  num_tested_ = num_tested_ * fading + outcome.num_tested;
  num_agreed_ = num_agreed_ * fading + outcome.num_agreed;
}

double DraftAheadPolicy::acceptance() const {
  // Until something is known: as published pairs of models do on the average.
  constexpr double kPriorWeight = 4;
  constexpr double kPrior = 0.7;
  return (num_agreed_ + kPrior * kPriorWeight) / (num_tested_ + kPriorWeight);
}

double DraftAheadPolicy::num_late() const {
  if (step_ == 0) return 0;  // Nothing is known yet.
  if (draft_ >= step_) return std::numeric_limits<double>::infinity();
  return round_trip_ / (step_ - draft_);
}

int DraftAheadPolicy::NumAhead(bool is_beginning) {
  if (max_drafts_ == 0) return 0;
  const double num_late = this->num_late();
  const bool is_worth_it =
      std::isfinite(num_late) && std::pow(acceptance(), num_late) >= kMinChance;
  if (is_beginning) {
    is_trial_ = false;
    if (!is_worth_it) {
      is_trial_ = ++num_skipped_ >= kTrialInterval;
      if (is_trial_) num_skipped_ = 0;
    }
  }
  if (!is_worth_it && !is_trial_) return 0;
  // Those on their way, those of the next step and those of the one after it.
  const double wanted =
      (std::isfinite(num_late) ? num_late : 0) + 2 * (max_drafts_ + 1);
  return static_cast<int>(std::clamp<double>(std::ceil(wanted), 1, 64));
}

}  // namespace quire
