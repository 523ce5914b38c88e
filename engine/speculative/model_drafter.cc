#include "engine/speculative/model_drafter.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/base/random.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// Whether draws look at the tokens before: then the slot must know them, the
// ones that others drew included.
bool LooksBack(const SamplingParams& params) {
  return params.presence_penalty != 0 || params.frequency_penalty != 0 ||
         params.repetition_penalty != 1 || params.dry_multiplier != 0 ||
         params.bad_words != nullptr;
}

uint64_t HashTokens(uint64_t hash, absl::Span<const int32_t> ids) {
  for (const int32_t id : ids) hash = MixBits(hash, static_cast<uint64_t>(id));
  return hash | 1;  // Never 0.
}

}  // namespace

ModelDrafter::ModelDrafter(LoadedModel draft, int target_vocab_size)
    : draft_(std::move(draft)),
      target_vocab_size_(target_vocab_size),
      slots_(draft_.shape.max_num_seqs),
      tags_(draft_.memory.num_blocks, 0) {}

bool ModelDrafter::CanTake(const DraftSequence& sequence,
                           const Slot& slot) const {
  if (sequence.token_ids.size() >
      static_cast<size_t>(draft_.shape.max_model_len)) {
    return false;
  }
  // Ids that pad the target's vocabulary, and that the draft model lacks.
  if (draft_.config.vocab_size >= target_vocab_size_) return true;
  const auto rest = sequence.token_ids.subspan(
      std::min<size_t>(slot.num_computed, sequence.token_ids.size()));
  return std::all_of(rest.begin(), rest.end(), [this](int32_t id) {
    return id < draft_.config.vocab_size;
  });
}

void ModelDrafter::BeginSequence(const DraftSequence& sequence, Slot* slot) {
  slot->is_used = true;
  slot->sequence_id = sequence.sequence_id;
  slot->start_no = sequence.start_no;
  slot->num_blocks = 0;
  slot->device_computed = 0;
  slot->fed_ids.clear();
  SamplingParams& params = slot->params;
  params = SamplingParams();
  if (sequence.params == nullptr) {
    params.temperature = 0;
  } else {
    params = *sequence.params;
    params.num_prompt_logprobs = -1;
    const auto is_unknown = [this](int32_t id) {
      return id >= draft_.config.vocab_size;
    };
    std::erase_if(params.logit_bias,
                  [&](const auto& bias) { return is_unknown(bias.first); });
    std::erase_if(params.allowed_token_ids, is_unknown);
    // The target does not draw them either.
    if (params.bad_words != nullptr &&
        std::any_of(params.bad_words->begin(), params.bad_words->end(),
                    [&](const auto& word) {
                      return std::any_of(word.begin(), word.end(), is_unknown);
                    })) {
      params.bad_words = nullptr;
    }
  }
  params.num_logprobs = 0;  // That of the draft itself.

  const int switch_length = draft_.config.RopeSwitchLength();
  slot->is_beyond_rope_switch =
      switch_length > 0 &&
      sequence.token_ids.size() > static_cast<size_t>(switch_length);
  slot->hash = slot->is_beyond_rope_switch ? 3 : 1;
  for (const char c : sequence.cache_namespace) {
    slot->hash = MixBits(slot->hash, static_cast<unsigned char>(c));
  }
  slot->num_tagged = 0;
  const size_t block_size = draft_.shape.block_size;
  while ((slot->num_tagged + 1) * block_size <= sequence.token_ids.size()) {
    const uint64_t hash = HashTokens(
        slot->hash,
        sequence.token_ids.subspan(slot->num_tagged * block_size, block_size));
    if (tags_[sequence.block_table[slot->num_tagged]] != hash) break;
    slot->hash = hash;
    ++slot->num_tagged;
  }
  slot->num_known = slot->num_computed =
      slot->num_tagged * static_cast<int>(block_size);
}

void ModelDrafter::CatchUp(const DraftSequence& sequence, Slot* slot) {
  const int switch_length = draft_.config.RopeSwitchLength();
  const bool is_beyond =
      switch_length > 0 &&
      sequence.token_ids.size() > static_cast<size_t>(switch_length);
  if (!slot->is_used || slot->sequence_id != sequence.sequence_id ||
      slot->start_no != sequence.start_no ||
      slot->is_beyond_rope_switch != is_beyond) {
    BeginSequence(sequence, slot);
  }
  const size_t num_tokens = sequence.token_ids.size();
  if (slot->num_computed > slot->num_known) {
    // Of the drafts computed last time, those that became tokens stay.
    size_t num_kept = 0;
    while (num_kept < slot->fed_ids.size() &&
           slot->num_known + num_kept < num_tokens &&
           slot->fed_ids[num_kept] ==
               sequence.token_ids[slot->num_known + num_kept]) {
      ++num_kept;
    }
    slot->num_computed = slot->num_known + static_cast<int>(num_kept);
    slot->num_known = slot->num_computed;
  }
  slot->fed_ids.clear();
  // The first draft is drawn from the last token.
  slot->num_computed =
      std::min(slot->num_computed, static_cast<int>(num_tokens) - 1);
}

void ModelDrafter::AnnounceSlot(const DraftSequence& sequence, Slot* slot) {
  if (slot->num_blocks == 0 || slot->device_computed != slot->num_computed ||
      LooksBack(slot->params)) {
    SlotStart& start = output_.slot_starts.emplace_back();
    start.slot = sequence.slot;
    start.params = &slot->params;
    start.draw_key = sequence.draw_key;
    start.history.assign(sequence.token_ids.begin(), sequence.token_ids.end());
    start.num_prompt_tokens = sequence.num_prompt_tokens;
    start.num_computed_tokens = slot->num_computed;
    slot->num_blocks = 0;
    slot->device_computed = slot->num_computed;
  }
  // No more than the draft model's context has.
  const size_t block_size = draft_.shape.block_size;
  const size_t num_blocks =
      std::min(sequence.block_table.size(),
               (draft_.shape.max_model_len + block_size - 1) / block_size);
  if (static_cast<size_t>(slot->num_blocks) < num_blocks) {
    output_.block_appends.push_back(
        {sequence.slot,
         {sequence.block_table.begin() + slot->num_blocks,
          sequence.block_table.begin() + num_blocks}});
    slot->num_blocks = static_cast<int>(num_blocks);
  }
}

void ModelDrafter::AddContextRow(const DraftSequence& sequence, int num_tokens,
                                 Slot* slot) {
  AnnounceSlot(sequence, slot);
  ScheduledRow row;
  row.slot = sequence.slot;
  row.first_position = slot->num_computed;
  row.num_tokens = num_tokens;
  row.needs_token = slot->num_computed + num_tokens ==
                    static_cast<int>(sequence.token_ids.size());
  row.first_token_idx = static_cast<int32_t>(output_.token_ids.size());
  const auto first = sequence.token_ids.begin() + slot->num_computed;
  output_.token_ids.insert(output_.token_ids.end(), first, first + num_tokens);
  output_.rows.push_back(row);
  slot->num_computed += num_tokens;
  slot->device_computed = slot->num_computed;
  slot->num_known = slot->num_computed;
  num_context_tokens_ += num_tokens;
}

void ModelDrafter::TagBlocks(const DraftSequence& sequence, Slot* slot) {
  const int block_size = draft_.shape.block_size;
  while ((slot->num_tagged + 1) * block_size <= slot->num_known) {
    slot->hash = HashTokens(
        slot->hash,
        sequence.token_ids.subspan(slot->num_tagged * block_size, block_size));
    tags_[sequence.block_table[slot->num_tagged]] = slot->hash;
    ++slot->num_tagged;
  }
  // What is being written now belongs to nobody else.
  for (int i = slot->num_tagged; i < slot->num_blocks; ++i) {
    tags_[sequence.block_table[i]] = 0;
  }
}

bool ModelDrafter::PlanDraws(bool input_on_device) {
  ClearOutput();
  for (Chain& chain : chains_) {
    if (chain.is_done || chain.num_submitted == chain.max_drafts) continue;
    Slot& slot = *chain.slot;
    ScheduledRow row;
    row.slot = chain.sequence->slot;
    row.first_position = slot.num_computed;
    row.num_tokens = 1;
    row.needs_token = true;
    row.input_on_device = input_on_device;
    row.first_token_idx = static_cast<int32_t>(output_.token_ids.size());
    if (!input_on_device) {
      output_.token_ids.push_back(chain.draft->token_ids.back());
    }
    output_.rows.push_back(row);
    slot.device_computed = ++slot.num_computed;
    ++chain.num_submitted;
  }
  return !output_.rows.empty();
}

void ModelDrafter::ClearOutput() {
  output_.slot_starts.clear();
  output_.block_appends.clear();
  output_.rows.clear();
  output_.token_ids.clear();
}

absl::Status ModelDrafter::Submit() {
  output_.step_id = next_step_id_++;
  QUIRE_RETURN_IF_ERROR(draft_.runner->Submit(output_));
  ++num_in_flight_;
  return absl::OkStatus();
}

absl::Status ModelDrafter::Collect() {
  QUIRE_ASSIGN_OR_RETURN(StepResult result, draft_.runner->Collect());
  --num_in_flight_;
  for (const SampledRow& row : result.rows) {
    Chain& chain = chains_[slots_[row.slot].chain_idx];
    if (chain.is_done) continue;
    // A fault, or an id that pads the draft model's vocabulary.
    if (row.tokens.empty() || row.tokens[0].token_id >= target_vocab_size_) {
      chain.is_done = true;
      continue;
    }
    const double probability = std::clamp(
        std::exp(static_cast<double>(row.tokens[0].logprob)), 0.0, 1.0);
    chain.chance *= probability;
    if (!(chain.chance >= chain.sequence->min_chance)) {
      chain.is_done = true;
      continue;
    }
    chain.draft->token_ids.push_back(row.tokens[0].token_id);
    chain.draft->probabilities.push_back(static_cast<float>(probability));
    chain.is_done =
        chain.draft->token_ids.size() == static_cast<size_t>(chain.max_drafts);
  }
  draft_.runner->Recycle(std::move(result));
  return absl::OkStatus();
}

int ModelDrafter::NumMissingTokens(const DraftSequence& sequence) {
  Slot& slot = slots_[sequence.slot];
  CatchUp(sequence, &slot);
  if (!CanTake(sequence, slot)) return -1;
  return static_cast<int>(sequence.token_ids.size()) - 1 - slot.num_computed;
}

absl::Status ModelDrafter::Propose(absl::Span<const DraftSequence> sequences,
                                   absl::Span<Draft> drafts) {
  num_caught_up_tokens_ = 0;
  ClearOutput();
  chains_.clear();
  int budget = draft_.shape.max_num_tokens;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const DraftSequence& sequence = sequences[i];
    QUIRE_CHECK(sequence.slot >= 0 &&
                sequence.slot < static_cast<int>(slots_.size()));
    Slot& slot = slots_[sequence.slot];
    CatchUp(sequence, &slot);
    const int num_tokens = static_cast<int>(sequence.token_ids.size());
    const int num_others = static_cast<int>(sequences.size() - i) - 1;
    const int num_missing = num_tokens - slot.num_computed;
    const int num_granted = std::min(num_missing, budget - num_others);
    if (num_granted <= 0 || !CanTake(sequence, slot)) continue;
    // A draft is drawn from the last one.
    num_caught_up_tokens_ += std::min(num_granted, num_missing - 1);
    budget -= num_granted;
    AddContextRow(sequence, num_granted, &slot);
    TagBlocks(sequence, &slot);
    if (num_granted < num_missing) continue;
    slot.chain_idx = static_cast<int>(chains_.size());
    Chain& chain = chains_.emplace_back();
    chain.sequence = &sequence;
    chain.draft = &drafts[i];
    chain.slot = &slot;
    // All but the last draft are computed.
    chain.max_drafts = std::min(sequence.max_num_drafts,
                                draft_.shape.max_model_len - num_tokens + 1);
    chain.num_submitted = 1;
  }
  if (output_.rows.empty()) return absl::OkStatus();
  QUIRE_RETURN_IF_ERROR(Submit());
  const bool overlaps = draft_.runner->steps_in_flight() > 1;
  while (num_in_flight_ > 0) {
    if (overlaps && num_in_flight_ < draft_.runner->steps_in_flight() &&
        PlanDraws(/*input_on_device=*/true)) {
      QUIRE_RETURN_IF_ERROR(Submit());
      continue;
    }
    QUIRE_RETURN_IF_ERROR(Collect());
    if (!overlaps && PlanDraws(/*input_on_device=*/false)) {
      QUIRE_RETURN_IF_ERROR(Submit());
    }
  }
  for (const Chain& chain : chains_) {
    // What was computed of drafts that were dropped is not worth a memory.
    Slot& slot = *chain.slot;
    const size_t num_fed = slot.num_computed - slot.num_known;
    const std::vector<int32_t>& ids = chain.draft->token_ids;
    slot.fed_ids.assign(ids.begin(),
                        ids.begin() + std::min(num_fed, ids.size()));
  }
  return absl::OkStatus();
}

}  // namespace quire
