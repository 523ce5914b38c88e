// What the draft model of an edge does: drafts, and answers without a link.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/speculative/link/edge_engine_impl.h"

namespace quire {

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

}  // namespace quire
