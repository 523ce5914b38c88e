#include "benchmarks/model_rows.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr int kNumWarmUpTokens = 16;

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

// What a row has to read at least (weights once a step; KV is left out, it is
// small beside them at these lengths) and to compute.
struct RowWork {
  double bytes = 0;
  double flops = 0;
};

RowWork WorkOf(const LoadedModel& model, const ModelRow& row) {
  const ModelConfig& config = model.config;
  const double head =
      static_cast<double>(config.vocab_size) * config.hidden_size;
  // An input table of its own is looked up, not multiplied with.
  const double layers =
      model.num_parameters - head * (config.tie_word_embeddings ? 1 : 2);
  const double share_read =
      (layers + head) / static_cast<double>(model.num_parameters);
  RowWork work;
  const double num_seqs = row.num_seqs;
  const double num_steps = row.num_gen + (row.num_prompt > 0 ? 1 : 0);
  work.bytes = num_steps * model.memory.weights_bytes * share_read;
  const double num_new = row.num_prompt + row.num_gen;
  work.flops = 2 * num_seqs * (layers * num_new + head * num_steps);
  // q . k and p . v over all positions up to each token's own.
  const double pairs = num_new * row.depth + num_new * (num_new + 1) / 2;
  for (const LayerConfig& layer : config.layers) {
    work.flops += 4 * num_seqs * pairs * layer.num_heads * layer.head_dim;
  }
  return work;
}

}  // namespace

std::string ModelRow::Name() const {
  std::string name;
  if (num_prompt > 0) absl::StrAppend(&name, "pp", num_prompt);
  if (num_gen > 0) {
    absl::StrAppend(&name, name.empty() ? "" : "+", "tg", num_gen);
  }
  if (num_seqs > 1) absl::StrAppend(&name, " x ", num_seqs);
  if (depth > 0) absl::StrAppend(&name, " @ d", depth);
  return name;
}

absl::StatusOr<ModelDriver> ModelDriver::Create(
    LoadedModel* model, int num_seqs, int max_len, ModelRunner* runner,
    const std::atomic<bool>* is_cancelled) {
  const int block_size = model->shape.block_size;
  const int64_t blocks =
      int64_t{num_seqs} * ((max_len + block_size - 1) / block_size);
  if (num_seqs > model->shape.max_num_seqs ||
      max_len > model->shape.max_model_len ||
      blocks > model->memory.num_blocks) {
    return absl::ResourceExhaustedError(
        absl::StrCat(num_seqs, " sequences of ", max_len, " tokens need ",
                     blocks, " KV blocks of ", block_size,
                     " tokens; there are ", model->memory.num_blocks,
                     " for sequences of up to ", model->shape.max_model_len));
  }
  return ModelDriver(model, runner != nullptr ? runner : model->runner.get(),
                     num_seqs, max_len, is_cancelled);
}

ModelDriver::ModelDriver(LoadedModel* model, ModelRunner* runner, int num_slots,
                         int max_len, const std::atomic<bool>* is_cancelled)
    : model_(model),
      runner_(runner),
      max_len_(max_len),
      is_cancelled_(is_cancelled),
      lengths_(num_slots, 0),
      last_tokens_(num_slots, 0) {
  params_.temperature = 0.0f;
}

// Any tokens will do; these repeat in no short period.
int32_t ModelDriver::TokenAt(int slot, int position) const {
  const int64_t mixed = slot * int64_t{7919} + position * int64_t{104729} + 11;
  return static_cast<int32_t>(mixed % model_->config.vocab_size);
}

absl::Status ModelDriver::CollectOne() {
  --num_in_flight_;
  QUIRE_ASSIGN_OR_RETURN(const StepResult result, runner_->Collect());
  for (const SampledRow& row : result.rows) {
    if (row.non_finite) return absl::InternalError("logits are not finite");
    last_tokens_[row.slot] = row.tokens[0].token_id;
  }
  return absl::OkStatus();
}

absl::Status ModelDriver::CollectAll() {
  while (num_in_flight_ > 0) QUIRE_RETURN_IF_ERROR(CollectOne());
  return absl::OkStatus();
}

absl::Status ModelDriver::CheckNotCancelled() {
  if (is_cancelled_ == nullptr || !*is_cancelled_) return absl::OkStatus();
  QUIRE_RETURN_IF_ERROR(CollectAll());
  return absl::CancelledError("cancelled");
}

absl::Status ModelDriver::Compute(int slot, int first, int end, bool starts) {
  const int budget = model_->shape.max_num_tokens;
  while (first < end) {
    QUIRE_RETURN_IF_ERROR(CheckNotCancelled());
    const int count = std::min(budget, end - first);
    SchedulerOutput output;
    if (starts) {
      SlotStart start;
      start.slot = slot;
      start.params = &params_;
      for (int i = 0; i < end; ++i) start.history.push_back(TokenAt(slot, i));
      start.num_prompt_tokens = end;
      output.slot_starts.push_back(std::move(start));
      const int block_size = model_->shape.block_size;
      const int blocks_per_seq = (max_len_ + block_size - 1) / block_size;
      BlockAppend append;
      append.slot = slot;
      for (int i = 0; i < blocks_per_seq; ++i) {
        append.block_ids.push_back(slot * blocks_per_seq + i);
      }
      output.block_appends.push_back(std::move(append));
      starts = false;
    }
    for (int i = first; i < first + count; ++i) {
      output.token_ids.push_back(TokenAt(slot, i));
    }
    output.rows.push_back({slot, first, count, first + count == end, false, 0});
    QUIRE_RETURN_IF_ERROR(runner_->Submit(output));
    ++num_in_flight_;
    QUIRE_RETURN_IF_ERROR(CollectOne());
    first += count;
  }
  lengths_[slot] = end;
  return absl::OkStatus();
}

absl::Status ModelDriver::Prefill(int slot, int num_tokens) {
  return Compute(slot, 0, num_tokens, /*starts=*/true);
}

absl::Status ModelDriver::Extend(int slot, int num_tokens) {
  const int first = lengths_[slot];
  return Compute(slot, first, first + num_tokens, /*starts=*/false);
}

absl::Status ModelDriver::Decode(int num_seqs, int num_steps) {
  for (int step = 0; step < num_steps; ++step) {
    QUIRE_RETURN_IF_ERROR(CheckNotCancelled());
    SchedulerOutput output;
    // The token is on the host only once its step has been collected.
    const bool is_on_device = num_in_flight_ > 0;
    for (int slot = 0; slot < num_seqs; ++slot) {
      output.rows.push_back({slot, lengths_[slot], 1, true, is_on_device,
                             is_on_device ? 0 : slot});
      if (!is_on_device) output.token_ids.push_back(last_tokens_[slot]);
      ++lengths_[slot];
    }
    QUIRE_RETURN_IF_ERROR(runner_->Submit(output));
    if (++num_in_flight_ == runner_->steps_in_flight()) {
      QUIRE_RETURN_IF_ERROR(CollectOne());
    }
  }
  return CollectAll();
}

namespace {

// One repetition; the seconds of what counts.
absl::StatusOr<double> RunRow(ModelDriver* driver, const ModelRow& row) {
  for (int slot = 0; slot < row.num_seqs && row.depth > 0; ++slot) {
    QUIRE_RETURN_IF_ERROR(driver->Prefill(slot, row.depth));
  }
  const SteadyClock::time_point start = SteadyClock::now();
  int num_gen = row.num_gen;
  for (int slot = 0; slot < row.num_seqs; ++slot) {
    if (row.num_prompt > 0) {
      QUIRE_RETURN_IF_ERROR(row.depth > 0
                                ? driver->Extend(slot, row.num_prompt)
                                : driver->Prefill(slot, row.num_prompt));
    } else if (row.depth == 0) {
      // A sequence starts with its first token: one step like the others.
      QUIRE_RETURN_IF_ERROR(driver->Prefill(slot, 1));
    }
  }
  if (row.num_prompt == 0 && row.depth == 0) --num_gen;
  QUIRE_RETURN_IF_ERROR(driver->Decode(row.num_seqs, num_gen));
  return SecondsSince(start);
}

}  // namespace

absl::StatusOr<ModelRowResult> MeasureModelRow(const LoadedModel& model,
                                               ModelDriver* driver,
                                               const ModelRow& row,
                                               int repetitions,
                                               const ModelCeilingProbe& probe) {
  ModelRowResult result;
  result.row = row;
  const RowWork work = WorkOf(model, row);
  // What is done for the first time: threads, graphs, pages.
  ModelRow warm_up = row;
  warm_up.num_gen = std::min(row.num_gen, kNumWarmUpTokens);
  QUIRE_RETURN_IF_ERROR(RunRow(driver, warm_up).status());
  const auto measure = [&probe]() -> absl::StatusOr<ModelCeilings> {
    if (probe == nullptr) return ModelCeilings();
    return probe();
  };
  const auto add = [](double rate, double before, double after,
                      std::vector<double>* percents) {
    if (before + after > 0) percents->push_back(200 * rate / (before + after));
  };
  QUIRE_ASSIGN_OR_RETURN(ModelCeilings before, measure());
  for (int i = 0; i < repetitions; ++i) {
    const absl::StatusOr<double> run = RunRow(driver, row);
    if (absl::IsCancelled(run.status()) && i > 0) break;
    QUIRE_RETURN_IF_ERROR(run.status());
    const double seconds = *run;
    result.seconds.push_back(seconds);
    QUIRE_ASSIGN_OR_RETURN(const ModelCeilings after, measure());
    const double bytes = work.bytes / seconds;
    add(bytes, before.read, after.read, &result.percent_of_read);
    add(bytes, before.copy, after.copy, &result.percent_of_copy);
    add(work.flops / seconds, before.bf16_peak, after.bf16_peak,
        &result.percent_of_peak);
    before = after;
  }
  return result;
}

}  // namespace quire
