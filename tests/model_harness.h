// Runs sequences on a loaded model step by step, with the test deciding what
// each step computes: a scheduler's place, without a scheduler.
#ifndef QUIRE_TESTS_MODEL_HARNESS_H_
#define QUIRE_TESTS_MODEL_HARNESS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine_options.h"
#include "engine/model/loaded_model.h"
#include "engine/request.h"
#include "engine/speculative/drafter.h"
#include "engine/speculative/model_drafter.h"
#include "engine/speculative/speculative_config.h"

namespace quire {

// One sequence and what came out of it.
struct TestSequence {
  int slot = 0;
  std::vector<int32_t> tokens;  // Prompt, then what was generated.
  int num_prompt_tokens = 0;
  int num_computed_tokens = 0;
  std::vector<int32_t> blocks;
  SamplingParams params;
  uint64_t draw_key = 0;
  bool is_in_slot = false;
  int num_start_tokens = 0;  // Known when it entered the slot.
  // Of every row that drew a token, in order.
  std::vector<TokenOutput> outputs;
  // Of an embedding model, once the prompt is computed.
  std::vector<float> embedding;
};

// "This sequence computes its next num_tokens tokens."
struct TestRow {
  TestSequence* sequence = nullptr;
  int num_tokens = 0;
  // Draws after an inner chunk too: the output is recorded, not appended.
  bool draws_anyway = false;
};

class ModelHarness {
 public:
  struct Options {
    // Of the CPU.
    int num_threads = 1;
    // In place of the CPU's.
    std::function<std::unique_ptr<Backend>()> make_backend;
    std::optional<DType> dtype = DType::kF32;
    DType kv_cache_dtype = DType::kF32;
    std::optional<QuantizationScheme> quantization;
    int max_num_seqs = 8;
    int max_num_batched_tokens = 256;
    int max_model_len = 192;
    int steps_in_flight = 0;  // 0: what is of use on the backend.
    int64_t kv_cache_memory_bytes = 0;
    ModelTask task = ModelTask::kAuto;
    std::optional<Pooling> pooling;
    // Not kNone: a drafter is made, as the command line does it.
    SpeculativeConfig speculative;
  };

  static absl::StatusOr<std::unique_ptr<ModelHarness>> Create(
      const std::string& directory, const Options& options);

  // Greedy by default; reports the whole distribution if `num_logprobs` is the
  // vocabulary's size.
  TestSequence MakeSequence(int slot, std::vector<int32_t> prompt,
                            int num_logprobs) const;

  // One step. A row that ends its sequence's known tokens draws one and appends
  // it. Blocks are taken as needed.
  absl::Status Step(const std::vector<TestRow>& rows);

  // Prefills in chunks of at most `chunk` tokens, then decodes until
  // `num_tokens` are generated. Begins again where the sequence grows beyond
  // the model's RopeSwitchLength.
  absl::Status Generate(TestSequence& sequence, int chunk, int num_tokens);

  // Leaves the slot; computed state is dropped, as by preemption.
  void Preempt(TestSequence& sequence);

  // Of Options::speculative.
  Drafter* drafter() const { return drafter_.get(); }
  // Loads another model beside this one, as its draft model, on a backend with
  // the same threads and in the same dtype. max_model_len 0: as this one's.
  absl::StatusOr<std::unique_ptr<ModelDrafter>> MakeDrafter(
      const std::string& directory, int max_model_len = 0) const;

  int32_t TakeBlock() { return next_block_++; }

  // Of an engine on the model's runner, with integrity checks and drafts of a
  // fixed number.
  EngineOptions MakeEngineOptions(int num_blocks,
                                  int num_speculative_tokens) const;

  const LoadedModel& model() const { return model_; }
  int vocab_size() const { return model_.config.vocab_size; }

 private:
  ModelHarness(LoadedModel model, LoadOptions options)
      : model_(std::move(model)), load_options_(std::move(options)) {}

  LoadedModel model_;
  LoadOptions load_options_;
  std::unique_ptr<Drafter> drafter_;
  int32_t next_block_ = 0;
  int64_t next_step_id_ = 0;
};

// The distribution as an array by id. Requires: `output` reports all of it.
std::vector<float> LogprobsById(const TokenOutput& output);

}  // namespace quire

#endif  // QUIRE_TESTS_MODEL_HARNESS_H_
