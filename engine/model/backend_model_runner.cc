#include "engine/model/backend_model_runner.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

void FillSlotParams(const SlotStart& start, SlotParams& to) {
  const SamplingParams& from = *start.params;
  to.temperature = from.temperature;
  to.top_p = from.top_p;
  to.min_p = from.min_p;
  to.top_k = from.top_k;
  to.presence_penalty = from.presence_penalty;
  to.frequency_penalty = from.frequency_penalty;
  to.repetition_penalty = from.repetition_penalty;
  to.num_logprobs = from.num_logprobs;
  to.num_prompt_logprobs = from.num_prompt_logprobs;
  to.min_tokens = from.min_tokens;
  to.draw_key = start.draw_key;
  to.bias_ids.clear();
  to.bias.clear();
  for (const auto& [id, bias] : from.logit_bias) {
    to.bias_ids.push_back(id);
    to.bias.push_back(bias);
  }
  to.allowed_ids.assign(from.allowed_token_ids.begin(),
                        from.allowed_token_ids.end());
  to.banned_before_min.assign(start.banned_before_min.begin(),
                              start.banned_before_min.end());
  to.bad_word_ids.clear();
  to.bad_word_lengths.clear();
  if (from.bad_words != nullptr) {
    for (const std::vector<int32_t>& word : *from.bad_words) {
      to.bad_word_ids.insert(to.bad_word_ids.end(), word.begin(), word.end());
      to.bad_word_lengths.push_back(static_cast<int32_t>(word.size()));
    }
  }
  to.dry_multiplier = from.dry_multiplier;
  to.dry_base = from.dry_base;
  to.dry_allowed_length = from.dry_allowed_length;
  to.dry_penalty_last_n = from.dry_penalty_last_n;
  to.dry_breakers = from.dry_breakers;
  to.dynatemp_range = from.dynatemp_range;
  to.dynatemp_exponent = from.dynatemp_exponent;
  to.top_n_sigma = from.top_n_sigma;
  to.typical_p = from.typical_p;
  to.xtc_probability = from.xtc_probability;
  to.xtc_threshold = from.xtc_threshold;
}

TokenOutput OutputOf(const RowResult& row, size_t token_idx) {
  TokenOutput output;
  output.token_id = row.tokens[token_idx];
  if (!row.logprobs.empty()) output.logprob = row.logprobs[token_idx];
  const size_t num_top = row.top_ids.size() / row.tokens.size();
  output.top_logprobs.reserve(num_top);
  for (size_t i = 0; i < num_top; ++i) {
    const size_t at = token_idx * num_top + i;
    output.top_logprobs.push_back({row.top_ids[at], row.top_logprobs[at]});
  }
  return output;
}

// The row's scored prompt tokens; `ids` are theirs.
std::vector<TokenOutput> ScoredOf(const RowResult& row,
                                  absl::Span<const int32_t> ids) {
  std::vector<TokenOutput> scored(ids.size());
  const size_t num_top =
      ids.empty() ? 0 : row.scored_top_ids.size() / ids.size();
  for (size_t i = 0; i < ids.size(); ++i) {
    scored[i].token_id = ids[i];
    scored[i].logprob = row.scored_logprobs[i];
    scored[i].rank = row.scored_ranks[i];
    scored[i].top_logprobs.reserve(num_top);
    for (size_t at = i * num_top; at < (i + 1) * num_top; ++at) {
      scored[i].top_logprobs.push_back(
          {row.scored_top_ids[at], row.scored_top_logprobs[at]});
    }
  }
  return scored;
}

}  // namespace

BackendModelRunner::BackendModelRunner(Backend* backend, Model* model,
                                       int max_num_seqs, int steps_in_flight)
    : backend_(backend),
      model_(model),
      steps_in_flight_(steps_in_flight),
      pending_(steps_in_flight),
      slot_params_(max_num_seqs) {
  updates_.reserve(2 * max_num_seqs);
  rows_.reserve(max_num_seqs);
  token_ids_.reserve(max_num_seqs);
  spare_result_.rows.reserve(max_num_seqs);
}

// What nobody has collected reads weights, which are freed next; and where a
// step waits for a rank that is gone, Collect gives up, while freeing memory of
// a device would wait for good.
BackendModelRunner::~BackendModelRunner() {
  while (num_pending_ > 0) (void)Collect();
}

void BackendModelRunner::BuildPlan(const SchedulerOutput& output) {
  updates_.clear();
  rows_.clear();
  token_ids_.clear();
  // Before any pointer into it is taken.
  if (slot_params_.size() < output.slot_starts.size()) {
    slot_params_.resize(output.slot_starts.size());
  }
  for (size_t i = 0; i < output.slot_starts.size(); ++i) {
    const SlotStart& start = output.slot_starts[i];
    FillSlotParams(start, slot_params_[i]);
    SlotUpdate update;
    update.slot = start.slot;
    update.params = &slot_params_[i];
    update.history = start.history;
    update.num_prompt_tokens = start.num_prompt_tokens;
    update.num_computed_tokens = start.num_computed_tokens;
    updates_.push_back(update);
  }
  for (const BlockAppend& append : output.block_appends) {
    SlotUpdate update;
    update.slot = append.slot;
    update.append_blocks = append.block_ids;
    updates_.push_back(update);
  }
  key_ = GraphKey();
  for (const ScheduledRow& scheduled : output.rows) {
    StepRow row;
    row.slot = scheduled.slot;
    row.num_tokens = scheduled.num_tokens;
    row.num_scored = scheduled.num_scored;
    row.num_drafts = scheduled.num_drafts;
    row.num_logits = scheduled.num_scored + scheduled.num_drafts +
                     (scheduled.needs_token ? 1 : 0);
    row.source = scheduled.input_on_device ? TokenSource::kDeviceLast
                                           : TokenSource::kHost;
    if (!model_->draws()) row.first_position = scheduled.first_position;
    rows_.push_back(row);
    if (!scheduled.input_on_device) {
      QUIRE_CHECK(scheduled.first_token_idx >= 0 &&
                  scheduled.first_token_idx + size_t(scheduled.num_tokens) <=
                      output.token_ids.size());
      const auto first = output.token_ids.begin() + scheduled.first_token_idx;
      token_ids_.insert(token_ids_.end(), first, first + scheduled.num_tokens);
    }
    key_.num_tokens += scheduled.num_tokens;
    key_.num_logit_rows += row.num_logits;
  }
  key_.num_rows = static_cast<int32_t>(rows_.size());
}

absl::Status BackendModelRunner::Submit(const SchedulerOutput& output) {
  if (num_pending_ >= steps_in_flight_) {
    return absl::ResourceExhaustedError(
        absl::StrCat(num_pending_, " steps are in flight already"));
  }
  BuildPlan(output);
  StepPlan plan;
  plan.updates = updates_;
  plan.block_copies = output.block_copies;
  plan.rows = rows_;
  plan.token_ids = token_ids_;
  plan.scored_ids = output.scored_token_ids;
  QUIRE_ASSIGN_OR_RETURN(Step* const step, backend_->BeginStep(plan));
  absl::Status status = backend_->Run(
      *step, key_, [&] { return model_->Forward(*backend_, *step); });
  status.Update(backend_->EndStep(*step));
  if (!status.ok()) {
    // Ends the step on the backend too; what it found means nothing, unless it
    // is that the device is broken.
    const absl::Status ended = backend_->Collect(*step).status();
    return absl::IsUnavailable(ended) ? ended : status;
  }
  PendingStep& pending =
      pending_[(first_pending_ + num_pending_++) % steps_in_flight_];
  pending.step = step;
  pending.step_id = output.step_id;
  pending.scored_ids = output.scored_token_ids;
  return absl::OkStatus();
}

absl::StatusOr<StepResult> BackendModelRunner::Collect() {
  QUIRE_CHECK(num_pending_ > 0);
  const PendingStep& pending = pending_[first_pending_];
  first_pending_ = (first_pending_ + 1) % steps_in_flight_;
  --num_pending_;
  QUIRE_ASSIGN_OR_RETURN(const absl::Span<const RowResult> rows,
                         backend_->Collect(*pending.step));
  StepResult result = std::move(spare_result_);
  spare_result_.rows.clear();
  result.step_id = pending.step_id;
  result.rows.reserve(rows.size());
  absl::Span<const int32_t> scored_ids = pending.scored_ids;
  for (const RowResult& row : rows) {
    SampledRow sampled;
    sampled.slot = row.slot;
    sampled.non_finite = row.non_finite;
    sampled.all_masked = row.all_masked;
    const bool has_fault = row.non_finite || row.all_masked;
    const size_t num_tokens =
        row.tokens.size() - (has_fault && !row.tokens.empty() ? 1 : 0);
    sampled.tokens.reserve(num_tokens);
    for (size_t i = 0; i < num_tokens; ++i) {
      sampled.tokens.push_back(OutputOf(row, i));
    }
    if (!row.non_finite) {
      sampled.embedding.assign(row.embedding.begin(), row.embedding.end());
      sampled.scored =
          ScoredOf(row, scored_ids.first(row.scored_logprobs.size()));
    }
    scored_ids.remove_prefix(row.scored_logprobs.size());
    result.rows.push_back(std::move(sampled));
  }
  return result;
}

void BackendModelRunner::Recycle(StepResult result) {
  spare_result_ = std::move(result);
  spare_result_.rows.clear();
}

bool BackendModelRunner::PrepareAhead() {
  return backend_->PrepareAhead(
      [this](Step* step) { return model_->Forward(*backend_, *step); });
}

bool BackendModelRunner::Done() const {
  QUIRE_CHECK(num_pending_ > 0);
  return backend_->Done(*pending_[first_pending_].step);
}

}  // namespace quire
