#include "kernels/random_slot_params.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

namespace quire {

SlotParams RandomSlotParams(SimulationRandom& random, int vocab_size) {
  SlotParams params;
  const auto one_in = [&random](int n) { return random.Below(n) == 0; };
  params.temperature =
      one_in(6) ? 0.0f : static_cast<float>(0.05 + 2.5 * random.Uniform());
  if (one_in(2)) params.top_k = random.Between(1, one_in(3) ? vocab_size : 20);
  if (one_in(2)) params.top_p = static_cast<float>(random.Uniform());
  if (one_in(3)) params.min_p = static_cast<float>(random.Uniform() * 0.3);
  if (one_in(3)) {
    params.repetition_penalty = static_cast<float>(0.5 + random.Uniform());
  }
  if (one_in(3)) {
    params.frequency_penalty = static_cast<float>(4 * random.Uniform() - 2);
  }
  if (one_in(3)) {
    params.presence_penalty = static_cast<float>(4 * random.Uniform() - 2);
  }
  if (one_in(2)) {
    params.num_logprobs = random.Below(std::min(vocab_size, 20) + 1);
  }
  params.draw_key = random.Next();
  const auto some_ids = [&] {
    std::vector<int32_t> ids(random.Between(1, 8));
    for (int32_t& id : ids) id = random.Below(vocab_size);
    return ids;
  };
  if (one_in(4)) {
    params.bias_ids = some_ids();
    // Twice the same: both count.
    params.bias_ids.push_back(params.bias_ids[0]);
    for (size_t i = 0; i < params.bias_ids.size(); ++i) {
      params.bias.push_back(
          one_in(9) ? -INFINITY
                    : static_cast<float>(10 * random.Uniform() - 5));
    }
  }
  if (one_in(5)) params.allowed_ids = some_ids();
  if (one_in(4)) {
    params.banned_before_min = some_ids();
    params.min_tokens = random.Below(6);
  }
  if (one_in(4)) params.top_n_sigma = static_cast<float>(4 * random.Uniform());
  if (one_in(4)) params.typical_p = static_cast<float>(random.Uniform());
  if (one_in(4)) {
    params.xtc_probability = static_cast<float>(0.5 + 0.5 * random.Uniform());
    params.xtc_threshold = static_cast<float>(random.Uniform() * 0.3);
  }
  if (one_in(6)) {
    params.dynatemp_range = static_cast<float>(random.Uniform());
    params.dynatemp_exponent = static_cast<float>(2 * random.Uniform());
  }
  for (int i = one_in(3) ? 3 : 0; i > 0; --i) {
    params.bad_word_lengths.push_back(random.Between(1, 3));
    for (int j = 0; j < params.bad_word_lengths.back(); ++j) {
      params.bad_word_ids.push_back(random.Below(std::min(vocab_size, 5)));
    }
  }
  if (one_in(3)) {
    params.dry_multiplier = static_cast<float>(2 * random.Uniform());
    params.dry_base = static_cast<float>(1 + random.Uniform());
    params.dry_allowed_length = random.Below(4);
    params.dry_penalty_last_n = one_in(2) ? -1 : random.Below(12);
    if (one_in(2)) {
      const int small = std::min(vocab_size, 5);
      params.dry_breakers =
          std::make_shared<TokenSequenceSet>(std::vector<std::vector<int32_t>>{
              {static_cast<int32_t>(random.Below(small))},
              {static_cast<int32_t>(random.Below(small)),
               static_cast<int32_t>(random.Below(small))}});
    }
  }
  return params;
}

}  // namespace quire
