// The arithmetic of sampling that every backend shares, so that the CPU and the
// GPU draw alike.
//
// Processing order (vLLM's), on one row of f32 logits:
//   1. Raw log-probabilities (log-softmax) if asked for: reported, not used.
//   2. repetition_penalty over prompt and output tokens (Keskar et al. 2019,
//      arXiv:1909.05858, section 4.1: logit > 0 ? logit / r : logit * r);
//      frequency_penalty * count and presence_penalty over output tokens.
//   3. logit bias; allowed ids; banned_before_min ids -> -infinity.
//   4. temperature 0: the largest logit, the lowest id among equals. Else
//      logit / temperature.
//   5. min_p: keep p >= min_p * max p. 6. top_k: keep logit >= the k-th largest.
//   7. top_p: keep the smallest set of largest p, of those left and
//      renormalized, whose sum reaches top_p. Ties at a threshold are all kept.
//   8. Gumbel-max (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030): the
//      largest logit + GumbelNoise(draw_key, position, id), lowest id on a tie.
//      `position` is that of the drawn token in its sequence: the first token
//      after a prompt of n tokens has position n.
// A row whose entries are all masked gives id 0.
#ifndef QUIRE_KERNELS_SAMPLING_H_
#define QUIRE_KERNELS_SAMPLING_H_

#include <bit>
#include <cstdint>

#include "engine/base/random.h"

namespace quire {

// Natural logarithm of a positive normal float by a fixed polynomial: the same
// bits on every ISA and GPU as long as multiply and add are not contracted
// differently, hence explicit fma. Error below 2 ulp over (0, 1].
inline float DeterministicLog(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  // x = 2^exponent * m with m in [sqrt(1/2), sqrt(2)).
  const int32_t exponent =
      static_cast<int32_t>((bits - 0x3f3504f3) >> 23 << 23) >> 23;
  const float m = std::bit_cast<float>(bits - (uint32_t(exponent) << 23));
  const float f = m - 1.0f;
  // log(1 + f) = f - f^2 / 2 + f^3 * P(f): the coefficients of Cephes' logf
  // (Moshier), valid on this interval.
  float p = 7.0376836292e-2f;
  p = __builtin_fmaf(p, f, -1.1514610310e-1f);
  p = __builtin_fmaf(p, f, 1.1676998740e-1f);
  p = __builtin_fmaf(p, f, -1.2420140846e-1f);
  p = __builtin_fmaf(p, f, 1.4249322787e-1f);
  p = __builtin_fmaf(p, f, -1.6668057665e-1f);
  p = __builtin_fmaf(p, f, 2.0000714765e-1f);
  p = __builtin_fmaf(p, f, -2.4999993993e-1f);
  p = __builtin_fmaf(p, f, 3.3333331174e-1f);
  const float z = f * f;
  float y = f * z * p;
  const float e = static_cast<float>(exponent);
  y = __builtin_fmaf(e, -2.12194440e-4f, y);
  y = __builtin_fmaf(-0.5f, z, y);
  return __builtin_fmaf(e, 0.693359375f, f + y);
}

// A temperature below this is 0: logit / temperature would overflow.
inline constexpr float kMinTemperature = 1e-5f;

// Step 5 as a threshold: p >= min_p * max p is logit >= this.
inline float MinPThreshold(float max_logit, float min_p) {
  return max_logit + DeterministicLog(min_p);
}

// Standard Gumbel noise of one vocabulary entry at one position: a pure function
// of its arguments. Four neighbouring ids share one Philox block.
inline float GumbelNoise(uint64_t draw_key, int64_t position, int32_t id) {
  const Philox4 words =
      Philox4x32(draw_key, {static_cast<uint32_t>(id) >> 2, 0,
                            static_cast<uint32_t>(position),
                            static_cast<uint32_t>(position >> 32)});
  // (0, 1): 23 bits and a half step, never 0 or 1.
  const float u =
      (static_cast<float>(words[id & 3] >> 9) + 0.5f) * 0x1p-23f;
  return -DeterministicLog(-DeterministicLog(u));
}

}  // namespace quire

#endif  // QUIRE_KERNELS_SAMPLING_H_
