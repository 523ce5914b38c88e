#include "tests/random_sampling.h"

#include <memory>
#include <vector>

namespace quire {

SamplingParams DrawSamplingParams(int32_t vocab_size,
                                  SimulationRandom* random) {
  const auto one_in = [random](int n) { return random->Below(n) == 0; };
  const auto token = [&] {
    return static_cast<int32_t>(random->Below(vocab_size));
  };
  SamplingParams sampling;
  sampling.temperature = one_in(2) ? 0.0f : 0.7f;
  sampling.num_logprobs = static_cast<int32_t>(random->Between(-1, 3));
  if (one_in(8)) sampling.num_prompt_logprobs = 1;
  if (one_in(3)) sampling.top_k = 5;
  if (one_in(4)) sampling.top_p = 0.7f;
  if (one_in(4)) sampling.min_p = 0.1f;
  if (one_in(4)) sampling.presence_penalty = 0.5f;
  if (one_in(4)) sampling.frequency_penalty = -0.5f;
  if (one_in(4)) sampling.repetition_penalty = 1.2f;
  if (one_in(4)) sampling.logit_bias = {{token(), 4.0f}, {token(), -3.0f}};
  if (one_in(3)) sampling.min_tokens = static_cast<int32_t>(random->Below(9));
  sampling.ignore_eos = one_in(2);
  if (one_in(3)) {
    for (int i = 0; i < 20; ++i) sampling.stop_token_ids.push_back(token());
  }
  // So few that tokens repeat and what looks at them always matters.
  if (one_in(3)) {
    for (int32_t i = 0; i < 8; ++i) sampling.allowed_token_ids.push_back(i);
    if (one_in(2)) {
      sampling.bad_words =
          std::make_shared<const std::vector<std::vector<int32_t>>>(
              std::vector<std::vector<int32_t>>{{1, 2}, {3, 3}, {5, 1, 0}});
    }
  }
  if (one_in(4)) {
    sampling.dry_multiplier = 1.0f;
    sampling.dry_allowed_length = 1;
    if (one_in(2)) {
      sampling.dry_breakers = std::make_shared<const TokenSequenceSet>(
          std::vector<std::vector<int32_t>>{{7}, {2, 3}});
    }
  }
  if (one_in(4)) sampling.xtc_probability = 0.5f;
  if (one_in(4)) sampling.typical_p = 0.8f;
  if (one_in(4)) sampling.top_n_sigma = 2.0f;
  if (one_in(4)) sampling.dynatemp_range = 0.3f;
  return sampling;
}

}  // namespace quire
