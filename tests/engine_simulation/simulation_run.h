// One run of Simulate() (simulation.h): its state, and the steps it is made of.
#ifndef QUIRE_TESTS_ENGINE_SIMULATION_SIMULATION_RUN_H_
#define QUIRE_TESTS_ENGINE_SIMULATION_SIMULATION_RUN_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "engine/engine.h"
#include "tests/engine_simulation/coverage.h"
#include "tests/engine_simulation/history.h"
#include "tests/engine_simulation/ledger.h"
#include "tests/engine_simulation/simulated_drafter.h"
#include "tests/engine_simulation/simulation.h"
#include "tests/hash_model_runner.h"

namespace quire {

class Simulation {
 public:
  Simulation(const History& history, int64_t max_steps, Coverage* coverage,
             const TraceSink& trace)
      : history_(history),
        options_(history.options),
        max_steps_(max_steps),
        coverage_(*coverage),
        trace_(trace),
        ledger_(&history, coverage),
        key_of_slot_(history.options.max_num_seqs) {}

  absl::Status Run();
  int64_t num_steps() const { return num_steps_; }

 private:
  template <typename... Parts>
  static absl::Status Error(const Parts&... parts) {
    return absl::InternalError(absl::StrCat(parts...));
  }

  // A step the runner has and did not hand back yet.
  struct Flight {
    int64_t step_id = 0;
    std::optional<StepFault> fault;
    std::vector<Ledger::Entry*> entries;  // Of its rows.
  };

  // What happens between steps.
  absl::Status Arrive();
  absl::Status Submit(const PlannedRequest& planned);
  absl::Status SubmitFlawed(const PlannedRequest& planned);
  absl::Status ApplyCommotions();
  absl::Status FireAborts(bool is_collecting);
  absl::Status Abort(Ledger::Entry* entry, int choice_idx, bool is_stop);
  absl::Status ShutDown();

  // The step, and what holds after it.
  absl::Status StepOnce();
  absl::Status CheckAfterStep();
  absl::Status CheckHealth();
  absl::Status CheckQuiescent();
  absl::Status CheckDrafter();
  absl::Status CheckAlone(const Ledger::Entry& entry);

  // What the runner asks and tells.
  void SetHooks();
  absl::Status OnSubmit(const SchedulerOutput& output, bool* is_applied);
  void OnCollect();
  void OnResult(StepResult* result);
  void SpoilResult(StepFault fault, StepResult* result);
  void SpoilToken(SampledRow* row);
  int PoisonFrom(const ScheduledRow& row);
  void OnNotFinite(uint64_t draw_key, uint64_t source);
  std::optional<StepFault> NextStepFault();
  void ObservePlan(const SchedulerOutput& output, Flight* flight);

  void JumpClock(bool within_step);
  void NoteTime() { times_.push_back(clock_.Now()); }
  void NoteAdmissions();
  bool IsInState(const Ledger::Entry& entry, const PlannedAbort& abort,
                 bool is_collecting) const;
  void CountAbort(const Sequence& sequence, bool is_collecting);
  absl::Status Take(std::vector<OutputEvent> events);
  void NoteFault(absl::Status status) {
    if (hook_status_.ok()) hook_status_ = std::move(status);
  }
  template <typename... Parts>
  void Trace(const Parts&... parts) {
    if (trace_) trace_(absl::StrCat(parts...));
  }

  const History& history_;
  const EngineOptions& options_;
  const int64_t max_steps_;
  Coverage& coverage_;
  const TraceSink trace_;
  FakeClock clock_;
  Ledger ledger_;
  std::unique_ptr<HashModelRunner> runner_;
  std::unique_ptr<SimulatedDrafter> drafter_;  // Null: none.
  std::unique_ptr<Engine> engine_;
  std::vector<uint64_t> key_of_slot_;  // Draw keys.
  std::deque<Flight> flights_;
  std::optional<StepFault> collected_fault_;
  StepResult last_result_;
  std::vector<Ledger::Entry*> must_end_;  // In this step.
  std::vector<absl::Time> times_;         // Shown since the engine was called.
  absl::Status hook_status_;              // What a hook found wrong.
  bool is_collecting_ = false;
  bool is_shut_down_ = false;
  bool must_be_dead_ = false;
  int num_failures_in_a_row_ = 0;
  size_t num_arrived_ = 0;  // And the next of each other kind.
  size_t num_step_faults_ = 0;
  size_t num_jumps_ = 0;
  size_t num_commotions_ = 0;
  uint64_t num_added_ = 0;
  int64_t num_submits_ = 0;
  int64_t num_steps_ = 0;
  int64_t step_ = 0;  // Includes those skipped while nothing was to do.
};

}  // namespace quire

#endif  // QUIRE_TESTS_ENGINE_SIMULATION_SIMULATION_RUN_H_
