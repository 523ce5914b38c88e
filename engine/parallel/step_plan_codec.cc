#include "engine/parallel/step_plan_codec.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/base/status.h"
#include "engine/parallel/wire.h"

namespace quire {

// Not in the unnamed namespace: wire.h finds these by their arguments.

// The parameters follow the plan, in the order of its starts: here a start has
// only the pointer, which does not travel.
template <typename Wire>
void Visit(Wire& wire, SlotStart& start) {
  auto& [slot, params, draw_key, banned_before_min, history, num_prompt_tokens,
         num_computed_tokens] = start;
  if constexpr (Wire::kIsReader) params = nullptr;
  wire(slot);
  wire(draw_key);
  wire(banned_before_min);
  wire(history);
  wire(num_prompt_tokens);
  wire(num_computed_tokens);
}

template <typename Wire>
void Visit(Wire& wire, BlockAppend& append) {
  auto& [slot, block_ids] = append;
  wire(slot);
  wire(block_ids);
}

template <typename Wire>
void Visit(Wire& wire, ScheduledRow& row) {
  auto& [slot, first_position, num_tokens, needs_token, input_on_device,
         first_token_idx, num_scored, num_drafts] = row;
  wire(slot);
  wire(first_position);
  wire(num_tokens);
  wire(needs_token);
  wire(input_on_device);
  wire(first_token_idx);
  wire(num_scored);
  wire(num_drafts);
}

template <typename Wire>
void Visit(Wire& wire, SchedulerOutput& plan) {
  auto& [step_id, slot_starts, block_appends, block_copies, rows, token_ids,
         scored_token_ids] = plan;
  wire(step_id);
  wire(slot_starts);
  wire(block_appends);
  wire(block_copies);
  wire(rows);
  wire(token_ids);
  wire(scored_token_ids);
}

namespace {

using TokenSequences = std::vector<std::vector<int32_t>>;

void VisitShared(WireWriter& wire,
                 const std::shared_ptr<const TokenSequences>& sequences) {
  wire(sequences != nullptr);
  if (sequences != nullptr) wire(*sequences);
}

void VisitShared(WireReader& wire,
                 std::shared_ptr<const TokenSequences>& sequences) {
  bool has_value = false;
  wire(has_value);
  sequences = nullptr;
  if (!has_value) return;
  auto read = std::make_shared<TokenSequences>();
  wire(*read);
  // What bad words and breakers may be; the set's constructor relies on it.
  for (const std::vector<int32_t>& sequence : *read) {
    if (sequence.empty()) return wire.Fail();
  }
  sequences = std::move(read);
}

void VisitShared(WireWriter& wire,
                 const std::shared_ptr<const TokenSequenceSet>& set) {
  wire(set != nullptr);
  if (set == nullptr) return;
  wire(TokenSequences(set->sequences().begin(), set->sequences().end()));
}

// Ids are at most those of a vocabulary: the set takes memory for each.
constexpr int32_t kMaxTokenId = 1 << 24;

void VisitShared(WireReader& wire,
                 std::shared_ptr<const TokenSequenceSet>& set) {
  std::shared_ptr<const TokenSequences> sequences;
  VisitShared(wire, sequences);
  set = nullptr;
  if (sequences == nullptr) return;
  for (const std::vector<int32_t>& sequence : *sequences) {
    for (const int32_t id : sequence) {
      if (id < 0 || id >= kMaxTokenId) return wire.Fail();
    }
  }
  set = std::make_shared<TokenSequenceSet>(*sequences);
}

}  // namespace

template <typename Wire>
void Visit(Wire& wire, SamplingParams& params) {
  auto& [temperature, top_p, min_p, top_k, presence_penalty, frequency_penalty,
         repetition_penalty, seed, max_tokens, min_tokens, ignore_eos,
         stop_token_ids, num_logprobs, num_prompt_logprobs, logit_bias,
         allowed_token_ids, bad_words, dry_multiplier, dry_base,
         dry_allowed_length, dry_penalty_last_n, dry_breakers, dynatemp_range,
         dynatemp_exponent, top_n_sigma, typical_p, xtc_probability,
         xtc_threshold] = params;
  wire(temperature);
  wire(top_p);
  wire(min_p);
  wire(top_k);
  wire(presence_penalty);
  wire(frequency_penalty);
  wire(repetition_penalty);
  wire(seed);
  wire(max_tokens);
  wire(min_tokens);
  wire(ignore_eos);
  wire(stop_token_ids);
  wire(num_logprobs);
  wire(num_prompt_logprobs);
  wire(logit_bias);
  wire(allowed_token_ids);
  VisitShared(wire, bad_words);
  wire(dry_multiplier);
  wire(dry_base);
  wire(dry_allowed_length);
  wire(dry_penalty_last_n);
  VisitShared(wire, dry_breakers);
  wire(dynatemp_range);
  wire(dynatemp_exponent);
  wire(top_n_sigma);
  wire(typical_p);
  wire(xtc_probability);
  wire(xtc_threshold);
}

namespace {

absl::Status OutOfRange(const char* field, int64_t value, int64_t limit) {
  return absl::InvalidArgumentError(absl::StrCat(
      "step plan: ", field, " ", value, " is not in [0, ", limit, ")"));
}

absl::Status CheckIndex(const char* field, int64_t value, int64_t limit) {
  return value >= 0 && value < limit ? absl::OkStatus()
                                     : OutOfRange(field, value, limit);
}

absl::Status CheckIndices(const char* field, absl::Span<const int32_t> values,
                          int64_t limit) {
  for (const int32_t value : values) {
    QUIRE_RETURN_IF_ERROR(CheckIndex(field, value, limit));
  }
  return absl::OkStatus();
}

}  // namespace

void EncodeStepPlan(const SchedulerOutput& plan, std::string* out) {
  WireWriter wire(out);
  wire(plan);
  for (const SlotStart& start : plan.slot_starts) wire(*start.params);
}

StepPlanDecoder::StepPlanDecoder(const StepPlanLimits& limits)
    : limits_(limits), params_(std::max(0, limits.max_num_seqs)) {}

absl::Status StepPlanDecoder::Decode(absl::string_view bytes,
                                     SchedulerOutput* plan) {
  WireReader wire(bytes);
  wire(*plan);
  if (!wire.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("step plan: ", bytes.size(), " bytes are no plan"));
  }
  QUIRE_RETURN_IF_ERROR(Check(*plan));
  for (SlotStart& start : plan->slot_starts) {
    auto params = std::make_unique<SamplingParams>();
    wire(*params);
    if (!wire.ok()) break;
    QUIRE_RETURN_IF_ERROR(CheckParams(*params));
    start.params = params.get();
    params_[start.slot] = std::move(params);
  }
  if (!wire.AtEnd()) {
    return absl::InvalidArgumentError(
        absl::StrCat("step plan: the parameters of ", plan->slot_starts.size(),
                     " starts do not end where the plan does"));
  }
  return absl::OkStatus();
}

absl::Status StepPlanDecoder::Check(const SchedulerOutput& plan) const {
  std::vector<bool> is_started(params_.size());
  for (const SlotStart& start : plan.slot_starts) {
    QUIRE_RETURN_IF_ERROR(CheckIndex("slot", start.slot, params_.size()));
    // A later start in the same slot would take the first one's parameters.
    if (is_started[start.slot]) {
      return absl::InvalidArgumentError(
          absl::StrCat("step plan: slot ", start.slot, " starts twice"));
    }
    is_started[start.slot] = true;
    QUIRE_RETURN_IF_ERROR(CheckIndices(
        "banned_before_min", start.banned_before_min, limits_.vocab_size));
    QUIRE_RETURN_IF_ERROR(
        CheckIndices("history", start.history, limits_.vocab_size));
    const int64_t length = start.history.size();
    QUIRE_RETURN_IF_ERROR(CheckIndex("history's length", length,
                                     int64_t{limits_.max_model_len} + 1));
    QUIRE_RETURN_IF_ERROR(
        CheckIndex("num_prompt_tokens", start.num_prompt_tokens, length + 1));
    QUIRE_RETURN_IF_ERROR(CheckIndex("num_computed_tokens",
                                     start.num_computed_tokens, length + 1));
  }
  for (const BlockAppend& append : plan.block_appends) {
    QUIRE_RETURN_IF_ERROR(CheckIndex("slot", append.slot, params_.size()));
    QUIRE_RETURN_IF_ERROR(
        CheckIndices("block", append.block_ids, limits_.num_blocks));
  }
  for (const auto& [from, to] : plan.block_copies) {
    QUIRE_RETURN_IF_ERROR(CheckIndex("block", from, limits_.num_blocks));
    QUIRE_RETURN_IF_ERROR(CheckIndex("block", to, limits_.num_blocks));
  }
  QUIRE_RETURN_IF_ERROR(
      CheckIndices("token", plan.token_ids, limits_.vocab_size));
  QUIRE_RETURN_IF_ERROR(
      CheckIndices("scored token", plan.scored_token_ids, limits_.vocab_size));
  return CheckRows(plan);
}

absl::Status StepPlanDecoder::CheckRows(const SchedulerOutput& plan) const {
  std::vector<bool> has_row(params_.size());
  int64_t num_tokens = 0, num_scored = 0;
  for (const ScheduledRow& row : plan.rows) {
    QUIRE_RETURN_IF_ERROR(CheckIndex("slot", row.slot, params_.size()));
    if (has_row[row.slot]) {
      return absl::InvalidArgumentError(
          absl::StrCat("step plan: slot ", row.slot, " has two rows"));
    }
    has_row[row.slot] = true;
    QUIRE_RETURN_IF_ERROR(CheckIndex("first_position", row.first_position,
                                     limits_.max_model_len));
    QUIRE_RETURN_IF_ERROR(
        CheckIndex("num_tokens - 1", int64_t{row.num_tokens} - 1,
                   limits_.max_model_len - row.first_position));
    QUIRE_RETURN_IF_ERROR(
        CheckIndex("num_scored", row.num_scored, int64_t{row.num_tokens} + 1));
    // Guesses follow a token that is none.
    QUIRE_RETURN_IF_ERROR(
        CheckIndex("num_drafts", row.num_drafts, row.num_tokens));
    num_tokens += row.num_tokens;
    num_scored += row.num_scored;
    if (row.input_on_device) {
      QUIRE_RETURN_IF_ERROR(
          CheckIndex("num_tokens on the device", row.num_tokens, 2));
      continue;
    }
    const int64_t num_ids = plan.token_ids.size();
    QUIRE_RETURN_IF_ERROR(
        CheckIndex("first_token_idx", row.first_token_idx, num_ids + 1));
    QUIRE_RETURN_IF_ERROR(CheckIndex("num_tokens", row.num_tokens,
                                     num_ids - row.first_token_idx + 1));
  }
  QUIRE_RETURN_IF_ERROR(CheckIndex(
      "tokens", num_tokens, int64_t{limits_.max_num_batched_tokens} + 1));
  if (num_scored != static_cast<int64_t>(plan.scored_token_ids.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("step plan: ", plan.scored_token_ids.size(),
                     " scored tokens instead of ", num_scored));
  }
  return absl::OkStatus();
}

absl::Status StepPlanDecoder::CheckParams(const SamplingParams& params) const {
  for (const auto& [id, bias] : params.logit_bias) {
    QUIRE_RETURN_IF_ERROR(CheckIndex("logit_bias", id, limits_.vocab_size));
  }
  QUIRE_RETURN_IF_ERROR(CheckIndices(
      "allowed_token_ids", params.allowed_token_ids, limits_.vocab_size));
  if (params.bad_words != nullptr) {
    for (const std::vector<int32_t>& word : *params.bad_words) {
      QUIRE_RETURN_IF_ERROR(
          CheckIndices("bad_words", word, limits_.vocab_size));
    }
  }
  if (params.dry_breakers != nullptr) {
    QUIRE_RETURN_IF_ERROR(CheckIndex("dry_breakers",
                                     params.dry_breakers->max_id() + 1,
                                     int64_t{limits_.vocab_size} + 1));
  }
  // A row of results holds so many.
  QUIRE_RETURN_IF_ERROR(CheckIndex("num_logprobs", params.num_logprobs + 1ll,
                                   limits_.vocab_size + 2ll));
  return CheckIndex("num_prompt_logprobs", params.num_prompt_logprobs + 1ll,
                    limits_.vocab_size + 2ll);
}

}  // namespace quire
