// How often simulated histories reached what they are meant to reach: what is
// never reached cannot be seen to fail.
#ifndef QUIRE_TESTS_ENGINE_SIMULATION_COVERAGE_H_
#define QUIRE_TESTS_ENGINE_SIMULATION_COVERAGE_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"

namespace quire {

enum class Covered : uint8_t {
  kHistories,
  kSteps,
  kRequests,
  kRefused,
  kPreemptions,
  kUrgentPreemptions,  // Under the priority policy.
  kCachedTokens,
  kFullPoolSteps,  // No block available.
  kCopies,
  kOnDeviceRows,
  kInnerChunks,
  kMixedSteps,  // Prefill chunks beside decodes.
  kPenalizedTokens,
  kScoredTokens,
  kEmbedded,
  kEmbeddedCached,      // With a part from the prefix cache.
  kEmbeddedEveryToken,  // Which must not have one.
  kEmbeddedPreempted,
  kDraftedHistories,  // In which drafts were verified.
  kDraftTokens,
  kAcceptedTokens,
  kDrafterFailures,
  kRestarts,  // Of a sequence that had generated tokens.
  kFailedSubmits,
  kFailedCollects,
  kSpoiledResults,
  kSpoiledTokens,
  kNotFinite,
  kContaminated,  // By a NaN of another request.
  kEngineDeaths,
  kShutdowns,
  kClockJumps,
  kCheckedAlone,
  kEndedByStop,
  kEndedByStopToken,
  kEndedByLength,
  kEndedByError,
  kEndedOverdue,
  kOvertakingRows,  // Before an earlier request's, by the shares of owners.
  kAbortedWaiting,
  kAbortedPrefill,
  kAbortedDecode,
  kAbortedPreempted,
  kAbortedInFlight,
  kAbortedFinishing,
  kAbortedCollecting,
  kAbortedSingleChoice,
  kLargestBoundPercent,  // Of its liveness bound that a request took; a
                         // maximum.
  kNumCovered,
};

struct Coverage {
  static constexpr size_t kSize = static_cast<size_t>(Covered::kNumCovered);
  std::array<int64_t, kSize> counts = {};

  int64_t& operator[](Covered what) {
    return counts[static_cast<size_t>(what)];
  }
  int64_t operator[](Covered what) const {
    return counts[static_cast<size_t>(what)];
  }

  void Add(const Coverage& other) {
    const int64_t largest = std::max((*this)[Covered::kLargestBoundPercent],
                                     other[Covered::kLargestBoundPercent]);
    for (size_t i = 0; i < kSize; ++i) counts[i] += other.counts[i];
    (*this)[Covered::kLargestBoundPercent] = largest;
  }

  std::string ToString() const {
    static constexpr const char* kNames[] = {
        "histories",
        "steps",
        "requests",
        "refused",
        "preemptions",
        "under the priority policy",
        "cached tokens",
        "steps with a full pool",
        "copies of blocks",
        "rows with input on the device",
        "inner chunks",
        "mixed steps",
        "tokens under penalties",
        "prompt tokens scored",
        "embeddings",
        "with cached tokens",
        "of every token",
        "preempted on the way",
        "histories with drafts",
        "drafts",
        "accepted",
        "drafters failed",
        "restarts",
        "failed submits",
        "failed collects",
        "spoiled results",
        "spoiled tokens",
        "rows not finite",
        "contaminated",
        "engine deaths",
        "shutdowns",
        "clock jumps",
        "checked in a fresh engine",
        "ended by stop",
        "by stop token",
        "by length",
        "by error",
        "by deadline",
        "rows that overtook by share",
        "aborted waiting",
        "in prefill",
        "decoding",
        "preempted",
        "in flight",
        "finishing",
        "while collecting",
        "single choices",
        "largest percentage of the liveness bound"};
    static_assert(std::size(kNames) == kSize);
    std::string text;
    for (size_t i = 0; i < kSize; ++i) {
      absl::StrAppend(&text, i == 0 ? "" : ", ", kNames[i], " ", counts[i]);
    }
    return text;
  }
};

}  // namespace quire

#endif  // QUIRE_TESTS_ENGINE_SIMULATION_COVERAGE_H_
