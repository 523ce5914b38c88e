// Bugs that a test build of the host communicators can switch on one at a time,
// so that their tests can prove that they would see them. Elsewhere
// HasCommunicatorBug is a constant false and leaves no code.
#ifndef QUIRE_KERNELS_COMMUNICATOR_BUG_H_
#define QUIRE_KERNELS_COMMUNICATOR_BUG_H_

#include <cstdint>

namespace quire {

enum class CommunicatorBug : uint8_t {
  kNone,
  kOwnRankFirst,        // The order of a sum depends on who computes it.
  kRoundedTwice,        // A sum of halves is rounded after each addend.
  kOneSlot,             // The next operation overwrites what a rank reads.
  kSliceLost,           // The last slice of a large sum is not computed.
  kPieceLost,           // Of what takes several pieces, the last is missing.
  kCallsNotCompared,    // Ranks that call different things get rubbish.
  kPeersNotWatched,     // A dead peer is noticed by the timeout only.
  kAbortNotTold,        // Abort ends what waits here alone.
  kMessagesNotMatched,  // A Receive takes a Send of another size.
  kNumCommunicatorBugs,
};

#ifdef QUIRE_COMMUNICATOR_BUG
// Set before the communicators run.
inline CommunicatorBug active_communicator_bug = CommunicatorBug::kNone;
inline bool HasCommunicatorBug(CommunicatorBug bug) {
  return active_communicator_bug == bug;
}
#else
constexpr bool HasCommunicatorBug(CommunicatorBug) { return false; }
#endif

}  // namespace quire

#endif  // QUIRE_KERNELS_COMMUNICATOR_BUG_H_
