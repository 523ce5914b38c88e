// The sampling part of kernels/reference.h.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "kernels/reference.h"
#include "kernels/sampling.h"

namespace quire {
namespace {

// Steps 2 to 4: the f32 logits that are compared and drawn from.
std::vector<float> ProcessedLogits(absl::Span<const float> logits,
                                   const SlotParams& params,
                                   absl::Span<const int32_t> history,
                                   int32_t num_prompt_tokens,
                                   int64_t position) {
  std::vector<float> z(logits.begin(), logits.end());
  const std::set<int32_t> seen(history.begin(), history.end());
  std::map<int32_t, int> num_generated;
  for (size_t i = num_prompt_tokens; i < history.size(); ++i) {
    ++num_generated[history[i]];
  }
  if (params.repetition_penalty != 1.0f) {
    for (int32_t id : seen) {
      z[id] = z[id] > 0.0f ? z[id] / params.repetition_penalty
                           : z[id] * params.repetition_penalty;
    }
  }
  for (const auto& [id, count] : num_generated) {
    const float frequency =
        params.frequency_penalty * static_cast<float>(count);
    z[id] = z[id] - frequency;
    z[id] = z[id] - params.presence_penalty;
  }
  for (size_t i = 0; i < params.bias_ids.size(); ++i) {
    z[params.bias_ids[i]] += params.bias[i];
  }
  if (!params.allowed_ids.empty()) {
    const std::set<int32_t> allowed(params.allowed_ids.begin(),
                                    params.allowed_ids.end());
    for (size_t id = 0; id < z.size(); ++id) {
      if (allowed.count(static_cast<int32_t>(id)) == 0) z[id] = -INFINITY;
    }
  }
  if (position - num_prompt_tokens < params.min_tokens) {
    for (int32_t id : params.banned_before_min) z[id] = -INFINITY;
  }
  if (params.temperature >= kMinTemperature) {
    for (float& value : z) value /= params.temperature;
  }
  return z;
}

// Steps 5 to 7: the ids that stay, by descending logit.
std::vector<int32_t> KeptIds(const std::vector<float>& z,
                             const SlotParams& params) {
  std::vector<int32_t> ids(z.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::stable_sort(ids.begin(), ids.end(),
                   [&z](int32_t a, int32_t b) { return z[a] > z[b]; });
  const float max = z[ids[0]];
  const auto keep_at_least = [&ids, &z](float threshold) {
    while (!(z[ids.back()] >= threshold)) ids.pop_back();
  };
  if (params.min_p > 0.0f) keep_at_least(MinPThreshold(max, params.min_p));
  if (params.top_k > 0 && params.top_k < static_cast<int>(ids.size())) {
    keep_at_least(z[ids[params.top_k - 1]]);
  }
  if (params.top_p < 1.0f) {
    double total = 0.0;
    for (int32_t id : ids) total += std::exp(static_cast<double>(z[id]) - max);
    double sum = 0.0;
    for (int32_t id : ids) {
      sum += std::exp(static_cast<double>(z[id]) - max);
      if (sum >= params.top_p * total) {
        keep_at_least(z[id]);
        break;
      }
    }
  }
  return ids;
}

}  // namespace

ReferenceSample ReferenceSampleRow(absl::Span<const float> logits,
                                   const SlotParams& params,
                                   absl::Span<const int32_t> history,
                                   int32_t num_prompt_tokens,
                                   int64_t position) {
  ReferenceSample sample;
  for (float logit : logits) {
    if (!std::isfinite(logit)) {
      sample.non_finite = true;
      return sample;
    }
  }
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (float logit : logits) sum += std::exp(logit - max);
  const auto logprob = [&](int32_t id) {
    return logits[id] - max - std::log(sum);
  };

  const std::vector<float> z =
      ProcessedLogits(logits, params, history, num_prompt_tokens, position);
  // max_element gives the first of equals.
  sample.token =
      static_cast<int32_t>(std::max_element(z.begin(), z.end()) - z.begin());
  if (params.temperature >= kMinTemperature && std::isfinite(z[sample.token])) {
    std::vector<int32_t> ids = KeptIds(z, params);
    std::sort(ids.begin(), ids.end());
    float best = -INFINITY;
    for (int32_t id : ids) {
      const float score = z[id] + GumbelNoise(params.draw_key, position, id);
      if (score > best) {
        best = score;
        sample.token = id;
      }
    }
  }
  if (params.num_logprobs >= 0) {
    sample.logprob = logprob(sample.token);
    std::vector<int32_t> ids(logits.size());
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    std::stable_sort(ids.begin(), ids.end(), [&logits](int32_t a, int32_t b) {
      return logits[a] > logits[b];
    });
    ids.resize(params.num_logprobs);
    sample.top_ids = ids;
    for (int32_t id : ids) sample.top_logprobs.push_back(logprob(id));
  }
  return sample;
}

std::vector<double> ReferenceDistribution(absl::Span<const float> logits,
                                          const SlotParams& params,
                                          absl::Span<const int32_t> history,
                                          int32_t num_prompt_tokens,
                                          int64_t position) {
  const std::vector<float> z =
      ProcessedLogits(logits, params, history, num_prompt_tokens, position);
  const std::vector<int32_t> ids = KeptIds(z, params);
  std::vector<double> distribution(logits.size());
  double sum = 0.0;
  for (int32_t id : ids) {
    distribution[id] = std::exp(static_cast<double>(z[id]) - z[ids[0]]);
    sum += distribution[id];
  }
  for (double& probability : distribution) probability /= sum;
  return distribution;
}

}  // namespace quire
