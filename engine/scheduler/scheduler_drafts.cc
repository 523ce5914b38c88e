// Speculation: which sequences to draft for, and which drafts get a place.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/planted_bug.h"
#include "engine/base/status.h"
#include "engine/scheduler/scheduler.h"

namespace quire {

void Scheduler::StartDrafting(bool is_costly) {
  is_drafting_ = options_.num_speculative_tokens > 0;
  draft_control_.set_is_costly(is_costly);
}

void Scheduler::StopDrafting() {
  is_drafting_ = false;
  draft_plan_.clear();
  ended_.clear();
}

void Scheduler::ListOldestStep(std::vector<const Sequence*>* sequences) const {
  sequences->clear();
  for (const InFlightRow& row : steps_.front().rows) {
    if (row.num_tokens > 0) sequences->push_back(row.sequence);
  }
}

int Scheduler::MaxDraftsOf(const Sequence& sequence) const {
  if (sequence.request->request.kind == RequestKind::kEmbed ||
      sequence.request->needs_scores() || sequence.num_pending_tokens > 0 ||
      sequence.num_remaining_tokens() != 1) {
    return 0;
  }
  const int num_known = sequence.num_known_tokens();
  // All accepted, one more token is drawn after them.
  int num_drafts = std::min(options_.num_speculative_tokens,
                            sequence.max_num_tokens - num_known - 1 +
                                HasPlantedBug(PlantedBug::kDraftsBeyondEnd));
  if (!sequence.is_beyond_rope_switch && options_.rope_switch_length > 0 &&
      !HasPlantedBug(PlantedBug::kDraftsBeyondRopeSwitch)) {
    // The drafts are computed with the positions of the row they are in.
    num_drafts = std::min(num_drafts, options_.rope_switch_length - num_known);
  }
  return std::max(num_drafts, 0);
}

bool Scheduler::ShouldCollectFirst() {
  if (!is_drafting_) return false;
  tracks_.clear();
  for (const Sequence* sequence : running_) {
    if (sequence->is_decode() && !sequence->will_end() &&
        sequence->request->request.kind == RequestKind::kGenerate) {
      tracks_.push_back(&sequence->draft_track);
    }
  }
  return draft_control_.IsWorthWaiting(tracks_);
}

DraftSequence Scheduler::Show(const Sequence& sequence) {
  DraftSequence shown;
  shown.sequence_id = sequence.sequence_id();
  shown.slot = sequence.slot;
  shown.start_no = sequence.start_no;
  shown.token_ids = sequence.token_ids;
  shown.num_prompt_tokens = sequence.num_prompt_tokens;
  shown.block_table = sequence.blocks.block_table;
  shown.cache_namespace = sequence.request->request.cache_namespace;
  shown.params = &sequence.request->request.sampling;
  shown.draw_key = sequence.draw_key();
  shown.request_id = sequence.request->request.id;
  shown.choice_idx = sequence.choice_idx;
  return shown;
}

void Scheduler::PlanDrafts(Drafter* drafter,
                           std::vector<DraftSequence>* sequences) {
  sequences->clear();
  draft_plan_.clear();
  candidates_.clear();
  if (!is_drafting_) return;
  for (Sequence* sequence : running_) {
    const int num_drafts = MaxDraftsOf(*sequence);
    if (num_drafts == 0) continue;
    DraftControl::Candidate candidate{
        &sequence->draft_track, num_drafts, {}, 0};
    if (drafter != nullptr && drafter->is_costly()) {
      candidate.num_missing = drafter->NumMissingTokens(Show(*sequence));
      if (candidate.num_missing < 0) continue;
      candidate.num_generated = sequence->num_generated_tokens();
      candidate.max_remaining =
          sequence->max_num_tokens - sequence->num_known_tokens();
    }
    draft_plan_.push_back(sequence);
    candidates_.push_back(candidate);
  }
  if (draft_plan_.empty()) return;
  draft_control_.AllotProposals(num_running(), absl::MakeSpan(candidates_));
  size_t num_kept = 0;
  for (size_t i = 0; i < draft_plan_.size(); ++i) {
    Sequence* sequence = draft_plan_[i];
    const int num_drafts = CoverDrafts(sequence, candidates_[i].max_drafts);
    if (num_drafts == 0) continue;
    draft_plan_[num_kept++] = sequence;
    DraftSequence& shown = sequences->emplace_back(Show(*sequence));
    shown.max_num_drafts = num_drafts;
    shown.min_chance = draft_control_.min_chance();
  }
  draft_plan_.resize(num_kept);
}

int Scheduler::CoverDrafts(Sequence* sequence, int num_drafts) {
  const int num_known = sequence->num_known_tokens();
  // Every running sequence may need a block for its next token: drafts take
  // none of these, and preempt nobody.
  const int num_spare = cache_->num_available_blocks() - num_running();
  const int num_blocks = static_cast<int>(sequence->blocks.block_table.size()) +
                         std::max(num_spare, 0);
  const int64_t num_positions = int64_t{num_blocks} * cache_->block_size();
  num_drafts = static_cast<int>(
      std::min<int64_t>(num_drafts, num_positions - num_known));
  if (num_drafts <= 0) return 0;
  const bool is_covered =
      cache_->Append(num_known + num_drafts, &sequence->blocks);
  QUIRE_CHECK(is_covered);
  sequence->num_covered_tokens =
      std::max(sequence->num_covered_tokens, num_known + num_drafts);
  return num_drafts;
}

absl::Status Scheduler::SetDrafts(absl::Span<Draft> drafts) {
  QUIRE_CHECK(drafts.size() == draft_plan_.size());
  for (size_t i = 0; i < drafts.size(); ++i) {
    Draft& draft = drafts[i];
    Sequence* sequence = draft_plan_[i];
    const size_t num_drafts = draft.token_ids.size();
    const auto is_valid_id = [this](int32_t id) {
      return id >= 0 && id < options_.vocab_size;
    };
    const auto is_probability = [](float p) { return p >= 0 && p <= 1; };
    if (!std::all_of(draft.token_ids.begin(), draft.token_ids.end(),
                     is_valid_id) ||
        !std::all_of(draft.probabilities.begin(), draft.probabilities.end(),
                     is_probability) ||
        (!draft.probabilities.empty() &&
         draft.probabilities.size() != num_drafts)) {
      draft_plan_.clear();
      return absl::InternalError(
          "the drafter proposed a token outside the vocabulary, or no "
          "probability");
    }
    // Covered by blocks. And after a token that ends the sequence nothing is
    // drawn; the token itself is drawn without being a draft.
    size_t count = 0;
    const size_t max_drafts = std::max(
        0, std::min(MaxDraftsOf(*sequence),
                    static_cast<int>(sequence->blocks.block_table.size()) *
                            cache_->block_size() -
                        sequence->num_known_tokens()));
    while (
        count < std::min(num_drafts, max_drafts) &&
        (!sequence->WouldStopAt(draft.token_ids[count], static_cast<int>(count),
                                options_.eos_token_ids) ||
         HasPlantedBug(PlantedBug::kDraftsBeyondStop))) {
      ++count;
    }
    draft.token_ids.resize(count);
    if (!draft.probabilities.empty()) draft.probabilities.resize(count);
    std::swap(sequence->draft, draft);
  }
  return absl::OkStatus();
}

void Scheduler::GrantDrafts(int budget) {
  if (draft_plan_.empty()) return;
  int num_base_tokens = 0;
  int num_scored = 0;
  for (const Sequence* sequence : running_) {
    num_base_tokens += sequence->num_granted_tokens;
    num_scored += sequence->NumScoredAmong(sequence->num_granted_tokens);
  }
  candidates_.clear();
  size_t num_kept = 0;
  for (Sequence* sequence : draft_plan_) {
    // It may have been preempted since.
    if (sequence->state != SequenceState::kRunning ||
        sequence->num_granted_tokens != 1 ||
        sequence->draft.token_ids.empty()) {
      sequence->draft.token_ids.clear();
      continue;
    }
    draft_plan_[num_kept++] = sequence;
    candidates_.push_back({&sequence->draft_track,
                           static_cast<int>(sequence->draft.token_ids.size()),
                           sequence->draft.probabilities, 0});
  }
  draft_plan_.resize(num_kept);
  if (num_kept > 0) {
    budget = std::min(budget, options_.max_num_scored_tokens - num_scored) +
             HasPlantedBug(PlantedBug::kDraftsBeyondBudget);
    draft_control_.AllotDrafts(num_base_tokens, std::max(budget, 0),
                               absl::MakeSpan(candidates_));
  }
  for (size_t i = 0; i < num_kept; ++i) {
    Draft& draft = draft_plan_[i]->draft;
    const int count = candidates_[i].num_allotted;
    draft_plan_[i]->num_granted_drafts = count;
    draft.token_ids.resize(count);
    if (!draft.probabilities.empty()) draft.probabilities.resize(count);
  }
  draft_plan_.clear();
}

void Scheduler::NoteDrafts(const InFlightRow& row, int num_accepted) {
  Sequence* sequence = row.sequence;
  if (row.num_drafts > 0) {
    ++counters_.num_drafts;
    counters_.num_draft_tokens += row.num_drafts;
    counters_.num_accepted_tokens += num_accepted;
    for (int i = 0; i < num_accepted; ++i) {
      ++counters_.num_accepted_at[i];
    }
  }
  if (row.could_draft) {
    draft_control_.NoteResult(row.num_drafts, num_accepted,
                              sequence->draft.probabilities,
                              &sequence->draft_track);
  } else if (is_drafting_) {
    ++sequence->draft_track.num_steps_without;
  }
}

void Scheduler::NoteStepTime(const InFlightStep& step, absl::Time now) {
  // Tokens of prompts cost less than drafts, which have logits.
  if (is_drafting_ && !step.has_prompt) {
    draft_control_.NoteStep(
        step.num_tokens, now - std::max(step.planned_time, last_update_time_));
  }
  last_update_time_ = now;
}

}  // namespace quire
