#include "tests/hash_model_runner.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"

namespace quire {
namespace {

uint64_t NamespaceOf(const SamplingParams& params) {
  return params.logit_bias.empty()
             ? 0
             : static_cast<uint64_t>(params.logit_bias[0].second);
}

// As LongRoPE does, rope_switch_length changes every slot of a sequence; here,
// the number of its namespace. num_known_tokens: when it (re)started.
uint64_t WithRope(uint64_t namespace_no, const EngineOptions& options,
                  int num_known_tokens) {
  const bool is_beyond = options.rope_switch_length > 0 &&
                         num_known_tokens > options.rope_switch_length;
  return namespace_no + (is_beyond ? 1 << 20 : 0);
}

// A model that can do nothing else needs no mark.
bool IsEmbed(const EngineOptions& options, const SamplingParams& params) {
  return !options.enable_generate || params.logit_bias.size() > 1;
}

// Adds a slot's value to what a mean would be of; the order does not count.
uint64_t AddPooled(uint64_t pooled, uint64_t slot_value) {
  return pooled + MixBits(slot_value, 5);
}

// 60 bits, 20 in each: exact in f32.
std::vector<float> EmbeddingOf(uint64_t bits) {
  std::vector<float> embedding;
  for (int i = 0; i < 3; ++i) {
    embedding.push_back(static_cast<float>(bits >> (20 * i) & 0xFFFFF));
  }
  return embedding;
}

// Of the slot before the first one.
constexpr uint64_t kNoPredecessor = 0x9E37;

// A NaN that remembers where it came from: 48 bits that no hash hits by chance,
// then the number of its source.
constexpr uint64_t kNanTag = 0x7FF8'BAD0'5EED;
constexpr int kNanShift = 16;
bool IsNan(uint64_t value) { return value >> kNanShift == kNanTag; }

// NaN if the predecessor is.
uint64_t SlotValue(uint64_t predecessor, int32_t token_id, int position,
                   uint64_t namespace_no) {
  if (IsNan(predecessor)) return predecessor;
  return MixBits(MixBits(predecessor, static_cast<uint64_t>(token_id)),
                 (namespace_no << 32) + static_cast<uint64_t>(position));
}

// Folds one more slot into the state that a token is drawn from.
uint64_t Fold(const HashModelOptions& options, uint64_t state,
              uint64_t slot_value) {
  if (options.reads_last_slot_only) state = 0;
  return (state ^ slot_value) * 0x9FB21C651E98DF25 + (state >> 29);
}

// What one more token adds to the state of a sampler with these penalties; a
// sum, as counts know no order.
uint64_t PenaltyOf(const SamplingParams& params, int32_t token_id,
                   bool is_prompt) {
  uint64_t penalty = 0;
  if (params.repetition_penalty != 1.0f) penalty += MixBits(token_id, 13);
  if (!is_prompt &&
      (params.presence_penalty != 0 || params.frequency_penalty != 0)) {
    penalty += MixBits(token_id, 11);
  }
  return penalty;
}

// The token that follows the slots folded into `state`.
int32_t Draw(uint64_t state, const EngineOptions& engine_options,
             const HashModelOptions& options, const SamplingParams& params,
             uint64_t draw_key, uint64_t penalty, int position,
             int num_generated_tokens,
             absl::Span<const int32_t> banned_before_min) {
  uint64_t bits = MixBits(state + penalty, position);
  if (params.temperature > 0) bits = MixBits(bits, draw_key);
  if (!params.allowed_token_ids.empty()) {
    return params.allowed_token_ids[bits % params.allowed_token_ids.size()];
  }
  // A vocabulary of banned tokens only would never end; tests have none.
  while (true) {
    int32_t token = static_cast<int32_t>(bits % engine_options.vocab_size);
    if (!engine_options.eos_token_ids.empty() &&
        static_cast<int>((bits >> 40) % 1000) < options.eos_per_1000) {
      token = engine_options.eos_token_ids[0];
    }
    if (num_generated_tokens >= params.min_tokens ||
        std::find(banned_before_min.begin(), banned_before_min.end(), token) ==
            banned_before_min.end()) {
      return token;
    }
    bits = MixBits(bits, 1);
  }
}

// Of prompt token `token_id` after the slots folded into `state`.
float ScoreOf(uint64_t state, int32_t token_id) {
  return -static_cast<float>(MixBits(state, token_id) % 65536) / 4096;
}

bool Contains(absl::Span<const int32_t> ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

std::vector<std::pair<int32_t, float>> HashNamespaceBias(int namespace_no,
                                                         RequestKind kind) {
  std::vector<std::pair<int32_t, float>> bias = {
      {0, static_cast<float>(namespace_no)}};
  if (kind == RequestKind::kEmbed) bias.emplace_back(1, 0.0f);
  return bias;
}

HashModelAnswer AnswerAlone(const EngineOptions& engine_options,
                            const HashModelOptions& options,
                            const Request& request, uint64_t seed,
                            int choice_idx, int max_num_tokens) {
  const SamplingParams& params = request.sampling;
  uint64_t namespace_no =
      WithRope(NamespaceOf(params), engine_options,
               static_cast<int>(request.prompt_token_ids.size()));
  const uint64_t draw_key = MixBits(params.seed.value_or(seed), choice_idx);
  std::vector<int32_t> banned = params.stop_token_ids;
  if (!params.ignore_eos) {
    banned.insert(banned.end(), engine_options.eos_token_ids.begin(),
                  engine_options.eos_token_ids.end());
  }
  uint64_t predecessor = kNoPredecessor;
  uint64_t state = 0;
  uint64_t penalty = 0;
  uint64_t pooled = 0;
  int position = 0;
  HashModelAnswer answer;
  for (int32_t token : request.prompt_token_ids) {
    if (position > 0) answer.prompt_logprobs.push_back(ScoreOf(state, token));
    predecessor = SlotValue(predecessor, token, position++, namespace_no);
    state = Fold(options, state, predecessor);
    penalty += PenaltyOf(params, token, /*is_prompt=*/true);
    pooled = AddPooled(pooled, predecessor);
  }
  if (request.kind == RequestKind::kEmbed) {
    answer.finish_reason = FinishReason::kStop;
    answer.embedding =
        EmbeddingOf(engine_options.embeds_every_token ? pooled : state);
    return answer;
  }
  while (true) {
    const int num_generated = static_cast<int>(answer.token_ids.size());
    const int32_t token = Draw(state, engine_options, options, params, draw_key,
                               penalty, position, num_generated, banned);
    answer.token_ids.push_back(token);
    if (num_generated >= params.min_tokens) {
      answer.finish_reason = FinishReason::kStop;
      if (!params.ignore_eos && Contains(engine_options.eos_token_ids, token)) {
        return answer;
      }
      if (Contains(params.stop_token_ids, token)) {
        answer.stop_token_id = token;
        return answer;
      }
    }
    if (num_generated + 1 == params.max_tokens ||
        position + 1 == max_num_tokens) {
      answer.finish_reason = FinishReason::kLength;
      return answer;
    }
    const uint64_t next_namespace_no =
        WithRope(NamespaceOf(params), engine_options, position + 1);
    if (next_namespace_no != namespace_no) {
      namespace_no = next_namespace_no;
      predecessor = kNoPredecessor;
      state = 0;
      for (int i = 0; i < position; ++i) {
        const int num_prompt =
            static_cast<int>(request.prompt_token_ids.size());
        predecessor =
            SlotValue(predecessor,
                      i < num_prompt ? request.prompt_token_ids[i]
                                     : answer.token_ids[i - num_prompt],
                      i, namespace_no);
        state = Fold(options, state, predecessor);
      }
    }
    predecessor = SlotValue(predecessor, token, position++, namespace_no);
    state = Fold(options, state, predecessor);
    penalty += PenaltyOf(params, token, /*is_prompt=*/false);
  }
}

HashModelRunner::HashModelRunner(const EngineOptions& engine_options,
                                 const HashModelOptions& options)
    : options_(engine_options),
      model_options_(options),
      kv_(static_cast<size_t>(engine_options.num_blocks) *
          engine_options.block_size),
      slots_(engine_options.max_num_seqs),
      written_in_step_(engine_options.num_blocks, -1),
      row_in_step_(engine_options.max_num_seqs, -1) {
  for (uint64_t& value : kv_) value = MixBits(garbage_++, 0);
}

uint64_t* HashModelRunner::SlotAt(const Slot& slot, int position) {
  const int32_t block_id = slot.block_table[position / options_.block_size];
  return &kv_[static_cast<size_t>(block_id) * options_.block_size +
              position % options_.block_size];
}

std::string HashModelRunner::ApplySlotChanges(const SchedulerOutput& output) {
  for (const SlotStart& start : output.slot_starts) {
    if (start.slot < 0 || start.slot >= options_.max_num_seqs) {
      return absl::StrCat("start of slot ", start.slot);
    }
    Slot& slot = slots_[start.slot];
    slot.is_started = true;
    slot.params = start.params;
    slot.draw_key = start.draw_key;
    slot.banned_before_min = start.banned_before_min;
    slot.num_prompt_tokens = start.num_prompt_tokens;
    slot.num_start_tokens = static_cast<int32_t>(start.history.size());
    slot.num_computed_tokens = start.num_computed_tokens;
    slot.has_drawn = false;
    slot.has_pending_drafts = false;
    slot.tokens = start.history;
    slot.penalty = 0;
    for (size_t i = 0; i < slot.tokens.size(); ++i) {
      slot.penalty += PenaltyOf(*slot.params, slot.tokens[i],
                                i < size_t(slot.num_prompt_tokens));
    }
    slot.pooled = 0;
    slot.block_table.clear();
    if (start.num_computed_tokens >= static_cast<int>(start.history.size())) {
      return absl::StrCat("slot ", start.slot, " starts with nothing to do");
    }
  }
  for (const BlockAppend& append : output.block_appends) {
    Slot& slot = slots_[append.slot];
    for (int32_t block_id : append.block_ids) {
      if (block_id < 0 || block_id >= options_.num_blocks) {
        return absl::StrCat("block ", block_id, " for slot ", append.slot);
      }
      slot.block_table.push_back(block_id);
    }
  }
  for (const auto& [from, to] : output.block_copies) {
    if (from == to) return absl::StrCat("copy of block ", from, " to itself");
    const auto first = kv_.begin() + int64_t{from} * options_.block_size;
    std::copy(first, first + options_.block_size,
              kv_.begin() + int64_t{to} * options_.block_size);
  }
  return "";
}

std::string HashModelRunner::CheckRow(const SchedulerOutput& output,
                                      const ScheduledRow& row) {
  const std::string where =
      absl::StrCat("step ", output.step_id, ", slot ", row.slot, ": ");
  if (row.slot < 0 || row.slot >= options_.max_num_seqs ||
      !slots_[row.slot].is_started) {
    return absl::StrCat(where, "not started");
  }
  Slot& slot = slots_[row.slot];
  if (row_in_step_[row.slot] == output.step_id) {
    return absl::StrCat(where, "two rows in a step");
  }
  row_in_step_[row.slot] = output.step_id;
  if (row.num_tokens < 1) return absl::StrCat(where, "an empty row");
  if (slot.has_pending_drafts) {
    return absl::StrCat(where, "its drafts were not collected");
  }
  if (row.num_drafts < 0 || row.num_drafts >= row.num_tokens ||
      (row.num_drafts > 0 &&
       (!row.needs_token || row.num_scored > 0 || row.input_on_device ||
        IsEmbed(options_, *slot.params)))) {
    return absl::StrCat(where, row.num_drafts, " drafts among ", row.num_tokens,
                        " tokens");
  }
  if (row.first_position != slot.num_computed_tokens) {
    return absl::StrCat(where, "begins at ", row.first_position, " after ",
                        slot.num_computed_tokens, " computed tokens");
  }
  const int end = row.first_position + row.num_tokens;
  if (end > static_cast<int>(slot.block_table.size()) * options_.block_size) {
    return absl::StrCat(where, "writes up to ", end, " with ",
                        slot.block_table.size(), " blocks");
  }
  if (row.input_on_device) {
    if (row.num_tokens != 1 || !row.needs_token || !slot.has_drawn ||
        row.first_position + 1 != static_cast<int>(slot.tokens.size())) {
      return absl::StrCat(where, "no token on the device to continue with");
    }
  } else {
    if (row.first_token_idx < 0 ||
        row.first_token_idx + row.num_tokens >
            static_cast<int>(output.token_ids.size())) {
      return absl::StrCat(where, "token ids out of range");
    }
    for (int i = 0; i < row.num_tokens; ++i) {
      const int32_t token = output.token_ids[row.first_token_idx + i];
      if (token < 0 || token >= options_.vocab_size) {
        return absl::StrCat(where, "token ", token);
      }
      if (i >= row.num_tokens - row.num_drafts) continue;  // A guess.
      const size_t position = row.first_position + i;
      if (position >= slot.tokens.size() || slot.tokens[position] != token) {
        return absl::StrCat(where, "token ", token, " at position ", position,
                            " is not that of the slot");
      }
    }
  }
  for (int i = row.first_position / options_.block_size;
       i <= (end - 1) / options_.block_size; ++i) {
    int64_t& written = written_in_step_[slot.block_table[i]];
    if (written == output.step_id) {
      return absl::StrCat(where, "block ", slot.block_table[i],
                          " is written by two rows");
    }
    written = output.step_id;
  }
  return "";
}

void HashModelRunner::ScoreRow(const SchedulerOutput& output,
                               const ScheduledRow& row, int first_scored_idx,
                               SampledRow* sampled) {
  if (row.num_scored == 0) return;
  const Slot& slot = slots_[row.slot];
  const int end =
      row.first_position + row.num_tokens - (row.needs_token ? 1 : 0);
  uint64_t state = 0;
  for (int position = 0; position < end; ++position) {
    state = Fold(model_options_, state, *SlotAt(slot, position));
    const int i = position - (end - row.num_scored);
    if (i < 0) continue;
    TokenOutput scored;
    scored.token_id = output.scored_token_ids[first_scored_idx + i];
    scored.logprob = ScoreOf(state, scored.token_id);
    scored.rank = 1;
    for (int k = 0; k < slot.params->num_prompt_logprobs; ++k) {
      scored.top_logprobs.push_back({k, scored.logprob - k});
    }
    sampled->scored.push_back(std::move(scored));
  }
}

void HashModelRunner::RunRow(const SchedulerOutput& output,
                             const ScheduledRow& row, bool is_garbage,
                             int first_scored_idx, StepResult* result) {
  Slot& slot = slots_[row.slot];
  const int poison_idx = poison_from ? poison_from(output, row) : -1;
  const uint64_t namespace_no =
      WithRope(NamespaceOf(*slot.params), options_, slot.num_start_tokens);
  for (int i = 0; i < row.num_tokens; ++i) {
    const int position = row.first_position + i;
    const int32_t token = row.input_on_device
                              ? slot.tokens.back()
                              : output.token_ids[row.first_token_idx + i];
    const uint64_t predecessor =
        position == 0 ? kNoPredecessor : *SlotAt(slot, position - 1);
    uint64_t value = SlotValue(predecessor, token, position, namespace_no);
    if (is_garbage) value = MixBits(garbage_++, 1);
    if (i == poison_idx) {
      value = (kNanTag << kNanShift) | (nan_sources_.size() & 0xFFFF);
      nan_sources_.push_back(slot.draw_key);
    }
    *SlotAt(slot, position) = value;
    slot.pooled = AddPooled(slot.pooled, value);
  }
  // Without drafts; what is accepted of them comes on top.
  const int end = row.first_position + row.num_tokens - row.num_drafts;
  slot.num_computed_tokens = end;
  slot.has_pending_drafts = row.num_drafts > 0;
  if (!row.has_result()) return;
  SampledRow sampled;
  sampled.slot = row.slot;
  if (row.needs_token) {
    DrawRow(output, row, &sampled);
  } else {
    sampled.non_finite = FindNan(slot, end);
  }
  if (!sampled.non_finite) ScoreRow(output, row, first_scored_idx, &sampled);
  result->rows.push_back(std::move(sampled));
}

bool HashModelRunner::FindNan(const Slot& slot, int end) {
  // Once one is there, all after it are.
  const int first = model_options_.reads_last_slot_only ? end - 1 : 0;
  for (int position = first; position < end; ++position) {
    const uint64_t value = *SlotAt(slot, position);
    if (!IsNan(value)) continue;
    if (on_non_finite) {
      on_non_finite(slot.draw_key, nan_sources_[value & 0xFFFF]);
    }
    return true;
  }
  return false;
}

void HashModelRunner::DrawRow(const SchedulerOutput& output,
                              const ScheduledRow& row, SampledRow* sampled) {
  Slot& slot = slots_[row.slot];
  int end = slot.num_computed_tokens;
  uint64_t state = 0;
  const int first = model_options_.reads_last_slot_only ? end - 1 : 0;
  for (int position = first; position < end; ++position) {
    state = Fold(model_options_, state, *SlotAt(slot, position));
  }
  for (int num_accepted = 0;; ++num_accepted) {
    sampled->non_finite = FindNan(slot, end);
    const int32_t token_id =
        Draw(state, options_, model_options_, *slot.params, slot.draw_key,
             slot.penalty, end, end - slot.num_prompt_tokens,
             slot.banned_before_min);
    slot.has_drawn = true;
    slot.tokens.push_back(token_id);
    slot.penalty += PenaltyOf(*slot.params, token_id, /*is_prompt=*/false);
    if (sampled->non_finite) {
      sampled->tokens.clear();
      return;
    }
    if (IsEmbed(options_, *slot.params)) {
      sampled->embedding =
          EmbeddingOf(options_.embeds_every_token ? slot.pooled : state);
      return;
    }
    TokenOutput token;
    token.token_id = token_id;
    const int num_logprobs = slot.params->num_logprobs;
    if (num_logprobs >= 0) {
      token.logprob = -static_cast<float>(MixBits(state, 2) % 4096) / 256;
      for (int i = 0; i < num_logprobs; ++i) {
        token.top_logprobs.push_back({(token_id + i) % options_.vocab_size,
                                      token.logprob - static_cast<float>(i)});
      }
    }
    sampled->tokens.push_back(std::move(token));
    if (num_accepted == row.num_drafts) return;
    const int32_t draft =
        output.token_ids[row.first_token_idx + row.num_tokens - row.num_drafts +
                         num_accepted];
    if (draft != token_id) return;
    state = Fold(model_options_, state, *SlotAt(slot, end));
    slot.num_computed_tokens = ++end;
  }
}

absl::Status HashModelRunner::Submit(const SchedulerOutput& output) {
  absl::Status failure;
  bool is_applied = false;
  if (fail_submit) failure = fail_submit(output, &is_applied);
  if (!failure.ok() && !is_applied) return failure;
  if (static_cast<int>(submitted_.size()) >= options_.steps_in_flight) {
    violation_ = "too many steps in flight";
  }
  if (output.empty() || output.step_id <= last_step_id_) {
    violation_ = absl::StrCat("step ", output.step_id, " after ", last_step_id_,
                              " with ", output.rows.size(), " rows");
  }
  last_step_id_ = output.step_id;
  std::string violation = ApplySlotChanges(output);
  int num_tokens = 0;
  int64_t num_ids = 0;
  int64_t num_scored = 0;
  int64_t num_drafts = 0;
  for (const ScheduledRow& row : output.rows) {
    if (violation.empty()) violation = CheckRow(output, row);
    num_tokens += row.num_tokens;
    num_scored += row.num_scored;
    num_drafts += row.num_drafts;
    if (row.num_scored < 0 ||
        row.num_scored + (row.needs_token ? 1 : 0) > row.num_tokens) {
      violation = absl::StrCat("step ", output.step_id, ", slot ", row.slot,
                               ": scores ", row.num_scored, " of ",
                               row.num_tokens, " tokens");
    }
    if (!row.input_on_device) {
      num_ids += row.num_tokens;
    } else if (options_.num_micro_batches > 1) {
      violation = absl::StrCat("step ", output.step_id, ", slot ", row.slot,
                               ": the token is drawn by another stage");
    }
  }
  const int num_micro_batches = options_.num_micro_batches;
  if (num_tokens > (options_.max_num_batched_tokens + num_micro_batches - 1) /
                       num_micro_batches) {
    violation =
        absl::StrCat("step ", output.step_id, " has ", num_tokens, " tokens");
  }
  if (num_scored + num_drafts > options_.max_num_scored_tokens ||
      num_scored != static_cast<int64_t>(output.scored_token_ids.size())) {
    violation = absl::StrCat("step ", output.step_id, " scores ", num_scored,
                             " tokens, ids ", output.scored_token_ids.size(),
                             ", beside ", num_drafts, " drafts");
  }
  if (num_ids != static_cast<int64_t>(output.token_ids.size())) {
    violation = absl::StrCat("step ", output.step_id, " has ",
                             output.token_ids.size(), " token ids");
  }
  if (!violation.empty()) {
    if (violation_.empty()) violation_ = violation;
    return absl::InternalError(violation);
  }
  const absl::Status collect_failure = failure.ok() && fail_collect
                                           ? fail_collect(output.step_id)
                                           : absl::OkStatus();
  const bool is_garbage = !failure.ok() || !collect_failure.ok();
  StepResult result;
  result.step_id = output.step_id;
  int first_scored_idx = 0;
  for (const ScheduledRow& row : output.rows) {
    RunRow(output, row, is_garbage, first_scored_idx, &result);
    first_scored_idx += row.num_scored;
  }
  if (!failure.ok()) return failure;
  Submitted submitted{collect_failure, std::move(result), {}, {}};
  for (const ScheduledRow& row : output.rows) {
    if (row.num_drafts > 0) submitted.slots_with_drafts.push_back(row.slot);
    const std::vector<int32_t>& table = slots_[row.slot].block_table;
    submitted.block_ids.insert(submitted.block_ids.end(), table.begin(),
                               table.end());
  }
  for (const auto& [from, to] : output.block_copies) {
    submitted.block_ids.push_back(from);
    submitted.block_ids.push_back(to);
  }
  submitted_.push_back(std::move(submitted));
  return absl::OkStatus();
}

absl::StatusOr<StepResult> HashModelRunner::Collect() {
  if (on_collect) on_collect();
  if (submitted_.empty()) {
    violation_ = "Collect without a step";
    return absl::InternalError(violation_);
  }
  Submitted submitted = std::move(submitted_.front());
  submitted_.pop_front();
  for (int32_t slot : submitted.slots_with_drafts) {
    slots_[slot].has_pending_drafts = false;
  }
  if (!submitted.status.ok()) return submitted.status;
  if (on_result) on_result(&submitted.result);
  return std::move(submitted.result);
}

std::vector<int32_t> HashModelRunner::BlocksInFlight() const {
  std::vector<int32_t> block_ids;
  for (const Submitted& submitted : submitted_) {
    block_ids.insert(block_ids.end(), submitted.block_ids.begin(),
                     submitted.block_ids.end());
  }
  return block_ids;
}

}  // namespace quire
