// Decides how many tokens to draft, from what was accepted so far and from what
// steps have cost.
//
// A step of n tokens takes about T(n) = a + b n: the weights are read once, the
// rest grows with the tokens. Drafts make a step longer and give it more
// tokens, so they pay while tokens per second grow: with S tokens expected of
// the step, a draft that is accepted with probability g pays if
//   (S + g) / T(n + 1) > S / T(n),  that is  g > S b / T(n).
// Where a step costs the same with and without them (one request, weights read
// from memory), nearly all drafts pay; where n is so large that arithmetic
// decides, S b / T(n) comes near 1 and hardly any does. So drafting ends under
// load by itself. a and b are fitted to the steps seen last, g follows from the
// running acceptance of each sequence. (The model of the step: Leviathan et al.
// 2023, arXiv:2211.17192, section 3.5, where the cost of a step is taken as
// constant; choosing by goodput: Liu et al. 2024, arXiv:2406.14066.)
//
// A costly drafter (a model) takes time of its own, P(n) for n tokens, and has
// to know a sequence before it can draft for it: m tokens of context, once. So
// drafts have to earn P as well, and a sequence is caught up only if what they
// will save until it ends is more than P'(m): as many tokens as answers have
// had on average, or as this one has had already, which for long tails is what
// to expect. Under load a token is worth little more than a row of the step,
// and prompts would be read twice for answers that end before that is earned.
//
// Sequences differ: a free answer at a high temperature says little about the
// copy that is asked for next. So what all sequences tell a new one is a prior
// that no sequence can set alone: each weighs as its first ten verifications or
// so, however long it is. And where the mean would not pay, a costly drafter is
// still tried at the beginning of a sequence if that may be worth it, by a
// model of two kinds of sequences, good ones (drafts are accepted with
// kGoodAcceptance) and bad ones: with the chance p that this one is good, by
// Bayes' rule from what it was tried so far and from how many of the last ones
// were, a trial of kProbeDrafts has to satisfy
//   p G > kTrialMargin C,
// G the time that drafts would save until a good one ends, in the company that
// drafts now, and C the price of the trial, its context included. As p falls
// with each failure, so do trials end: at the lowest p, all of the last
// sequences being bad, they cost less than p / kTrialMargin of what drafts
// would save of a good one's time.
//
// Where drafting has stopped for good nothing would be learnt, so a small part
// of the time (kProbeShare) is spent on trying again; contexts that have to be
// caught up for it are part of the price. A price that was measured while the
// machine was cold must not stand: what was not measured again for some hundred
// steps counts as one measurement, and a probe is charged what it took.
//
// At a start other programs may take a core for longer than all the learning
// takes, and disturbances only make steps longer. So what was learnt is the
// line below which a quarter of the samples lie, whatever the rest took
// (Koenker & Bassett 1978, regression quantiles), and while drafts that are
// accepted do not pay for a few sequences, it is learnt again, from drafts in
// every other of a few steps: soon after the start, then after twice as long
// each time, until it costs kLessonShare of the time.
//
// A function of what it is told: durations are handed in, nothing is drawn at
// random. Thread-compatible: used by the engine thread only.
#ifndef QUIRE_ENGINE_SPECULATIVE_DRAFT_CONTROL_H_
#define QUIRE_ENGINE_SPECULATIVE_DRAFT_CONTROL_H_

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"

namespace quire {

// What is known of the drafts for one sequence, or for all together. Counts
// fade: each verification weighs less with every one after it.
struct DraftTrack {
  double num_tested = 0;    // Drafts that were verified, by their probability.
  double num_accepted = 0;  // Of those.
  // Steps in which drafts could have been proposed, and what they brought.
  double num_tries = 0;
  double tokens_of_tries = 0;
  int num_steps_without = 0;  // Since drafts were last verified.
  // What its next verification counts among those of all sequences.
  double weight_among_all = 1;
  // Log of how much more likely what became of its drafts is in a good
  // sequence than in a bad one; fading. And the share of it that was counted
  // as good, once one was verified.
  double evidence = 0;
  double counted_good = 0;
  bool is_counted = false;
};

// How long a step of n tokens takes, fitted to the last ones.
class StepCost {
 public:
  void Note(double num_tokens, double seconds);
  // A step has passed in which nothing may have been measured.
  void Age();
  bool is_known() const { return weight_ > 0; }
  // Seconds. Requires: is_known().
  double Of(double num_tokens) const { return base_ + slope_ * num_tokens; }
  double base() const { return base_; }
  double slope() const { return slope_; }
  // Once measured, the slope is not guessed again.
  void set_keeps_measurement() { keeps_measurement_ = true; }
  bool was_measured() const { return measured_share_ >= 0; }
  // Forgets all but the last num_samples (kMaxSamples at most), and of these
  // what the slowest three quarters took beyond the line below them. Of samples
  // of one size nothing is fitted, and nothing is forgotten.
  static constexpr int kMaxSamples = 16;
  void Relearn(int num_samples);
  // Steps of different sizes were seen, so that the slope is no guess.
  bool is_measured() const {
    return measured_share_ >= 0 && num_steps_since_measured_ < kMeasuredFor;
  }

 private:
  struct Sample {
    double num_tokens = 0;
    double seconds = 0;
  };

  void Fade(double factor);
  void Add(double num_tokens, double seconds);
  // The line with the least loss, where what lies above it counts a third of
  // what lies below; false if all samples are of one size.
  static bool FitLowLine(absl::Span<const Sample> samples, double* base,
                         double* slope);

  double weight_ = 0;  // Sums over the steps, fading.
  double sum_tokens_ = 0;
  double sum_tokens_squared_ = 0;
  double sum_seconds_ = 0;
  double sum_products_ = 0;
  double base_ = 0;
  double slope_ = 0;
  // The machine may have been busy elsewhere when it was measured.
  static constexpr int kMeasuredFor = 500;  // Steps.
  double measured_share_ = -1;  // Of the time that grew with the tokens.
  int num_steps_since_measured_ = 0;
  bool keeps_measurement_ = false;
  std::array<Sample, kMaxSamples> last_;  // A ring, by num_noted_.
  int64_t num_noted_ = 0;
};

class DraftControl {
 public:
  // max_drafts: of one sequence in one step. adapts: false drafts as much as
  // is allowed, whatever becomes of it.
  DraftControl(int max_drafts, bool adapts)
      : max_drafts_(max_drafts), adapts_(adapts) {}

  // Drafter::is_costly(). Before the first step.
  void set_is_costly(bool is_costly);

  // One sequence in a step.
  struct Candidate {
    const DraftTrack* track = nullptr;
    int max_drafts = 0;  // That could be proposed, or were.
    // Of these drafts, if the drafter gave them; else empty.
    absl::Span<const float> probabilities;
    int num_allotted = 0;  // Set by AllotDrafts.
    // For AllotProposals: Drafter::NumMissingTokens(), >= 0; tokens that the
    // sequence was given, and more that it can be given at most.
    int num_missing = 0;
    int num_generated = 0;
    int max_remaining = std::numeric_limits<int>::max();
  };

  // Another step is about to be planned, with drafts or without.
  void BeginStep();

  // Lowers max_drafts to what to ask the drafter for.
  // num_base_tokens: of the step without drafts, >= 1.
  void AllotProposals(int num_base_tokens, absl::Span<Candidate> candidates);
  // As of the last AllotProposals: a proposal ends before a draft whose chance,
  // that of all before it included, is less.
  float min_chance() const { return min_chance_; }
  // Which of the proposed drafts to verify, at most `budget` together.
  void AllotDrafts(int num_base_tokens, int budget,
                   absl::Span<Candidate> candidates);

  // Whether drafting is worth that the next step waits for the tokens of the
  // one in flight. `tracks`: of the sequences that decode.
  bool IsWorthWaiting(absl::Span<const DraftTrack* const> tracks) const;

  // What became of a try: drafts verified (perhaps none), with the drafter's
  // probabilities or none, and how many were accepted.
  void NoteResult(int num_drafts, int num_accepted,
                  absl::Span<const float> probabilities, DraftTrack* track);
  // Drafts for num_rows sequences took so long; depth: the longest asked for;
  // num_caught_up_tokens: Drafter's.
  void NoteProposals(int depth, int num_rows, int num_caught_up_tokens,
                     absl::Duration duration);
  // A step without prompts was submitted and collected.
  void NoteStep(int num_tokens, absl::Duration duration);
  // A sequence has ended with so many tokens.
  void NoteEnd(int num_generated);

  // How likely a draft of probability 1 is accepted.
  double AcceptanceOf(const DraftTrack& track) const;
  // How likely the sequence is one whose drafts are good.
  double ChanceOfGood(const DraftTrack& track) const;

 private:
  // What came of AllotToDepth, beside allotted_.
  struct Plan {
    double num_expected = 0;  // Tokens of the step.
    int num_drafts = 0;
    int num_rows = 0;  // Sequences with drafts.
    // Of contexts, each spread over the steps that its sequence will have.
    double catch_up_seconds = 0;
  };

  // Drafts less likely than this do not pay.
  double Threshold(double num_expected, int num_tokens) const;
  // Sets allotted_ to what pays, at most `depth` for each.
  Plan AllotToDepth(int depth, int num_base_tokens,
                    absl::Span<const Candidate> candidates);
  // What catching up costs in each step that the sequence will have with
  // `count` drafts that bring num_extra tokens, if that pays; else a negative
  // number.
  double CatchUpSecondsPerStep(const Candidate& candidate, int count,
                               double num_extra, int num_base_tokens) const;
  // Tokens that a sequence may still be given.
  double ExpectedRemaining(const Candidate& candidate) const;
  // While nothing is known of the costs: few drafts, where they are cheapest.
  void AllotToLearn(int num_base_tokens, absl::Span<Candidate> candidates);
  // Whether the plan is one of a lesson, which is then made: drafts for one
  // sequence, or none for comparison.
  bool AllotLesson(int num_base_tokens, absl::Span<Candidate> candidates);
  // Steps until the next lesson, after one of this sequence.
  int64_t StepsBeforeLesson(const Candidate& candidate, int num_base_tokens);
  // In steps.
  double ProbePrice(const Candidate& candidate, int num_base_tokens) const;
  // Spends credit on sequences that have not been tried for long.
  void Probe(int num_base_tokens, absl::Span<Candidate> candidates);
  // Seconds that drafts will save until the sequence ends if it is good, and
  // num_rows sequences draft together; <= 0: none.
  double GainOfGood(const Candidate& candidate, int num_rows,
                    int num_base_tokens) const;
  // Allots drafts to the sequence, of those without, that is most worth a
  // trial, if one is. One at a time: what becomes of it tells of the others.
  void Try(int num_base_tokens, absl::Span<Candidate> candidates);
  // Counts a verification among those of all sequences.
  void NoteAmongAll(double num_tested, int num_accepted, int num_rejected,
                    DraftTrack* track);

  const int max_drafts_;
  const bool adapts_;
  bool is_costly_ = false;
  StepCost step_cost_;
  StepCost proposal_cost_;  // Of one step of the drafter.
  DraftTrack all_;          // Of all sequences together.
  // Sequences whose drafts were verified, fading, and the good ones of them.
  double num_judged_ = 0;
  double num_good_ = 0;
  double probe_credit_ = 0;  // In steps; a debt if negative.
  // Of the last probe, until its step is seen: what it was charged, and what
  // the drafter took.
  double probe_charge_ = 0;
  double probe_seconds_ = 0;
  int probe_base_tokens_ = 0;
  // Answers that have ended, fading.
  double num_ended_ = 0;
  double tokens_of_ended_ = 0;
  float min_chance_ = 0;
  int64_t num_steps_ = 0;
  int64_t num_learning_plans_ = 0;  // While the costs are not measured.
  int64_t num_drafting_plans_ = 0;  // Plans that found drafts to pay.
  bool has_learnt_ = false;         // Both costs, for the first time.
  int num_lesson_plans_ = 0;        // Left of the current lesson.
  int num_lessons_ = 0;             // Since drafts have last paid for long.
  double lesson_price_ = 0;         // Of the last one, in steps.
  int num_same_prices_ = 0;         // Before it, the same as its.
  int64_t next_lesson_step_ = 0;
  std::vector<int> allotted_;  // Scratch.
  std::vector<int> order_;     // Scratch.
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_DRAFT_CONTROL_H_
