#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/planted_bug.h"
#include "engine/base/random.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// Waiting requests looked at beyond the first that gets no tokens this step. A
// lookup costs some microseconds, and short prompts are rarely deeper.
constexpr int kMaxPassedRequests = 32;

}  // namespace

Scheduler::Scheduler(const EngineOptions& options, KvCacheManager* cache)
    : options_(options),
      max_num_tokens_(static_cast<int>(std::min<int64_t>(
          options.max_model_len,
          int64_t{cache->num_blocks()} * cache->block_size()))),
      cache_(cache),
      draft_control_(options.num_speculative_tokens, options.adapts_drafts) {
  counters_.num_accepted_at.resize(options.num_speculative_tokens);
  for (int slot = options.max_num_seqs - 1; slot >= 0; --slot) {
    free_slots_.push_back(slot);
  }
}

void Scheduler::AddRequest(Request request, uint64_t seed) {
  auto state = std::make_unique<RequestState>();
  state->request = std::move(request);
  const SamplingParams& sampling = state->request.sampling;
  state->arrival_no = next_arrival_no_++;
  if (options_.scheduling_policy == SchedulingPolicy::kPriority &&
      !HasPlantedBug(PlantedBug::kPriorityIgnored)) {
    state->priority = state->request.priority;
  }
  state->seed = sampling.seed.value_or(seed);
  state->cache_namespaces[0] = state->request.cache_namespace;
  if (options_.rope_switch_length > 0) {
    // The first byte tells them apart whatever a client names its own.
    state->cache_namespaces[0] =
        absl::StrCat("s", state->request.cache_namespace);
    state->cache_namespaces[1] =
        absl::StrCat("l", state->request.cache_namespace);
  }
  if (sampling.min_tokens > 0) {
    state->banned_before_min = sampling.stop_token_ids;
    if (!sampling.ignore_eos) {
      state->banned_before_min.insert(state->banned_before_min.end(),
                                      options_.eos_token_ids.begin(),
                                      options_.eos_token_ids.end());
    }
  }
  const int num_prompt_tokens =
      static_cast<int>(state->request.prompt_token_ids.size());
  // int64: max_tokens may be INT_MAX.
  int max_num_tokens = static_cast<int>(std::min<int64_t>(
      max_num_tokens_, int64_t{num_prompt_tokens} + sampling.max_tokens));
  // The result takes the place of a token, so that the sequence will_end while
  // it is computed; it needs no position.
  if (state->request.kind == RequestKind::kEmbed) {
    max_num_tokens = num_prompt_tokens + 1;
  }
  QUIRE_CHECK(num_prompt_tokens < max_num_tokens);
  const int32_t owner_idx =
      cache_->OwnerIdx(state->request.owner, state->request.share_weight);
  state->num_unfinished = state->request.n;
  shares_.Add(state.get());
  if (state->request.deadline < absl::InfiniteFuture()) {
    deadlines_.emplace(state->request.deadline, state->request.id);
  }
  for (int i = 0; i < state->request.n; ++i) {
    state->sequences.push_back(
        std::make_unique<Sequence>(state.get(), i, max_num_tokens));
    state->sequences.back()->blocks.owner_idx = owner_idx;
    InsertWaiting(state->sequences.back().get());
  }
  ++num_unstarted_requests_;
  num_unstarted_tokens_ += num_prompt_tokens;
  const RequestId id = state->request.id;
  const bool is_new = requests_.emplace(id, std::move(state)).second;
  QUIRE_CHECK(is_new);
}

// ------------------------------------------------------------------ Schedule

void Scheduler::Schedule(absl::Time now, SchedulerOutput* output) {
  QUIRE_CHECK(num_steps_in_flight() < options_.steps_in_flight);
  // Also of a step that nothing is drafted for, as others are in flight: those
  // are what is counted until it is tried again.
  if (is_drafting_) draft_control_.BeginStep();
  output->slot_starts.clear();
  output->block_appends.clear();
  output->block_copies.clear();
  output->rows.clear();
  output->token_ids.clear();
  output->scored_token_ids.clear();
  output->step_id = next_step_id_;
  steps_.push_back(TakeSpareStep());
  steps_.back().step_id = next_step_id_;
  steps_.back().planned_time = now;

  // Rounded up, so that it covers the part of the decodes.
  int budget =
      (options_.max_num_batched_tokens + options_.num_micro_batches - 1) /
          options_.num_micro_batches +
      HasPlantedBug(PlantedBug::kBudgetOffByOne);
  SettleShares();
  shares_.Revalue();
  PreemptForUrgent();
  ChooseDecodes();
  GrantDecodes(&budget);
  AdmitWaiting(now, &budget, output);
  GrantPrefills(&budget);
  GrantDrafts(budget);
  EmitRows(output);

  if (output->empty()) {
    spare_steps_.push_back(std::move(steps_.back()));
    steps_.pop_back();
  } else {
    ++next_step_id_;
  }
}

void Scheduler::SettleShares() {
  if (!shares_.Settle() || HasPlantedBug(PlantedBug::kSharesNotSorted)) return;
  const auto is_before = [](const Sequence* a, const Sequence* b) {
    return a->IsBefore(*b);
  };
  std::sort(running_.begin(), running_.end(), is_before);
  std::sort(waiting_.begin(), waiting_.end(), is_before);
}

void Scheduler::PreemptForUrgent() {
  if (options_.scheduling_policy != SchedulingPolicy::kPriority ||
      waiting_.empty() || waiting_.front()->has_holdings()) {
    return;
  }
  const Sequence& urgent = *waiting_.front();
  const RequestState& request = *urgent.request;
  bool must_wait = false;
  if (FindForkParent(urgent, &must_wait) == nullptr && must_wait) return;
  if (request.needs_scores()) {
    // It may have to wait for what scores now; nobody is preempted for that.
    for (const Sequence* other : running_) {
      if (other->request->priority <= request.priority &&
          other->request->needs_scores()) {
        return;
      }
    }
  }
  const int num_blocks = cache_->NumBlocksFor(urgent.num_known_tokens());
  while (num_releasing_ == 0 && !running_.empty() &&
         running_.back()->request->priority > request.priority &&
         (free_slots_.empty() ||
          cache_->num_available_blocks() < num_blocks + num_running())) {
    PreemptLast();
  }
}

void Scheduler::ChooseDecodes() {
  if (options_.num_micro_batches == 1) return;
  decodes_.clear();
  int num_decodes = 0;
  for (Sequence* sequence : running_) {
    sequence->waits_for_step = false;
    if (!sequence->is_decode() || sequence->will_end()) continue;
    ++num_decodes;
    sequence->waits_for_step = true;
    if (sequence->num_pending_tokens == 0) decodes_.push_back(sequence);
  }
  // Those that were in a step longest ago, so that nobody is passed for good
  // where the steps in flight have fewer than their part.
  const size_t part = (num_decodes + options_.num_micro_batches - 1) /
                      options_.num_micro_batches;
  if (decodes_.size() > part) {
    std::stable_sort(decodes_.begin(), decodes_.end(),
                     [](const Sequence* a, const Sequence* b) {
                       return a->last_step_id < b->last_step_id;
                     });
    decodes_.resize(part);
  }
  for (Sequence* sequence : decodes_) sequence->waits_for_step = false;
}

void Scheduler::GrantDecodes(int* budget) {
  prefills_.clear();
  // running_ may lose elements at its end, beyond or at the current one, and
  // the current one.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence* sequence = running_[i];
    sequence->num_granted_tokens = 0;
    sequence->num_granted_drafts = 0;
    if (!sequence->is_decode() || sequence->will_end()) continue;
    if (sequence->num_pending_drafts > 0) continue;
    if (sequence->waits_for_step) continue;
    if (!sequence->is_beyond_rope_switch &&
        IsBeyondRopeSwitch(sequence->num_submitted_tokens + 1)) {
      // Once in its life: what it has computed so far counts for nothing.
      Preempt(i--);
      continue;
    }
    if (!AppendBlockOrPreempt(sequence)) continue;
    sequence->num_granted_tokens = 1;
    --*budget;
  }
  for (Sequence* sequence : running_) {
    if (!sequence->is_decode()) prefills_.push_back(sequence);
  }
}

bool Scheduler::AppendBlockOrPreempt(Sequence* sequence) {
  while (
      !cache_->Append(sequence->num_submitted_tokens + 1, &sequence->blocks)) {
    // Blocks come back when a step in flight is collected: preempting for them
    // now would throw away work for nothing. The row has to wait.
    if (num_releasing_ > 0) return false;
    Sequence* last = running_.back();
    if (last != sequence && last->will_end() && last->num_inflight_rows > 0) {
      return false;
    }
    PreemptLast();
    if (last == sequence) return false;
  }
  return true;
}

void Scheduler::PreemptLast() {
  Preempt(HasPlantedBug(PlantedBug::kPreemptOldest) ? 0 : running_.size() - 1);
}

void Scheduler::Preempt(size_t running_idx) {
  Sequence* sequence = running_[running_idx];
  running_.erase(running_.begin() + running_idx);
  sequence->Preempt();
  // It may come back in this very step, with fewer blocks.
  if (sequence->num_pending_drafts == 0 &&
      !HasPlantedBug(PlantedBug::kDraftsOutlivePreemption)) {
    sequence->draft.token_ids.clear();
  }
  ++counters_.num_preemptions;
  ++num_releasing_;
  ReleaseHoldingsIfUnused(sequence);
  InsertWaiting(sequence);
}

bool Scheduler::WouldGetTokens(const Sequence& sequence,
                               int num_remaining_tokens, int budget) const {
  const int max_chunk = options_.long_prefill_token_threshold > 0
                            ? options_.long_prefill_token_threshold
                            : std::numeric_limits<int>::max();
  const RequestState& request = *sequence.request;
  const int max_scored = options_.max_num_scored_tokens;
  int64_t num_left = budget;
  int64_t num_scored_left = max_scored;
  for (size_t i = 0; i < prefills_.size(); ++i) {
    const Sequence& other = *prefills_[i];
    const int num_other = other.num_remaining_tokens();
    const int num_other_scored = other.NumScoredAmong(num_other);
    const bool is_first = other.request->priority != request.priority
                              ? other.request->priority < request.priority
                              : num_other <= num_remaining_tokens;
    if (is_first) {
      num_left -= std::min(num_other, max_chunk);
      num_scored_left -= std::min(num_other_scored, max_chunk);
    } else if (i == 0) {
      num_left -= std::min({num_other, max_chunk, (budget + 1) / 2});
      num_scored_left -=
          std::min({num_other_scored, max_chunk, (max_scored + 1) / 2});
    }
  }
  return num_left > 0 && (num_scored_left > 0 || !request.needs_scores());
}

Sequence* Scheduler::FindForkParent(const Sequence& sequence,
                                    bool* must_wait) const {
  *must_wait = false;
  if (sequence.has_started) return nullptr;
  for (int i = 0; i < sequence.choice_idx; ++i) {
    Sequence* other = sequence.request->sequences[i].get();
    if (!other->has_started || other->state == SequenceState::kFinished ||
        other->is_beyond_rope_switch !=
            IsBeyondRopeSwitch(sequence.num_known_tokens())) {
      continue;
    }
    if (other->state == SequenceState::kRunning &&
        other->num_computed_tokens >= other->num_prompt_tokens) {
      *must_wait = false;
      return other;
    }
    *must_wait = true;
  }
  return nullptr;
}

bool Scheduler::TryFork(Sequence* sequence, Sequence* parent, absl::Time now,
                        SchedulerOutput* output) {
  std::optional<std::pair<int32_t, int32_t>> copy;
  const int num_prompt_tokens = sequence->num_prompt_tokens;
  if (!cache_->Fork(parent->blocks, num_prompt_tokens, num_running(),
                    &sequence->blocks, &copy)) {
    return false;
  }
  if (copy.has_value()) {
    output->block_copies.push_back(*copy);
    // The parent's block is read by this step, whatever becomes of the parent.
    if (!HasPlantedBug(PlantedBug::kCopySourceReleased)) {
      steps_.back().rows.push_back({parent, 0, 0, false});
      ++parent->num_inflight_rows;
      ++parent->request->num_inflight_rows;
    }
  }
  sequence->is_beyond_rope_switch = parent->is_beyond_rope_switch;
  StartSequence(sequence, num_prompt_tokens - 1, now);
  return true;
}

void Scheduler::StartSequence(Sequence* sequence, int num_computed_tokens,
                              absl::Time now) {
  RequestState* request = sequence->request;
  if (!request->has_started) {
    shares_.NoteStart(request);
    request->scheduled_time = now;
    request->num_cached_tokens = num_computed_tokens;
    --num_unstarted_requests_;
    num_unstarted_tokens_ -= sequence->num_prompt_tokens;
    counters_.num_prompt_tokens += sequence->num_prompt_tokens;
    if (options_.enable_prefix_caching && !request->needs_scores() &&
        !(request->request.kind == RequestKind::kEmbed &&
          options_.embeds_every_token)) {
      counters_.prefix_cache_queries += sequence->num_prompt_tokens;
      counters_.prefix_cache_hits += num_computed_tokens;
    }
  }
  const int slot = free_slots_.back();
  free_slots_.pop_back();
  sequence->Start(slot, num_computed_tokens);
  sequence->start_no = next_start_no_++;
  sequence->num_granted_tokens = 0;
  sequence->num_granted_drafts = 0;
  sequence->waits_for_step = false;
  const auto is_before = [](const Sequence* a, const Sequence* b) {
    return a->IsBefore(*b);
  };
  running_.insert(
      std::upper_bound(running_.begin(), running_.end(), sequence, is_before),
      sequence);
  if (!sequence->is_decode()) {
    prefills_.insert(std::upper_bound(prefills_.begin(), prefills_.end(),
                                      sequence, is_before),
                     sequence);
  }
  queues_need_compaction_ = true;
}

PrefixHit Scheduler::FindPrefix(Sequence* sequence) const {
  const absl::Span<const int32_t> tokens = sequence->known_tokens();
  const bool is_beyond = IsBeyondRopeSwitch(static_cast<int>(tokens.size()));
  if (sequence->is_beyond_rope_switch != is_beyond) {
    sequence->is_beyond_rope_switch = is_beyond;
    sequence->blocks.hashes.clear();  // They start from the namespace.
  }
  const Request& request = sequence->request->request;
  if (request.kind == RequestKind::kEmbed && options_.embeds_every_token &&
      !HasPlantedBug(PlantedBug::kEmbedSkipsTokens)) {
    return PrefixHit();
  }
  // A prompt token that is still to be scored must be computed. Lookup leaves
  // the last of the tokens it is given to be computed.
  const RequestState& state = *sequence->request;
  const bool needs_scores =
      state.needs_scores() && !HasPlantedBug(PlantedBug::kScoredTokenSkipped);
  return cache_->Lookup(
      needs_scores ? tokens.first(state.num_scored_tokens + 1) : tokens,
      state.cache_namespaces[is_beyond], &sequence->blocks);
}

void Scheduler::AdmitWaiting(absl::Time now, int* budget,
                             SchedulerOutput* output) {
  int num_passed = 0;
  const RequestState* waits_for_choice = nullptr;
  for (Sequence* sequence : waiting_) {
    if (free_slots_.empty() || *budget <= 0) break;
    if (sequence->has_holdings()) break;  // Preempted, a step still names it.
    if (sequence->request == waits_for_choice) continue;
    bool must_wait = false;
    Sequence* parent = FindForkParent(*sequence, &must_wait);
    if (parent != nullptr) {
      if (!TryFork(sequence, parent, now, output)) break;
      sequence->num_granted_tokens = 1;
      --*budget;
      continue;
    }
    if (must_wait) {
      waits_for_choice = sequence->request;
      continue;
    }
    const absl::Span<const int32_t> tokens = sequence->known_tokens();
    const int num_tokens = static_cast<int>(tokens.size());
    const int guess = std::max(sequence->num_hit_tokens_guess, 0);
    if (sequence->num_hit_tokens_guess >= 0 &&
        !WouldGetTokens(*sequence, num_tokens - guess, *budget)) {
      if (++num_passed > kMaxPassedRequests) break;
      continue;
    }
    const PrefixHit hit = FindPrefix(sequence);
    sequence->num_hit_tokens_guess = hit.num_tokens;
    if (!WouldGetTokens(*sequence, num_tokens - hit.num_tokens, *budget)) {
      if (++num_passed > kMaxPassedRequests) break;
      continue;
    }
    if (!cache_->Allocate(hit, num_tokens, num_running(), &sequence->blocks)) {
      break;
    }
    StartSequence(sequence, hit.num_tokens, now);
    if (sequence->is_decode()) {
      sequence->num_granted_tokens = 1;
      --*budget;
    }
  }
  CompactQueues();
}

void Scheduler::GrantPrefills(int* budget) {
  if (prefills_.empty() || *budget <= 0) return;
  int max_chunk = std::numeric_limits<int>::max();
  if (options_.long_prefill_token_threshold > 0 &&
      (running_.size() > 1 || !waiting_.empty())) {
    max_chunk = options_.long_prefill_token_threshold;
  }
  int num_scored_left = options_.max_num_scored_tokens;
  Sequence* oldest = prefills_.front();
  oldest->num_granted_tokens =
      std::min({oldest->num_remaining_tokens(), max_chunk, (*budget + 1) / 2,
                oldest->NumTokensScoringAtMost((num_scored_left + 1) / 2)});
  *budget -= oldest->num_granted_tokens;
  num_scored_left -= oldest->NumScoredAmong(oldest->num_granted_tokens);
  std::sort(prefills_.begin(), prefills_.end(),
            [](const Sequence* a, const Sequence* b) {
              if (a->request->priority != b->request->priority) {
                return a->request->priority < b->request->priority;
              }
              const int a_left = a->num_remaining_tokens();
              const int b_left = b->num_remaining_tokens();
              return a_left != b_left ? a_left < b_left : a->IsBefore(*b);
            });
  for (Sequence* sequence : prefills_) {
    if (*budget == 0) break;
    const int num_before = sequence->num_granted_tokens;
    const int num_scored_before = sequence->NumScoredAmong(num_before);
    const int num_granted = std::min(
        {sequence->num_remaining_tokens(), max_chunk, num_before + *budget,
         sequence->NumTokensScoringAtMost(num_scored_before +
                                          num_scored_left)});
    sequence->num_granted_tokens = num_granted;
    *budget -= num_granted - num_before;
    num_scored_left -=
        sequence->NumScoredAmong(num_granted) - num_scored_before;
  }
}

void Scheduler::EmitSlotChanges(Sequence* sequence, SchedulerOutput* output) {
  const std::vector<int32_t>& table = sequence->blocks.block_table;
  if (!sequence->is_slot_announced) {
    sequence->is_slot_announced = true;
    const RequestState& request = *sequence->request;
    SlotStart start;
    start.slot = sequence->slot;
    start.params = &request.request.sampling;
    start.draw_key = sequence->draw_key();
    start.banned_before_min = request.banned_before_min;
    start.history = sequence->token_ids;
    if (HasPlantedBug(PlantedBug::kHistoryNotResent)) {
      start.history.resize(sequence->num_prompt_tokens);
    }
    start.num_prompt_tokens = sequence->num_prompt_tokens;
    start.num_computed_tokens = sequence->num_submitted_tokens;
    output->slot_starts.push_back(std::move(start));
  }
  const int num_blocks = static_cast<int>(table.size());
  if (sequence->num_announced_blocks < num_blocks) {
    output->block_appends.push_back(
        {sequence->slot,
         {table.begin() + sequence->num_announced_blocks, table.end()}});
    sequence->num_announced_blocks = num_blocks;
  }
}

void Scheduler::EmitRows(SchedulerOutput* output) {
  InFlightStep& step = steps_.back();
  for (Sequence* sequence : running_) {
    const int num_known = sequence->num_granted_tokens;
    if (num_known == 0) continue;
    const int num_tokens = num_known + sequence->num_granted_drafts;
    EmitSlotChanges(sequence, output);
    ScheduledRow row;
    row.slot = sequence->slot;
    row.first_position = sequence->num_submitted_tokens;
    row.num_tokens = num_tokens;
    row.input_on_device = sequence->num_pending_tokens > 0;
    row.first_token_idx = static_cast<int32_t>(output->token_ids.size());
    row.needs_token =
        row.input_on_device || num_known == sequence->num_remaining_tokens();
    if (!row.input_on_device) {
      const auto first = sequence->token_ids.begin() + row.first_position;
      output->token_ids.insert(output->token_ids.end(), first,
                               first + num_known);
    }
    row.num_drafts = sequence->num_granted_drafts;
    if (row.num_drafts > 0) {
      const std::vector<int32_t>& drafts = sequence->draft.token_ids;
      output->token_ids.insert(output->token_ids.end(), drafts.begin(),
                               drafts.end());
    }
    row.num_scored = sequence->NumScoredAmong(num_known);
    if (row.num_scored > 0) {
      // The successors of the row's last tokens.
      const auto end = sequence->token_ids.begin() + row.first_position +
                       num_tokens + (row.needs_token ? 0 : 1);
      output->scored_token_ids.insert(output->scored_token_ids.end(),
                                      end - row.num_scored, end);
    }
    output->rows.push_back(row);
    const bool is_decode = row.needs_token && num_known == 1;
    step.rows.push_back({sequence, row.first_position, num_tokens,
                         row.needs_token, row.num_scored, row.num_drafts,
                         is_drafting_ && is_decode && !row.input_on_device});
    step.num_tokens += num_tokens;
    step.has_prompt |= !is_decode;
    sequence->num_submitted_tokens += num_tokens;
    sequence->num_pending_drafts = row.num_drafts;
    sequence->last_step_id = step.step_id;
    if (row.needs_token) ++sequence->num_pending_tokens;
    ++sequence->num_inflight_rows;
    ++sequence->request->num_inflight_rows;
  }
}

void Scheduler::ReleaseHoldingsIfUnused(Sequence* sequence) {
  if (!sequence->has_holdings()) return;
  if (sequence->num_inflight_rows > 0 &&
      !HasPlantedBug(PlantedBug::kReleaseInFlight)) {
    return;
  }
  cache_->Free(&sequence->blocks);
  if (!HasPlantedBug(PlantedBug::kSlotLost) ||
      sequence->state == SequenceState::kFinished) {
    free_slots_.push_back(sequence->slot);
  }
  sequence->slot = -1;
  sequence->num_computed_tokens = 0;
  sequence->num_submitted_tokens = 0;
  sequence->num_covered_tokens = 0;
  sequence->num_hit_tokens_guess = -1;
  --num_releasing_;
}

void Scheduler::EraseRequestIfDone(RequestState* request) {
  if (request->num_unfinished > 0 || request->num_inflight_rows > 0) return;
  CompactQueues();  // They may still point to its sequences.
  shares_.Remove(request);
  requests_.erase(request->request.id);
}

void Scheduler::InsertWaiting(Sequence* sequence) {
  if (HasPlantedBug(PlantedBug::kPlaceLostByPreemption)) {
    waiting_.push_back(sequence);
    return;
  }
  waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), sequence,
                                   [](const Sequence* a, const Sequence* b) {
                                     return a->IsBefore(*b);
                                   }),
                  sequence);
}

void Scheduler::CompactQueues() {
  if (!queues_need_compaction_) return;
  queues_need_compaction_ = false;
  const auto keep_only = [](std::vector<Sequence*>* queue,
                            SequenceState state) {
    queue->erase(std::remove_if(queue->begin(), queue->end(),
                                [state](const Sequence* sequence) {
                                  return sequence->state != state;
                                }),
                 queue->end());
  };
  keep_only(&running_, SequenceState::kRunning);
  keep_only(&waiting_, SequenceState::kWaiting);
}

Scheduler::InFlightStep Scheduler::TakeSpareStep() {
  if (spare_steps_.empty()) return {};
  InFlightStep step = std::move(spare_steps_.back());
  spare_steps_.pop_back();
  step.rows.clear();
  step.num_tokens = 0;
  step.has_prompt = false;
  return step;
}

void Scheduler::CountWaiting(int* num_requests, int64_t* num_tokens) const {
  *num_requests = 0;
  *num_tokens = 0;
  const RequestState* counted = nullptr;
  for (const Sequence* sequence : waiting_) {
    // Choices of a request are neighbours.
    if (sequence->request == counted || sequence->request->num_running > 0) {
      continue;
    }
    counted = sequence->request;
    ++*num_requests;
    *num_tokens += sequence->num_prompt_tokens;
  }
}

const Sequence* Scheduler::FindSequence(RequestId id, int choice_idx) const {
  const auto it = requests_.find(id);
  if (it == requests_.end() || choice_idx < 0 ||
      choice_idx >= static_cast<int>(it->second->sequences.size())) {
    return nullptr;
  }
  return it->second->sequences[choice_idx].get();
}

}  // namespace quire
