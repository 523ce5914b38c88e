#include "kernels/cpu/logit_processors.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/base/status.h"
#include "kernels/sampling.h"

namespace quire {
namespace {

using Ids = absl::Span<const int32_t>;

// Masks the last token of every bad word whose other tokens are the newest
// generated ones.
void MaskBadWords(const SampleInput& input, float* logits) {
  const SlotParams& params = *input.params;
  const Ids generated = input.history.empty()
                            ? Ids()
                            : input.history.subspan(input.num_prompt_tokens);
  const int32_t* word = params.bad_word_ids.data();
  for (int32_t length : params.bad_word_lengths) {
    const size_t num_before = length - 1;
    if (num_before <= generated.size() &&
        std::equal(word, word + num_before, generated.end() - num_before)) {
      logits[word[num_before]] = -INFINITY;
    }
    word += length;
  }
}

// Step 2.
void ApplyBiasAndMasks(const SampleInput& input, SamplingScratch& scratch,
                       float* logits) {
  const SlotParams& params = *input.params;
  for (size_t i = 0; i < params.bias_ids.size(); ++i) {
    logits[params.bias_ids[i]] += params.bias[i];
  }
  if (!params.allowed_ids.empty()) {
    // The allowed values wait here while the row is masked.
    float* kept = scratch.values();
    for (size_t i = 0; i < params.allowed_ids.size(); ++i) {
      kept[params.allowed_ids[i]] = logits[params.allowed_ids[i]];
    }
    std::fill(logits, logits + input.vocab_size, -INFINITY);
    for (int32_t id : params.allowed_ids) logits[id] = kept[id];
  }
  if (input.num_generated < params.min_tokens) {
    for (int32_t id : params.banned_before_min) logits[id] = -INFINITY;
  }
  MaskBadWords(input, logits);
}

// Step 3.
void ApplyPenalties(const SlotParams& params, const TokenCounts& counts,
                    float* logits) {
  for (const TokenCounts::Entry& entry : counts.entries()) {
    float& logit = logits[entry.id];
    if (params.repetition_penalty != 1.0f) {
      logit = logit > 0.0f ? logit / params.repetition_penalty
                           : logit * params.repetition_penalty;
    }
    if (entry.num_generated > 0) {
      logit -=
          params.frequency_penalty * static_cast<float>(entry.num_generated);
      logit -= params.presence_penalty;
    }
  }
}

// Tokens after the newest breaker sequence of `window`; all if it has none.
int64_t TokensSinceBreaker(const TokenSequenceSet* breakers, Ids window) {
  const int64_t size = window.size();
  if (breakers == nullptr) return size;
  for (int64_t begin = size - 1; begin >= 0; --begin) {
    if (!breakers->HasStart(window[begin])) continue;
    int64_t longest = 0;
    for (const std::vector<int32_t>& breaker :
         breakers->StartingWith(window[begin])) {
      const int64_t length = breaker.size();
      if (length > longest && begin + length <= size &&
          std::equal(breaker.begin(), breaker.end(), window.begin() + begin)) {
        longest = length;
      }
    }
    if (longest > 0) return size - (begin + longest);
  }
  return size;
}

// lengths[k], 1 <= k < size: how many tokens before the end of `window` less k
// equal those before its end. The Z function (Gusfield 1997, Algorithms on
// strings, trees, and sequences, section 1.4) of the reversed window: linear
// even for the loops that DRY is for.
void MeasureRepeats(Ids window, int32_t* lengths) {
  const int64_t size = window.size();
  const int32_t* last = window.data() + size - 1;
  // [begin, end) is the match that reaches furthest.
  int64_t begin = 0;
  int64_t end = 0;
  for (int64_t k = 1; k < size; ++k) {
    int64_t length = 0;
    if (k < end) {
      length = std::min<int64_t>(lengths[k - begin], end - k);
    }
    while (k + length < size && last[-length] == last[-(k + length)]) ++length;
    lengths[k] = static_cast<int32_t>(length);
    if (k + length > end) {
      begin = k;
      end = k + length;
    }
  }
}

// Step 4.
void ApplyDry(const SampleInput& input, SamplingScratch& scratch,
              float* logits) {
  const SlotParams& params = *input.params;
  Ids window = input.history;
  if (params.dry_penalty_last_n >= 0 &&
      window.size() > static_cast<size_t>(params.dry_penalty_last_n)) {
    window = window.last(params.dry_penalty_last_n);
  }
  const int64_t size = window.size();
  const int32_t allowed = params.dry_allowed_length;
  if (size < 2 || size <= allowed) return;
  QUIRE_DCHECK(size <= scratch.max_history());
  const TokenSequenceSet* breakers = params.dry_breakers.get();
  const int64_t limit = TokensSinceBreaker(breakers, window);
  if (limit < allowed) return;
  int32_t* lengths = scratch.lengths();
  MeasureRepeats(window, lengths);
  // longest[t] is set for the tokens that would go on with a repeat, and only
  // for these: no pass over the vocabulary.
  int32_t* longest = scratch.ids();
  for (int64_t k = 1; k < size; ++k) {
    if (lengths[k] >= allowed) longest[window[size - k]] = -1;
  }
  for (int64_t k = 1; k < size; ++k) {
    if (lengths[k] < allowed) continue;
    int32_t& length = longest[window[size - k]];
    length = std::max(
        length, static_cast<int32_t>(std::min<int64_t>(lengths[k], limit)));
  }
  for (int64_t k = 1; k < size; ++k) {
    const int32_t id = window[size - k];
    if (lengths[k] < allowed || longest[id] < 0) continue;
    if (breakers == nullptr || !breakers->HasSingle(id)) {
      logits[id] -= DryPenalty(params.dry_multiplier, params.dry_base, allowed,
                               longest[id]);
    }
    longest[id] = -1;  // Once each.
  }
}

}  // namespace

bool NeedsHistory(const SlotParams& params) {
  if (params.has_dry()) return true;
  return params.bad_word_ids.size() > params.bad_word_lengths.size();
}

bool NeedsProcessors(const SampleInput& input) {
  const SlotParams& params = *input.params;
  return input.counts != nullptr || !params.bias_ids.empty() ||
         !params.allowed_ids.empty() || !params.bad_word_ids.empty() ||
         params.has_dry() ||
         (input.num_generated < params.min_tokens &&
          !params.banned_before_min.empty());
}

void ProcessLogits(const SampleInput& input, SamplingScratch& scratch,
                   float* logits) {
  ApplyBiasAndMasks(input, scratch, logits);
  if (input.counts != nullptr) {
    ApplyPenalties(*input.params, *input.counts, logits);
  }
  if (input.params->has_dry()) ApplyDry(input, scratch, logits);
}

}  // namespace quire
