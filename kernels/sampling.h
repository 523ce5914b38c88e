// The arithmetic of sampling that every backend shares, so that the CPU and the
// GPU draw alike.
//
// Processing order, on one row of f32 logits. Steps 1 to 3, 5, 7, 8, 10 and 12
// are vLLM's, in its order (vllm-project/vllm, vllm/v1/sample/sampler.py,
// Sampler.apply_logits_processors and Sampler.sample); the others are those of
// ggml-org/llama.cpp, src/llama-sampling.cpp, put where they meet the same
// input as there, except that temperature precedes the filters here.
//
//   1. Raw log-probabilities (log-softmax) if asked for: reported, not used.
//   2. logit += bias. Then -infinity for: all but allowed_ids (if any);
//      banned_before_min while fewer than min_tokens are generated; the last
//      token of each bad word whose other tokens are the newest generated ones
//      (of a bad word of one token: always).
//   3. repetition_penalty over prompt and generated tokens (Keskar et al. 2019,
//      arXiv:1909.05858, section 4.1: logit > 0 ? logit / r : logit * r); then
//      - frequency_penalty * count; then - presence_penalty over generated
//      tokens.
//   4. DRY over prompt and generated tokens (p-e-w, "DRY: a modern repetition
//      penalty", oobabooga/text-generation-webui pull request 5677; llama.cpp's
//      llama_sampler_dry_apply). Of the last dry_penalty_last_n tokens (-1:
//      all), let L(t) be the length of the longest suffix that occurred before
//      and was followed by t, cut where the breaker sequence that begins last
//      ends. A t with L >= dry_allowed_length that is no breaker by itself
//      loses dry_multiplier * dry_base ^ (L - dry_allowed_length): DryPenalty.
//   5. temperature 0: the largest logit, the lowest id among equals, is drawn
//      and no step follows. Else logit / temperature; with dynatemp_range > 0
//      the temperature is DynamicTemperature of the entropy of the row.
//      In the following, p is the softmax of what the steps before have kept.
//   6. top_n_sigma: keep logit >= max - n * sigma, sigma the standard deviation
//      of the logits that are not -infinity (Tang et al. 2024,
//      arXiv:2411.07641; temperature does not change what it keeps).
//   7. min_p: keep p >= min_p * max p (Nguyen et al. 2024, arXiv:2407.01082).
//   8. top_k: keep logit >= the k-th largest.
//   9. typical_p: keep the smallest set of smallest |-log p - entropy| whose
//      sum reaches typical_p (Meister et al. 2022, arXiv:2202.00666). That
//      distance is |logit - sum of p * logit|, which is what is compared.
//  10. top_p: keep the smallest set of largest p whose sum reaches top_p
//      (Holtzman et al. 2019, arXiv:1904.09751).
//  11. XTC: with probability xtc_probability (XtcApplies), drop all entries
//      larger than the smallest one of p >= xtc_threshold (p-e-w, "Exclude Top
//      Choices", oobabooga/text-generation-webui pull request 6335; llama.cpp's
//      llama_sample_xtc_apply).
//  12. Gumbel-max (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030): the
//      largest logit + GumbelNoise(draw_key, position, id), lowest id on a tie.
//      `position` is that of the drawn token in its sequence: the first token
//      after a prompt of n tokens has position n.
//
// Ties at a threshold are all kept. Of a row whose entries are all -infinity
// after step 5 no token is allowed: id 0 stands for it, and the result says so
// (RowResult::all_masked).
#ifndef QUIRE_KERNELS_SAMPLING_H_
#define QUIRE_KERNELS_SAMPLING_H_

#include <bit>
#include <cmath>
#include <cstdint>

#include "engine/base/random.h"

// What the GPU calls as well.
#ifdef __CUDACC__
#define QUIRE_HOST_DEVICE __host__ __device__
#else
#define QUIRE_HOST_DEVICE
#endif

namespace quire {

// Natural logarithm of a positive normal float by a fixed polynomial: the same
// bits on every ISA and GPU as long as multiply and add are not contracted
// differently, hence explicit fma. Error below 2 ulp over (0, 1].
QUIRE_HOST_DEVICE inline float DeterministicLog(float x) {
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

// Step 7 as a threshold: p >= min_p * max p is logit >= this.
QUIRE_HOST_DEVICE inline float MinPThreshold(float max_logit, float min_p) {
  return max_logit + DeterministicLog(min_p);
}

// Standard Gumbel noise from 32 random bits.
QUIRE_HOST_DEVICE inline float GumbelOfWord(uint32_t word) {
  // (0, 1): 23 bits and a half step, never 0 or 1.
  const float u = (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f;
  return -DeterministicLog(-DeterministicLog(u));
}

// The random words of the entries id / 4 * 4 to id / 4 * 4 + 3 at one position.
QUIRE_HOST_DEVICE inline Philox4 DrawWords(uint64_t draw_key, int64_t position,
                                           int32_t id) {
  return Philox4x32(draw_key, {static_cast<uint32_t>(id) >> 2, 0,
                               static_cast<uint32_t>(position),
                               static_cast<uint32_t>(position >> 32)});
}

// Standard Gumbel noise of one vocabulary entry at one position: a pure
// function of its arguments. Four neighbouring ids share one Philox block.
QUIRE_HOST_DEVICE inline float GumbelNoise(uint64_t draw_key, int64_t position,
                                           int32_t id) {
  return GumbelOfWord(DrawWords(draw_key, position, id)[id & 3]);
}

// The coin of step 11: a pure function of (draw_key, position), from a Philox
// stream of its own (counter word 1; the noise has 0 there).
QUIRE_HOST_DEVICE inline bool XtcApplies(uint64_t draw_key, int64_t position,
                                         float probability) {
  const Philox4 words =
      Philox4x32(draw_key, {0, 1, static_cast<uint32_t>(position),
                            static_cast<uint32_t>(position >> 32)});
  return static_cast<float>(words[0] >> 8) * 0x1p-24f < probability;
}

// Largest exponent of DryPenalty: base^exponent stays within f32 as in
// llama.cpp, whose constant log(FLT_MAX) and f32 division are repeated here.
// 0: no limit is needed.
QUIRE_HOST_DEVICE inline int32_t DryMaxExponent(float base) {
  if (!(base > 1.000001f)) return 0;
  return static_cast<int32_t>(88.7228391f / std::log(base));
}

// multiplier * base ^ (length - allowed_length), by repeated squaring so that
// every backend gets the same bits. Requires: length >= allowed_length,
// base >= 1. Infinite at the limit: the token is then masked.
QUIRE_HOST_DEVICE inline float DryPenalty(float multiplier, float base,
                                          int32_t allowed_length,
                                          int32_t length) {
  const int32_t max_exponent = DryMaxExponent(base);
  int32_t exponent = length - allowed_length;
  if (max_exponent > 0 && exponent > max_exponent) exponent = max_exponent;
  double power = 1.0;
  double square = base;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) power *= square;
    square *= square;
  }
  return static_cast<float>(multiplier * power);
}

// temperature - range + 2 * range * (entropy / log(num_entries)) ^ exponent,
// from llama.cpp's llama_sampler_temp_ext_apply (kalomaze, "dynamic
// temperature"). `entropy` (nats) and `num_entries` are those of the row of
// step 5 before the division, without the entries of -infinity.
QUIRE_HOST_DEVICE inline float DynamicTemperature(float temperature,
                                                  float range, float exponent,
                                                  double entropy,
                                                  int64_t num_entries) {
  if (num_entries < 2) return temperature;
  const double low = std::fmax(0.0, double{temperature} - range);
  const double high = double{temperature} + range;
  const double normalized = std::fmin(
      1.0,
      std::fmax(0.0, entropy / std::log(static_cast<double>(num_entries))));
  return static_cast<float>(low +
                            (high - low) * std::pow(normalized, exponent));
}

}  // namespace quire

#endif  // QUIRE_KERNELS_SAMPLING_H_
