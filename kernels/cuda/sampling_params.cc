#include "kernels/cuda/sampling_params.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace quire::cuda {
namespace {

// What has come into `lists` since it had `begin` entries.
SamplingList Since(size_t begin, const std::vector<int32_t>& lists) {
  return {static_cast<int32_t>(begin),
          static_cast<int32_t>(lists.size() - begin)};
}

SamplingList Append(const std::vector<int32_t>& values,
                    std::vector<int32_t>* lists) {
  const size_t begin = lists->size();
  lists->insert(lists->end(), values.begin(), values.end());
  return Since(begin, *lists);
}

// The order of equal ids stays: their sums are rounded in it.
void AppendBias(const SlotParams& params, SlotSampling* packed,
                std::vector<int32_t>* lists) {
  const size_t count = params.bias_ids.size(), begin = lists->size();
  // [ids][bits][order], of which the last is scratch.
  lists->resize(begin + 3 * count);
  int32_t* const ids = lists->data() + begin;
  int32_t* const bits = ids + count;
  int32_t* const order = bits + count;
  std::iota(order, order + count, 0);
  std::sort(order, order + count, [&params](int32_t a, int32_t b) {
    const int32_t id_a = params.bias_ids[a], id_b = params.bias_ids[b];
    return id_a != id_b ? id_a < id_b : a < b;
  });
  for (size_t i = 0; i < count; ++i) {
    ids[i] = params.bias_ids[order[i]];
    bits[i] = std::bit_cast<int32_t>(params.bias[order[i]]);
  }
  lists->resize(begin + 2 * count);
  packed->bias_ids = {static_cast<int32_t>(begin), static_cast<int32_t>(count)};
  packed->bias = {static_cast<int32_t>(begin + count),
                  static_cast<int32_t>(count)};
}

void AppendAllowed(const SlotParams& params, int32_t vocab_size,
                   SlotSampling* packed, std::vector<int32_t>* lists) {
  if (params.allowed_ids.empty()) return;
  const size_t begin = lists->size();
  lists->resize(begin + (vocab_size + 31) / 32, 0);
  int32_t* const words = lists->data() + begin;
  for (int32_t id : params.allowed_ids) {
    words[id / 32] |= static_cast<int32_t>(1u << (id % 32));
  }
  packed->allowed = Since(begin, *lists);
}

void AppendBadWords(const SlotParams& params, SlotSampling* packed,
                    std::vector<int32_t>* lists) {
  if (params.bad_word_lengths.empty()) return;
  const size_t begin = lists->size();
  int32_t end = 0;
  lists->push_back(end);
  for (int32_t length : params.bad_word_lengths) {
    lists->push_back(end += length);
  }
  packed->bad_word_begins = Since(begin, *lists);
  packed->bad_word_ids = Append(params.bad_word_ids, lists);
}

void AppendBreakers(const TokenSequenceSet& breakers, SlotSampling* packed,
                    std::vector<int32_t>* lists) {
  if (breakers.sequences().empty()) return;
  size_t begin = lists->size();
  int32_t end = 0;
  lists->push_back(end);
  for (const std::vector<int32_t>& sequence : breakers.sequences()) {
    lists->push_back(end += static_cast<int32_t>(sequence.size()));
  }
  packed->breaker_begins = Since(begin, *lists);
  begin = lists->size();
  for (const std::vector<int32_t>& sequence : breakers.sequences()) {
    lists->insert(lists->end(), sequence.begin(), sequence.end());
  }
  packed->breaker_ids = Since(begin, *lists);
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
  AppendBadWords(params, &packed, lists);
  if (params.has_dry()) {
    packed.dry_multiplier = params.dry_multiplier;
    packed.dry_base = params.dry_base;
    packed.dry_allowed_length = params.dry_allowed_length;
    packed.dry_penalty_last_n = params.dry_penalty_last_n;
    if (params.dry_breakers != nullptr) {
      AppendBreakers(*params.dry_breakers, &packed, lists);
    }
  }
  return packed;
}

}  // namespace quire::cuda
