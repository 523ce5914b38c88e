// Sizes and policies of the engine, validated once.
#ifndef QUIRE_ENGINE_ENGINE_OPTIONS_H_
#define QUIRE_ENGINE_ENGINE_OPTIONS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace quire {

enum class SchedulingPolicy : uint8_t {
  kFcfs,      // In order of arrival.
  kPriority,  // By Request::priority, then in order of arrival.
};

// More drafts than this were never worth their place in a step.
inline constexpr int kMaxSpeculativeTokens = 64;

struct EngineOptions {
  int block_size = 16;
  int num_blocks = 0;     // From the backend's MemoryPlan.
  int max_model_len = 0;  // Prompt and generated tokens of a sequence.
  int vocab_size = 0;
  // A sequence longer than this is computed with other positions than a
  // shorter one: when it grows beyond, it is computed again from its start.
  // 0: never (ModelConfig::RopeSwitchLength).
  int rope_switch_length = 0;
  int max_num_seqs = 64;             // Sequences running at once (slots).
  int max_num_batched_tokens = 512;  // Token budget of one step.
  // A prompt takes at most so many tokens of a step while others wait or
  // decode; 0: the whole budget.
  int long_prefill_token_threshold = 0;
  // Prompt tokens scored in one step (num_prompt_logprobs). Each takes a row of
  // logits, for which the runner has reserved memory: at least so many beside
  // those that tokens are drawn from.
  int max_num_scored_tokens = 16;
  // Drafts of one sequence in one step, at most; 0: nothing is drafted. Those
  // of a step share the rows of logits that its scored tokens leave.
  int num_speculative_tokens = 0;
  // Drafts as many as pay (engine/speculative/draft_control.h). false: as many
  // as there is room for.
  bool adapts_drafts = true;
  // MemoryPlan::max_list_entries; 0: any number.
  int64_t max_list_entries = 0;
  SchedulingPolicy scheduling_policy = SchedulingPolicy::kFcfs;
  bool enable_prefix_caching = true;
  int max_num_queued_reqs = 512;            // Waiting; then RESOURCE_EXHAUSTED.
  int64_t max_num_queued_tokens = 1 << 20;  // Their prompt tokens.
  int64_t max_num_queued_bytes = 256 << 20;  // Of the requests themselves.
  // A predicted wait of so long makes EngineStats::saturation 1.
  double target_queue_delay_seconds = 2;
  // An engine that has work and finishes no step in so long, and this much
  // longer for each token of the step, is taken for dead (EngineLoop::Health).
  // 0: never.
  double watchdog_seconds = 30;
  double watchdog_seconds_per_token = 0.1;
  int steps_in_flight = 1;  // ModelRunner::steps_in_flight().
  // More than 1: the sequences are shared among as many steps in flight, for a
  // model in stages that work at the same time. A sequence whose token is being
  // drawn is in no other step then (ScheduledRow::input_on_device is never
  // set), and a step has at most this part of the decodes and of the budget.
  int num_micro_batches = 1;
  std::vector<int32_t> eos_token_ids;  // End tokens of the model.
  // The kinds of requests that the model can serve.
  bool enable_generate = true;
  bool enable_embed = false;
  // Embeddings depend on the hidden states of every token (mean pooling), so
  // that none may come from the prefix cache.
  bool embeds_every_token = false;
  // Keys the prefix cache's hash; random per process, fixed in tests.
  uint64_t cache_seed = 0;
  // Draws seeds for requests without one.
  uint64_t random_seed = 0;
  // Tests every invariant after every step, and ends the process where one is
  // broken; costs a pass over all blocks.
  bool check_integrity = false;
};

// INVALID_ARGUMENT naming the option, its value and the limit.
absl::Status ValidateEngineOptions(const EngineOptions& options);

}  // namespace quire

#endif  // QUIRE_ENGINE_ENGINE_OPTIONS_H_
