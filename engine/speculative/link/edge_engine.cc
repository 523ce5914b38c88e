#include "engine/speculative/link/edge_engine.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/engine.h"
#include "engine/speculative/link/cloud_event.h"
#include "engine/speculative/link/draft_ahead.h"

namespace quire {
namespace {

// A chunk of drafts that the cloud has passed by so many tokens is begun anew:
// computing what was heard at once is faster than drawing it.
constexpr int64_t kMaxBehind = 2;

struct Choice {
  DraftChain chain;
  bool is_finished = false;
  bool is_drafting = false;    // The chain was begun, and has not broken.
  bool has_draft_end = false;  // The last draft ends the text.
  // The request in the local engine: of drafts, or of an answer offline.
  RequestId local_id = 0;      // 0: none.
  int64_t draft_position = 0;  // Of the next draft it will bring.
  absl::Time drafted_at = absl::InfinitePast();
  absl::Time heard_at = absl::InfinitePast();
};

struct EdgeRequest {
  Request request;
  uint64_t seed = 0;
  bool is_offline = false;
  // The local request of all choices, of one that began offline; else 0.
  RequestId offline_id = 0;
  absl::Time submitted_at;
  int64_t num_scored = 0;  // Of the prompt.
  int num_unfinished = 0;
  std::vector<Choice> choices;
};

// What a request of the local engine is for.
struct LocalUse {
  RequestId request_id = 0;
  int choice_idx = 0;  // Its choice 0 is this one.
  bool is_draft = false;
};

class EdgeEngineImpl final : public EdgeEngine,
                             private EdgeLinkHandler,
                             private OutputSink {
 public:
  EdgeEngineImpl(const EdgeEngineOptions& options,
                 const EngineOptions& engine_options, Clock* clock,
                 OutputSink* sink)
      : options_(options),
        engine_options_(engine_options),
        clock_(clock),
        sink_(sink),
        cloud_(options.link.peer) {
    cloud_.max_model_len = engine_options.max_model_len;
    cloud_.vocab_size = engine_options.vocab_size;
  }

  ~EdgeEngineImpl() override {
    {
      std::lock_guard<std::mutex> lock(mu_);
      is_stopping_ = true;
      is_up_ = false;  // From here on the link is not used any more.
      deadlines_changed_.notify_all();
    }
    if (deadline_thread_.joinable()) deadline_thread_.join();
    // Both call this object from threads of theirs.
    link_.reset();
    {
      std::lock_guard<std::mutex> lock(mu_);
      EndAll(FinishReason::kAbort, absl::OkStatus());
    }
    local_.reset();
  }

  absl::Status Start(ModelRunner* runner) {
    QUIRE_ASSIGN_OR_RETURN(
        local_, EngineLoop::Create(engine_options_, runner, clock_, this));
    QUIRE_ASSIGN_OR_RETURN(link_, EdgeLink::Create(options_.link, this));
    std::lock_guard<std::mutex> lock(mu_);
    is_started_ = true;
    started_.notify_all();
    deadline_thread_ = std::thread([this] { WatchDeadlines(); });
    return absl::OkStatus();
  }

  RequestId NewRequestId() override {
    std::lock_guard<std::mutex> lock(mu_);
    return next_request_id_++;
  }

  absl::Status Submit(Request request) override;
  void Abort(RequestId id, int32_t choice_idx, bool reason_is_stop) override;

  void StartDraining() override {
    std::lock_guard<std::mutex> lock(mu_);
    is_draining_ = true;
  }
  bool WaitUntilIdle(absl::Duration timeout) override {
    std::unique_lock<std::mutex> lock(mu_);
    return idle_.wait_for(
        lock, absl::ToChronoMilliseconds(std::min(timeout, absl::Hours(24))),
        [this] { return requests_.empty(); });
  }
  EngineStats Stats() const override;
  absl::Status Health() const override { return local_->Health(); }
  bool is_hanging() const override { return local_->is_hanging(); }

  absl::Status WaitForCloud(absl::Duration timeout) override {
    return link_->WaitForAnswer(timeout);
  }
  LinkPeer Cloud() const override {
    std::lock_guard<std::mutex> lock(mu_);
    return cloud_;
  }
  EdgeLinkStats LinkStats() const override;
  absl::Status Readiness() const override {
    const absl::Status state = link_->State();
    if (state.ok() || options_.offline == OfflinePolicy::kDraft) {
      return absl::OkStatus();
    }
    return absl::UnavailableError("there is no link to the cloud");
  }

 private:
  // EdgeLinkHandler, on the link's thread.
  void OnUp(const LinkPeer& cloud) override;
  absl::Status OnFrame(LinkFrameType type, absl::string_view payload) override;
  void OnRoundTrip(absl::Duration round_trip) override {
    std::lock_guard<std::mutex> lock(mu_);
    round_trip_ = round_trip;
    policy_.NoteRoundTrip(round_trip);
  }
  void OnDown(const absl::Status& reason) override;
  // OutputSink of the local engine, on its thread.
  void Push(std::vector<OutputEvent> events) override;

  // All below require mu_.
  absl::Status Validate(const Request& request) const;
  absl::Status StartOffline(EdgeRequest* state);
  // Goes on with the draft model; what cannot ends with an error.
  void ContinueOffline(EdgeRequest* state);
  void ContinueChoiceOffline(EdgeRequest* state, int choice_idx);
  void HandleCloudEvent(EdgeRequest* state, OutputEvent event);
  void HandleDrafts(EdgeRequest* state, int choice_idx,
                    const OutputEvent& event);
  void HandleOfflineEvent(EdgeRequest* state, const LocalUse& use,
                          OutputEvent event);
  void Draft(EdgeRequest* state, int choice_idx);
  void StopDrafting(EdgeRequest* state, int choice_idx);
  Request MakeLocalRequest(const EdgeRequest& state, int choice_idx,
                           int max_tokens) const;
  // Hands the event on; with a finish reason the choice ends by it. The request
  // may be gone afterwards.
  void Emit(EdgeRequest* state, OutputEvent event);
  void FinishChoice(EdgeRequest* state, int choice_idx, FinishReason reason,
                    const absl::Status& error);
  void EndAll(FinishReason reason, const absl::Status& error);
  void EndOverdue(EdgeRequest* state);
  // The body of deadline_thread_: the cloud may be silent when a deadline
  // comes.
  void WatchDeadlines();
  void Notice(const std::string& line) const {
    if (options_.link.on_notice) options_.link.on_notice(line);
  }

  const EdgeEngineOptions options_;
  const EngineOptions engine_options_;
  Clock* const clock_;
  OutputSink* const sink_;

  // Guards all but link_ and local_. Taken before the mutexes of these and of
  // the sink; none of them calls back while it holds its own.
  mutable std::mutex mu_;
  std::condition_variable idle_;
  std::condition_variable started_;
  bool is_started_ = false;
  bool is_stopping_ = false;
  bool is_draining_ = false;
  bool is_up_ = false;
  LinkPeer cloud_;
  bool has_told_of_offline_ = false;  // Since the link was up.
  DraftAheadPolicy policy_{0};
  absl::Duration round_trip_;
  RequestId next_request_id_ = 1;
  uint64_t num_seeds_drawn_ = 0;
  absl::flat_hash_map<RequestId, std::unique_ptr<EdgeRequest>> requests_;
  absl::flat_hash_map<RequestId, LocalUse> local_uses_;
  // Of unfinished requests that have one.
  std::set<std::pair<absl::Time, RequestId>> deadlines_;
  std::condition_variable deadlines_changed_;
  std::string frame_;   // Scratch.
  EngineStats totals_;  // Counters of what the cloud and this engine drew.
  int64_t num_draft_tokens_sent_ = 0;
  int64_t num_breaks_ = 0;
  int64_t num_offline_requests_ = 0;

  std::thread deadline_thread_;  // Joined first.
  std::unique_ptr<EngineLoop> local_;
  std::unique_ptr<EdgeLink> link_;  // Last: its thread uses all of the above.
};

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

// ----------------------------------------------------------------- Drafting

Request EdgeEngineImpl::MakeLocalRequest(const EdgeRequest& state,
                                         int choice_idx, int max_tokens) const {
  const Choice& choice = state.choices[choice_idx];
  const absl::Span<const int32_t> tokens = choice.chain.tokens();
  Request local;
  local.prompt_token_ids.reserve(state.request.prompt_token_ids.size() +
                                 tokens.size());
  local.prompt_token_ids = state.request.prompt_token_ids;
  local.prompt_token_ids.insert(local.prompt_token_ids.end(), tokens.begin(),
                                tokens.end());
  local.sampling = state.request.sampling;
  local.sampling.max_tokens = max_tokens;
  local.sampling.min_tokens = std::max<int64_t>(
      0, local.sampling.min_tokens - static_cast<int64_t>(tokens.size()));
  local.sampling.num_prompt_logprobs = -1;
  // The choice's draw key (MixBits(seed, choice)) as that of the first choice
  // of this request.
  local.sampling.seed =
      state.seed + 0x9E3779B97F4A7C15 * static_cast<uint64_t>(choice_idx);
  local.cache_namespace = state.request.cache_namespace;
  local.arrival_time = clock_->Now();
  local.priority = state.request.priority;
  local.owner = state.request.owner;
  local.share_weight = state.request.share_weight;
  return local;
}

void EdgeEngineImpl::Draft(EdgeRequest* state, int choice_idx) {
  Choice& choice = state->choices[choice_idx];
  if (choice.is_finished || choice.local_id != 0 || choice.has_draft_end ||
      !is_up_ || state->is_offline) {
    return;
  }
  const int64_t num_ahead = choice.chain.num_ahead();
  const int64_t num_wanted =
      std::min(policy_.NumAhead(!choice.is_drafting), kMaxLinkDrafts / 2);
  choice.is_drafting = num_wanted > 0;
  // In chunks: each costs the draft model a part of a block anew.
  if (num_wanted == 0 || num_ahead > num_wanted / 2) return;
  const int64_t num_tokens = choice.chain.tokens().size();
  const int64_t num_known = state->request.prompt_token_ids.size() + num_tokens;
  // The last token is drawn after all drafts. Where the draft model's context
  // ends, nothing more is drafted.
  const int64_t chunk =
      std::min({num_wanted - num_ahead,
                state->request.sampling.max_tokens - 1 - num_tokens,
                engine_options_.max_model_len - num_known});
  if (chunk < 1) return;
  Request local = MakeLocalRequest(*state, choice_idx, static_cast<int>(chunk));
  local.id = local_->NewRequestId();
  // How likely a greedy draft is agrees with how often it is accepted.
  local.sampling.num_logprobs = local.sampling.temperature == 0 ? 0 : -1;
  const RequestId local_id = local.id;
  // Full, for instance: the next event tries again.
  if (!local_->Submit(std::move(local)).ok()) return;
  choice.local_id = local_id;
  choice.draft_position = num_tokens;
  choice.drafted_at = absl::InfinitePast();
  local_uses_[local_id] = {state->request.id, choice_idx, /*is_draft=*/true};
}

void EdgeEngineImpl::StopDrafting(EdgeRequest* state, int choice_idx) {
  Choice& choice = state->choices[choice_idx];
  choice.is_drafting = choice.has_draft_end = false;
  if (choice.local_id == 0) return;
  local_uses_.erase(choice.local_id);
  local_->Abort(choice.local_id);
  choice.local_id = 0;
}

void EdgeEngineImpl::Push(std::vector<OutputEvent> events) {
  std::lock_guard<std::mutex> lock(mu_);
  for (OutputEvent& event : events) {
    const auto use = local_uses_.find(event.request_id);
    if (use == local_uses_.end()) continue;
    const LocalUse local = use->second;
    EdgeRequest* const state = requests_[local.request_id].get();
    if (local.is_draft) {
      HandleDrafts(state, local.choice_idx, event);
    } else {
      HandleOfflineEvent(state, local, std::move(event));
    }
  }
}

void EdgeEngineImpl::HandleDrafts(EdgeRequest* state, int choice_idx,
                                  const OutputEvent& event) {
  Choice& choice = state->choices[choice_idx];
  const absl::Time now = clock_->Now();
  if (!event.tokens.empty()) {
    if (choice.drafted_at != absl::InfinitePast()) {
      policy_.NoteDraft((now - choice.drafted_at) /
                        static_cast<int64_t>(event.tokens.size()));
    }
    choice.drafted_at = now;
  }
  LinkDrafts drafts;
  bool is_broken = false;
  for (const TokenOutput& token : event.tokens) {
    const bool is_ahead = choice.draft_position ==
                          static_cast<int64_t>(choice.chain.tokens().size());
    const DraftChain::Outcome outcome =
        choice.chain.Extend(choice.draft_position, token.token_id);
    policy_.NoteOutcome(outcome);
    is_broken = outcome.is_broken;
    if (is_broken) break;
    if (is_ahead) {
      if (drafts.token_ids.empty()) {
        drafts.num_generated = static_cast<int32_t>(choice.draft_position);
      }
      drafts.token_ids.push_back(token.token_id);
      if (state->request.sampling.temperature == 0) {
        const float p = std::exp(token.logprob);
        drafts.probabilities.push_back(p > 0 ? std::min(p, 1.0f) : 0.0f);
      }
    }
    ++choice.draft_position;
  }
  if (!drafts.token_ids.empty() && is_up_) {
    drafts.request_id = state->request.id;
    drafts.choice_idx = choice_idx;
    drafts.chain_no = choice.chain.chain_no();
    num_draft_tokens_sent_ += drafts.token_ids.size();
    frame_.clear();
    AppendDrafts(drafts, &frame_);
    link_->Send(frame_);
  }
  if (is_broken) {
    StopDrafting(state, choice_idx);
  } else if (event.finish_reason.has_value()) {
    local_uses_.erase(event.request_id);
    choice.local_id = 0;
    choice.has_draft_end = event.finish_reason == FinishReason::kStop &&
                           choice.chain.num_ahead() > 0;
    // The local engine refused it, or is going down.
    if (event.finish_reason == FinishReason::kError) return;
  }
  Draft(state, choice_idx);
}

// ------------------------------------------------------------------ Offline

absl::Status EdgeEngineImpl::StartOffline(EdgeRequest* state) {
  Request local = state->request;
  local.id = local_->NewRequestId();
  const RequestId local_id = local.id;
  local.sampling.max_tokens = std::min<int64_t>(
      local.sampling.max_tokens,
      std::max<int64_t>(
          1, engine_options_.max_model_len -
                 static_cast<int64_t>(local.prompt_token_ids.size())));
  QUIRE_RETURN_IF_ERROR(local_->Submit(std::move(local)));
  if (!std::exchange(has_told_of_offline_, true)) {
    Notice("while there is no link, the draft model answers new requests");
  }
  state->is_offline = true;
  state->offline_id = local_id;
  local_uses_[local_id] = {state->request.id, 0, /*is_draft=*/false};
  ++num_offline_requests_;
  return absl::OkStatus();
}

void EdgeEngineImpl::ContinueOffline(EdgeRequest* state) {
  const bool lacks_scores =
      state->request.sampling.num_prompt_logprobs >= 0 &&
      state->num_scored + 1 <
          static_cast<int64_t>(state->request.prompt_token_ids.size());
  for (int i = 0; i < state->request.n; ++i) StopDrafting(state, i);
  state->is_offline = true;
  ++num_offline_requests_;
  int num_left = state->num_unfinished;
  for (int i = 0; num_left > 0; ++i) {
    if (state->choices[i].is_finished) continue;
    --num_left;
    if (lacks_scores) {
      FinishChoice(state, i, FinishReason::kError,
                   absl::UnavailableError(
                       "the link to the model broke before the prompt was "
                       "scored"));
    } else {
      ContinueChoiceOffline(state, i);
    }
  }
}

void EdgeEngineImpl::ContinueChoiceOffline(EdgeRequest* state, int choice_idx) {
  Choice& choice = state->choices[choice_idx];
  // What was drafted counts for nothing: it is drawn anew.
  DraftChain heard;
  heard.Hear(choice.chain.tokens().subspan(0, choice.chain.num_heard()));
  choice.chain = std::move(heard);
  const int64_t num_heard = choice.chain.num_heard();
  const int64_t room =
      std::min<int64_t>(
          state->request.sampling.max_tokens,
          engine_options_.max_model_len -
              static_cast<int64_t>(state->request.prompt_token_ids.size())) -
      num_heard;
  if (room < 1) {
    FinishChoice(state, choice_idx, FinishReason::kLength, absl::OkStatus());
    return;
  }
  Request local = MakeLocalRequest(*state, choice_idx, static_cast<int>(room));
  local.id = local_->NewRequestId();
  local.continues_call = true;
  const RequestId local_id = local.id;
  const absl::Status status = local_->Submit(std::move(local));
  if (!status.ok()) {
    FinishChoice(state, choice_idx, FinishReason::kError, status);
    return;
  }
  choice.local_id = local_id;
  local_uses_[local_id] = {state->request.id, choice_idx, /*is_draft=*/false};
}

void EdgeEngineImpl::HandleOfflineEvent(EdgeRequest* state, const LocalUse& use,
                                        OutputEvent event) {
  event.choice_idx += use.choice_idx;
  Choice& choice = state->choices[event.choice_idx];
  if (choice.is_finished) return;
  event.is_from_draft_model = true;
  Emit(state, std::move(event));  // May delete `state`.
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

}  // namespace

absl::StatusOr<std::unique_ptr<EdgeEngine>> EdgeEngine::Create(
    const EdgeEngineOptions& options, const EngineOptions& engine_options,
    ModelRunner* runner, Clock* clock, OutputSink* sink) {
  auto engine =
      std::make_unique<EdgeEngineImpl>(options, engine_options, clock, sink);
  QUIRE_RETURN_IF_ERROR(engine->Start(runner));
  return std::unique_ptr<EdgeEngine>(std::move(engine));
}

}  // namespace quire
