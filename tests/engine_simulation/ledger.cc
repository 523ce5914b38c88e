#include "tests/engine_simulation/ledger.h"

#include <algorithm>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/base/status.h"

namespace quire {
namespace {

template <typename... Parts>
absl::Status Error(const Parts&... parts) {
  return absl::InternalError(absl::StrCat(parts...));
}

}  // namespace

int64_t Ledger::StepsNeededAlone(const Request& request) const {
  // As the oldest sequence: half of what decodes leave of the budget is its
  // own, then a token per step; each step may take a call to submit and one to
  // collect, and with steps in flight a row may wait for blocks.
  const EngineOptions& options = history_->options;
  const int64_t num_prompt = request.prompt_token_ids.size();
  const int64_t num_tokens = std::min<int64_t>(
      MaxNumTokens(options), num_prompt + request.sampling.max_tokens);
  // Of micro-batches, each has its part.
  int64_t chunk =
      std::max(1, ((options.max_num_batched_tokens - options.max_num_seqs) /
                       options.num_micro_batches +
                   1) /
                      2);
  if (options.long_prefill_token_threshold > 0) {
    chunk = std::min<int64_t>(chunk, options.long_prefill_token_threshold);
  }
  if (request.sampling.num_prompt_logprobs >= 0) {
    chunk = std::min<int64_t>(chunk, (options.max_num_scored_tokens + 1) / 2);
  }
  // All known tokens may have to be computed again after a preemption, and once
  // where the sequence grows beyond rope_switch_length.
  const int64_t num_steps = (num_tokens + chunk - 1) / chunk + num_tokens -
                            num_prompt + 4 +
                            (options.rope_switch_length + chunk) / chunk;
  return num_steps * request.n * (1 + options.steps_in_flight);
}

Ledger::Entry* Ledger::Add(const PlannedRequest& planned,
                           const Request& request, uint64_t engine_seed,
                           int64_t step) {
  auto entry = std::make_unique<Entry>();
  entry->planned = &planned;
  entry->request = request;
  entry->seed = request.sampling.seed.value_or(engine_seed);
  entry->choices.resize(request.n);
  entry->first_step = step;
  for (const PlannedAbort& abort : planned.aborts) {
    entry->abort_countdowns.push_back(abort.countdown);
  }
  int64_t num_steps = StepsNeededAlone(request) + 8;
  for (const Entry* other : live_) {
    num_steps += StepsNeededAlone(other->request);
  }
  // Those that pass on the way may hold blocks for as long again.
  entry->last_step = step + 4 * num_steps;
  PostponeThoseBehind(request, entry->last_step);
  for (int i = 0; i < request.n; ++i) {
    by_draw_key_[MixBits(entry->seed, i)] = {entry.get(), i};
  }
  ++(*coverage_)[Covered::kRequests];
  live_.push_back(entry.get());
  return entries_.emplace(request.id, std::move(entry)).first->second.get();
}

void Ledger::PostponeThoseBehind(const Request& newcomer, int64_t last_step) {
  const bool has_priorities =
      history_->options.scheduling_policy == SchedulingPolicy::kPriority;
  for (Entry* other : live_) {
    const bool is_less_urgent =
        has_priorities && other->request.priority > newcomer.priority;
    // Another owner's may be first by its share, now or when accounts are
    // corrected.
    const bool is_equal =
        !has_priorities || other->request.priority == newcomer.priority;
    const bool is_behind_by_share =
        is_equal && other->request.owner != newcomer.owner;
    if (!is_less_urgent && !is_behind_by_share) continue;
    other->last_step = std::max(other->last_step, last_step);
  }
}

Ledger::Entry* Ledger::Find(RequestId id) {
  const auto it = entries_.find(id);
  return it == entries_.end() ? nullptr : it->second.get();
}

Ledger::Entry* Ledger::FindByDrawKey(uint64_t draw_key, int* choice_idx) {
  const auto it = by_draw_key_.find(draw_key);
  if (it == by_draw_key_.end()) return nullptr;
  *choice_idx = it->second.second;
  return it->second.first;
}

const std::vector<int32_t>& Ledger::AnswerOf(uint64_t draw_key) {
  const auto [it, is_new] = answers_.try_emplace(draw_key);
  int choice_idx = 0;
  const Entry* entry = FindByDrawKey(draw_key, &choice_idx);
  if (is_new && entry != nullptr) {
    it->second =
        AnswerAlone(history_->options, history_->model_options, entry->request,
                    entry->seed, choice_idx, MaxNumTokens(history_->options))
            .token_ids;
  }
  return it->second;
}

std::optional<int64_t> Ledger::NoticedStep(uint64_t nan_source) const {
  const auto it = noticed_step_.find(nan_source);
  if (it == noticed_step_.end()) return std::nullopt;
  return it->second;
}

absl::Status Ledger::TakeEvents(const std::vector<OutputEvent>& events,
                                absl::Span<const absl::Time> times,
                                int64_t step, bool is_engine_healthy) {
  step_ = step;
  for (const OutputEvent& event : events) {
    const absl::Status status = TakeEvent(event, times, is_engine_healthy);
    if (!status.ok()) {
      return Error(status.message(), " (request ", event.request_id,
                   ", choice ", event.choice_idx, ")");
    }
  }
  for (const OutputEvent& event : events) {
    if (event.finish_reason == FinishReason::kError &&
        !Find(event.request_id)->has_ended) {
      return Error("events: request ", event.request_id,
                   " goes on after an error");
    }
  }
  return absl::OkStatus();
}

absl::Status Ledger::TakeEvent(const OutputEvent& event,
                               absl::Span<const absl::Time> times,
                               bool is_engine_healthy) {
  Entry* entry = Find(event.request_id);
  if (entry == nullptr) return Error("events: of an unknown request");
  if (entry->has_ended) return Error("I9: an event after the last one");
  if (event.choice_idx < 0 || event.choice_idx >= entry->request.n) {
    return Error("events: of an unknown choice");
  }
  Choice& choice = entry->choices[event.choice_idx];
  if (choice.finish_reason.has_value()) {
    return Error("I9: an event after the choice ended");
  }
  if (event.tokens.empty() && event.prompt_tokens.empty() &&
      !event.finish_reason.has_value()) {
    return Error("events: one that says nothing");
  }
  if (std::find(times.begin(), times.end(), event.time) == times.end()) {
    return Error("events: the clock never showed this time");
  }
  QUIRE_RETURN_IF_ERROR(TakeScores(event, entry));
  QUIRE_RETURN_IF_ERROR(TakeTokens(event, entry));
  choice.embedding = event.embedding;
  if (event.finish_reason.has_value()) {
    choice.finish_reason = event.finish_reason;
    choice.stop_token_id = event.stop_token_id;
    if ((*event.finish_reason == FinishReason::kError) == event.error.ok()) {
      return Error("events: error and reason disagree");
    }
    QUIRE_RETURN_IF_ERROR(CheckEnd(event, *entry, choice, is_engine_healthy));
  }
  const bool all_ended =
      std::all_of(entry->choices.begin(), entry->choices.end(),
                  [](const Choice& c) { return c.finish_reason.has_value(); });
  if (all_ended != event.is_last) {
    return Error("I9: is_last is ", event.is_last);
  }
  if (!event.is_last) return absl::OkStatus();
  entry->has_ended = true;
  live_.erase(std::find(live_.begin(), live_.end(), entry));
  ended_.push_back(entry);
  if (event.scheduled_time != absl::Time()) {
    num_prompt_tokens_ += entry->request.prompt_token_ids.size();
    num_cached_tokens_ += event.num_cached_tokens;
  }
  (*coverage_)[Covered::kCachedTokens] += event.num_cached_tokens;
  int64_t& percent = (*coverage_)[Covered::kLargestBoundPercent];
  percent = std::max(percent, 100 * (step_ - entry->first_step) /
                                  (entry->last_step - entry->first_step));
  return absl::OkStatus();
}

absl::Status Ledger::TakeScores(const OutputEvent& event, Entry* entry) {
  const int num_top = entry->request.sampling.num_prompt_logprobs;
  for (const TokenOutput& token : event.prompt_tokens) {
    if (static_cast<int>(token.top_logprobs.size()) != num_top) {
      return Error("scores: top_logprobs of the prompt got lost");
    }
    entry->prompt_tokens.push_back(token);
  }
  if (!event.tokens.empty() && num_top >= 0 &&
      entry->prompt_tokens.size() + 1 !=
          entry->request.prompt_token_ids.size()) {
    return Error("scores: a token before the prompt is scored");
  }
  return absl::OkStatus();
}

absl::Status Ledger::CheckScores(const Entry& entry,
                                 const HashModelAnswer& answer) {
  const std::vector<int32_t>& prompt = entry.request.prompt_token_ids;
  const bool is_asked = entry.request.sampling.num_prompt_logprobs >= 0;
  if (entry.prompt_tokens.size() >
      (is_asked ? answer.prompt_logprobs.size() : 0)) {
    return Error("scores: more prompt tokens than asked for");
  }
  for (size_t i = 0; i < entry.prompt_tokens.size(); ++i) {
    const TokenOutput& token = entry.prompt_tokens[i];
    if (token.token_id != prompt[i + 1] ||
        token.logprob != answer.prompt_logprobs[i]) {
      return Error("scores: prompt token ", i + 1, " of ", prompt.size(),
                   " is not scored as alone");
    }
  }
  (*coverage_)[Covered::kScoredTokens] += entry.prompt_tokens.size();
  return absl::OkStatus();
}

absl::Status Ledger::TakeTokens(const OutputEvent& event, Entry* entry) {
  if (event.num_accepted_tokens < 0 ||
      event.num_accepted_tokens > event.num_draft_tokens ||
      (event.num_draft_tokens > 0 && static_cast<int>(event.tokens.size()) !=
                                         event.num_accepted_tokens + 1) ||
      (event.num_draft_tokens == 0 && event.tokens.size() > 1)) {
    return Error("usage: ", event.tokens.size(), " tokens with ",
                 event.num_accepted_tokens, " of ", event.num_draft_tokens,
                 " drafts accepted");
  }
  num_draft_tokens_ += event.num_draft_tokens;
  num_accepted_tokens_ += event.num_accepted_tokens;
  (*coverage_)[Covered::kDraftTokens] += event.num_draft_tokens;
  (*coverage_)[Covered::kAcceptedTokens] += event.num_accepted_tokens;
  if (event.tokens.empty() && event.embedding.empty()) return absl::OkStatus();
  const SamplingParams& sampling = entry->request.sampling;
  for (const TokenOutput& token : event.tokens) {
    entry->choices[event.choice_idx].token_ids.push_back(token.token_id);
    ++num_tokens_;
    if (static_cast<int>(token.top_logprobs.size()) !=
        std::max(sampling.num_logprobs, 0)) {
      return Error("events: top_logprobs got lost");
    }
  }
  if (sampling.presence_penalty != 0 || sampling.frequency_penalty != 0 ||
      sampling.repetition_penalty != 1) {
    (*coverage_)[Covered::kPenalizedTokens] += event.tokens.size();
  }
  const EngineOptions& options = history_->options;
  const int num_prompt_tokens =
      static_cast<int>(entry->request.prompt_token_ids.size());
  if (event.num_cached_tokens % options.block_size != 0 ||
      (sampling.num_prompt_logprobs >= 0 && num_prompt_tokens > 1 &&
       event.num_cached_tokens != 0) ||
      (!event.embedding.empty() && options.embeds_every_token &&
       event.num_cached_tokens != 0) ||
      event.num_cached_tokens >= num_prompt_tokens ||
      (!options.enable_prefix_caching && event.num_cached_tokens != 0) ||
      (entry->num_cached_tokens >= 0 &&
       entry->num_cached_tokens != event.num_cached_tokens)) {
    return Error("usage: num_cached_tokens is ", event.num_cached_tokens);
  }
  if (entry->num_cached_tokens >= 0 &&
      event.scheduled_time != entry->scheduled_time) {
    return Error("events: the time of scheduling has changed");
  }
  entry->num_cached_tokens = event.num_cached_tokens;
  entry->scheduled_time = event.scheduled_time;
  return absl::OkStatus();
}

absl::Status Ledger::CheckEnd(const OutputEvent& event, const Entry& entry,
                              const Choice& choice, bool is_engine_healthy) {
  const HashModelAnswer answer = AnswerAlone(
      history_->options, history_->model_options, entry.request, entry.seed,
      event.choice_idx, MaxNumTokens(history_->options));
  QUIRE_RETURN_IF_ERROR(CheckScores(entry, answer));
  const size_t num_told = choice.token_ids.size();
  const size_t num_common = std::min(num_told, answer.token_ids.size());
  const auto differs = std::mismatch(choice.token_ids.begin(),
                                     choice.token_ids.begin() + num_common,
                                     answer.token_ids.begin());
  if (differs.first != choice.token_ids.begin() + num_common ||
      num_told > num_common) {
    return Error("answer: token ", differs.first - choice.token_ids.begin(),
                 " of ", num_told, " is not what the request is told alone");
  }
  if (choice.embedding.empty() !=
      (entry.request.kind != RequestKind::kEmbed || choice.was_aborted ||
       choice.was_stopped || *choice.finish_reason == FinishReason::kError)) {
    return Error("answer: an embedding is missing or makes no sense");
  }
  switch (*choice.finish_reason) {
    case FinishReason::kAbort:
      if (!choice.was_aborted) return Error("events: nobody aborted it");
      return absl::OkStatus();
    case FinishReason::kError:
      if (absl::IsDeadlineExceeded(event.error)) {
        ++(*coverage_)[Covered::kEndedOverdue];
        if (event.time >= entry.request.deadline) return absl::OkStatus();
        return Error("deadline: ended before its own");
      }
      ++(*coverage_)[Covered::kEndedByError];
      // With several NaNs, or another fault before the NaN was reported, it is
      // not said which one was noticed.
      if (entry.nan_sources.size() == 1 &&
          absl::StrContains(event.error.message(), "not finite")) {
        noticed_step_.try_emplace(*entry.nan_sources.begin(), step_);
      }
      if (!entry.is_doomed && is_engine_healthy) {
        return Error("events: failed for another request's fault: ",
                     event.error.message());
      }
      return absl::OkStatus();
    case FinishReason::kStop:
    case FinishReason::kLength:
      break;
  }
  return CheckNaturalEnd(entry, choice, answer);
}

absl::Status Ledger::CheckNaturalEnd(const Entry& entry, const Choice& choice,
                                     const HashModelAnswer& answer) {
  if (choice.was_stopped) return absl::OkStatus();
  const size_t num_told = choice.token_ids.size();
  if (num_told != answer.token_ids.size() ||
      choice.finish_reason != answer.finish_reason ||
      choice.embedding != answer.embedding ||
      choice.stop_token_id != answer.stop_token_id) {
    return Error("answer: ended with reason ",
                 static_cast<int>(*choice.finish_reason), " after ", num_told,
                 " tokens, alone it is reason ",
                 static_cast<int>(answer.finish_reason), " after ",
                 answer.token_ids.size());
  }
  Coverage& coverage = *coverage_;
  if (entry.request.kind == RequestKind::kEmbed) {
    ++coverage[Covered::kEmbedded];
    coverage[Covered::kEmbeddedCached] += entry.num_cached_tokens > 0;
    coverage[Covered::kEmbeddedEveryToken] +=
        history_->options.embeds_every_token;
    coverage[Covered::kEmbeddedPreempted] += choice.was_preempted;
    return absl::OkStatus();
  }
  coverage[Covered::kEndedByLength] +=
      answer.finish_reason == FinishReason::kLength;
  coverage[Covered::kEndedByStop] +=
      answer.finish_reason == FinishReason::kStop;
  coverage[Covered::kEndedByStopToken] += answer.stop_token_id.has_value();
  return absl::OkStatus();
}

absl::Status Ledger::CheckSlotStart(const SlotStart& start) {
  int choice_idx = 0;
  const Entry* entry = FindByDrawKey(start.draw_key, &choice_idx);
  if (entry == nullptr) return Error("sampler: a draw key of nobody");
  const Request& request = entry->request;
  const Choice& choice = entry->choices[choice_idx];
  const size_t num_told = choice.token_ids.size();
  const auto error = [&](absl::string_view what) {
    return Error("sampler: ", what, " (request ", request.id, ", choice ",
                 choice_idx, ", ", num_told, " generated tokens)");
  };
  if (choice.finish_reason.has_value()) return error("a start after the end");
  if (!(*start.params == request.sampling)) return error("other parameters");
  const std::vector<int32_t>& prompt = request.prompt_token_ids;
  if (start.num_prompt_tokens != static_cast<int>(prompt.size())) {
    return error("another length of the prompt");
  }
  const auto answer =
      start.history.begin() + std::min(prompt.size(), start.history.size());
  if (start.history.size() != prompt.size() + num_told ||
      !std::equal(prompt.begin(), prompt.end(), start.history.begin()) ||
      !std::equal(choice.token_ids.begin(), choice.token_ids.end(), answer)) {
    return error("the history is not what was generated");
  }
  if (request.sampling.min_tokens > 0) {
    const std::multiset<int32_t> banned(start.banned_before_min.begin(),
                                        start.banned_before_min.end());
    std::multiset<int32_t> expected(request.sampling.stop_token_ids.begin(),
                                    request.sampling.stop_token_ids.end());
    if (!request.sampling.ignore_eos) {
      const std::vector<int32_t>& eos = history_->options.eos_token_ids;
      expected.insert(eos.begin(), eos.end());
    }
    if (banned != expected) return error("other tokens are banned");
  }
  (*coverage_)[Covered::kRestarts] += num_told > 0;
  return absl::OkStatus();
}

absl::Status Ledger::CheckCounts(int64_t num_prompt_tokens,
                                 int64_t num_generation_tokens,
                                 int64_t num_cache_hits,
                                 int64_t num_draft_tokens,
                                 int64_t num_accepted_tokens) const {
  if (num_draft_tokens != num_draft_tokens_ ||
      num_accepted_tokens != num_accepted_tokens_) {
    return Error("usage: the engine counted ", num_accepted_tokens, " of ",
                 num_draft_tokens, " drafts accepted; told were ",
                 num_accepted_tokens_, " of ", num_draft_tokens_);
  }
  if (num_generation_tokens != num_tokens_ ||
      num_prompt_tokens != num_prompt_tokens_ ||
      num_cache_hits != num_cached_tokens_) {
    return Error("usage: the engine counted ", num_prompt_tokens, " prompt, ",
                 num_cache_hits, " cached and ", num_generation_tokens,
                 " generated tokens; told were ", num_prompt_tokens_, ", ",
                 num_cached_tokens_, " and ", num_tokens_);
  }
  return absl::OkStatus();
}

}  // namespace quire
