// Speed of a whole model without scheduler, text and HTTP: prefill, decode, and
// decode of several sequences at once, as llama-bench and llama-batched-bench
// (llama.cpp, tools/) count them. Sampling (greedy) is part of every step.
#ifndef QUIRE_BENCHMARKS_MODEL_ROWS_H_
#define QUIRE_BENCHMARKS_MODEL_ROWS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/loaded_model.h"

namespace quire {

// What one row measures: with `depth` tokens in the KV cache of each of
// `num_seqs` sequences, the time for num_prompt tokens at once and then num_gen
// tokens one by one.
struct ModelRow {
  int num_prompt = 0;
  int num_gen = 0;
  int depth = 0;
  int num_seqs = 1;

  // "pp512", "tg128", "pp512+tg128", "tg128 @ d1024", "tg128 x 16 @ d128".
  std::string Name() const;
  int num_tokens() const { return (num_prompt + num_gen) * num_seqs; }
  int length() const { return depth + num_prompt + num_gen; }
};

struct ModelRowResult {
  ModelRow row;
  std::vector<double> seconds;  // One for each repetition.
  // With ceilings: of what each repetition had to read and compute, the percent
  // of what the machine did beside it; empty for one that is not known.
  std::vector<double> percent_of_read, percent_of_copy, percent_of_peak;
};

// What the machine does at best; 0: not known.
struct ModelCeilings {
  double read = 0;       // Bytes per second.
  double copy = 0;       // The same, read and written both counted.
  double bf16_peak = 0;  // Floating-point operations per second.
};
// Null: nothing is probed.
using ModelCeilingProbe = std::function<absl::StatusOr<ModelCeilings>()>;

// Sequences that are driven without a scheduler. Thread-compatible; `model`
// must outlive it. Requires: the model generates.
class ModelDriver {
 public:
  // RESOURCE_EXHAUSTED if the KV cache does not hold `num_seqs` sequences of
  // `max_len` tokens. `runner`: null: the model's own. Once *is_cancelled, if
  // it is given (it must outlive the driver), what follows is CANCELLED after
  // the step at hand, with none left in flight.
  static absl::StatusOr<ModelDriver> Create(
      LoadedModel* model, int num_seqs, int max_len,
      ModelRunner* runner = nullptr,
      const std::atomic<bool>* is_cancelled = nullptr);

  // Starts sequence `slot` anew with `num_tokens` tokens.
  absl::Status Prefill(int slot, int num_tokens);
  // Adds `num_tokens` tokens to a sequence that has some.
  absl::Status Extend(int slot, int num_tokens);
  // `num_steps` tokens of each of the first `num_seqs` sequences; steps overlap
  // as far as the runner lets them.
  absl::Status Decode(int num_seqs, int num_steps);

 private:
  ModelDriver(LoadedModel* model, ModelRunner* runner, int num_slots,
              int max_len, const std::atomic<bool>* is_cancelled);

  // Computes the tokens [first, end) of the slot's history, in chunks.
  absl::Status Compute(int slot, int first, int end, bool starts);
  absl::Status CollectOne();
  absl::Status CollectAll();
  absl::Status CheckNotCancelled();
  int32_t TokenAt(int slot, int position) const;

  LoadedModel* model_;
  ModelRunner* runner_;
  int max_len_;
  const std::atomic<bool>* is_cancelled_;
  SamplingParams params_;
  std::vector<int> lengths_;
  std::vector<int32_t> last_tokens_;
  int num_in_flight_ = 0;
};

// Measures `row` after one repetition, of few generated tokens, that does not
// count; `probe` is asked before and after each repetition. A driver that is
// cancelled leaves the repetitions that were done; CANCELLED if there are none.
absl::StatusOr<ModelRowResult> MeasureModelRow(const LoadedModel& model,
                                               ModelDriver* driver,
                                               const ModelRow& row,
                                               int repetitions,
                                               const ModelCeilingProbe& probe);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_MODEL_ROWS_H_
