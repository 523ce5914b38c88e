// Draws the next token of one row of logits: the order of kernels/sampling.h
// without a sort. Every filter becomes a threshold on logit / temperature, at
// most one from below and one from above, found from the maxima of chunks of 64
// entries, and the draw skips the chunks that cannot win.
#ifndef QUIRE_KERNELS_CPU_SAMPLING_H_
#define QUIRE_KERNELS_CPU_SAMPLING_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/token_counts.h"

namespace quire {

struct SampleInput {
  const float* logits = nullptr;  // [vocab_size]; not changed.
  int32_t vocab_size = 0;
  const SlotParams* params = nullptr;   // Valid for vocab_size.
  const TokenCounts* counts = nullptr;  // Null: no penalties.
  // The prompt's num_prompt_tokens tokens, then the generated ones; needed only
  // if NeedsHistory(*params).
  absl::Span<const int32_t> history;
  int32_t num_prompt_tokens = 0;
  int64_t position = 0;       // Of the token to draw, in its sequence.
  int32_t num_generated = 0;  // Tokens generated before it.
};

// Entries of a vocabulary that lies on several ranks: those from first_id on.
struct VocabSlice {
  int32_t first_id = 0;  // A multiple of 4.
  int32_t size = 0;      // >= 1.
};

// What a slice of a row adds to the draw of the whole row.
struct SliceSample {
  bool non_finite = false;  // Then nothing else is set.
  // The best entry of the slice: the largest processed logit or, with a
  // temperature, z + noise; the lowest id among equals.
  int32_t token = 0;  // Of the vocabulary.
  float score = 0.0f;
  float logit = 0.0f;  // Its raw logit.
  // Of the raw logits, if num_logprobs >= 0.
  float max = 0.0f;
  double sum = 0.0;  // Of e^(logit - max).
  // The num_logprobs largest raw logits in order, or all of them, then
  // -infinity and id -1.
  int32_t* top_ids = nullptr;   // [num_logprobs], if > 0.
  float* top_logits = nullptr;  // [num_logprobs], if > 0.
};

struct SampleOutput {
  int32_t token = 0;
  float logprob = 0.0f;           // If params->num_logprobs >= 0.
  int32_t* top_ids = nullptr;     // [num_logprobs], if > 0.
  float* top_logprobs = nullptr;  // [num_logprobs], if > 0.
  int32_t rank = 0;               // ScoreRow's.
  bool non_finite = false;        // Then nothing else is set.
  bool all_masked = false;        // No token was allowed: `token` is 0.
};

// True if the processors look at the tokens themselves: DRY, bad words of more
// than one token.
bool NeedsHistory(const SlotParams& params);

// Memory of one thread's draws. Not thread-safe.
class SamplingScratch {
 public:
  // max_history: the longest SampleInput::history.
  SamplingScratch(int32_t vocab_size, int64_t max_history);

  static int64_t NumBytes(int32_t vocab_size, int64_t max_history);

  // For logit_processors.
  int32_t* ids() { return ids_.data(); }         // [vocab_size]
  float* values() { return order_.data(); }      // [vocab_size]
  int32_t* lengths() { return lengths_.get(); }  // [max_history]
  int64_t max_history() const { return max_history_; }

 private:
  friend class RowSampler;
  struct Weighted {
    float value;
    float weight;
  };
  std::vector<float> scaled_;       // [vocab_size]
  std::vector<float> chunk_max_;    // [chunks]
  std::vector<float> order_;        // [vocab_size], for selection.
  std::vector<int32_t> ids_;        // [vocab_size]
  std::vector<Weighted> weighted_;  // [vocab_size]
  // [max_history]; not initialized, so that it is memory only if used.
  std::unique_ptr<int32_t[]> lengths_;
  int64_t max_history_;
};

// Thread-safe with a scratch for each thread; allocates nothing. The token is
// the same on every instruction set.
void SampleRow(Isa isa, const SampleInput& input, SamplingScratch& scratch,
               SampleOutput* output);

// True if a filter, or a temperature that depends on the row, stands between
// the processed logits and the draw: then slices do not tell it.
bool NeedsWholeRow(const SlotParams& params);

// The same of a slice of the row; input.logits: [slice.size], the slice's.
// Requires: !NeedsWholeRow(*input.params).
void SampleSlice(Isa isa, const SampleInput& input, VocabSlice slice,
                 SamplingScratch& scratch, SliceSample* output);

// Step 1 of kernels/sampling.h for a given token: its log-probability, rank (1
// + the number of larger logits) and the num_top most likely ones.
// Requires: 0 <= id < vocab_size. As SampleRow otherwise.
void ScoreRow(Isa isa, const float* logits, int32_t vocab_size, int32_t id,
              int32_t num_top, SamplingScratch& scratch, SampleOutput* output);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_SAMPLING_H_
