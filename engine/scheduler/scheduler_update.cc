// What becomes of a step: its tokens, aborts and failures.
#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/planted_bug.h"
#include "engine/base/status.h"
#include "engine/scheduler/scheduler.h"

namespace quire {

absl::Status Scheduler::Update(StepResult&& result, absl::Time now,
                               std::vector<OutputEvent>* events) {
  QUIRE_CHECK(!steps_.empty());
  InFlightStep step = std::move(steps_.front());
  steps_.pop_front();
  size_t num_results = 0;
  for (const InFlightRow& row : step.rows) num_results += row.has_result();
  bool is_valid = (result.step_id == step.step_id ||
                   HasPlantedBug(PlantedBug::kForeignResultAccepted)) &&
                  result.rows.size() == num_results;
  if (is_valid) {
    size_t row_idx = 0;
    for (const InFlightRow& row : step.rows) {
      if (!row.has_result()) continue;
      const SampledRow& sampled = result.rows[row_idx++];
      is_valid &= sampled.slot == row.sequence->slot;
      is_valid &= sampled.non_finite ||
                  static_cast<int>(sampled.scored.size()) == row.num_scored;
    }
  }
  if (!is_valid) {
    const absl::Status error = absl::InternalError(absl::StrCat(
        "result of step ", result.step_id, " with ", result.rows.size(),
        " rows does not fit step ", step.step_id, " with ", num_results));
    FailRows(std::move(step), error, now, events);
    return error;
  }
  NoteStepTime(step, now);
  size_t row_idx = 0;
  for (const InFlightRow& row : step.rows) {
    SampledRow* sampled = row.has_result() ? &result.rows[row_idx++] : nullptr;
    ApplyRow(row, sampled, now, events);
  }
  step.rows.clear();
  spare_steps_.push_back(std::move(step));
  CompactQueues();
  return absl::OkStatus();
}

void Scheduler::ApplyRow(const InFlightRow& row, SampledRow* sampled,
                         absl::Time now, std::vector<OutputEvent>* events) {
  Sequence* sequence = row.sequence;
  RequestState* request = sequence->request;
  --sequence->num_inflight_rows;
  --request->num_inflight_rows;
  if (row.needs_token) --sequence->num_pending_tokens;
  if (row.num_drafts > 0) {
    // Until it is known which of them stay.
    sequence->num_pending_drafts = 0;
    sequence->num_submitted_tokens -= row.num_drafts;
  }
  // The token of a sequence that has ended meanwhile is dropped.
  if ((sequence->state != SequenceState::kFinished ||
       HasPlantedBug(PlantedBug::kTokenAfterEnd)) &&
      row.num_tokens > 0) {
    if (sampled != nullptr && sampled->non_finite) {
      if (TakeTokensBeforeFault(row, sampled, now, events)) {
        FailRequest(request,
                    absl::InternalError(absl::StrCat(
                        "the model's output at position ",
                        PositionOfFault(row, *sampled), " is not finite")),
                    now, events);
      }
    } else {
      sequence->num_computed_tokens =
          row.first_position + row.num_tokens -
          (HasPlantedBug(PlantedBug::kRejectedCounted) ? 0 : row.num_drafts);
      NotePrefilled(*sequence);
      cache_->CacheFull(
          sequence->token_ids,
          request->cache_namespaces[sequence->is_beyond_rope_switch],
          sequence->num_computed_tokens, &sequence->blocks);
      if (sampled != nullptr) ApplyResult(row, sampled, now, events);
    }
  }
  if (sequence->state != SequenceState::kRunning) {
    ReleaseHoldingsIfUnused(sequence);
  }
  EraseRequestIfDone(request);
}

void Scheduler::NotePrefilled(const Sequence& sequence) {
  RequestState* request = sequence.request;
  const int num_prefilled =
      std::min(sequence.num_computed_tokens, sequence.num_prompt_tokens);
  if (num_prefilled <= request->num_prefilled_tokens) return;
  counters_.num_prefilled_tokens +=
      num_prefilled - request->num_prefilled_tokens;
  request->num_prefilled_tokens = num_prefilled;
}

void Scheduler::ApplyResult(const InFlightRow& row, SampledRow* sampled,
                            absl::Time now, std::vector<OutputEvent>* events) {
  Sequence* sequence = row.sequence;
  RequestState* request = sequence->request;
  OutputEvent event = MakeEvent(*sequence, now);
  if (request->request.kind == RequestKind::kEmbed) {
    if (sampled->embedding.empty()) {
      FailRequest(request, absl::InternalError("the model made no embedding"),
                  now, events);
      return;
    }
    event.embedding = std::move(sampled->embedding);
    FinishSequence(sequence, FinishReason::kStop, std::move(event), events);
    return;
  }
  if (row.num_scored > 0 && !HasPlantedBug(PlantedBug::kScoresNotCounted)) {
    request->num_scored_tokens =
        row.first_position + row.num_tokens - (row.needs_token ? 1 : 0);
  }
  if (sampled->all_masked) {
    if (!TakeTokensBeforeFault(row, sampled, now, events)) return;
    // The caller's own doing: what it allows and what it forbids.
    FailRequest(
        request,
        absl::InvalidArgumentError(absl::StrCat(
            "no token is allowed at position ", PositionOfFault(row, *sampled),
            ": the request's parameters forbid them all")),
        now, events);
    return;
  }
  for (const TokenOutput& token : sampled->scored) {
    if (IsInVocabulary(token)) continue;
    FailRequest(request, absl::InternalError("the model scored no valid token"),
                now, events);
    return;
  }
  event.prompt_tokens = std::move(sampled->scored);
  if (!row.needs_token) {
    events->push_back(std::move(event));
  } else if (AreValidTokens(row, sampled->tokens)) {
    AcceptTokens(row, absl::MakeSpan(sampled->tokens),
                 static_cast<int>(sampled->tokens.size()) - 1, std::move(event),
                 events);
  } else {
    FailRequest(request, absl::InternalError("the model drew no valid token"),
                now, events);
  }
}

int Scheduler::PositionOfFault(const InFlightRow& row,
                               const SampledRow& sampled) {
  return row.first_position + row.num_tokens - row.num_drafts +
         static_cast<int>(sampled.tokens.size());
}

bool Scheduler::TakeTokensBeforeFault(const InFlightRow& row,
                                      SampledRow* sampled, absl::Time now,
                                      std::vector<OutputEvent>* events) {
  const size_t num_tokens = sampled->tokens.size();
  if (num_tokens <= size_t(row.num_drafts) &&
      AreValidTokens(row, sampled->tokens)) {
    // The fault is in the place of the token after them.
    AcceptTokens(row, absl::MakeSpan(sampled->tokens),
                 static_cast<int>(num_tokens), MakeEvent(*row.sequence, now),
                 events);
  }
  return row.sequence->state != SequenceState::kFinished;
}

bool Scheduler::IsInVocabulary(const TokenOutput& token) const {
  const auto is_in = [this](int32_t id) {
    return id >= 0 && id < options_.vocab_size;
  };
  return is_in(token.token_id) &&
         std::all_of(
             token.top_logprobs.begin(), token.top_logprobs.end(),
             [&](const TopLogprob& top) { return is_in(top.token_id); });
}

bool Scheduler::AreValidTokens(const InFlightRow& row,
                               absl::Span<const TokenOutput> tokens) const {
  const size_t num_tokens = tokens.size();
  if (num_tokens < 1 || num_tokens > size_t(row.num_drafts) + 1) return false;
  const std::vector<int32_t>& drafts = row.sequence->draft.token_ids;
  for (size_t i = 0; i < num_tokens; ++i) {
    if (!IsInVocabulary(tokens[i])) return false;
    const int32_t id = tokens[i].token_id;
    // What the cache holds behind the row's first token are the drafts.
    if (i + 1 < num_tokens && id != drafts[i] &&
        !HasPlantedBug(PlantedBug::kUndraftedAccepted)) {
      return false;
    }
  }
  return true;
}

void Scheduler::AcceptTokens(const InFlightRow& row,
                             absl::Span<TokenOutput> tokens, int num_accepted,
                             OutputEvent event,
                             std::vector<OutputEvent>* events) {
  Sequence* sequence = row.sequence;
  const RequestState& request = *sequence->request;
  NoteDrafts(row, num_accepted);
  event.num_draft_tokens = row.num_drafts;
  event.num_accepted_tokens = num_accepted;
  std::optional<FinishReason> reason;
  for (TokenOutput& token : tokens) {
    ++counters_.num_generation_tokens;
    reason = sequence->Append(token.token_id, options_.eos_token_ids,
                              &event.stop_token_id);
    event.tokens.push_back(std::move(token));
    if (reason.has_value()) break;
  }
  if (tokens.size() > 1) {
    // Accepted drafts are in the cache already, and may enter the prefix cache
    // now; the others are overwritten by what comes next. The last token counts
    // as not computed, though before a fault it is a draft, too.
    const int num_computed = static_cast<int>(tokens.size()) - 1;
    sequence->num_submitted_tokens += num_computed;
    sequence->num_computed_tokens += num_computed;
    cache_->CacheFull(
        sequence->token_ids,
        request.cache_namespaces[sequence->is_beyond_rope_switch],
        std::min(sequence->num_computed_tokens, sequence->num_known_tokens()),
        &sequence->blocks);
  }
  if (reason.has_value()) {
    FinishSequence(sequence, *reason, std::move(event), events);
  } else {
    events->push_back(std::move(event));
  }
}

// ----------------------------------------------------------- Abort and errors

void Scheduler::Abort(RequestId id, int choice_idx, FinishReason reason,
                      absl::Time now, std::vector<OutputEvent>* events) {
  const auto it = requests_.find(id);
  if (it == requests_.end()) return;
  RequestState* request = it->second.get();
  for (const std::unique_ptr<Sequence>& sequence : request->sequences) {
    if (choice_idx >= 0 && sequence->choice_idx != choice_idx) continue;
    if (sequence->state == SequenceState::kFinished) continue;
    FinishSequence(sequence.get(), reason, MakeEvent(*sequence, now), events);
  }
  CompactQueues();
  EraseRequestIfDone(request);
}

void Scheduler::AbortAll(FinishReason reason, const absl::Status& error,
                         absl::Time now, std::vector<OutputEvent>* events) {
  // In order of arrival, whatever the order of the map.
  std::vector<RequestState*> requests;
  requests.reserve(requests_.size());
  for (const auto& [id, request] : requests_) requests.push_back(request.get());
  std::sort(requests.begin(), requests.end(),
            [](const RequestState* a, const RequestState* b) {
              return a->arrival_no < b->arrival_no;
            });
  for (RequestState* request : requests) {
    EndWithError(request, reason, error, now, events);
  }
  CompactQueues();
  for (RequestState* request : requests) EraseRequestIfDone(request);
}

void Scheduler::EndWithError(RequestState* request, FinishReason reason,
                             const absl::Status& error, absl::Time now,
                             std::vector<OutputEvent>* events) {
  for (const std::unique_ptr<Sequence>& sequence : request->sequences) {
    if (sequence->state == SequenceState::kFinished) continue;
    OutputEvent event = MakeEvent(*sequence, now);
    event.error = error;
    FinishSequence(sequence.get(), reason, std::move(event), events);
  }
}

void Scheduler::EndOverdue(absl::Time now, std::vector<OutputEvent>* events) {
  if (HasPlantedBug(PlantedBug::kDeadlineIgnored)) return;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const auto it = requests_.find(deadlines_.begin()->second);
    QUIRE_CHECK(it != requests_.end());
    RequestState* request = it->second.get();
    ++(request->has_started ? counters_.num_overdue_running
                            : counters_.num_overdue_waiting);
    const absl::Status error = absl::DeadlineExceededError(
        request->has_started
            ? "the request's timeout was over before its answer was complete"
            : "the request's timeout was over while it waited");
    // Erases the deadline.
    EndWithError(request, FinishReason::kError, error, now, events);
    CompactQueues();
    EraseRequestIfDone(request);
  }
}

void Scheduler::FailNewestStep(const absl::Status& error, absl::Time now,
                               std::vector<OutputEvent>* events) {
  QUIRE_CHECK(!steps_.empty());
  InFlightStep step = std::move(steps_.back());
  steps_.pop_back();
  FailRows(std::move(step), error, now, events);
}

void Scheduler::FailOldestStep(const absl::Status& error, absl::Time now,
                               std::vector<OutputEvent>* events) {
  QUIRE_CHECK(!steps_.empty());
  InFlightStep step = std::move(steps_.front());
  steps_.pop_front();
  FailRows(std::move(step), error, now, events);
}

void Scheduler::FailRows(InFlightStep step, const absl::Status& error,
                         absl::Time now, std::vector<OutputEvent>* events) {
  for (const InFlightRow& row : step.rows) {
    Sequence* sequence = row.sequence;
    RequestState* request = sequence->request;
    --sequence->num_inflight_rows;
    --request->num_inflight_rows;
    if (row.needs_token) --sequence->num_pending_tokens;
    if (row.num_drafts > 0) sequence->num_pending_drafts = 0;
    if (HasPlantedBug(PlantedBug::kFailedStepCached)) {
      cache_->CacheFull(sequence->token_ids, request->cache_namespaces[0],
                        row.first_position + row.num_tokens - row.num_drafts,
                        &sequence->blocks);
    }
    for (const std::unique_ptr<Sequence>& choice : request->sequences) {
      if (choice->state == SequenceState::kFinished) continue;
      if (HasPlantedBug(PlantedBug::kErrorEndsOneChoice) &&
          choice.get() != sequence) {
        continue;
      }
      OutputEvent event = MakeEvent(*choice, now);
      event.error = error;
      FinishSequence(choice.get(), FinishReason::kError, std::move(event),
                     events);
    }
    ReleaseHoldingsIfUnused(sequence);
    EraseRequestIfDone(request);
  }
  step.rows.clear();
  spare_steps_.push_back(std::move(step));
  CompactQueues();
}

void Scheduler::FailRequest(RequestState* request, const absl::Status& error,
                            absl::Time now, std::vector<OutputEvent>* events) {
  for (const std::unique_ptr<Sequence>& sequence : request->sequences) {
    // Before the blocks are released: nobody may find them again.
    cache_->Distrust(sequence->blocks);
  }
  for (const std::unique_ptr<Sequence>& sequence : request->sequences) {
    if (sequence->state == SequenceState::kFinished) continue;
    OutputEvent event = MakeEvent(*sequence, now);
    event.error = error;
    FinishSequence(sequence.get(), FinishReason::kError, std::move(event),
                   events);
  }
}

void Scheduler::FinishSequence(Sequence* sequence, FinishReason reason,
                               OutputEvent event,
                               std::vector<OutputEvent>* events) {
  const bool was_running = sequence->state == SequenceState::kRunning;
  sequence->Finish();
  if (is_drafting_ && sequence->has_started) {
    draft_control_.NoteEnd(sequence->num_generated_tokens());
    ended_.push_back({sequence->sequence_id(), sequence->token_ids,
                      sequence->num_prompt_tokens,
                      sequence->request->request.cache_namespace});
  }
  queues_need_compaction_ = true;
  if (was_running) {
    ++num_releasing_;
    ReleaseHoldingsIfUnused(sequence);
  }
  RequestState* request = sequence->request;
  event.finish_reason = reason;
  event.is_last = request->num_unfinished == 0 ||
                  (HasPlantedBug(PlantedBug::kLastEventEarly) &&
                   request->num_unfinished == 1);
  if (event.is_last && !request->has_started &&
      !HasPlantedBug(PlantedBug::kUnstartedMiscounted)) {
    --num_unstarted_requests_;
    num_unstarted_tokens_ -= sequence->num_prompt_tokens;
  }
  if (request->num_unfinished == 0) {
    shares_.NoteEnd(request);
    deadlines_.erase({request->request.deadline, request->request.id});
  }
  if (HasPlantedBug(PlantedBug::kTwoTerminalEvents)) events->push_back(event);
  if (HasPlantedBug(PlantedBug::kLostEvent) && !request->has_started) return;
  events->push_back(std::move(event));
}

OutputEvent Scheduler::MakeEvent(const Sequence& sequence,
                                 absl::Time now) const {
  OutputEvent event;
  event.request_id = sequence.request->request.id;
  event.choice_idx = sequence.choice_idx;
  event.num_cached_tokens = sequence.request->num_cached_tokens;
  event.time = now;
  event.scheduled_time = sequence.request->scheduled_time;
  return event;
}

}  // namespace quire
