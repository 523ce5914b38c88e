// Bugs that a test build can switch on one at a time, so that the simulation
// (tests/engine_simulation) can prove that it would see them.
//
// In every other build HasPlantedBug is a constant false and leaves no code. A
// library that asks is built twice (planted_bug.bzl); the variant with the bugs
// is for tests only.
#ifndef QUIRE_ENGINE_BASE_PLANTED_BUG_H_
#define QUIRE_ENGINE_BASE_PLANTED_BUG_H_

#include <cstdint>

namespace quire {

// Named for what goes wrong. tests/engine_simulation/planted_bugs.cc says what
// has to notice.
enum class PlantedBug : uint8_t {
  kNone,
  // Blocks.
  kMissingDecref,            // A table's last block is never released.
  kDoubleRelease,            // Its first block is released twice.
  kAppendOffByOne,           // A table grows one position too late.
  kHitsNotReferenced,        // New blocks are taken before the hits are held.
  kEvictableHitsNotCounted,  // Hits count as available besides.
  // Prefix cache.
  kHitAllPromptTokens,      // Nothing is left to compute logits from.
  kNamespaceIgnored,        // Namespaces share blocks.
  kStaleEntryUsed,          // An entry of a block's earlier content counts.
  kChildrenNotEvicted,      // What hangs below an evicted block stays.
  kHashNotErased,           // An evicted block is still found.
  kPartialBlockCached,      // One position short of full.
  kUncollectedBlockCached,  // Contents of steps to come.
  kFailedStepCached,        // Contents of a step that failed.
  kDistrustForgotten,       // Blocks with a NaN stay in the cache.
  // Choices of one request.
  kCopyForgotten,       // The partial block of a fork is left as it was.
  kPartialBlockShared,  // Or shared instead.
  kCopySourceReleased,  // Given back while the copy is in flight.
  // Scheduling.
  kReleaseInFlight,  // Blocks given back under a step in flight.
  kPreemptOldest,
  kPlaceLostByPreemption,  // A preempted sequence goes to the queue's end.
  kPriorityIgnored,
  kSharesNotSorted,  // After a correction of an owner's account.
  kDeadlineIgnored,
  kReserveTooLarge,   // What needs every block is never admitted.
  kComputedOffByOne,  // A hit counts for one token more.
  kBudgetOffByOne,
  kSlotLost,             // By preemption.
  kEmbedSkipsTokens,     // That an embedding of every token needs.
  kScoredTokenSkipped,   // A prompt token to be scored is taken from the cache.
  kScoresNotCounted,     // So that they are computed again.
  kEndNotForeseen,       // A row is planned beyond the length limit.
  kUnstartedMiscounted,  // An abort leaves the queue's size behind.
  // Drafts.
  kDraftsBeyondEnd,         // One more than the length limit leaves.
  kDraftsBeyondRopeSwitch,  // Computed with the wrong positions.
  kDraftsBeyondStop,        // Behind a token that ends the sequence.
  kDraftsBeyondBudget,      // One more than the step has room for.
  kDraftsOutlivePreemption,
  kRejectedCounted,         // As computed.
  kUndraftedAccepted,       // A token that is not the draft counts as accepted.
  // What the sampler is told.
  kWrongDrawKey,      // After a preemption.
  kHistoryNotResent,  // After a preemption.
  kBansNotResent,     // After a preemption.
  kSeedShared,        // By all requests without one.
  // Tokens and events.
  kMinTokensOffByOne,
  kMaxTokensOffByOne,
  kTokenAfterEnd,  // A choice that has ended gets one more.
  kLostEvent,      // Abort of a request that waits.
  kTwoTerminalEvents,
  kLastEventEarly,  // is_last before the last choice ends.
  kErrorEndsOneChoice,
  kForeignResultAccepted,  // The step number of a result is not compared.
  kFailuresNeverForgiven,  // Three failures, not three in a row.
  kNumPlantedBugs,
};

#ifdef QUIRE_SIM_BUG
// Not synchronized: set before the engine runs.
inline PlantedBug active_planted_bug = PlantedBug::kNone;
inline bool HasPlantedBug(PlantedBug bug) { return active_planted_bug == bug; }
#else
constexpr bool HasPlantedBug(PlantedBug) { return false; }
#endif

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_PLANTED_BUG_H_
