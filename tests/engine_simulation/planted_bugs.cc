#include "tests/engine_simulation/planted_bugs.h"

namespace quire {

const std::vector<PlantedBugInfo>& AllPlantedBugs() {
  using Bug = PlantedBug;
  static const auto* const kBugs = new std::vector<PlantedBugInfo>{
      {Bug::kMissingDecref, "missing-decref", {"I2: "}},
      {Bug::kDoubleRelease, "double-release", {"check: block.ref_count"}},
      {Bug::kAppendOffByOne, "append-off-by-one", {"plan: "}},
      {Bug::kHitsNotReferenced, "hits-not-referenced", {"I6: "}},
      {Bug::kEvictableHitsNotCounted,
       "evictable-hits-not-counted",
       {"check: oldest != kNoBlock"}},
      {Bug::kHitAllPromptTokens,
       "hit-all-prompt-tokens",
       {"usage: num_cached_tokens"}},
      {Bug::kNamespaceIgnored, "namespace-ignored", {"answer: "}},
      {Bug::kStaleEntryUsed, "stale-entry-used", {"I3: the content"}},
      {Bug::kChildrenNotEvicted, "children-not-evicted", {"I3: block"}},
      {Bug::kHashNotErased, "hash-not-erased", {"I3: "}},
      {Bug::kPartialBlockCached, "partial-block-cached", {"I6: "}},
      {Bug::kUncollectedBlockCached, "uncollected-block-cached", {"I6: "}},
      {Bug::kFailedStepCached, "failed-step-cached", {"answer: "}},
      {Bug::kDistrustForgotten, "distrust-forgotten", {"contamination: "}},
      {Bug::kCopyForgotten, "copy-forgotten", {"answer: "}},
      {Bug::kPartialBlockShared, "partial-block-shared", {"I6: "}},
      {Bug::kCopySourceReleased, "copy-source-released", {"I5: block"}},
      {Bug::kReleaseInFlight, "release-in-flight", {"I5: a step in flight"}},
      {Bug::kPreemptOldest, "preempt-oldest", {"plan: "}},
      {Bug::kPlaceLostByPreemption, "place-lost-by-preemption", {"I8: "}},
      {Bug::kReserveTooLarge, "reserve-too-large", {"liveness: "}},
      {Bug::kComputedOffByOne, "computed-off-by-one", {"answer: "}},
      {Bug::kBudgetOffByOne, "budget-off-by-one", {"plan: "}},
      {Bug::kSlotLost, "slot-lost", {"I9: a slot"}},
      {Bug::kEndNotForeseen, "end-not-foreseen", {"I5: more tokens"}},
      {Bug::kUnstartedMiscounted, "unstarted-miscounted", {"leak: "}},
      {Bug::kWrongDrawKey, "wrong-draw-key", {"sampler: a draw key"}},
      {Bug::kHistoryNotResent, "history-not-resent", {"sampler: the history"}},
      {Bug::kBansNotResent, "bans-not-resent", {"sampler: other tokens"}},
      {Bug::kSeedShared, "seed-shared", {"sampler: a draw key"}},
      {Bug::kMinTokensOffByOne, "min-tokens-off-by-one", {"answer: ended"}},
      {Bug::kMaxTokensOffByOne, "max-tokens-off-by-one", {"answer: "}},
      {Bug::kTokenAfterEnd, "token-after-end", {"I9: an event"}},
      {Bug::kLostEvent, "lost-event", {"events: the abort"}},
      {Bug::kTwoTerminalEvents, "two-terminal-events", {"I9: an event"}},
      {Bug::kLastEventEarly, "last-event-early", {"I9: is_last"}},
      {Bug::kErrorEndsOneChoice, "error-ends-one-choice", {"events: request"}},
      {Bug::kForeignResultAccepted,
       "foreign-result-accepted",
       {"events: request"}},
      {Bug::kFailuresNeverForgiven, "failures-never-forgiven", {"health: "}},
  };
  return *kBugs;
}

}  // namespace quire
