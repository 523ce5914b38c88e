#include "tests/model_harness.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/speculative/create_drafter.h"
#include "kernels/cpu/cpu_backend.h"

namespace quire {

absl::StatusOr<std::unique_ptr<ModelHarness>> ModelHarness::Create(
    const std::string& directory, const Options& options) {
  std::unique_ptr<Backend> backend;
  if (options.make_backend) {
    backend = options.make_backend();
  } else {
    CpuBackendOptions backend_options;
    backend_options.threads.num_threads = options.num_threads;
    QUIRE_ASSIGN_OR_RETURN(backend, CpuBackend::Create(backend_options));
  }
  LoadOptions load_options;
  load_options.dtype = options.dtype;
  load_options.kv_cache_dtype = options.kv_cache_dtype;
  load_options.quantization = options.quantization;
  load_options.num_threads = options.num_threads;
  load_options.max_num_seqs = options.max_num_seqs;
  load_options.max_num_batched_tokens = options.max_num_batched_tokens;
  load_options.max_model_len = options.max_model_len;
  load_options.steps_in_flight = options.steps_in_flight;
  load_options.kv_cache_memory_bytes = options.kv_cache_memory_bytes;
  load_options.task = options.task;
  load_options.pooling = options.pooling;
  BegunDrafter begun;
  const bool drafts = options.speculative.method != DraftMethod::kNone;
  if (drafts) {
    load_options.num_drafts = options.speculative.num_speculative_tokens;
    QUIRE_ASSIGN_OR_RETURN(begun, BeginDrafter(options.speculative, directory,
                                               load_options, *backend));
    load_options.companion = begun.memory;
    if (begun.head.has_value()) load_options.taps = begun.head->taps;
  }
  QUIRE_ASSIGN_OR_RETURN(LoadedModel model, LoadModel(directory, load_options,
                                                      std::move(backend)));
  std::unique_ptr<ModelHarness> harness(
      new ModelHarness(std::move(model), std::move(load_options)));
  if (drafts) {
    QUIRE_ASSIGN_OR_RETURN(harness->drafter_,
                           FinishDrafter(std::move(begun), &harness->model_));
  }
  return harness;
}

absl::StatusOr<std::unique_ptr<ModelDrafter>> ModelHarness::MakeDrafter(
    const std::string& directory, int max_model_len) const {
  LoadOptions options = load_options_;
  if (max_model_len > 0) options.max_model_len = max_model_len;
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                         model_.backend->CreateCompanion());
  QUIRE_ASSIGN_OR_RETURN(
      LoadedModel draft,
      BeginLoadingCompanion(directory, options, std::move(backend)));
  QUIRE_RETURN_IF_ERROR(FinishLoadingCompanion(model_, &draft));
  return std::make_unique<ModelDrafter>(std::move(draft),
                                        model_.config.vocab_size);
}

TestSequence ModelHarness::MakeSequence(int slot, std::vector<int32_t> prompt,
                                        int num_logprobs) const {
  TestSequence sequence;
  sequence.slot = slot;
  sequence.num_prompt_tokens = static_cast<int>(prompt.size());
  sequence.tokens = std::move(prompt);
  sequence.params.temperature = 0.0f;
  sequence.params.num_logprobs = num_logprobs;
  return sequence;
}

absl::Status ModelHarness::Step(const std::vector<TestRow>& rows) {
  SchedulerOutput output;
  output.step_id = next_step_id_++;
  const int block_size = model_.shape.block_size;
  for (const TestRow& row : rows) {
    TestSequence& sequence = *row.sequence;
    BlockAppend append;
    append.slot = sequence.slot;
    if (!sequence.is_in_slot) {
      SlotStart start;
      start.slot = sequence.slot;
      start.params = &sequence.params;
      start.draw_key = sequence.draw_key;
      start.history = sequence.tokens;
      start.num_prompt_tokens = sequence.num_prompt_tokens;
      start.num_computed_tokens = sequence.num_computed_tokens;
      output.slot_starts.push_back(start);
      append.block_ids = sequence.blocks;
      sequence.is_in_slot = true;
      sequence.num_start_tokens = static_cast<int>(sequence.tokens.size());
    }
    const int end = sequence.num_computed_tokens + row.num_tokens;
    QUIRE_CHECK(end <= static_cast<int>(sequence.tokens.size()));
    while (static_cast<int>(sequence.blocks.size()) * block_size < end) {
      sequence.blocks.push_back(TakeBlock());
      append.block_ids.push_back(sequence.blocks.back());
    }
    if (!append.block_ids.empty()) output.block_appends.push_back(append);
    ScheduledRow scheduled;
    scheduled.slot = sequence.slot;
    scheduled.first_position = sequence.num_computed_tokens;
    scheduled.num_tokens = row.num_tokens;
    scheduled.needs_token =
        row.draws_anyway || end == static_cast<int>(sequence.tokens.size());
    scheduled.first_token_idx = static_cast<int>(output.token_ids.size());
    output.token_ids.insert(
        output.token_ids.end(),
        sequence.tokens.begin() + sequence.num_computed_tokens,
        sequence.tokens.begin() + end);
    output.rows.push_back(scheduled);
  }
  QUIRE_RETURN_IF_ERROR(model_.runner->Submit(output));
  QUIRE_ASSIGN_OR_RETURN(StepResult result, model_.runner->Collect());
  QUIRE_CHECK(result.step_id == output.step_id);
  size_t next_result = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    TestSequence& sequence = *rows[i].sequence;
    sequence.num_computed_tokens += rows[i].num_tokens;
    if (!output.rows[i].needs_token) continue;
    QUIRE_CHECK(next_result < result.rows.size());
    SampledRow& sampled = result.rows[next_result++];
    const bool is_embedding = model_.embedding.has_value();
    if (sampled.slot != sequence.slot || sampled.non_finite ||
        sampled.tokens.size() != (is_embedding ? 0u : 1u)) {
      return absl::InternalError(
          absl::StrCat("bad result for slot ", sequence.slot));
    }
    if (is_embedding) {
      sequence.embedding = std::move(sampled.embedding);
      continue;
    }
    if (sequence.num_computed_tokens ==
        static_cast<int>(sequence.tokens.size())) {
      sequence.tokens.push_back(sampled.tokens[0].token_id);
    }
    sequence.outputs.push_back(std::move(sampled.tokens[0]));
  }
  QUIRE_CHECK(next_result == result.rows.size());
  return absl::OkStatus();
}

absl::Status ModelHarness::Generate(TestSequence& sequence, int chunk,
                                    int num_tokens) {
  const int switch_length = model_.config.RopeSwitchLength();
  while (static_cast<int>(sequence.tokens.size()) <
         sequence.num_prompt_tokens + num_tokens) {
    if (switch_length > 0 && sequence.is_in_slot &&
        sequence.num_start_tokens <= switch_length &&
        static_cast<int>(sequence.tokens.size()) > switch_length) {
      Preempt(sequence);
    }
    const int left =
        static_cast<int>(sequence.tokens.size()) - sequence.num_computed_tokens;
    QUIRE_RETURN_IF_ERROR(Step({{&sequence, std::min(left, chunk)}}));
  }
  return absl::OkStatus();
}

void ModelHarness::Preempt(TestSequence& sequence) {
  sequence.is_in_slot = false;
  sequence.num_computed_tokens = 0;
  sequence.blocks.clear();
}

std::vector<float> LogprobsById(const TokenOutput& output) {
  std::vector<float> logprobs(output.top_logprobs.size());
  for (const TopLogprob& top : output.top_logprobs) {
    logprobs[top.token_id] = top.logprob;
  }
  return logprobs;
}

EngineOptions ModelHarness::MakeEngineOptions(
    int num_blocks, int num_speculative_tokens) const {
  EngineOptions options;
  options.vocab_size = model_.config.vocab_size;
  options.max_model_len = model_.shape.max_model_len;
  options.max_num_seqs = model_.shape.max_num_seqs;
  options.max_num_batched_tokens = model_.shape.max_num_tokens;
  options.max_num_scored_tokens = model_.max_num_scored_tokens;
  options.num_blocks = num_blocks;
  options.steps_in_flight = model_.runner->steps_in_flight();
  options.check_integrity = true;
  options.num_speculative_tokens = num_speculative_tokens;
  options.adapts_drafts = false;
  return options;
}

}  // namespace quire
