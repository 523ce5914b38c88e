#include "kernels/cuda/sampling_params.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace quire::cuda {
namespace {

SamplingList Append(const std::vector<int32_t>& values,
                    std::vector<int32_t>* lists) {
  const SamplingList list = {static_cast<int32_t>(lists->size()),
                             static_cast<int32_t>(values.size())};
  lists->insert(lists->end(), values.begin(), values.end());
  return list;
}

// The order of equal ids stays: their sums are rounded in it.
void AppendBias(const SlotParams& params, SlotSampling* packed,
                std::vector<int32_t>* lists) {
  std::vector<size_t> order(params.bias_ids.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&params](size_t a, size_t b) {
    return params.bias_ids[a] < params.bias_ids[b];
  });
  std::vector<int32_t> ids, bits;
  for (size_t i : order) {
    ids.push_back(params.bias_ids[i]);
    bits.push_back(std::bit_cast<int32_t>(params.bias[i]));
  }
  packed->bias_ids = Append(ids, lists);
  packed->bias = Append(bits, lists);
}

void AppendAllowed(const SlotParams& params, int32_t vocab_size,
                   SlotSampling* packed, std::vector<int32_t>* lists) {
  if (params.allowed_ids.empty()) return;
  std::vector<uint32_t> words((vocab_size + 31) / 32);
  for (int32_t id : params.allowed_ids) words[id / 32] |= 1u << (id % 32);
  packed->allowed =
      Append(std::vector<int32_t>(words.begin(), words.end()), lists);
}

// `begins` and `ids` of concatenated sequences.
template <typename Sequences>
void AppendSequences(const Sequences& sequences, SamplingList* begins,
                     SamplingList* ids, std::vector<int32_t>* lists) {
  std::vector<int32_t> all_begins = {0};
  std::vector<int32_t> all_ids;
  for (const std::vector<int32_t>& sequence : sequences) {
    all_ids.insert(all_ids.end(), sequence.begin(), sequence.end());
    all_begins.push_back(static_cast<int32_t>(all_ids.size()));
  }
  if (all_begins.size() == 1) return;
  *begins = Append(all_begins, lists);
  *ids = Append(all_ids, lists);
}

}  // namespace

SlotSampling PackSlotSampling(const SlotParams& params,
                              int32_t num_prompt_tokens, int32_t vocab_size,
                              std::vector<int32_t>* lists) {
  lists->clear();
  SlotSampling packed;
  packed.draw_key = params.draw_key;
  packed.temperature = params.temperature;
  packed.top_p = params.top_p;
  packed.min_p = params.min_p;
  packed.top_k = params.top_k;
  packed.presence_penalty = params.presence_penalty;
  packed.frequency_penalty = params.frequency_penalty;
  packed.repetition_penalty = params.repetition_penalty;
  packed.num_logprobs = std::min(params.num_logprobs, kMaxTopLogprobs);
  packed.num_prompt_logprobs =
      std::min(params.num_prompt_logprobs, kMaxTopLogprobs);
  packed.min_tokens = params.min_tokens;
  packed.dynatemp_range = params.dynatemp_range;
  packed.dynatemp_exponent = params.dynatemp_exponent;
  packed.top_n_sigma = params.top_n_sigma;
  packed.typical_p = params.typical_p;
  packed.xtc_probability = params.xtc_probability;
  packed.xtc_threshold = params.xtc_threshold;
  packed.num_prompt_tokens = num_prompt_tokens;
  packed.has_counts = params.repetition_penalty != 1.0f ||
                      params.presence_penalty != 0.0f ||
                      params.frequency_penalty != 0.0f;
  packed.has_history = params.has_dry() || params.bad_word_ids.size() >
                                               params.bad_word_lengths.size();
  AppendBias(params, &packed, lists);
  AppendAllowed(params, vocab_size, &packed, lists);
  packed.banned_before_min = Append(params.banned_before_min, lists);
  std::vector<std::vector<int32_t>> bad_words;
  auto word = params.bad_word_ids.begin();
  for (int32_t length : params.bad_word_lengths) {
    bad_words.emplace_back(word, word + length);
    word += length;
  }
  AppendSequences(bad_words, &packed.bad_word_begins, &packed.bad_word_ids,
                  lists);
  if (params.has_dry()) {
    packed.dry_multiplier = params.dry_multiplier;
    packed.dry_base = params.dry_base;
    packed.dry_allowed_length = params.dry_allowed_length;
    packed.dry_penalty_last_n = params.dry_penalty_last_n;
    if (params.dry_breakers != nullptr) {
      AppendSequences(params.dry_breakers->sequences(), &packed.breaker_begins,
                      &packed.breaker_ids, lists);
    }
  }
  return packed;
}

}  // namespace quire::cuda
