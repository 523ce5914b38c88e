#include "engine/speculative/draft_control.h"

#include <algorithm>
#include <cmath>

namespace quire {
namespace {

// Each step counts 1 % less than the one after it: some 100 steps decide, so
// that a change of load or context shows within seconds.
constexpr double kStepFade = 0.99;
// With all steps of one size nothing is seen of the slope. It is then taken as
// it was when something was; at first, a quarter of the time counts as growing
// with the tokens, which lets drafting be tried. The guess weighs as much as
// steps that differ by 3 % in size; three times that is a measurement.
constexpr double kGuessedShare = 0.25;
constexpr double kGuessWeight = 1e-3;
constexpr double kMeasuredVariance = 1e-2;
constexpr double kMeasuredSteps = 8;
// Until there is one, drafts make every other step larger by so much at most.
constexpr double kUnmeasuredGrowth = 0.25;
// A step that took twice what was expected or more says that the machine was
// busy elsewhere, or that the load has changed: the latter shows in some steps.
constexpr double kMaxOutlier = 2;
// Disturbances only make steps longer (cold caches, threads that start): one
// that took half of what was expected or less says that those before it were
// disturbed, so they fade within a few more like it.
constexpr double kMinOutlier = 0.5;
constexpr double kDisturbedFade = 0.7;
// A quarter of what is learnt from lies below the line: 3 : 1.
constexpr double kLossBelow = 3;
// What was not measured again for so many steps weighs as one measurement: the
// next one then counts as much as all that is known.
constexpr double kMinAgedWeight = 1;

// A sequence is judged by its last ten verified drafts or so; to begin with, by
// what became of those of all sequences, the last ten or more of them: each
// counts for 1 / (1 - kSequenceFade) verifications at most.
constexpr double kSequenceFade = 0.9;
constexpr double kSequencePrior = 2;
constexpr double kAllFade = 0.99;
constexpr double kAllPrior = 10;
constexpr double kFirstAcceptance = 0.7;
// Two kinds of sequences. A draft model at its own task is accepted at 0.9 and
// more, and 0.3 pays nowhere; in between, an acceptance of 0.64 speaks for
// neither. Of sequences, the last twenty decide.
constexpr double kGoodAcceptance = 0.9;
constexpr double kBadAcceptance = 0.3;
constexpr double kKindPrior = 1;
constexpr double kKindFade = 0.95;
// A trial is to bring twice what it costs: one alone may not tell.
constexpr double kTrialMargin = 2;
// A sequence of which so much is known is no trial any more: if its drafts do
// not pay by what they are, they do not.
constexpr double kTrialDrafts = 4;
constexpr double kTryFade = 0.95;
constexpr double kFirstYield = 0.5;

// Drafts have to be worth more than the fit of T can be wrong.
constexpr double kMargin = 1.15;
// And where nothing is known of T yet, more likely than this.
constexpr double kUnknownThreshold = 0.3;

// Of the time, for drafts that are not expected to pay; of a sequence that had
// none for so many steps, or of any if none had some.
constexpr double kProbeShare = 0.004;
constexpr double kMaxProbeCredit = 1;
constexpr int kStepsBeforeProbe = 16;
constexpr int kProbeDrafts = 2;
constexpr double kMinProbeCost = 1e-4;
// Until costs are known, a costly drafter is tried in every other one of so
// many steps, then as often as the share allows.
constexpr int64_t kFreeLearningPlans = 64;
// A lesson: so many plans, every other one with so many drafts, of one
// sequence, in steps of at most so many tokens without them. For more sequences
// drafts bring little at best, and a context of so many tokens for each one
// that remains is dear on any machine.
constexpr int kLessonPlans = 6;
constexpr int kLessonDrafts = 3;
constexpr int kMaxLessonTokens = 4;
constexpr double kMaxLessonContext = 32;
// For drafts less likely than this nothing is learnt by them but how they fail.
constexpr double kLessonAcceptance = 0.5;
// The first ones, each after so many steps without drafts that pay, go on for
// some 200 steps, longer than a start should be disturbed; then each is twice
// as long after the one before, at most until it costs this share of the time.
constexpr int64_t kStepsBeforeLesson = 32;
constexpr int kFirstLessons = 8;
constexpr int kMaxLessonDoublings = 10;
constexpr double kMaxStepsBeforeLesson = 1e6;
constexpr double kLessonShare = 0.01;
// In steps: one that seems to cost more than this has single drafts, and if it
// seems so three times, that is believed.
constexpr double kDearLesson = 16;
constexpr double kSamePrice = 1.05;
// After so many plans with drafts that paid, lessons begin anew.
constexpr int64_t kPlansOfSuccess = 64;
// What a lesson shows about the drafter is in its last steps; of the target's
// steps, some before count as well.
constexpr int kProposalSamples = 8;
// Where drafts pay, a step without some is seen at times.
constexpr int64_t kPlansBetweenPlain = 32;

// Waiting for tokens in flight costs a few percent of a step.
constexpr double kYieldWorthWaiting = 0.1;
constexpr int64_t kStepsBetweenWaits = 64;

// Tokens of an answer, before some have ended; the last fifty decide.
constexpr double kFirstLength = 64;
constexpr double kLengthPrior = 1;
constexpr double kLengthFade = 0.98;

}  // namespace

void StepCost::Fade(double factor) {
  weight_ *= factor;
  sum_tokens_ *= factor;
  sum_tokens_squared_ *= factor;
  sum_seconds_ *= factor;
  sum_products_ *= factor;
}

void StepCost::Age() {
  if (weight_ > kMinAgedWeight) Fade(kStepFade);
}

void StepCost::Add(double num_tokens, double seconds) {
  weight_ += 1;
  sum_tokens_ += num_tokens;
  sum_tokens_squared_ += num_tokens * num_tokens;
  sum_seconds_ += seconds;
  sum_products_ += num_tokens * seconds;
}

bool StepCost::FitLowLine(absl::Span<const Sample> samples, double* base,
                          double* slope) {
  // A best line goes through two of the samples, or is bounded by the axes.
  double least = -1;
  for (size_t i = 0; i < samples.size(); ++i) {
    for (size_t j = 0; j < samples.size(); ++j) {
      const Sample& a = samples[i];
      const Sample& b = samples[j];
      if (b.num_tokens <= a.num_tokens) continue;
      double rise = (b.seconds - a.seconds) / (b.num_tokens - a.num_tokens);
      rise = std::clamp(rise, 0.0, a.seconds / a.num_tokens);
      const double start = a.seconds - rise * a.num_tokens;
      double loss = 0;
      for (const Sample& sample : samples) {
        const double above =
            sample.seconds - (start + rise * sample.num_tokens);
        loss += above > 0 ? above : -kLossBelow * above;
      }
      if (least >= 0 && loss >= least) continue;
      least = loss;
      *base = start;
      *slope = rise;
    }
  }
  return least >= 0;
}

void StepCost::Relearn(int num_samples) {
  const int count =
      static_cast<int>(std::min<int64_t>(num_samples, num_noted_));
  std::array<Sample, kMaxSamples> samples;
  for (int i = 0; i < count; ++i) {
    samples[i] = last_[(num_noted_ - 1 - i) % kMaxSamples];
  }
  double base = 0, slope = 0;
  if (!FitLowLine(absl::MakeSpan(samples).first(count), &base, &slope)) return;
  Fade(0);
  for (int i = 0; i < count; ++i) {
    const double n = samples[i].num_tokens;
    Add(n, base + slope * n);
  }
  base_ = base;
  slope_ = slope;
  if (sum_seconds_ > 0) measured_share_ = slope * sum_tokens_ / sum_seconds_;
  num_steps_since_measured_ = 0;
}

void StepCost::Note(double num_tokens, double seconds) {
  if (!(seconds > 0)) return;  // The clock went backwards.
  if (is_known()) {
    Fade(seconds < kMinOutlier * Of(num_tokens) ? kDisturbedFade : kStepFade);
    seconds = std::min(seconds, kMaxOutlier * Of(num_tokens));
  }
  last_[num_noted_++ % kMaxSamples] = {num_tokens, seconds};
  Add(num_tokens, seconds);
  const double mean_tokens = sum_tokens_ / weight_;
  const double mean_seconds = sum_seconds_ / weight_;
  const double variance =
      std::max(sum_tokens_squared_ / weight_ - mean_tokens * mean_tokens, 0.0);
  const double covariance =
      sum_products_ / weight_ - mean_tokens * mean_seconds;
  const bool has_share =
      is_measured() || (keeps_measurement_ && was_measured());
  const double share = has_share ? measured_share_ : kGuessedShare;
  ++num_steps_since_measured_;
  const double guess = share * mean_seconds / mean_tokens;
  const double guess_weight = kGuessWeight * mean_tokens * mean_tokens;
  slope_ = std::clamp(
      (covariance + guess_weight * guess) / (variance + guess_weight), 0.0,
      mean_seconds / mean_tokens);
  base_ = mean_seconds - slope_ * mean_tokens;
  if (weight_ > kMeasuredSteps &&
      variance > kMeasuredVariance * mean_tokens * mean_tokens) {
    measured_share_ = slope_ * mean_tokens / mean_seconds;
    num_steps_since_measured_ = 0;
  }
}

void DraftControl::set_is_costly(bool is_costly) {
  is_costly_ = is_costly;
  if (!is_costly) return;
  // The first probe comes sooner: at the start the machine was cold.
  probe_credit_ = kMaxProbeCredit / 2;
  // Guessing anew would mean to catch up on contexts in order to learn what is
  // known already.
  step_cost_.set_keeps_measurement();
  proposal_cost_.set_keeps_measurement();
}

double DraftControl::AcceptanceOf(const DraftTrack& track) const {
  const double of_all = (all_.num_accepted + kAllPrior * kFirstAcceptance) /
                        (all_.num_tested + kAllPrior);
  return (track.num_accepted + kSequencePrior * of_all) /
         (track.num_tested + kSequencePrior);
}

double DraftControl::ChanceOfGood(const DraftTrack& track) const {
  // Its own share counts among all, but only as one of them.
  const double good = num_good_ + kKindPrior;
  const double bad = num_judged_ - num_good_ + kKindPrior;
  return 1 / (1 + bad / good * std::exp(-track.evidence));
}

void DraftControl::BeginStep() {
  ++num_steps_;
  ++all_.num_steps_without;
  proposal_cost_.Age();
  probe_credit_ = std::min(probe_credit_ + kProbeShare, kMaxProbeCredit);
}

double DraftControl::Threshold(double num_expected, int num_tokens) const {
  if (!step_cost_.is_known()) return kUnknownThreshold;
  return kMargin * num_expected * step_cost_.slope() /
         step_cost_.Of(num_tokens);
}

double DraftControl::ExpectedRemaining(const Candidate& candidate) const {
  const double mean = (tokens_of_ended_ + kLengthPrior * kFirstLength) /
                      (num_ended_ + kLengthPrior);
  return std::min<double>(std::max<double>(mean, candidate.num_generated),
                          candidate.max_remaining);
}

double DraftControl::CatchUpSecondsPerStep(const Candidate& candidate,
                                           int count, double num_extra,
                                           int num_base_tokens) const {
  if (candidate.num_missing == 0 || !proposal_cost_.is_known()) return 0;
  const double token_seconds = step_cost_.Of(num_base_tokens) / num_base_tokens;
  const double saved_per_step =
      num_extra * token_seconds -
      count * (step_cost_.slope() + proposal_cost_.slope());
  const double num_steps = ExpectedRemaining(candidate) / (1 + num_extra);
  const double seconds = candidate.num_missing * proposal_cost_.slope();
  if (saved_per_step * num_steps <= kMargin * seconds) return -1;
  return seconds / num_steps;
}

DraftControl::Plan DraftControl::AllotToDepth(
    int depth, int num_base_tokens, absl::Span<const Candidate> candidates) {
  allotted_.assign(candidates.size(), 0);
  Plan plan;
  plan.num_expected = num_base_tokens;
  // What is allotted raises the price of the rest: three rounds come close.
  for (int round = 0; round < 3; ++round) {
    const double threshold =
        Threshold(plan.num_expected, num_base_tokens + plan.num_drafts);
    plan = Plan();
    plan.num_expected = num_base_tokens;
    for (size_t i = 0; i < candidates.size(); ++i) {
      const Candidate& candidate = candidates[i];
      const double acceptance = AcceptanceOf(*candidate.track);
      double chance = 1;
      double num_extra = 0;
      int count = 0;
      for (; count < std::min(depth, candidate.max_drafts); ++count) {
        const double probability = candidate.probabilities.empty()
                                       ? 1.0
                                       : candidate.probabilities[count];
        chance *= std::min(1.0, probability * acceptance);
        if (chance <= threshold) break;
        num_extra += chance;
      }
      allotted_[i] = 0;
      if (count == 0) continue;
      const double catch_up_seconds =
          CatchUpSecondsPerStep(candidate, count, num_extra, num_base_tokens);
      if (catch_up_seconds < 0) continue;
      allotted_[i] = count;
      plan.num_expected += num_extra;
      plan.num_drafts += count;
      ++plan.num_rows;
      plan.catch_up_seconds += catch_up_seconds;
    }
  }
  return plan;
}

void DraftControl::AllotToLearn(int num_base_tokens,
                                absl::Span<Candidate> candidates) {
  int num_left = 0;
  bool is_allowed = ++num_learning_plans_ % 2 == 1;
  // Every step may have prompts in it, and none be measured.
  if (is_allowed && num_learning_plans_ > kFreeLearningPlans) {
    is_allowed = probe_credit_ >= kMaxProbeCredit;
    if (is_allowed) probe_credit_ = 0;
  }
  if (is_allowed) {
    num_left = std::max(max_drafts_,
                        static_cast<int>(kUnmeasuredGrowth * num_base_tokens));
  }
  order_.resize(candidates.size());
  for (size_t i = 0; i < order_.size(); ++i) order_[i] = static_cast<int>(i);
  std::stable_sort(order_.begin(), order_.end(), [&](int a, int b) {
    return candidates[a].num_missing < candidates[b].num_missing;
  });
  min_chance_ = 0;
  for (const int i : order_) {
    Candidate& candidate = candidates[i];
    candidate.max_drafts = std::min(candidate.max_drafts, num_left);
    num_left -= candidate.max_drafts;
  }
}

void DraftControl::AllotProposals(int num_base_tokens,
                                  absl::Span<Candidate> candidates) {
  if (!adapts_ || !is_costly_) return;  // Proposals cost nothing.
  if (!step_cost_.was_measured() || !proposal_cost_.is_known()) {
    AllotToLearn(num_base_tokens, candidates);
    return;
  }
  if (!has_learnt_) {
    has_learnt_ = true;
    step_cost_.Relearn(StepCost::kMaxSamples);
    proposal_cost_.Relearn(kProposalSamples);
    next_lesson_step_ = num_steps_ + kStepsBeforeLesson;
  }
  if (AllotLesson(num_base_tokens, candidates)) return;
  int best_depth = 0;
  double best_rate = 0;
  for (int depth = 0; depth <= max_drafts_; ++depth) {
    const Plan plan = AllotToDepth(depth, num_base_tokens, candidates);
    if (depth > 0 && plan.num_drafts == 0) break;
    const double seconds = step_cost_.Of(num_base_tokens + plan.num_drafts) +
                           depth * proposal_cost_.Of(plan.num_rows) +
                           plan.catch_up_seconds;
    const double rate = plan.num_expected / seconds;
    if (depth == 0 || rate > (best_depth == 0 ? kMargin : 1.0) * best_rate) {
      best_rate = rate;
      best_depth = depth;
    }
  }
  if (best_depth > 0) {
    // Lessons are for where drafts do not pay.
    next_lesson_step_ =
        std::max(next_lesson_step_, num_steps_ + kStepsBeforeLesson);
    if (num_drafting_plans_ % kPlansOfSuccess == kPlansOfSuccess - 1) {
      num_lessons_ = 0;
      next_lesson_step_ = num_steps_ + kStepsBeforeLesson;
    }
  }
  // The cost of steps without drafts has to be seen now and then: of large ones
  // alone it would be a guess, and drafting could go on that does not pay.
  const bool is_plain =
      best_depth > 0 &&
      ++num_drafting_plans_ %
              (step_cost_.is_measured() ? kPlansBetweenPlain : 2) ==
          0;
  if (is_plain) best_depth = 0;
  const Plan plan = AllotToDepth(best_depth, num_base_tokens, candidates);
  // A draft more takes a token's time in the step, and a part of a proposal for
  // all sequences: it has to bring as much as steps do in that time.
  min_chance_ = 0;
  if (plan.num_drafts > 0) {
    min_chance_ = static_cast<float>(std::min(
        1.0, best_rate * (step_cost_.slope() +
                          proposal_cost_.Of(plan.num_rows) / plan.num_rows)));
  }
  for (size_t i = 0; i < candidates.size(); ++i) {
    candidates[i].num_allotted = allotted_[i];
  }
  if (!is_plain) Try(num_base_tokens, candidates);
  Probe(num_base_tokens, candidates);
  for (Candidate& candidate : candidates) {
    candidate.max_drafts = candidate.num_allotted;
  }
}

int64_t DraftControl::StepsBeforeLesson(const Candidate& candidate,
                                        int num_base_tokens) {
  const double draft_seconds = proposal_cost_.Of(1) + step_cost_.slope();
  const double price = (kLessonPlans / 2 * kLessonDrafts * draft_seconds +
                        candidate.num_missing * proposal_cost_.slope()) /
                       step_cost_.Of(num_base_tokens);
  // Disturbances are not three times the same.
  const bool is_same =
      price < kSamePrice * lesson_price_ && lesson_price_ < kSamePrice * price;
  num_same_prices_ = is_same ? num_same_prices_ + 1 : 0;
  lesson_price_ = price;
  const double paid_for =
      std::clamp(price / kLessonShare, static_cast<double>(kStepsBeforeLesson),
                 kMaxStepsBeforeLesson);
  if (price > kDearLesson && num_same_prices_ >= 2) {
    return static_cast<int64_t>(paid_for);
  }
  const int64_t doubled = kStepsBeforeLesson
                          << std::clamp(num_lessons_ - kFirstLessons + 1, 0,
                                        kMaxLessonDoublings);
  return std::min(static_cast<int64_t>(paid_for), doubled);
}

bool DraftControl::AllotLesson(int num_base_tokens,
                               absl::Span<Candidate> candidates) {
  if (num_lesson_plans_ == 0 &&
      (num_steps_ < next_lesson_step_ || num_base_tokens > kMaxLessonTokens)) {
    return false;
  }
  Candidate* chosen = nullptr;
  for (Candidate& candidate : candidates) {
    if (candidate.max_drafts == 0 ||
        candidate.num_missing >
            kMaxLessonContext * ExpectedRemaining(candidate) ||
        AcceptanceOf(*candidate.track) < kLessonAcceptance ||
        (chosen != nullptr && candidate.num_missing >= chosen->num_missing)) {
      continue;
    }
    chosen = &candidate;
  }
  if (num_lesson_plans_ == 0) {
    if (chosen == nullptr) return false;
    num_lesson_plans_ = kLessonPlans;
    ++num_lessons_;
    next_lesson_step_ =
        num_steps_ + StepsBeforeLesson(*chosen, num_base_tokens);
  } else if (--num_lesson_plans_ == 0) {
    // Its last step has been seen.
    step_cost_.Relearn(StepCost::kMaxSamples);
    proposal_cost_.Relearn(kProposalSamples);
    return false;
  }
  const int count =
      chosen == nullptr || num_lesson_plans_ % 2 != 0
          ? 0
          : std::min(chosen->max_drafts,
                     lesson_price_ > kDearLesson ? 1 : kLessonDrafts);
  for (Candidate& candidate : candidates) candidate.max_drafts = 0;
  if (chosen != nullptr) chosen->max_drafts = count;
  min_chance_ = 0;
  return true;
}

double DraftControl::GainOfGood(const Candidate& candidate, int num_rows,
                                int num_base_tokens) const {
  const double token_seconds = step_cost_.Of(num_base_tokens) / num_base_tokens;
  const double draft_seconds =
      step_cost_.slope() + proposal_cost_.Of(num_rows) / num_rows;
  double best = 0;
  double chance = 1;
  double num_extra = 0;
  for (int count = 1; count <= candidate.max_drafts; ++count) {
    chance *= kGoodAcceptance;
    num_extra += chance;
    const double saved =
        num_extra * token_seconds - kMargin * count * draft_seconds;
    best = std::max(best, saved / (1 + num_extra));
  }
  return best * ExpectedRemaining(candidate);
}

void DraftControl::Try(int num_base_tokens, absl::Span<Candidate> candidates) {
  // In the company that drafts already: that others would follow is a hope.
  const int num_rows =
      1 + static_cast<int>(std::count_if(
              candidates.begin(), candidates.end(),
              [](const Candidate& c) { return c.num_allotted > 0; }));
  Candidate* best = nullptr;
  double most = 0;
  for (Candidate& candidate : candidates) {
    if (candidate.num_allotted > 0 || candidate.max_drafts == 0 ||
        candidate.track->num_tested >= kTrialDrafts) {
      continue;
    }
    const double gain = GainOfGood(candidate, num_rows, num_base_tokens);
    const double price =
        ProbePrice(candidate, num_base_tokens) * step_cost_.Of(num_base_tokens);
    const double worth =
        ChanceOfGood(*candidate.track) * gain - kTrialMargin * price;
    if (worth <= most) continue;
    best = &candidate;
    most = worth;
  }
  if (best != nullptr) {
    best->num_allotted = std::min(best->max_drafts, kProbeDrafts);
  }
}

void DraftControl::AllotDrafts(int num_base_tokens, int budget,
                               absl::Span<Candidate> candidates) {
  for (Candidate& candidate : candidates) {
    candidate.num_allotted = candidate.max_drafts;
  }
  if (adapts_ && !is_costly_) {
    AllotToDepth(max_drafts_, num_base_tokens, candidates);
    for (size_t i = 0; i < candidates.size(); ++i) {
      candidates[i].num_allotted = allotted_[i];
    }
    Probe(num_base_tokens, candidates);
  }
  // Of a costly drafter no more was proposed.
  if (adapts_ && !is_costly_ && !step_cost_.is_measured()) {
    const int growth = std::max(
        max_drafts_, static_cast<int>(kUnmeasuredGrowth * num_base_tokens));
    budget = num_steps_ % 2 == 0 ? 0 : std::min(budget, growth);
  }
  // As deep as the budget goes for all alike; the rest of it in order.
  int depth = 0;
  int num_left = budget;
  while (depth < max_drafts_) {
    int num_deeper = 0;
    for (const Candidate& candidate : candidates) {
      num_deeper += candidate.num_allotted > depth;
    }
    if (num_deeper == 0 || num_deeper > num_left) break;
    num_left -= num_deeper;
    ++depth;
  }
  for (Candidate& candidate : candidates) {
    const int wanted = candidate.num_allotted;
    candidate.num_allotted = std::min(wanted, depth);
    if (wanted > depth && num_left > 0) {
      ++candidate.num_allotted;
      --num_left;
    }
  }
}

double DraftControl::ProbePrice(const Candidate& candidate,
                                int num_base_tokens) const {
  double price = kMinProbeCost;
  if (!step_cost_.is_known()) return price;
  const int num_drafts = std::min(candidate.max_drafts, kProbeDrafts);
  double seconds = num_drafts * step_cost_.slope();
  if (proposal_cost_.is_known()) {
    seconds += num_drafts * proposal_cost_.Of(1) +
               candidate.num_missing * proposal_cost_.slope();
  }
  return price + seconds / step_cost_.Of(num_base_tokens);
}

void DraftControl::Probe(int num_base_tokens,
                         absl::Span<Candidate> candidates) {
  for (;;) {
    Candidate* cheapest = nullptr;
    double least = 0;
    for (Candidate& candidate : candidates) {
      if (candidate.num_allotted > 0 || candidate.max_drafts == 0 ||
          (candidate.track->num_steps_without < kStepsBeforeProbe &&
           all_.num_steps_without < kStepsBeforeProbe)) {
        continue;
      }
      const double price = ProbePrice(candidate, num_base_tokens);
      if (cheapest != nullptr && price >= least) continue;
      cheapest = &candidate;
      least = price;
    }
    // However dear it is, it is tried when enough has been saved, and then paid
    // for before anything else is.
    if (cheapest == nullptr ||
        std::min(least, kMaxProbeCredit) > probe_credit_) {
      return;
    }
    probe_credit_ -= least;
    cheapest->num_allotted = std::min(cheapest->max_drafts, kProbeDrafts);
    // Of a step with other drafts it cannot be told what the probe took.
    const bool is_alone = std::count_if(candidates.begin(), candidates.end(),
                                        [](const Candidate& c) {
                                          return c.num_allotted > 0;
                                        }) == 1;
    probe_charge_ = is_alone ? least : 0;
    probe_base_tokens_ = num_base_tokens;
    probe_seconds_ = 0;
  }
}

bool DraftControl::IsWorthWaiting(
    absl::Span<const DraftTrack* const> tracks) const {
  if (tracks.empty()) return false;
  if (!adapts_ || num_steps_ % kStepsBetweenWaits == 0) return true;
  double yield = 0;
  for (const DraftTrack* track : tracks) {
    yield += (track->tokens_of_tries + kSequencePrior * kFirstYield) /
             (track->num_tries + kSequencePrior);
  }
  return yield >= kYieldWorthWaiting * static_cast<double>(tracks.size());
}

void DraftControl::NoteResult(int num_drafts, int num_accepted,
                              absl::Span<const float> probabilities,
                              DraftTrack* track) {
  track->num_tries = kTryFade * track->num_tries + 1;
  track->tokens_of_tries = kTryFade * track->tokens_of_tries + num_accepted;
  if (num_drafts == 0) {
    ++track->num_steps_without;
    return;
  }
  track->num_steps_without = 0;
  all_.num_steps_without = 0;
  // Drafts behind the first rejected one were not tested.
  const int num_tested = std::min(num_accepted + 1, num_drafts);
  // A costly drafter says when it is in doubt by ending a proposal
  // (min_chance), and how much to ask for is decided before it has said
  // anything.
  double tested = 0;
  for (int i = 0; i < num_tested; ++i) {
    tested += probabilities.empty() || is_costly_ ? 1.0 : probabilities[i];
  }
  track->num_tested = kSequenceFade * track->num_tested + tested;
  track->num_accepted = kSequenceFade * track->num_accepted + num_accepted;
  NoteAmongAll(tested, num_accepted, num_tested - num_accepted, track);
}

void DraftControl::NoteAmongAll(double num_tested, int num_accepted,
                                int num_rejected, DraftTrack* track) {
  const double weight = track->weight_among_all;
  track->weight_among_all *= kSequenceFade;
  const double kept = 1 - (1 - kAllFade) * weight;
  all_.num_tested = kept * all_.num_tested + weight * num_tested;
  all_.num_accepted = kept * all_.num_accepted + weight * num_accepted;

  if (!track->is_counted) {
    track->is_counted = true;
    num_judged_ = kKindFade * num_judged_ + 1;
    num_good_ *= kKindFade;
  }
  static const double kAccepted = std::log(kGoodAcceptance / kBadAcceptance);
  static const double kRejected =
      std::log((1 - kGoodAcceptance) / (1 - kBadAcceptance));
  track->evidence = kSequenceFade * track->evidence + num_accepted * kAccepted +
                    num_rejected * kRejected;
  // Of all that are counted, this one's share alone changes; what has faded of
  // an old one is little.
  const double good = ChanceOfGood(*track);
  num_good_ =
      std::clamp(num_good_ + good - track->counted_good, 0.0, num_judged_);
  track->counted_good = good;
}

void DraftControl::NoteProposals(int depth, int num_rows,
                                 int num_caught_up_tokens,
                                 absl::Duration duration) {
  if (depth < 1 || num_rows < 1) return;
  const double seconds = absl::ToDoubleSeconds(duration);
  if (probe_charge_ > 0) probe_seconds_ = std::max(seconds, 0.0);
  // One step of the drafter for each draft; contexts make the first one longer.
  // Both cost and tokens are taken of the mean of them, which is as good for
  // the fit of a line.
  proposal_cost_.Note(
      num_rows + static_cast<double>(num_caught_up_tokens) / depth,
      seconds / depth);
}

void DraftControl::NoteEnd(int num_generated) {
  if (num_generated < 1) return;
  num_ended_ = kLengthFade * num_ended_ + 1;
  tokens_of_ended_ = kLengthFade * tokens_of_ended_ + num_generated;
}

void DraftControl::NoteStep(int num_tokens, absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  step_cost_.Note(num_tokens, seconds);
  if (probe_charge_ == 0 || num_tokens <= probe_base_tokens_ || seconds <= 0) {
    return;
  }
  // The probe is paid for by what it took if that was less: its price was
  // fitted to what may have been disturbed, and a debt after it would keep it
  // so.
  const double base_seconds = step_cost_.Of(probe_base_tokens_);
  const double taken =
      kMinProbeCost +
      (probe_seconds_ + std::max(seconds - base_seconds, 0.0)) / base_seconds;
  probe_credit_ += std::max(probe_charge_ - taken, 0.0);
  probe_charge_ = 0;
}

}  // namespace quire
