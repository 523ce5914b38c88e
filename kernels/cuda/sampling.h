// Draws the tokens of a step on the GPU: every step of kernels/sampling.h, the
// verification of drafts, log-probabilities, and the update of the slots, so
// that the next step needs nothing from the host.
//
// A row of logits is cut into tiles of kSamplingTile entries, one CTA each, and
// the parts are merged in the order of the tiles: a result depends on its row
// alone, not on the batch. Filters of a row run in one CTA.
#ifndef QUIRE_KERNELS_CUDA_SAMPLING_H_
#define QUIRE_KERNELS_CUDA_SAMPLING_H_

#include <cstdint>

#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {

inline constexpr int kSamplingTile = 4096;
// The most top entries that are reported of a row of logits.
inline constexpr int kMaxTopLogprobs = 20;

// A piece of a slot's lists.
struct SamplingList {
  int32_t begin = 0;
  int32_t size = 0;
};

// The sampling parameters of a slot on the device: SlotParams (see there) with
// its lists in SampleArguments::lists. PackSlotSampling fills it.
struct SlotSampling {
  uint64_t draw_key = 0;
  float temperature = 1.0f;
  float top_p = 1.0f;
  float min_p = 0.0f;
  int32_t top_k = 0;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float repetition_penalty = 1.0f;
  int32_t num_logprobs = -1;         // At most kMaxTopLogprobs.
  int32_t num_prompt_logprobs = -1;  // At most kMaxTopLogprobs.
  int32_t min_tokens = 0;
  float dry_multiplier = 0.0f;  // 0: no DRY.
  float dry_base = 1.75f;
  int32_t dry_allowed_length = 2;
  int32_t dry_penalty_last_n = -1;
  float dynatemp_range = 0.0f;
  float dynatemp_exponent = 1.0f;
  float top_n_sigma = 0.0f;
  float typical_p = 1.0f;
  float xtc_probability = 0.0f;
  float xtc_threshold = 0.1f;
  int32_t num_prompt_tokens = 0;  // Of the history.
  // token_counts and history of the slot are kept up to date.
  int32_t has_counts = 0;
  int32_t has_history = 0;
  SamplingList bias_ids;  // Ascending.
  SamplingList bias;      // Bits of f32, as many.
  SamplingList allowed;   // Bit i % 32 of word i / 32; empty: all.
  SamplingList banned_before_min;
  SamplingList bad_word_begins;  // In bad_word_ids, and the end.
  SamplingList bad_word_ids;
  SamplingList breaker_begins;  // In breaker_ids, and the end.
  SamplingList breaker_ids;     // Sequences in lexicographic order.
};

// A StepRow. Its logits are num_scored, then num_draws to draw from.
struct SamplingRow {
  int32_t slot = -1;  // -1: padding.
  int32_t num_tokens = 0;
  int32_t first_logit = 0;
  int32_t num_scored = 0;
  int32_t num_draws = 0;     // 0, 1, or 1 + drafts.
  int32_t first_scored = 0;  // In scored_ids.
};

// What may be wrong with a row: see RowResult.
inline constexpr int32_t kNonFiniteRow = 1;
inline constexpr int32_t kAllMaskedRow = 2;

// Every pointer is to device memory.
struct SampleArguments {
  const float* logits = nullptr;  // [num_logits, logits_stride]
  int64_t logits_stride = 0;      // Elements.
  int32_t vocab_size = 0;
  // Of LaunchSampleSlice: the logits are those of these ids alone. first_id is
  // a multiple of 4.
  int32_t first_id = 0;
  int32_t num_ids = 0;
  int32_t num_logits = 0;
  int32_t num_rows = 0;

  // The step.
  const SamplingRow* rows = nullptr;      // [num_rows]
  const int32_t* logit_rows = nullptr;    // [num_logits], -1: padding.
  const int32_t* logit_tokens = nullptr;  // [num_logits], token of the step.
  const int32_t* positions = nullptr;     // [tokens of the step]
  const int32_t* token_ids = nullptr;     // [tokens of the step]
  const int32_t* scored_ids = nullptr;    // [sum of num_scored]

  // The slots.
  const SlotSampling* slots = nullptr;
  const int32_t* lists = nullptr;  // [slots, lists_stride]
  int64_t lists_stride = 0;
  // [slots, vocab_size]: kPromptToken if in the prompt, plus the number of
  // times it was generated. Needed where has_counts.
  uint32_t* token_counts = nullptr;
  // [slots, history_stride] and [slots]: prompt and generated tokens. Needed
  // where has_history. What exceeds the stride is dropped.
  int32_t* history = nullptr;
  int32_t* history_sizes = nullptr;
  int64_t history_stride = 0;
  int32_t* num_computed_tokens = nullptr;  // [slots], advanced.
  int32_t* last_tokens = nullptr;          // [slots], set to the newest draw.

  // The results. With drafts, a row's draws beyond num_drawn mean nothing.
  int32_t* tokens = nullptr;      // [num_logits], of draws.
  float* logprobs = nullptr;      // [num_logits], if asked for.
  int32_t* ranks = nullptr;       // [num_logits], of scored tokens.
  int32_t* top_ids = nullptr;     // [num_logits, kMaxTopLogprobs]
  float* top_logprobs = nullptr;  // [num_logits, kMaxTopLogprobs]
  int32_t* num_drawn = nullptr;   // [num_rows]: 0, or accepted drafts + 1.
  int32_t* faults = nullptr;      // [num_rows], of the bits below.

  void* workspace = nullptr;  // SamplingWorkspaceBytes; aligned to 256.
};

inline constexpr uint32_t kPromptToken = 0x80000000u;

int64_t SamplingWorkspaceBytes(int32_t num_logits, int32_t vocab_size);

// Backend::Sample: six kernels on `stream`, whatever the parameters are. False
// if a launch is refused.
bool LaunchSample(const SampleArguments& arguments, simt::Stream stream);

// A slot starts a sequence: its history and counts become those of
// `tokens`, [num_tokens], of which the first num_prompt_tokens are the prompt.
struct StartSlotArguments {
  int32_t slot = 0;
  const int32_t* tokens = nullptr;
  int32_t num_tokens = 0;
  int32_t num_prompt_tokens = 0;
  int32_t vocab_size = 0;
  uint32_t* token_counts = nullptr;  // As in SampleArguments; may be null.
  int32_t* history = nullptr;        // As in SampleArguments; may be null.
  int32_t* history_sizes = nullptr;
  int64_t history_stride = 0;
};
bool LaunchStartSlot(const StartSlotArguments& arguments, simt::Stream stream);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_SAMPLING_H_
