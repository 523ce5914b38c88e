// The prompts of a load. The kinds and their options are those of vLLM's
// benchmark (vllm/benchmarks/datasets.py).
#ifndef QUIRE_BENCHMARKS_SERVING_DATASET_H_
#define QUIRE_BENCHMARKS_SERVING_DATASET_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "benchmarks/serving/completion_api.h"
#include "benchmarks/serving/prompt_codec.h"
#include "engine/base/random.h"

namespace quire {

struct DatasetOptions {
  enum class Kind : uint8_t { kRandom, kShareGpt, kPrefixRepetition, kCustom };
  Kind kind = Kind::kRandom;
  std::string path;  // kShareGpt, kCustom.
  int num_prompts = 1000;

  // kRandom. Lengths are uniform in [(1 - range_ratio) len, (1 + range_ratio)
  // len]; the prefix is the same in every prompt and comes before them.
  int64_t random_input_len = 1024;
  int64_t random_output_len = 128;
  double random_range_ratio = 0;
  int64_t random_prefix_len = 0;
  // Of kEmbeddings: inputs of a request; num_prompts counts inputs.
  int random_batch_size = 1;

  // kShareGpt: length of every answer; 0: that of the file's answer.
  int64_t sharegpt_output_len = 0;
  // kCustom: length of every answer; -1: the line's "output_tokens".
  int64_t custom_output_len = 256;

  // kPrefixRepetition: num_prompts / num_prefixes prompts with each prefix,
  // shuffled.
  int64_t prefix_len = 256;
  int64_t suffix_len = 256;
  int num_prefixes = 10;
  int64_t prefix_output_len = 128;
};

// Hears how many of how many prompts are made, now and then; false ends the
// making.
using PromptProgress = std::function<bool(int64_t num_made, int64_t count)>;

// Draws or reads the prompts.
//   codec: null if nothing counts tokens; random prompts are then token ids, or
//   for kChat words, about one token each.
//   on_progress: null if nobody wants to hear.
// A malformed line (kCustom) or conversation (kShareGpt) is a prompt whose
// `error` names it; at least one other prompt is returned. A file with fewer
// prompts than asked for is repeated, but for what is malformed.
// INVALID_ARGUMENT if the file has no prompt, with the first error if there is
// one; NOT_FOUND if it cannot be read; CANCELLED if on_progress ended it; the
// codec's own errors.
absl::StatusOr<std::vector<LoadPrompt>> MakePrompts(
    const DatasetOptions& options, CompletionApi api, PromptCodec* codec,
    SimulationRandom* random, const PromptProgress& on_progress = nullptr);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_SERVING_DATASET_H_
