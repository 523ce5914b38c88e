// What an edge drafts beyond the tokens it has heard, and how far it is worth
// going. Functions of what they are told: no clock, no thread, nothing drawn at
// random, so that the simulation of benchmarks/edge runs the same code.
#ifndef QUIRE_ENGINE_SPECULATIVE_LINK_DRAFT_AHEAD_H_
#define QUIRE_ENGINE_SPECULATIVE_LINK_DRAFT_AHEAD_H_

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"

namespace quire {

// The generated tokens of one choice: those that the cloud has drawn, followed
// by drafts. Thread-compatible.
class DraftChain {
 public:
  struct Outcome {
    int num_tested = 0;  // Drafts that were compared with what was drawn.
    int num_agreed = 0;
    bool is_broken = false;  // Drafts were dropped: draft anew from num_heard.
  };

  // The cloud has drawn `token_ids`.
  Outcome Hear(absl::Span<const int32_t> token_ids);
  // The draft model proposes `token_id` as generated token `position`, which is
  // at most tokens().size(). The cloud may have been faster: then it is
  // compared only.
  Outcome Extend(int64_t position, int32_t token_id);

  // Heard and drafted.
  absl::Span<const int32_t> tokens() const { return tokens_; }
  int64_t num_heard() const { return num_heard_; }
  int64_t num_ahead() const { return tokens_.size() - num_heard_; }
  // Grows whenever drafts were dropped: LinkDrafts::chain_no.
  uint32_t chain_no() const { return chain_no_; }

 private:
  std::vector<int32_t> tokens_;
  int64_t num_heard_ = 0;
  uint32_t chain_no_ = 0;
};

// How far to draft ahead, from what the link, the cloud and the draft model
// take and how often drafts agree.
//
// A chain that is begun when the edge hears of a correction has a race to run.
// The cloud draws a token every s seconds meanwhile, the edge drafts one every
// d, and a draft is under way for a round trip r (the correction's way here and
// the draft's way back). The n-th draft comes in time if the cloud has not
// reached its place by then: r + n d < n s, so only drafts beyond
//   n0 = r / (s - d)
// can be of use, and only if all n0 before them agree, which happens with
// probability a^n0. Where that is rare (or d >= s: the edge is slower than the
// cloud) the cloud is faster alone, so nothing is drafted but for a trial now
// and then, and the link carries tokens only. This decides about the edge's
// work and the bytes on the link; how many of the drafts that came are worth a
// row of the cloud's step is decided there (draft_control.h), so a wrong guess
// here costs no token any time. Thread-compatible.
class DraftAheadPolicy {
 public:
  // max_drafts: of one step of the cloud (LinkPeer::max_drafts).
  explicit DraftAheadPolicy(int max_drafts) : max_drafts_(max_drafts) {}

  void NoteRoundTrip(absl::Duration round_trip);
  // Between two messages of the cloud about the same choice.
  void NoteStep(absl::Duration interval);
  // The draft model took so long for a token.
  void NoteDraft(absl::Duration per_token);
  void NoteOutcome(const DraftChain::Outcome& outcome);

  // How many drafts to have beyond what was heard; 0: none. A chain that is
  // begun asks once (is_beginning), and goes on as the answer was.
  int NumAhead(bool is_beginning);

  // Figures, for logs and tests.
  double acceptance() const;
  double num_late() const;  // n0; infinite if no draft can be in time.

 private:
  // Chains that are likely to be of no use are begun once in so many.
  static constexpr int kTrialInterval = 16;
  // Chance that a chain outlives n0 below which it is not worth the work.
  static constexpr double kMinChance = 0.05;

  int max_drafts_;
  double round_trip_ = 0;  // Seconds, as the next two; running means.
  double step_ = 0;
  double draft_ = 0;
  double num_tested_ = 0;  // Fading counts.
  double num_agreed_ = 0;
  int num_skipped_ = 0;
  bool is_trial_ = false;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_LINK_DRAFT_AHEAD_H_
