// Shares the engine between owners (API keys): whose waiting request is next.
//
// Start-time fair queueing (Goyal, Vin & Cheng 1996, "Start-time Fair Queuing",
// SIGCOMM, section 2), with the cost of arXiv:2401.00588 (VTC, section 4.1): a
// computed prompt token counts 1, a generated one 2. A request gets a tag when
// it arrives: where its owner's earlier requests end, or the present virtual
// time if that is later; smaller tags go first. What a request costs is known
// at its end only, so an estimate (its prompt, and what answers of its owner
// had on average) advances the owner's account, and the error is corrected at
// the end: all live requests of the owner move by it together. Hence
//   - requests of one owner keep their order of arrival, and with one owner
//     nothing differs from arrival order;
//   - owners whose requests wait get service in proportion to their weights, up
//     to what their requests in slots cost beyond the estimates;
//   - an owner that comes back gets no credit for the time it was away, beyond
//     going before what others have in slots;
//   - a correction comes once per request, so that the order settles and the
//     first one in it always advances.
// Each priority has accounts of its own: fairness is among equals.
//
// Thread-compatible: used by the engine thread only.
#ifndef QUIRE_ENGINE_SCHEDULER_FAIR_SHARE_H_
#define QUIRE_ENGINE_SCHEDULER_FAIR_SHARE_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/sequence.h"

namespace quire {

// What of one owner and priority waits and has not started.
struct QueuedShare {
  std::string owner;
  int32_t priority = 0;
  int32_t weight = 1;
  int num_requests = 0;
  int64_t num_tokens = 0;  // Of prompts.
  int64_t num_bytes = 0;   // Request::num_bytes.
  int64_t cost = 0;        // Estimated.
  // Of an answer that has not begun, as `cost` has it; 0: not known.
  double expected_output_tokens = 0;
};

// What tokens cost an owner.
inline constexpr int64_t kPromptTokenCost = 1;
inline constexpr int64_t kOutputTokenCost = 2;

class FairShare {
 public:
  // Gives the request its account, tag and estimate. Requires: its priority is
  // set.
  void Add(RequestState* request);
  // The request starts for the first time; sets has_started.
  void NoteStart(RequestState* request);
  // All its choices have ended. Its tag stays good until Remove.
  void NoteEnd(RequestState* request);
  // Nobody will compare the request any more. Requires: NoteEnd.
  void Remove(RequestState* request);

  // Lets corrections take effect: from here on other requests may be first.
  // True if the order of what is queued may have changed.
  bool Settle();

  // Of an answer, over all owners.
  double mean_output_tokens() const { return mean_output_tokens_; }
  // Values what is queued by the answers that ended and by those that run: one
  // that has had 600 tokens and goes on tells of longer ones to come. Once per
  // step; tags stay as they are.
  void Revalue();
  // Changes with what AppendQueued would say.
  int64_t queued_version() const { return queued_version_; }
  void AppendQueued(std::vector<QueuedShare>* queued) const;

 private:
  // Of one priority.
  struct Level {
    std::map<std::string, ShareAccount> accounts;
    int64_t last_started_tag = 0;  // The largest.
    int num_live = 0;
  };

  // The tag of who comes after a while: beside the first of those that run (so
  // that those which had more give up their blocks before it), as VTC does.
  static int64_t VirtualTime(const Level& level);
  // How far service has come with those who still wait: from there on an owner
  // that comes back goes on, after its first request. A long answer that still
  // runs holds the virtual time back; it is no credit to others.
  static int64_t ServicePosition(const Level& level);
  static void Correct(ShareAccount* account);
  static void DropIdleAccounts(Level* level);
  static int64_t CostOfQueued(const ShareAccount& account);
  void LeaveQueue(RequestState* request);

  std::map<int32_t, Level> levels_;
  // Of all answers, for owners that have none yet; 128 is a paragraph.
  double mean_output_tokens_ = 128;
  bool has_pending_ = false;
  int64_t queued_version_ = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SCHEDULER_FAIR_SHARE_H_
