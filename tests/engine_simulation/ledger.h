// What the requests of a simulated history were told, held against what they
// should be told: the oracle. It sees events only, as a client does.
#ifndef QUIRE_TESTS_ENGINE_SIMULATION_LEDGER_H_
#define QUIRE_TESTS_ENGINE_SIMULATION_LEDGER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/request.h"
#include "engine/scheduler/scheduler_output.h"
#include "tests/engine_simulation/coverage.h"
#include "tests/engine_simulation/history.h"

namespace quire {

class Ledger {
 public:
  struct Choice {
    std::vector<int32_t> token_ids;
    std::optional<FinishReason> finish_reason;
    std::optional<int32_t> stop_token_id;
    bool was_aborted = false;
    bool was_stopped = false;  // Aborted with reason_is_stop.
    bool was_preempted = false;
    std::vector<float> embedding;
    int64_t admitted_step = -1;  // When it last got its blocks.
  };
  struct Entry {
    const PlannedRequest* planned = nullptr;
    Request request;
    uint64_t seed = 0;  // The request's own or the one the engine drew.
    std::vector<Choice> choices;
    bool is_doomed = false;  // A fault was injected that may end it.
    bool has_ended = false;
    bool has_fault_struck = false;
    int64_t first_step = 0;
    int64_t last_step = 0;  // By which it must have ended.
    int num_cached_tokens = -1;
    std::vector<TokenOutput> prompt_tokens;  // As scored.
    absl::Time scheduled_time;
    std::vector<int> abort_countdowns;  // Of planned->aborts; -1: done.
    std::set<uint64_t> nan_sources;     // Draw keys.
  };

  // All outlive the ledger.
  Ledger(const History* history, Coverage* coverage)
      : history_(history), coverage_(coverage) {}

  // The engine has accepted it.
  Entry* Add(const PlannedRequest& planned, const Request& request,
             uint64_t engine_seed, int64_t step);

  // Null if there is none.
  Entry* Find(RequestId id);
  // The owner of a draw key, and which choice; null if it is nobody's.
  Entry* FindByDrawKey(uint64_t draw_key, int* choice_idx);
  // What the owner of a draw key will be told, if nothing goes wrong; empty if
  // it is nobody's. Computed once.
  const std::vector<int32_t>& AnswerOf(uint64_t draw_key);
  // Without a last event, in order of arrival.
  const std::vector<Entry*>& live() const { return live_; }

  // INTERNAL "<kind>: ..." if a client should not see this. `times` are those
  // that the clock has shown since the call that returned the events began.
  absl::Status TakeEvents(const std::vector<OutputEvent>& events,
                          absl::Span<const absl::Time> times, int64_t step,
                          bool is_engine_healthy);

  // What the sampler of a slot is told must be what the request asked for and
  // what it was told so far: parameters, draw key, banned tokens, history.
  absl::Status CheckSlotStart(const SlotStart& start);

  // Those that have ended since the last call.
  std::vector<Entry*> TakeEnded() { return std::exchange(ended_, {}); }

  // The step in which the first request failed of the NaN that began in the row
  // of this draw key, if it was noticed.
  std::optional<int64_t> NoticedStep(uint64_t nan_source) const;

  // The engine's own counts must equal what was told. At quiescence only.
  absl::Status CheckCounts(int64_t num_prompt_tokens,
                           int64_t num_generation_tokens,
                           int64_t num_cache_hits, int64_t num_draft_tokens,
                           int64_t num_accepted_tokens) const;

 private:
  absl::Status TakeEvent(const OutputEvent& event,
                         absl::Span<const absl::Time> times,
                         bool is_engine_healthy);
  absl::Status TakeTokens(const OutputEvent& event, Entry* entry);
  absl::Status TakeScores(const OutputEvent& event, Entry* entry);
  absl::Status CheckScores(const Entry& entry, const HashModelAnswer& answer);
  absl::Status CheckNaturalEnd(const Entry& entry, const Choice& choice,
                               const HashModelAnswer& answer);
  // Who may be behind a newcomer may have to begin anew after it.
  void PostponeThoseBehind(const Request& newcomer, int64_t last_step);
  absl::Status CheckEnd(const OutputEvent& event, const Entry& entry,
                        const Choice& choice, bool is_engine_healthy);
  // Every one, as the oldest, needs so many steps.
  int64_t StepsNeededAlone(const Request& request) const;

  const History* const history_;
  Coverage* const coverage_;
  std::map<RequestId, std::unique_ptr<Entry>> entries_;
  std::vector<Entry*> live_;
  std::vector<Entry*> ended_;
  absl::flat_hash_map<uint64_t, std::pair<Entry*, int>> by_draw_key_;
  std::map<uint64_t, int64_t> noticed_step_;
  int64_t step_ = 0;
  int64_t num_tokens_ = 0;
  int64_t num_prompt_tokens_ = 0;
  int64_t num_cached_tokens_ = 0;
  int64_t num_draft_tokens_ = 0;
  int64_t num_accepted_tokens_ = 0;
  absl::flat_hash_map<uint64_t, std::vector<int32_t>> answers_;
};

}  // namespace quire

#endif  // QUIRE_TESTS_ENGINE_SIMULATION_LEDGER_H_
