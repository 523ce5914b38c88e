#include "engine/speculative/link/edge_engine.h"

#include <algorithm>
#include <climits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/speculative/link/cloud_event.h"
#include "engine/speculative/link/edge_engine_impl.h"

namespace quire {
namespace {

// A chunk of drafts that the cloud has passed by so many tokens is begun anew:
// computing what was heard at once is faster than drawing it.
constexpr int64_t kMaxBehind = 2;

}  // namespace

// ----------------------------------------------------------------- Requests

absl::Status EdgeEngineImpl::Validate(const Request& request) const {
  if (request.kind != RequestKind::kGenerate) {
    return absl::InvalidArgumentError(
        "an edge generates text and makes no embeddings");
  }
  // The cloud's own limits decide; a prompt that its cache cannot hold ends
  // with its error.
  EngineOptions limits = engine_options_;
  limits.max_model_len = cloud_.max_model_len;
  limits.vocab_size = cloud_.vocab_size;
  limits.num_blocks = INT_MAX / limits.block_size;
  return ValidateRequest(limits, request);
}

absl::Status EdgeEngineImpl::Submit(Request request) {
  std::lock_guard<std::mutex> lock(mu_);
  if (is_stopping_ || (is_draining_ && !request.continues_call)) {
    return absl::UnavailableError("the engine is shutting down");
  }
  if (static_cast<int>(requests_.size()) >= options_.max_requests) {
    return absl::ResourceExhaustedError(
        absl::StrCat(requests_.size(), " requests are in flight, the limit is ",
                     options_.max_requests));
  }
  QUIRE_RETURN_IF_ERROR(Validate(request));
  if (request.deadline <= clock_->Now()) {
    return absl::DeadlineExceededError(
        "the request's timeout was over before it could be sent");
  }
  auto state = std::make_unique<EdgeRequest>();
  state->seed = request.sampling.seed.has_value()
                    ? *request.sampling.seed
                    : MixBits(options_.random_seed, num_seeds_drawn_++);
  request.sampling.seed = state->seed;
  state->submitted_at = clock_->Now();
  state->choices.resize(request.n);
  state->num_unfinished = request.n;
  state->request = std::move(request);
  const RequestId id = state->request.id;
  if (requests_.contains(id)) {
    return absl::AlreadyExistsError(
        absl::StrCat("request id ", id, " is in use"));
  }
  if (!is_up_) {
    if (options_.offline == OfflinePolicy::kError) {
      // Why is in the log: users need not know where the cloud is.
      return absl::UnavailableError("the model cannot be reached now");
    }
    QUIRE_RETURN_IF_ERROR(StartOffline(state.get()));
  } else {
    frame_.clear();
    if (!AppendSubmit(state->request, state->submitted_at, &frame_)) {
      return absl::InvalidArgumentError(
          "the request is too large for the link to the model");
    }
    link_->Send(frame_);
  }
  totals_.num_prompt_tokens += state->request.prompt_token_ids.size();
  EdgeRequest* const added = state.get();
  requests_.emplace(id, std::move(state));
  if (added->request.deadline < absl::InfiniteFuture()) {
    deadlines_.emplace(added->request.deadline, id);
    deadlines_changed_.notify_one();
  }
  if (!added->is_offline) {
    for (int i = 0; i < added->request.n; ++i) Draft(added, i);
  }
  return absl::OkStatus();
}

void EdgeEngineImpl::Abort(RequestId id, int32_t choice_idx,
                           bool reason_is_stop) {
  std::lock_guard<std::mutex> lock(mu_);
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  EdgeRequest* const state = found->second.get();
  if (choice_idx >= state->request.n) return;
  if (!state->is_offline) {
    frame_.clear();
    AppendAbort({id, choice_idx, reason_is_stop}, &frame_);
    link_->Send(frame_);
  } else if (state->offline_id != 0) {
    local_->Abort(state->offline_id, choice_idx, reason_is_stop);
  }
  // At once: what still comes for it is not waited for.
  const FinishReason reason =
      reason_is_stop ? FinishReason::kStop : FinishReason::kAbort;
  const int begin = choice_idx < 0 ? 0 : choice_idx;
  const int end = choice_idx < 0 ? state->request.n : choice_idx + 1;
  int num_left = state->num_unfinished;
  for (int i = begin; i < end && num_left > 0; ++i) {
    if (state->choices[i].is_finished) continue;
    --num_left;
    FinishChoice(state, i, reason, absl::OkStatus());  // May delete `state`.
  }
}

void EdgeEngineImpl::FinishChoice(EdgeRequest* state, int choice_idx,
                                  FinishReason reason,
                                  const absl::Status& error) {
  OutputEvent event;
  event.choice_idx = choice_idx;
  event.finish_reason = reason;
  event.error = error;
  event.is_from_draft_model = state->is_offline;
  Emit(state, std::move(event));
}

void EdgeEngineImpl::Emit(EdgeRequest* state, OutputEvent event) {
  const RequestId id = state->request.id;
  event.request_id = id;
  event.time = clock_->Now();
  event.scheduled_time = state->submitted_at;
  event.is_last = false;
  if (event.finish_reason.has_value()) {
    StopDrafting(state, event.choice_idx);
    state->choices[event.choice_idx].is_finished = true;
    event.is_last = --state->num_unfinished == 0;
  }
  const bool is_last = event.is_last;
  totals_.num_generation_tokens += event.tokens.size();
  std::vector<OutputEvent> events;
  events.push_back(std::move(event));
  sink_->Push(std::move(events));
  if (!is_last) return;
  if (state->offline_id != 0) local_uses_.erase(state->offline_id);
  deadlines_.erase({state->request.deadline, id});
  requests_.erase(id);
  if (requests_.empty()) idle_.notify_all();
}

void EdgeEngineImpl::EndAll(FinishReason reason, const absl::Status& error) {
  std::vector<RequestId> ids;
  for (const auto& [id, state] : requests_) ids.push_back(id);
  for (const RequestId id : ids) {
    EdgeRequest* const state = requests_[id].get();
    int num_left = state->num_unfinished;
    for (int i = 0; num_left > 0; ++i) {
      if (state->choices[i].is_finished) continue;
      --num_left;
      FinishChoice(state, i, reason, error);
    }
  }
}

void EdgeEngineImpl::EndOverdue(EdgeRequest* state) {
  ++totals_.num_overdue_running;
  if (!state->is_offline) {
    // It has the deadline, too, but may be late or gone.
    frame_.clear();
    AppendAbort({state->request.id, -1, /*reason_is_stop=*/false}, &frame_);
    link_->Send(frame_);
  } else if (state->offline_id != 0) {
    local_->Abort(state->offline_id);
  }
  const absl::Status error = absl::DeadlineExceededError(
      "the request's timeout was over before its answer was complete");
  int num_left = state->num_unfinished;
  for (int i = 0; num_left > 0; ++i) {
    if (state->choices[i].is_finished) continue;
    --num_left;
    FinishChoice(state, i, FinishReason::kError, error);
  }
}

void EdgeEngineImpl::WatchDeadlines() {
  std::unique_lock<std::mutex> lock(mu_);
  while (!is_stopping_) {
    if (deadlines_.empty()) {
      deadlines_changed_.wait(lock);
      continue;
    }
    const auto [deadline, id] = *deadlines_.begin();
    const absl::Duration left = deadline - clock_->Now();
    if (left > absl::ZeroDuration()) {
      deadlines_changed_.wait_for(
          lock, absl::ToChronoNanoseconds(std::min(left, absl::Hours(1))));
      continue;
    }
    EndOverdue(requests_[id].get());  // Erases the deadline.
  }
}

// --------------------------------------------------------------------- Link

void EdgeEngineImpl::OnUp(const LinkPeer& cloud) {
  std::unique_lock<std::mutex> lock(mu_);
  // The first connection may be faster than Start.
  started_.wait(lock, [this] { return is_started_ || is_stopping_; });
  cloud_ = cloud;
  is_up_ = !is_stopping_;
  has_told_of_offline_ = false;
  policy_ = DraftAheadPolicy(cloud.max_drafts);
}

absl::Status EdgeEngineImpl::OnFrame(LinkFrameType type,
                                     absl::string_view payload) {
  if (type != LinkFrameType::kEvent) {
    return absl::InvalidArgumentError(
        absl::StrCat("verify link: the cloud sent a frame of type ",
                     static_cast<int>(type)));
  }
  QUIRE_ASSIGN_OR_RETURN(OutputEvent event, ParseEvent(payload));
  std::lock_guard<std::mutex> lock(mu_);
  const auto found = requests_.find(event.request_id);
  // It may have been aborted meanwhile.
  if (found == requests_.end() || found->second->is_offline) {
    return absl::OkStatus();
  }
  EdgeRequest* const state = found->second.get();
  if (event.choice_idx >= state->request.n) {
    return absl::InvalidArgumentError(
        "verify link: an event with no such choice");
  }
  const Choice& choice = state->choices[event.choice_idx];
  QUIRE_RETURN_IF_ERROR(CheckCloudEvent(event, state->request,
                                        choice.chain.num_heard(),
                                        state->num_scored, cloud_.vocab_size));
  if (choice.is_finished) return absl::OkStatus();
  HandleCloudEvent(state, std::move(event));
  return absl::OkStatus();
}

void EdgeEngineImpl::HandleCloudEvent(EdgeRequest* state, OutputEvent event) {
  const int choice_idx = event.choice_idx;
  Choice& choice = state->choices[choice_idx];
  state->num_scored += event.prompt_tokens.size();
  totals_.num_drafts += event.num_draft_tokens > 0;
  totals_.num_draft_tokens += event.num_draft_tokens;
  totals_.num_accepted_tokens += event.num_accepted_tokens;
  if (event.num_draft_tokens > 0) {
    totals_.num_accepted_at.resize(
        std::max<size_t>(totals_.num_accepted_at.size(), cloud_.max_drafts));
    for (int i = 0; i < std::min(event.num_accepted_tokens, cloud_.max_drafts);
         ++i) {
      ++totals_.num_accepted_at[i];
    }
  }
  DraftChain::Outcome outcome;
  if (!event.tokens.empty()) {
    std::vector<int32_t> token_ids;
    for (const TokenOutput& token : event.tokens) {
      token_ids.push_back(token.token_id);
    }
    outcome = choice.chain.Hear(token_ids);
    policy_.NoteOutcome(outcome);
    const absl::Time now = clock_->Now();
    if (choice.heard_at != absl::InfinitePast()) {
      policy_.NoteStep(now - choice.heard_at);
    }
    choice.heard_at = now;
  }
  if (event.is_last) {
    // The cloud has nothing more to say, also where it refused the request and
    // named one choice only.
    const absl::Status error =
        event.error.ok() ? absl::InternalError("the model did not end it")
                         : event.error;
    int num_others = state->num_unfinished - 1;
    for (int i = 0; num_others > 0; ++i) {
      if (i == choice_idx || state->choices[i].is_finished) continue;
      --num_others;
      FinishChoice(state, i, FinishReason::kError, error);
    }
    if (!event.finish_reason.has_value()) {
      event.finish_reason = FinishReason::kError;
      event.error = error;
    }
  }
  if (event.finish_reason.has_value()) {
    Emit(state, std::move(event));  // May delete `state`.
    return;
  }
  const bool has_tokens = !event.tokens.empty();
  Emit(state, std::move(event));
  if (!has_tokens) return;
  const bool is_behind =
      choice.local_id != 0 &&
      choice.chain.num_heard() > choice.draft_position + kMaxBehind;
  if (outcome.is_broken || is_behind) StopDrafting(state, choice_idx);
  Draft(state, choice_idx);
}

void EdgeEngineImpl::OnDown(const absl::Status& /*reason*/) {
  std::lock_guard<std::mutex> lock(mu_);
  is_up_ = false;
  ++num_breaks_;
  if (is_stopping_) return;
  std::vector<EdgeRequest*> cut;
  for (const auto& [id, state] : requests_) {
    if (!state->is_offline) cut.push_back(state.get());
  }
  if (cut.empty()) return;
  if (options_.offline == OfflinePolicy::kDraft) {
    Notice(absl::StrCat("the link broke: ", cut.size(),
                        " requests go on with the draft model"));
    for (EdgeRequest* state : cut) ContinueOffline(state);
    return;
  }
  Notice(absl::StrCat("the link broke: ", cut.size(),
                      " requests end with an error"));
  const absl::Status error = absl::UnavailableError(
      "the link to the model broke before the answer was complete");
  for (EdgeRequest* state : cut) {
    int num_left = state->num_unfinished;
    for (int i = 0; num_left > 0; ++i) {
      if (state->choices[i].is_finished) continue;
      --num_left;
      FinishChoice(state, i, FinishReason::kError, error);
    }
  }
}

// -------------------------------------------------------------------- Stats

EngineStats EdgeEngineImpl::Stats() const {
  EngineStats stats = local_->Stats();
  const bool is_local_idle = stats.is_idle;
  std::lock_guard<std::mutex> lock(mu_);
  stats.num_running = 0;
  for (const auto& [id, state] : requests_) {
    stats.num_running += state->num_unfinished;
  }
  stats.num_waiting = 0;
  stats.num_waiting_tokens = 0;
  stats.num_prompt_tokens = totals_.num_prompt_tokens;
  stats.num_generation_tokens = totals_.num_generation_tokens;
  stats.num_drafts = totals_.num_drafts;
  stats.num_draft_tokens = totals_.num_draft_tokens;
  stats.num_accepted_tokens = totals_.num_accepted_tokens;
  stats.num_accepted_at = totals_.num_accepted_at;
  stats.num_accepted_at.resize(
      std::max<size_t>(stats.num_accepted_at.size(), cloud_.max_drafts));
  stats.is_idle = requests_.empty();
  stats.num_overdue_running += totals_.num_overdue_running;
  // While the cloud computes, nothing here is late.
  if (is_local_idle) stats.last_step_time = clock_->Now();
  return stats;
}

EdgeLinkStats EdgeEngineImpl::LinkStats() const {
  EdgeLinkStats stats;
  const absl::Status state = link_->State();
  stats.is_up = state.ok();
  stats.state = std::string(state.message());
  std::lock_guard<std::mutex> lock(mu_);
  stats.round_trip = round_trip_;
  stats.acceptance = policy_.acceptance();
  stats.num_draft_tokens_sent = num_draft_tokens_sent_;
  stats.num_breaks = num_breaks_;
  stats.num_offline_requests = num_offline_requests_;
  return stats;
}

absl::StatusOr<std::unique_ptr<EdgeEngine>> EdgeEngine::Create(
    const EdgeEngineOptions& options, const EngineOptions& engine_options,
    ModelRunner* runner, Clock* clock, OutputSink* sink) {
  auto engine =
      std::make_unique<EdgeEngineImpl>(options, engine_options, clock, sink);
  QUIRE_RETURN_IF_ERROR(engine->Start(runner));
  return std::unique_ptr<EdgeEngine>(std::move(engine));
}

}  // namespace quire
