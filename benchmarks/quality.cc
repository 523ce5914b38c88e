#include "benchmarks/quality.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {

absl::StatusOr<ChunkScorer> ChunkScorer::Create(LoadedModel* model,
                                                int chunk_len) {
  const int block_size = model->shape.block_size;
  const int num_blocks = (chunk_len + block_size - 1) / block_size;
  if (chunk_len > model->shape.max_model_len ||
      num_blocks > model->memory.num_blocks) {
    return absl::ResourceExhaustedError(
        absl::StrCat("chunks of ", chunk_len, " tokens need ", num_blocks,
                     " KV blocks; there are ", model->memory.num_blocks,
                     " for sequences of up to ", model->shape.max_model_len));
  }
  return ChunkScorer(model);
}

ChunkScorer::ChunkScorer(LoadedModel* model) : model_(model) {
  params_.temperature = 0.0f;
  params_.num_logprobs = model->config.vocab_size;
}

absl::StatusOr<std::vector<float>> ChunkScorer::Step(
    absl::Span<const int32_t> chunk, int begin, int end) {
  SchedulerOutput output;
  if (begin == 0) {
    SlotStart start;
    start.params = &params_;
    start.history.assign(chunk.begin(), chunk.end());
    start.num_prompt_tokens = static_cast<int>(chunk.size());
    output.slot_starts.push_back(std::move(start));
    BlockAppend append;
    const int block_size = model_->shape.block_size;
    for (int i = 0; i * block_size < static_cast<int>(chunk.size()); ++i) {
      append.block_ids.push_back(i);
    }
    output.block_appends.push_back(std::move(append));
  }
  ScheduledRow row;
  row.first_position = begin;
  row.num_tokens = end - begin;
  row.needs_token = true;
  output.rows.push_back(row);
  output.token_ids.assign(chunk.begin() + begin, chunk.begin() + end);
  QUIRE_RETURN_IF_ERROR(model_->runner->Submit(output));
  QUIRE_ASSIGN_OR_RETURN(const StepResult result, model_->runner->Collect());
  const SampledRow& sampled = result.rows.at(0);
  if (sampled.non_finite) return absl::InternalError("logits are not finite");
  const auto& top = sampled.tokens.at(0).top_logprobs;
  if (static_cast<int>(top.size()) != model_->config.vocab_size) {
    return absl::UnimplementedError(absl::StrCat(
        "the backend gives ", top.size(), " log-probabilities of a position, ",
        "not all ", model_->config.vocab_size));
  }
  std::vector<float> by_id(top.size());
  for (const TopLogprob& entry : top) by_id[entry.token_id] = entry.logprob;
  return by_id;
}

absl::StatusOr<Distributions> ChunkScorer::Score(
    absl::Span<const int32_t> chunk, int first) {
  Distributions distributions;
  // A row tells one distribution: the tokens up to `first` at once (in pieces
  // of what a step takes), then one after another.
  const int budget = model_->shape.max_num_tokens;
  for (int begin = 0; begin + 1 < static_cast<int>(chunk.size());) {
    const int end =
        begin <= first ? std::min(begin + budget, first + 1) : begin + 1;
    QUIRE_ASSIGN_OR_RETURN(std::vector<float> logprobs,
                           Step(chunk, begin, end));
    if (end > first) distributions.push_back(std::move(logprobs));
    begin = end;
  }
  return distributions;
}

void DivergenceMeter::Add(absl::Span<const float> exact,
                          absl::Span<const float> found, int32_t next) {
  double divergence = 0;
  for (size_t id = 0; id < exact.size(); ++id) {
    const double p = exact[id];
    // What is impossible adds nothing: 0 log 0 = 0.
    if (p > -INFINITY) divergence += std::exp(p) * (p - found[id]);
  }
  divergences_.push_back(divergence);
  exact_loss_ -= exact[next];
  loss_ -= found[next];
  num_same_top_ +=
      std::max_element(exact.begin(), exact.end()) - exact.begin() ==
      std::max_element(found.begin(), found.end()) - found.begin();
}

double DivergenceMeter::ExactPerplexity() const {
  return std::exp(exact_loss_ / divergences_.size());
}

double DivergenceMeter::Perplexity() const {
  return std::exp(loss_ / divergences_.size());
}

double DivergenceMeter::SameTopShare() const {
  return static_cast<double>(num_same_top_) / divergences_.size();
}

}  // namespace quire
