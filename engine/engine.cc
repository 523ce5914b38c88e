#include "engine/engine.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "engine/base/planted_bug.h"
#include "engine/base/random.h"
#include "engine/base/status.h"

namespace quire {
namespace {

absl::Status CheckTokenId(absl::string_view field, int64_t index, int32_t id,
                          int vocab_size) {
  if (id >= 0 && id < vocab_size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, "[", index, "] is ", id,
                                                 ", the vocabulary has ",
                                                 vocab_size, " tokens"));
}

absl::Status CheckTokenIds(absl::string_view field,
                           absl::Span<const int32_t> ids, int vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    QUIRE_RETURN_IF_ERROR(CheckTokenId(field, i, ids[i], vocab_size));
  }
  return absl::OkStatus();
}

// Ids that the lists of a sequence may hold, at most.
int64_t NumListEntries(const EngineOptions& options,
                       const SamplingParams& sampling) {
  int64_t count = 2 * sampling.logit_bias.size() +
                  sampling.stop_token_ids.size() + options.eos_token_ids.size();
  // A list of sequences also has where each begins.
  const auto add = [&count](const auto& sequences) {
    count += 1 + sequences.size();
    for (const std::vector<int32_t>& ids : sequences) count += ids.size();
  };
  if (sampling.bad_words != nullptr) add(*sampling.bad_words);
  if (sampling.dry_breakers != nullptr) add(sampling.dry_breakers->sequences());
  return count;
}

// What the requests of a step are told that failed: INTERNAL errors are not
// shown to clients, a device or a process that is gone would be.
absl::Status AsTold(const absl::Status& error) {
  return absl::IsUnavailable(error) ? EngineHasFailed() : error;
}

}  // namespace

absl::Status ValidateRequest(const EngineOptions& options,
                             const Request& request) {
  const SamplingParams& sampling = request.sampling;
  const bool is_embed = request.kind == RequestKind::kEmbed;
  if (!(is_embed ? options.enable_embed : options.enable_generate)) {
    return absl::InvalidArgumentError(
        is_embed ? "the model does not make embeddings"
                 : "the model makes embeddings and generates no text");
  }
  if (is_embed && request.n != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("n is ", request.n, ", must be 1 for embeddings"));
  }
  if (request.n < 1 || request.n > kMaxChoices) {
    return absl::InvalidArgumentError(absl::StrCat(
        "n is ", request.n, ", must be in [1, ", kMaxChoices, "]"));
  }
  if (sampling.max_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_tokens is ", sampling.max_tokens, ", must be at least 1"));
  }
  if (sampling.min_tokens < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "min_tokens is ", sampling.min_tokens, ", must be at least 0"));
  }
  if (sampling.num_prompt_logprobs > options.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_prompt_logprobs is ", sampling.num_prompt_logprobs,
                     ", the vocabulary has ", options.vocab_size, " tokens"));
  }
  const int64_t num_prompt_tokens = request.prompt_token_ids.size();
  if (num_prompt_tokens == 0) {
    return absl::InvalidArgumentError("the prompt has no tokens");
  }
  const int num_answer_tokens = is_embed ? 0 : 1;
  const char* const problem =
      is_embed ? " tokens: " : " tokens and leaves no room for an answer: ";
  if (num_prompt_tokens + num_answer_tokens > options.max_model_len) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", num_prompt_tokens, problem,
                     "the context is ", options.max_model_len, " tokens"));
  }
  const int64_t num_slots = int64_t{options.num_blocks} * options.block_size;
  if (num_prompt_tokens + num_answer_tokens > num_slots) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", num_prompt_tokens, problem,
                     "the KV cache holds ", num_slots, " tokens"));
  }
  QUIRE_RETURN_IF_ERROR(
      CheckTokenIds("prompt", request.prompt_token_ids, options.vocab_size));
  QUIRE_RETURN_IF_ERROR(CheckTokenIds("stop_token_ids", sampling.stop_token_ids,
                                      options.vocab_size));
  QUIRE_RETURN_IF_ERROR(CheckTokenIds(
      "allowed_token_ids", sampling.allowed_token_ids, options.vocab_size));
  if (sampling.bad_words != nullptr) {
    for (const std::vector<int32_t>& word : *sampling.bad_words) {
      if (word.empty()) {
        return absl::InvalidArgumentError("a bad word has no tokens");
      }
      QUIRE_RETURN_IF_ERROR(
          CheckTokenIds("bad_words", word, options.vocab_size));
    }
  }
  const int64_t num_entries = NumListEntries(options, sampling);
  if (options.max_list_entries > 0 && num_entries > options.max_list_entries) {
    return absl::InvalidArgumentError(absl::StrCat(
        "logit_bias, bad_words, stop_token_ids and dry_sequence_breakers come "
        "to ",
        num_entries, " token ids, the device takes ",
        options.max_list_entries));
  }
  for (size_t i = 0; i < sampling.logit_bias.size(); ++i) {
    QUIRE_RETURN_IF_ERROR(CheckTokenId(
        "logit_bias", i, sampling.logit_bias[i].first, options.vocab_size));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(
    const EngineOptions& options, ModelRunner* runner, Clock* clock,
    Drafter* drafter) {
  QUIRE_RETURN_IF_ERROR(ValidateEngineOptions(options));
  if (drafter != nullptr && options.num_speculative_tokens == 0) {
    return absl::InvalidArgumentError(
        "num_speculative_tokens is 0, and there is a drafter");
  }
  if (runner->steps_in_flight() != options.steps_in_flight) {
    return absl::InvalidArgumentError(
        absl::StrCat("steps_in_flight is ", options.steps_in_flight,
                     ", the runner has ", runner->steps_in_flight()));
  }
  return std::unique_ptr<Engine>(new Engine(options, runner, clock, drafter));
}

Engine::Engine(const EngineOptions& options, ModelRunner* runner, Clock* clock,
               Drafter* drafter)
    : options_(options),
      runner_(runner),
      clock_(clock),
      cache_(options.num_blocks, options.block_size,
             options.enable_prefix_caching, options.cache_seed),
      scheduler_(options, &cache_),
      drafter_(drafter),
      last_step_time_(clock->Now()),
      step_token_histogram_(std::size(kStepTokenBuckets) + 1, 0) {
  if (drafter_ != nullptr) scheduler_.StartDrafting(drafter_->is_costly());
}

absl::Status Engine::AddRequest(Request request) {
  if (!health_.ok()) return EngineHasFailed();
  QUIRE_RETURN_IF_ERROR(ValidateRequest(options_, request));
  if (scheduler_.HasRequest(request.id)) {
    return absl::AlreadyExistsError(
        absl::StrCat("request id ", request.id, " is in use"));
  }
  // Drawn for every request, so that one request's seed does not depend on
  // whether others brought their own.
  const uint64_t seed = MixBits(options_.random_seed, num_seeds_drawn_);
  if (!HasPlantedBug(PlantedBug::kSeedShared)) ++num_seeds_drawn_;
  scheduler_.AddRequest(std::move(request), seed);
  return absl::OkStatus();
}

void Engine::Abort(RequestId id, int32_t choice_idx, bool reason_is_stop,
                   std::vector<OutputEvent>* events) {
  scheduler_.Abort(id, choice_idx,
                   reason_is_stop ? FinishReason::kStop : FinishReason::kAbort,
                   clock_->Now(), events);
}

void Engine::Shutdown(std::vector<OutputEvent>* events) {
  scheduler_.AbortAll(FinishReason::kAbort, absl::OkStatus(), clock_->Now(),
                      events);
  while (scheduler_.num_steps_in_flight() > 0) CollectOldest(events);
}

void Engine::Step(std::vector<OutputEvent>* events) {
  scheduler_.EndOverdue(clock_->Now(), events);
  if (MustCollectForDrafts()) {
    CollectOldest(events);
  } else {
    PlanOrCollect(events);
  }
  if (options_.check_integrity) {
    const absl::Status status = CheckIntegrity();
    if (!status.ok()) {
      std::fprintf(stderr, "after step %lld: %s\n",
                   static_cast<long long>(num_steps_),
                   status.ToString().c_str());
    }
    QUIRE_CHECK(status.ok());
  }
}

void Engine::PlanOrCollect(std::vector<OutputEvent>* events) {
  bool has_planned = false;
  if (scheduler_.num_steps_in_flight() < options_.steps_in_flight) {
    if (drafter_ != nullptr) ProposeDrafts();
    scheduler_.Schedule(clock_->Now(), &output_);
    has_planned = !output_.empty();
    if (has_planned) SubmitPlanned(events);
  }
  const int num_in_flight = scheduler_.num_steps_in_flight();
  if (num_in_flight == options_.steps_in_flight ||
      (num_in_flight > 0 && !has_planned)) {
    CollectOldest(events);
  }
}

void Engine::SubmitPlanned(std::vector<OutputEvent>* events) {
  CountStep(output_);
  const absl::Status status = runner_->Submit(output_);
  if (status.ok()) {
    if (drafter_ != nullptr) NoteObservedRows(output_);
    return;
  }
  num_tokens_in_flight_ -= tokens_in_flight_.back();
  tokens_in_flight_.pop_back();
  scheduler_.FailNewestStep(AsTold(status), clock_->Now(), events);
  NoteFailure(status, events);
}

void Engine::CollectOldest(std::vector<OutputEvent>* events) {
  absl::StatusOr<StepResult> result = runner_->Collect();
  if (!observed_rows_.empty()) {
    std::vector<TargetRow> rows = std::move(observed_rows_.front());
    observed_rows_.pop_front();
    if (result.ok()) ShowStep(std::move(rows), *result);
  }
  num_tokens_in_flight_ -= tokens_in_flight_.front();
  tokens_in_flight_.pop_front();
  const absl::Time now = clock_->Now();
  last_step_time_ = now;
  absl::Status status;
  if (result.ok()) {
    status = scheduler_.Update(*std::move(result), now, events);
    runner_->Recycle(*std::move(result));
  } else {
    status = result.status();
    scheduler_.FailOldestStep(AsTold(status), now, events);
  }
  if (status.ok()) {
    if (!HasPlantedBug(PlantedBug::kFailuresNeverForgiven)) {
      num_failures_in_a_row_ = 0;
    }
  } else {
    NoteFailure(status, events);
  }
}

absl::Status EngineHasFailed() {
  return absl::UnavailableError("the engine has failed");
}

void Engine::NoteFailure(const absl::Status& error,
                         std::vector<OutputEvent>* events) {
  ++num_failures_in_a_row_;
  const bool is_final = absl::IsUnavailable(error);
  if (num_failures_in_a_row_ < kMaxFailuresInARow && !is_final) return;
  if (!health_.ok()) return;
  health_ = absl::UnavailableError(
      is_final ? absl::StrCat("the engine stopped: ", error.message())
               : absl::StrCat("the engine stopped: ", num_failures_in_a_row_,
                              " steps in a row failed, the last one with: ",
                              error.message()));
  const absl::Time now = clock_->Now();
  const absl::Status told = EngineHasFailed();
  scheduler_.AbortAll(FinishReason::kError, told, now, events);
  // The runner is not to be asked again, not even for what is in flight.
  while (scheduler_.num_steps_in_flight() > 0) {
    scheduler_.FailOldestStep(told, now, events);
  }
}

void Engine::CountStep(const SchedulerOutput& output) {
  ++num_steps_;
  int64_t num_tokens = 0;
  for (const ScheduledRow& row : output.rows) num_tokens += row.num_tokens;
  const int* bucket = std::lower_bound(std::begin(kStepTokenBuckets),
                                       std::end(kStepTokenBuckets), num_tokens);
  ++step_token_histogram_[bucket - std::begin(kStepTokenBuckets)];
  num_step_tokens_ = static_cast<int>(num_tokens);
  tokens_in_flight_.push_back(num_step_tokens_);
  num_tokens_in_flight_.fetch_add(num_tokens, std::memory_order_relaxed);
}

// -------------------------------------------------------------------- Drafts

bool Engine::MustCollectForDrafts() {
  if (drafter_ == nullptr || scheduler_.num_steps_in_flight() == 0) {
    return false;
  }
  if (drafter_->UsesTargetSteps()) return true;
  return options_.num_micro_batches == 1 && scheduler_.ShouldCollectFirst();
}

void Engine::ProposeDrafts() {
  TellDrafterOfEnds();
  // Of micro-batches, all sequences that may be in the next step are known.
  if (scheduler_.num_steps_in_flight() > 0 &&
      (options_.num_micro_batches == 1 || drafter_->UsesTargetSteps())) {
    return;
  }
  scheduler_.PlanDrafts(drafter_, &draft_sequences_);
  if (draft_sequences_.empty()) return;
  drafts_.resize(draft_sequences_.size());
  int depth = 0;
  int64_t num_tokens = 0;
  for (size_t i = 0; i < drafts_.size(); ++i) {
    drafts_[i].token_ids.clear();
    drafts_[i].probabilities.clear();
    depth = std::max(depth, draft_sequences_[i].max_num_drafts);
    // At most: a drafter that catches up computes contexts.
    num_tokens += draft_sequences_[i].token_ids.size() +
                  draft_sequences_[i].max_num_drafts;
  }
  num_tokens_in_flight_ += num_tokens;
  const absl::Time start = clock_->Now();
  absl::Status status =
      drafter_->Propose(draft_sequences_, absl::MakeSpan(drafts_));
  const absl::Duration duration = clock_->Now() - start;
  num_tokens_in_flight_ -= num_tokens;
  const int num_caught_up = drafter_->num_caught_up_tokens();
  // A drafter that could not draft for any of them did not work either.
  const bool has_worked =
      num_caught_up > 0 ||
      std::any_of(drafts_.begin(), drafts_.end(),
                  [](const Draft& draft) { return !draft.token_ids.empty(); });
  if (has_worked) {
    scheduler_.NoteProposals(depth, static_cast<int>(drafts_.size()),
                             num_caught_up, duration);
  }
  if (status.ok()) status = scheduler_.SetDrafts(absl::MakeSpan(drafts_));
  if (!status.ok()) StopDrafting(status);
}

void Engine::TellDrafterOfEnds() {
  for (const Scheduler::EndedSequence& ended : scheduler_.TakeEnded()) {
    drafter_->End(ended.sequence_id, ended.token_ids, ended.num_prompt_tokens,
                  ended.cache_namespace);
  }
}

void Engine::NoteObservedRows(const SchedulerOutput& output) {
  if (!drafter_->UsesTargetSteps()) return;
  std::vector<TargetRow> rows;
  rows.reserve(output.rows.size());
  int32_t num_tokens = 0;
  for (const ScheduledRow& row : output.rows) {
    // Of a row without a result all tokens stay.
    rows.push_back(
        {row.slot, row.first_position, row.num_tokens,
         row.has_result() ? row.num_tokens - row.num_drafts : row.num_tokens,
         num_tokens});
    num_tokens += row.num_tokens;
  }
  observed_rows_.push_back(std::move(rows));
}

void Engine::ShowStep(std::vector<TargetRow> rows, const StepResult& result) {
  if (drafter_ == nullptr) return;
  absl::flat_hash_map<int32_t, int> num_accepted;
  for (const SampledRow& row : result.rows) {
    if (row.tokens.size() > 1) {
      num_accepted[row.slot] = static_cast<int>(row.tokens.size()) - 1;
    }
  }
  for (TargetRow& row : rows) {
    const auto it = num_accepted.find(row.slot);
    if (it == num_accepted.end()) continue;
    row.num_kept_tokens =
        std::min(row.num_tokens, row.num_kept_tokens + it->second);
  }
  DescribeRows(result, absl::MakeSpan(rows));
  // It is the step planned last: no other one was beside it.
  const absl::Status status =
      drafter_->ObserveStep({rows, output_.block_copies});
  if (!status.ok()) StopDrafting(status);
}

void Engine::DescribeRows(const StepResult& result,
                          absl::Span<TargetRow> rows) {
  scheduler_.ListOldestStep(&observed_sequences_);
  QUIRE_CHECK(observed_sequences_.size() == rows.size());
  absl::flat_hash_map<int32_t, const SampledRow*> sampled;
  for (const SampledRow& row : result.rows) sampled[row.slot] = &row;
  size_t num_ids = 0;
  for (const TargetRow& row : rows) num_ids += row.num_kept_tokens;
  next_ids_.clear();
  next_ids_.reserve(num_ids);  // The views must stay.
  for (size_t i = 0; i < rows.size(); ++i) {
    TargetRow& row = rows[i];
    const Sequence& sequence = *observed_sequences_[i];
    row.start_no = sequence.start_no;
    row.block_table = sequence.blocks.block_table;
    const auto it = sampled.find(row.slot);
    const size_t num_known = sequence.token_ids.size();
    const size_t first = next_ids_.size();
    for (int k = 1; k <= row.num_kept_tokens; ++k) {
      const size_t position = row.first_position + size_t(k);
      int32_t id = -1;
      if (position < num_known) {
        id = sequence.token_ids[position];
      } else if (it != sampled.end() &&
                 position - num_known < it->second->tokens.size()) {
        id = it->second->tokens[position - num_known].token_id;
        // Its sequence ends by it, and what follows is not looked at.
        if (id < 0 || id >= options_.vocab_size) {
          id = -1;
          row.num_kept_tokens = k;
        } else {
          row.has_drawn = k == row.num_kept_tokens;
        }
      }
      next_ids_.push_back(id);
    }
    row.next_ids = absl::MakeConstSpan(next_ids_).subspan(first);
  }
}

void Engine::StopDrafting(const absl::Status& error) {
  drafter_health_ = absl::Status(
      error.code(),
      absl::StrCat("nothing is drafted any more: the ", drafter_->method(),
                   " drafter failed: ", error.message()));
  drafter_ = nullptr;
  scheduler_.StopDrafting();
  observed_rows_.clear();
}

EngineStats Engine::Stats() const {
  EngineStats stats;
  stats.num_running = scheduler_.num_running();
  scheduler_.CountWaiting(&stats.num_waiting, &stats.num_waiting_tokens);
  stats.num_blocks = cache_.num_blocks();
  stats.num_free_blocks = cache_.num_available_blocks();
  stats.num_steps = num_steps_;
  const SchedulerCounters& counters = scheduler_.counters();
  stats.num_prompt_tokens = counters.num_prompt_tokens;
  stats.num_generation_tokens = counters.num_generation_tokens;
  stats.num_preemptions = counters.num_preemptions;
  stats.prefix_cache_queries = counters.prefix_cache_queries;
  stats.prefix_cache_hits = counters.prefix_cache_hits;
  stats.num_drafts = counters.num_drafts;
  stats.num_draft_tokens = counters.num_draft_tokens;
  stats.num_accepted_tokens = counters.num_accepted_tokens;
  stats.num_accepted_at = counters.num_accepted_at;
  stats.num_overdue_waiting = counters.num_overdue_waiting;
  stats.num_overdue_running = counters.num_overdue_running;
  stats.num_drafter_failures = drafter_health_.ok() ? 0 : 1;
  stats.last_step_time = last_step_time_;
  stats.is_idle = !HasWork();
  stats.step_token_histogram = step_token_histogram_;
  return stats;
}

}  // namespace quire
