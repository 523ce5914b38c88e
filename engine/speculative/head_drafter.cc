#include "engine/speculative/head_drafter.h"

#include <algorithm>
#include <cmath>

#include "engine/base/status.h"

namespace quire {
namespace {

// GraphKey::model of the two kinds of steps.
constexpr int32_t kReadsTaps = 1;
constexpr int32_t kReadsItself = 2;

int BlocksOfStandIn(const EngineShape& shape, int max_drafts) {
  return (std::max(max_drafts, 1) + shape.block_size - 1) / shape.block_size;
}

}  // namespace

int HeadDrafter::NumBlocksBeside(const EngineShape& target, int max_drafts) {
  return target.max_num_seqs * BlocksOfStandIn(target, max_drafts);
}

HeadDrafter::HeadDrafter(absl::string_view method, LoadedModel head,
                         int max_positions, int max_drafts,
                         const LoadedModel& target)
    : method_(method),
      loaded_(std::move(head)),
      head_(static_cast<DraftHead*>(loaded_.model.get())),
      max_positions_(max_positions),
      num_slots_(target.shape.max_num_seqs),
      blocks_of_stand_in_(BlocksOfStandIn(target.shape, max_drafts)),
      num_target_blocks_(target.memory.num_blocks),
      zeros_(target.shape.max_model_len + 1, 0),
      slots_(num_slots_),
      has_stand_in_(num_slots_, 0) {
  greedy_.temperature = 0;
  greedy_.num_logprobs = 0;
  for (int i = 0; i < num_slots_ * blocks_of_stand_in_; ++i) {
    stand_in_blocks_.push_back(num_target_blocks_ + i);
  }
}

absl::StatusOr<std::unique_ptr<HeadDrafter>> HeadDrafter::Create(
    absl::string_view method, LoadedModel head, int max_positions,
    int max_drafts, const LoadedModel& target) {
  std::unique_ptr<HeadDrafter> drafter(new HeadDrafter(
      method, std::move(head), max_positions, max_drafts, target));
  QUIRE_RETURN_IF_ERROR(
      drafter->head_->SetTarget(*target.model, *target.backend));
  return drafter;
}

void HeadDrafter::AddUpdate(int32_t slot, bool starts, int num_computed,
                            absl::Span<const int32_t> blocks) {
  SlotUpdate update;
  update.slot = slot;
  if (starts) {
    update.params = &greedy_;
    // Greedy draws look at no tokens before.
    update.history = absl::MakeConstSpan(zeros_).first(num_computed);
    update.num_computed_tokens = num_computed;
  }
  update.append_blocks = blocks;
  updates_.push_back(update);
}

void HeadDrafter::AddRow(int32_t slot, int num_tokens, int first_position,
                         bool draws) {
  StepRow row;
  row.slot = slot;
  row.num_tokens = num_tokens;
  row.num_logits = draws ? 1 : 0;
  row.first_position = first_position;
  rows_.push_back(row);
  num_logits_ += row.num_logits;
}

void HeadDrafter::AddStandIn(int32_t slot, int num_tokens, bool draws) {
  if (!has_stand_in_[slot]) {
    has_stand_in_[slot] = 1;
    AddUpdate(num_slots_ + slot, /*starts=*/true, 0,
              absl::MakeConstSpan(stand_in_blocks_)
                  .subspan(slot * blocks_of_stand_in_, blocks_of_stand_in_));
  }
  AddRow(num_slots_ + slot, num_tokens, /*first_position=*/0, draws);
  token_ids_.insert(token_ids_.end(), num_tokens, 0);
}

void HeadDrafter::AddTargetRow(const TargetRow& row) {
  Slot& slot = slots_[row.slot];
  if (!slot.is_used || slot.start_no != row.start_no ||
      slot.num_computed < row.first_position) {
    // What is before it came from the prefix cache, and so did the head's.
    slot = Slot();
    slot.is_used = true;
    slot.start_no = row.start_no;
    AddUpdate(row.slot, /*starts=*/true, row.first_position, row.block_table);
  } else if (slot.num_blocks < static_cast<int>(row.block_table.size())) {
    AddUpdate(row.slot, /*starts=*/false, 0,
              row.block_table.subspan(slot.num_blocks));
  }
  slot.num_blocks = static_cast<int>(row.block_table.size());
  const int num_kept = row.num_kept_tokens;
  AddRow(row.slot, num_kept, row.first_position, row.has_drawn);
  for (const int32_t id : row.next_ids) token_ids_.push_back(std::max(id, 0));
  slot.num_known = slot.num_computed = row.first_position + num_kept;
  slot.has_draft = false;
  if (row.has_drawn) drawn_slots_.push_back(row.slot);
  if (num_kept < row.num_tokens) {
    AddStandIn(row.slot, row.num_tokens - num_kept, /*draws=*/false);
  }
}

absl::StatusOr<absl::Span<const RowResult>> HeadDrafter::RunStep(
    bool reads_taps) {
  Backend& backend = *loaded_.backend;
  StepPlan plan;
  plan.updates = updates_;
  plan.block_copies = block_copies_;
  plan.rows = rows_;
  plan.token_ids = token_ids_;
  GraphKey key;
  key.model = reads_taps ? kReadsTaps : kReadsItself;
  key.num_rows = static_cast<int32_t>(rows_.size());
  key.num_tokens = static_cast<int32_t>(token_ids_.size());
  key.num_logit_rows = num_logits_;
  head_->set_reads_taps(reads_taps);
  QUIRE_ASSIGN_OR_RETURN(Step* const step, backend.BeginStep(plan));
  absl::Status status =
      backend.Run(*step, key, [&] { return head_->Forward(backend, *step); });
  status.Update(backend.EndStep(*step));
  updates_.clear();
  rows_.clear();
  token_ids_.clear();
  num_logits_ = 0;
  block_copies_ = {};
  absl::StatusOr<absl::Span<const RowResult>> results = backend.Collect(*step);
  QUIRE_RETURN_IF_ERROR(status);
  return results;
}

bool HeadDrafter::TakeDraft(const RowResult& result, int32_t* id,
                            float* probability) {
  if (result.non_finite || result.tokens.empty()) return false;
  *id = head_->TargetIdOf(result.tokens[0]);
  *probability = std::clamp(std::exp(result.logprobs[0]), 0.0f, 1.0f);
  return true;
}

absl::Status HeadDrafter::ObserveStep(const TargetStep& step) {
  drawn_slots_.clear();
  block_copies_ = step.block_copies;
  for (const TargetRow& row : step.rows) AddTargetRow(row);
  QUIRE_ASSIGN_OR_RETURN(const absl::Span<const RowResult> results,
                         RunStep(/*reads_taps=*/true));
  for (const RowResult& result : results) {
    Slot& slot = slots_[result.slot];
    slot.has_draft = TakeDraft(result, &slot.draft_id, &slot.probability);
  }
  return absl::OkStatus();
}

void HeadDrafter::Extend(Chain* chain, int32_t id, float probability) {
  chain->chance *= probability;
  chain->is_done = !(chain->chance >= chain->sequence->min_chance);
  if (chain->is_done) return;
  chain->draft->token_ids.push_back(id);
  chain->draft->probabilities.push_back(probability);
  chain->is_done = static_cast<int>(chain->draft->token_ids.size()) >=
                   chain->sequence->max_num_drafts;
}

absl::Status HeadDrafter::Propose(absl::Span<const DraftSequence> sequences,
                                  absl::Span<Draft> drafts) {
  chains_.clear();
  chain_of_row_.assign(drawn_slots_.size(), -1);
  for (size_t i = 0; i < sequences.size(); ++i) {
    const DraftSequence& sequence = sequences[i];
    const Slot& slot = slots_[sequence.slot];
    const size_t num_tokens = sequence.token_ids.size();
    if (!slot.has_draft || slot.start_no != sequence.start_no ||
        static_cast<size_t>(slot.num_known) + 1 != num_tokens ||
        num_tokens + sequence.max_num_drafts > size_t(max_positions_)) {
      continue;
    }
    const auto row =
        std::find(drawn_slots_.begin(), drawn_slots_.end(), sequence.slot);
    if (row == drawn_slots_.end()) continue;
    Chain chain;
    chain.sequence = &sequence;
    chain.draft = &drafts[i];
    Extend(&chain, slot.draft_id, slot.probability);
    chain_of_row_[row - drawn_slots_.begin()] =
        static_cast<int>(chains_.size());
    chains_.push_back(chain);
  }
  const auto goes_on = [](const Chain& chain) { return !chain.is_done; };
  while (std::any_of(chains_.begin(), chains_.end(), goes_on)) {
    for (size_t i = 0; i < drawn_slots_.size(); ++i) {
      Chain* chain =
          chain_of_row_[i] < 0 ? nullptr : &chains_[chain_of_row_[i]];
      if (chain == nullptr || chain->is_done) {
        AddStandIn(drawn_slots_[i], 1, /*draws=*/true);
        continue;
      }
      Slot& slot = slots_[drawn_slots_[i]];
      const absl::Span<const int32_t> blocks = chain->sequence->block_table;
      if (slot.num_blocks < static_cast<int>(blocks.size())) {
        AddUpdate(drawn_slots_[i], /*starts=*/false, 0,
                  blocks.subspan(slot.num_blocks));
        slot.num_blocks = static_cast<int>(blocks.size());
      }
      const int num_drafts = static_cast<int>(chain->draft->token_ids.size());
      AddRow(drawn_slots_[i], 1, slot.num_known + num_drafts - 1,
             /*draws=*/true);
      token_ids_.push_back(chain->draft->token_ids.back());
      slot.num_computed = slot.num_known + num_drafts;
    }
    QUIRE_ASSIGN_OR_RETURN(const absl::Span<const RowResult> results,
                           RunStep(/*reads_taps=*/false));
    for (size_t i = 0; i < results.size(); ++i) {
      if (chain_of_row_[i] < 0) continue;
      Chain& chain = chains_[chain_of_row_[i]];
      if (chain.is_done) continue;
      int32_t id = 0;
      float probability = 0;
      if (TakeDraft(results[i], &id, &probability)) {
        Extend(&chain, id, probability);
      } else {
        chain.is_done = true;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace quire
