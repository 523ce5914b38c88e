#include "tests/engine_simulation/simulation.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "tests/engine_simulation/simulation_run.h"
#include "tests/engine_simulation/trace.h"

namespace quire {

// ------------------------------------------------------------- Between steps

absl::Status Simulation::Take(std::vector<OutputEvent> events) {
  if (trace_) {
    for (const OutputEvent& event : events) trace_(TraceOf(event));
  }
  return ledger_.TakeEvents(events, times_, step_, engine_->Health().ok());
}

absl::Status Simulation::Arrive() {
  while (num_arrived_ < history_.requests.size() &&
         history_.requests[num_arrived_].arrival_step <= step_ &&
         ledger_.live().size() < kMaxLive) {
    const PlannedRequest& planned = history_.requests[num_arrived_++];
    QUIRE_RETURN_IF_ERROR(planned.flaw == Flaw::kNone ? Submit(planned)
                                                      : SubmitFlawed(planned));
  }
  return absl::OkStatus();
}

absl::Status Simulation::Submit(const PlannedRequest& planned) {
  Request request = planned.request;
  request.arrival_time = clock_.Now();
  if (planned.timeout_micros >= 0) {
    request.deadline =
        clock_.Now() + absl::Microseconds(planned.timeout_micros);
  }
  const absl::Status status = engine_->AddRequest(request);
  if (!status.ok()) {
    return Error("events: a valid request is refused: ", status.message());
  }
  Trace("step ", step_, ": request ", request.id, " arrives");
  ledger_.Add(planned, request, MixBits(options_.random_seed, num_added_++),
              step_);
  return absl::OkStatus();
}

absl::Status Simulation::SubmitFlawed(const PlannedRequest& planned) {
  Request request = planned.request;
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
  switch (planned.flaw) {
    case Flaw::kPromptTooLong:
      request.prompt_token_ids.resize(MaxNumTokens(options_) +
                                      (request.kind == RequestKind::kEmbed));
      break;
    case Flaw::kPromptEmpty:
      request.prompt_token_ids.clear();
      break;
    case Flaw::kTokenOutside:
      request.prompt_token_ids.back() = options_.vocab_size;
      break;
    case Flaw::kIdInUse:
      if (ledger_.live().empty()) return absl::OkStatus();
      request.id = ledger_.live()[0]->request.id;
      code = absl::StatusCode::kAlreadyExists;
      break;
    default:
      request.n = 0;
  }
  ++coverage_[Covered::kRefused];
  const absl::Status status = engine_->AddRequest(request);
  if (status.code() == code) return absl::OkStatus();
  return Error("events: an invalid request gets: ", status.ToString());
}

absl::Status Simulation::ApplyCommotions() {
  while (num_commotions_ < history_.commotions.size() &&
         history_.commotions[num_commotions_].step <= step_) {
    const PlannedCommotion& commotion = history_.commotions[num_commotions_++];
    if (commotion.aborts_everything) {
      while (!ledger_.live().empty()) {
        QUIRE_RETURN_IF_ERROR(Abort(ledger_.live().front(), -1, false));
      }
      continue;
    }
    std::vector<OutputEvent> events;
    engine_->Abort(history_.requests.size() + 5, -1, false, &events);
    if (!ledger_.live().empty()) {
      engine_->Abort(ledger_.live()[0]->request.id, kMaxChoices, true, &events);
    }
    // Perhaps ended long ago, perhaps still there.
    const RequestId id = 1 + MixBits(step_, 0) % history_.requests.size();
    const Ledger::Entry* entry = ledger_.Find(id);
    if (entry == nullptr || entry->has_ended) {
      engine_->Abort(id, -1, false, &events);
    }
    if (!events.empty()) return Error("events: aborted nothing, loudly");
  }
  return absl::OkStatus();
}

bool Simulation::IsInState(const Ledger::Entry& entry,
                           const PlannedAbort& abort,
                           bool is_collecting) const {
  if ((abort.trigger == AbortTrigger::kCollecting) != is_collecting &&
      abort.trigger != AbortTrigger::kFinishing) {
    return false;
  }
  int choice_idx = abort.choice_idx;
  if (choice_idx < 0) {
    choice_idx = 0;
    while (entry.choices[choice_idx].finish_reason.has_value()) ++choice_idx;
  }
  if (choice_idx >= entry.request.n ||
      entry.choices[choice_idx].finish_reason.has_value()) {
    return false;
  }
  const Sequence* sequence =
      engine_->scheduler().FindSequence(entry.request.id, choice_idx);
  // Ended by its deadline in this step, which has not told yet?
  if (sequence == nullptr || sequence->state == SequenceState::kFinished) {
    return false;
  }
  const bool is_running = sequence->state == SequenceState::kRunning;
  switch (abort.trigger) {
    case AbortTrigger::kWaiting:
      return !is_running && !sequence->has_started;
    case AbortTrigger::kPrefill:
      return is_running && !sequence->is_decode();
    case AbortTrigger::kDecode:
      return is_running && sequence->is_decode();
    case AbortTrigger::kPreempted:
      return !is_running && sequence->has_started;
    case AbortTrigger::kFinishing:
      return sequence->num_pending_tokens > 0 && sequence->will_end();
    case AbortTrigger::kCollecting:
    case AbortTrigger::kAnyState:
      break;
  }
  return true;
}

absl::Status Simulation::FireAborts(bool is_collecting) {
  // A copy: an abort may end the request.
  const std::vector<Ledger::Entry*> live = ledger_.live();
  for (Ledger::Entry* entry : live) {
    for (size_t i = 0; i < entry->abort_countdowns.size(); ++i) {
      int& countdown = entry->abort_countdowns[i];
      const PlannedAbort& abort = entry->planned->aborts[i];
      if (countdown < 0 || entry->has_ended ||
          !IsInState(*entry, abort, is_collecting)) {
        continue;
      }
      if (countdown-- > 0) continue;
      QUIRE_RETURN_IF_ERROR(Abort(entry, abort.choice_idx, abort.is_stop));
    }
  }
  return absl::OkStatus();
}

void Simulation::CountAbort(const Sequence& sequence, bool is_collecting) {
  coverage_[Covered::kAbortedInFlight] += sequence.num_inflight_rows > 0;
  coverage_[Covered::kAbortedCollecting] += is_collecting;
  coverage_[Covered::kAbortedFinishing] +=
      sequence.num_pending_tokens > 0 && sequence.will_end();
  if (sequence.state == SequenceState::kRunning) {
    ++coverage_[sequence.is_decode() ? Covered::kAbortedDecode
                                     : Covered::kAbortedPrefill];
  } else {
    ++coverage_[sequence.has_started ? Covered::kAbortedPreempted
                                     : Covered::kAbortedWaiting];
  }
}

absl::Status Simulation::Abort(Ledger::Entry* entry, int choice_idx,
                               bool is_stop) {
  const RequestId id = entry->request.id;
  size_t num_expected = 0;
  for (int i = 0; i < entry->request.n; ++i) {
    Ledger::Choice& choice = entry->choices[i];
    if (choice_idx >= 0 && i != choice_idx) continue;
    if (choice.finish_reason.has_value()) continue;
    ++num_expected;
    (is_stop ? choice.was_stopped : choice.was_aborted) = true;
    const Sequence* sequence = engine_->scheduler().FindSequence(id, i);
    if (sequence == nullptr) return Error("leak: a live choice is lost");
    coverage_[Covered::kAbortedSingleChoice] += choice_idx >= 0;
    CountAbort(*sequence, is_collecting_);
  }
  Trace("step ", step_, ": abort of ", id,
        choice_idx < 0 ? "" : absl::StrCat(".", choice_idx));
  std::vector<OutputEvent> events;
  engine_->Abort(id, choice_idx, is_stop, &events);
  if (events.size() != num_expected) {
    return Error("events: the abort of ", num_expected, " choices gave ",
                 events.size(), " events");
  }
  return Take(std::move(events));
}

absl::Status Simulation::ShutDown() {
  is_shut_down_ = true;
  ++coverage_[Covered::kShutdowns];
  Trace("step ", step_, ": shutdown");
  for (Ledger::Entry* entry : ledger_.live()) {
    for (Ledger::Choice& choice : entry->choices) choice.was_aborted = true;
  }
  times_.clear();
  NoteTime();
  std::vector<OutputEvent> events;
  engine_->Shutdown(&events);
  must_end_.clear();  // All have, and CheckQuiescent says so.
  QUIRE_RETURN_IF_ERROR(Take(std::move(events)));
  return CheckHealth();
}

// -------------------------------------------------------- The runner's hooks

void Simulation::SetHooks() {
  runner_->fail_submit = [this](const SchedulerOutput& output,
                                bool* is_applied) {
    return OnSubmit(output, is_applied);
  };
  runner_->fail_collect = [this](int64_t) {
    return flights_.back().fault == StepFault::kCollectFails
               ? absl::InternalError("injected: collect")
               : absl::OkStatus();
  };
  runner_->on_collect = [this] { OnCollect(); };
  runner_->on_result = [this](StepResult* result) { OnResult(result); };
  runner_->poison_from = [this](const SchedulerOutput&,
                                const ScheduledRow& row) {
    return PoisonFrom(row);
  };
  runner_->on_non_finite = [this](uint64_t draw_key, uint64_t source) {
    OnNotFinite(draw_key, source);
  };
}

std::optional<StepFault> Simulation::NextStepFault() {
  const auto& faults = history_.step_faults;
  const int64_t submit_no = num_submits_++;
  while (num_step_faults_ < faults.size() &&
         faults[num_step_faults_].submit_no < submit_no) {
    ++num_step_faults_;
  }
  if (num_step_faults_ == faults.size() ||
      faults[num_step_faults_].submit_no != submit_no) {
    return std::nullopt;
  }
  return faults[num_step_faults_].fault;
}

absl::Status Simulation::OnSubmit(const SchedulerOutput& output,
                                  bool* is_applied) {
  Flight flight;
  flight.step_id = output.step_id;
  flight.fault = NextStepFault();
  ObservePlan(output, &flight);
  JumpClock(/*within_step=*/true);
  if (flight.fault.has_value()) {
    for (Ledger::Entry* entry : flight.entries) entry->is_doomed = true;
    if (*flight.fault <= StepFault::kSubmitApplied) {
      Trace("  Submit fails");
      ++coverage_[Covered::kFailedSubmits];
      *is_applied = *flight.fault == StepFault::kSubmitApplied;
      must_end_.insert(must_end_.end(), flight.entries.begin(),
                       flight.entries.end());
      must_be_dead_ |= ++num_failures_in_a_row_ >= Engine::kMaxFailuresInARow;
      return absl::InternalError("injected: submit");
    }
  }
  flights_.push_back(std::move(flight));
  return absl::OkStatus();
}

void Simulation::OnCollect() {
  if (flights_.empty()) return;  // The runner says so itself.
  if (!is_shut_down_) {
    is_collecting_ = true;
    NoteFault(FireAborts(/*is_collecting=*/true));
    is_collecting_ = false;
  }
  const Flight flight = std::move(flights_.front());
  flights_.pop_front();
  collected_fault_ = flight.fault;
  if (!flight.fault.has_value()) {
    num_failures_in_a_row_ = 0;
    return;
  }
  Trace("  the step ", flight.step_id, " fails or its result is spoiled");
  must_end_.insert(must_end_.end(), flight.entries.begin(),
                   flight.entries.end());
  ++coverage_[*flight.fault == StepFault::kCollectFails
                  ? Covered::kFailedCollects
                  : Covered::kSpoiledResults];
  must_be_dead_ |= ++num_failures_in_a_row_ >= Engine::kMaxFailuresInARow;
}

void Simulation::OnResult(StepResult* result) {
  const StepResult whole = *result;
  if (collected_fault_.has_value()) {
    SpoilResult(*collected_fault_, result);
  } else {
    for (SampledRow& row : result->rows) {
      SpoilToken(&row);
    }
  }
  last_result_ = whole;
}

void Simulation::SpoilResult(StepFault fault, StepResult* result) {
  const bool has_rows = !result->rows.empty();
  if (fault == StepFault::kResultDuplicate) {
    // Before the first one there is none: the default has step 0 and no rows.
    *result = last_result_;
    if (last_result_.rows.empty()) result->step_id = -1;
  } else if (fault == StepFault::kResultTooShort && has_rows) {
    result->rows.pop_back();
  } else if (fault == StepFault::kResultTooLong && has_rows) {
    result->rows.push_back(result->rows.back());
  } else if (fault == StepFault::kResultWrongSlot && has_rows) {
    result->rows[0].slot = (result->rows[0].slot + 1) % options_.max_num_seqs;
    if (options_.max_num_seqs == 1) result->rows[0].slot = 1;
  } else if (fault == StepFault::kResultLacksScore && has_rows &&
             !result->rows[0].scored.empty()) {
    result->rows[0].scored.pop_back();
  } else {
    ++result->step_id;
  }
}

void Simulation::SpoilToken(SampledRow* row) {
  int choice_idx = 0;
  Ledger::Entry* entry =
      ledger_.FindByDrawKey(key_of_slot_[row->slot], &choice_idx);
  if (entry == nullptr) return;
  const Ledger::Choice& choice = entry->choices[choice_idx];
  if (choice.finish_reason.has_value()) return;  // A wasted row.
  const PlannedModelFault& planned = entry->planned->fault;
  if (row->non_finite) {
    must_end_.push_back(entry);
    return;
  }
  if (planned.fault <= ModelFault::kNotFinite || entry->has_fault_struck ||
      planned.choice_idx != choice_idx) {
    return;
  }
  // The fault's place among the row's tokens.
  const int at = planned.at - static_cast<int>(choice.token_ids.size());
  if (at < 0 || at >= std::max<int>(row->tokens.size(), 1)) return;
  if (row->tokens.empty() && row->embedding.empty()) return;  // Scores only.
  Trace("  the model draws no valid token for ", entry->request.id);
  entry->has_fault_struck = true;
  entry->is_doomed = true;
  must_end_.push_back(entry);
  ++coverage_[Covered::kSpoiledTokens];
  if (row->tokens.empty()) {
    row->embedding.clear();
    return;
  }
  switch (planned.fault) {
    case ModelFault::kTokenOutside:
      row->tokens[at].token_id = options_.vocab_size;
      break;
    case ModelFault::kTokenNegative:
      row->tokens[at].token_id = -1;
      break;
    case ModelFault::kNoToken:
      row->tokens.clear();
      break;
    default:
      // None of them is a draft: the last one drawn is not.
      row->tokens.push_back(row->tokens.back());
  }
}

int Simulation::PoisonFrom(const ScheduledRow& row) {
  int choice_idx = 0;
  Ledger::Entry* entry =
      ledger_.FindByDrawKey(key_of_slot_[row.slot], &choice_idx);
  if (entry == nullptr || entry->has_fault_struck) return -1;
  const PlannedModelFault& planned = entry->planned->fault;
  if (planned.fault != ModelFault::kNotFinite ||
      planned.choice_idx != choice_idx || planned.at < row.first_position ||
      planned.at >= row.first_position + row.num_tokens) {
    return -1;
  }
  Trace("  a NaN begins at position ", planned.at, " of ", entry->request.id,
        ".", choice_idx);
  entry->has_fault_struck = true;
  return planned.at - row.first_position;
}

void Simulation::OnNotFinite(uint64_t draw_key, uint64_t source) {
  ++coverage_[Covered::kNotFinite];
  int choice_idx = 0;
  Ledger::Entry* entry = ledger_.FindByDrawKey(draw_key, &choice_idx);
  const Ledger::Entry* origin = ledger_.FindByDrawKey(source, &choice_idx);
  if (entry == nullptr) return;
  entry->is_doomed = true;
  entry->nan_sources.insert(source);
  if (origin == entry) return;
  // It came through the prefix cache. That cannot be helped if the blocks were
  // taken before anybody noticed, and must not happen after.
  ++coverage_[Covered::kContaminated];
  // A choice that began late may have taken over an earlier one's prompt.
  int64_t admitted_step = step_;
  for (const Ledger::Choice& each : entry->choices) {
    if (each.admitted_step >= 0) {
      admitted_step = std::min(admitted_step, each.admitted_step);
    }
  }
  const std::optional<int64_t> noticed = ledger_.NoticedStep(source);
  if (noticed.has_value() && admitted_step > *noticed) {
    NoteFault(Error("contamination: request ", entry->request.id,
                    " got its blocks in step ", admitted_step,
                    ", not finite since step ", *noticed));
  }
}

void Simulation::ObservePlan(const SchedulerOutput& output, Flight* flight) {
  for (const SlotStart& start : output.slot_starts) {
    key_of_slot_[start.slot] = start.draw_key;
    NoteFault(ledger_.CheckSlotStart(start));
  }
  coverage_[Covered::kCopies] += output.block_copies.size();
  bool has_decode = false;
  bool has_chunk = false;
  RequestId last_id = 0;
  std::tuple<int32_t, int64_t, RequestId, int> last_place;
  for (const ScheduledRow& row : output.rows) {
    int choice_idx = 0;
    Ledger::Entry* entry =
        ledger_.FindByDrawKey(key_of_slot_[row.slot], &choice_idx);
    if (entry != nullptr) {
      flight->entries.push_back(entry);
      // Requests arrive in the order of their ids. What the tags of owners are
      // worth is told by the tests of FairShare.
      const Sequence* sequence =
          engine_->scheduler().FindSequence(entry->request.id, choice_idx);
      const std::tuple<int32_t, int64_t, RequestId, int> place = {
          options_.scheduling_policy == SchedulingPolicy::kPriority
              ? entry->request.priority
              : 0,
          entry->request.owner.empty() || sequence == nullptr
              ? 0
              : sequence->request->tag,
          entry->request.id, choice_idx};
      coverage_[Covered::kOvertakingRows] +=
          last_id > entry->request.id &&
          std::get<0>(place) == std::get<0>(last_place);
      last_id = entry->request.id;
      if (&row != &output.rows[0] && place <= last_place) {
        NoteFault(Error("I8: the row of request ", entry->request.id,
                        " is not in its place"));
      }
      last_place = place;
    }
    coverage_[Covered::kOnDeviceRows] += row.input_on_device;
    coverage_[Covered::kInnerChunks] += !row.needs_token;
    has_decode |= row.num_tokens == 1 && row.needs_token;
    has_chunk |= row.num_tokens > 1;
  }
  coverage_[Covered::kMixedSteps] += has_decode && has_chunk;
  if (trace_) {
    trace_(absl::StrCat("step ", step_, ": ", TraceOf(output, [this](int slot) {
                          int choice_idx = 0;
                          const Ledger::Entry* entry = ledger_.FindByDrawKey(
                              key_of_slot_[slot], &choice_idx);
                          if (entry == nullptr) return absl::StrCat("?");
                          return absl::StrCat(entry->request.id, ".",
                                              choice_idx);
                        })));
  }
}

// ------------------------------------------------------------------ The step

void Simulation::JumpClock(bool within_step) {
  while (num_jumps_ < history_.jumps.size() &&
         history_.jumps[num_jumps_].step <= step_) {
    if (history_.jumps[num_jumps_].within_step && !within_step) break;
    clock_.Advance(absl::Nanoseconds(history_.jumps[num_jumps_++].nanos));
    ++coverage_[Covered::kClockJumps];
  }
  NoteTime();
}

void Simulation::NoteAdmissions() {
  for (Ledger::Entry* entry : ledger_.live()) {
    for (int i = 0; i < entry->request.n; ++i) {
      const Sequence* sequence =
          engine_->scheduler().FindSequence(entry->request.id, i);
      int64_t& admitted_step = entry->choices[i].admitted_step;
      entry->choices[i].was_preempted |=
          sequence != nullptr && sequence->has_started &&
          sequence->state == SequenceState::kWaiting;
      if (sequence == nullptr || !sequence->has_holdings()) {
        admitted_step = -1;
      } else if (admitted_step < 0) {
        admitted_step = step_;
      }
    }
  }
}

absl::Status Simulation::StepOnce() {
  ++step_;
  ++num_steps_;
  ++coverage_[Covered::kSteps];
  clock_.Advance(absl::Microseconds(1 + MixBits(history_.seed, step_) % 1000));
  times_.clear();
  JumpClock(/*within_step=*/false);
  const absl::Time began = clock_.Now();
  std::vector<OutputEvent> events;
  engine_->Step(&events);
  QUIRE_RETURN_IF_ERROR(hook_status_);
  if (!runner_->violation().empty()) {
    return Error("plan: ", runner_->violation());
  }
  QUIRE_RETURN_IF_ERROR(Take(std::move(events)));
  for (const Ledger::Entry* entry : ledger_.live()) {
    if (entry->request.deadline <= began) {
      return Error("deadline: request ", entry->request.id,
                   " outlives its own");
    }
  }
  return CheckAfterStep();
}

absl::Status Simulation::Run() {
  runner_ = std::make_unique<HashModelRunner>(options_, history_.model_options);
  SetHooks();
  if (history_.drafter.quality != DraftQuality::kNone) {
    drafter_ = std::make_unique<SimulatedDrafter>(
        history_, [this](const DraftSequence& sequence) {
          return ledger_.AnswerOf(key_of_slot_[sequence.slot]);
        });
  }
  QUIRE_ASSIGN_OR_RETURN(engine_, Engine::Create(options_, runner_.get(),
                                                 &clock_, drafter_.get()));
  ++coverage_[Covered::kHistories];
  NoteTime();
  const size_t num_requests = history_.requests.size();
  if (num_requests == 0) return absl::OkStatus();
  while (engine_->Health().ok()) {
    if (num_steps_ >= max_steps_) return absl::OkStatus();
    QUIRE_RETURN_IF_ERROR(Arrive());
    QUIRE_RETURN_IF_ERROR(ApplyCommotions());
    QUIRE_RETURN_IF_ERROR(FireAborts(/*is_collecting=*/false));
    if (history_.shutdown_delay >= 0 && num_arrived_ == num_requests &&
        step_ >=
            history_.requests.back().arrival_step + history_.shutdown_delay) {
      QUIRE_RETURN_IF_ERROR(ShutDown());
      break;
    }
    if (engine_->HasWork()) {
      QUIRE_RETURN_IF_ERROR(StepOnce());
      continue;
    }
    QUIRE_RETURN_IF_ERROR(CheckQuiescent());
    if (num_arrived_ == num_requests) break;
    step_ = std::max(step_ + 1, history_.requests[num_arrived_].arrival_step);
  }
  if (!engine_->Health().ok()) {
    ++coverage_[Covered::kEngineDeaths];
    if (!absl::IsUnavailable(
            engine_->AddRequest(history_.requests[0].request))) {
      return Error("health: a dead engine accepts requests");
    }
  }
  coverage_[Covered::kDrafterFailures] += !engine_->DrafterHealth().ok();
  const int64_t num_preemptions = engine_->Stats().num_preemptions;
  coverage_[Covered::kPreemptions] += num_preemptions;
  if (options_.scheduling_policy == SchedulingPolicy::kPriority) {
    coverage_[Covered::kUrgentPreemptions] += num_preemptions;
  }
  return CheckQuiescent();
}

std::string SignatureOf(const absl::Status& status) {
  std::string signature;
  for (char c : status.message()) {
    if (!absl::ascii_isdigit(c)) {
      signature += c;
    } else if (signature.empty() || signature.back() != '#') {
      signature += '#';
    }
  }
  return signature;
}

Outcome Simulate(const History& history, int64_t max_steps, Coverage* coverage,
                 const TraceSink& trace) {
  const int64_t num_drafts_before = (*coverage)[Covered::kDraftTokens];
  Simulation simulation(history, max_steps, coverage, trace);
  Outcome outcome;
  outcome.status = simulation.Run();
  (*coverage)[Covered::kDraftedHistories] +=
      (*coverage)[Covered::kDraftTokens] > num_drafts_before;
  outcome.num_steps = simulation.num_steps();
  return outcome;
}

}  // namespace quire
