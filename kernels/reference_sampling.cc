// The sampling part of kernels/reference.h.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "kernels/reference.h"
#include "kernels/sampling.h"

namespace quire {
namespace {

using Ids = absl::Span<const int32_t>;

// Step 2.
void ApplyBiasAndMasks(const SlotParams& params, Ids history,
                       int32_t num_prompt_tokens, int64_t position,
                       std::vector<float>& z) {
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
  const std::vector<int32_t> generated(history.begin() + num_prompt_tokens,
                                       history.end());
  auto word_begin = params.bad_word_ids.begin();
  for (int32_t length : params.bad_word_lengths) {
    const std::vector<int32_t> word(word_begin, word_begin + length);
    word_begin += length;
    const size_t num_before = length - 1;
    if (generated.size() >= num_before &&
        std::equal(word.begin(), word.end() - 1,
                   generated.end() - num_before)) {
      z[word.back()] = -INFINITY;
    }
  }
}

// Step 3.
void ApplyPenalties(const SlotParams& params, Ids history,
                    int32_t num_prompt_tokens, std::vector<float>& z) {
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
}

// Step 4: tokens after the newest breaker sequence of `window`.
int64_t TokensSinceBreaker(const TokenSequenceSet* breakers, Ids window) {
  const int64_t size = window.size();
  if (breakers == nullptr) return size;
  for (int64_t begin = size - 1; begin >= 0; --begin) {
    int64_t longest = 0;
    for (const std::vector<int32_t>& breaker : breakers->sequences()) {
      const int64_t length = breaker.size();
      if (begin + length <= size &&
          std::equal(breaker.begin(), breaker.end(), window.begin() + begin)) {
        longest = std::max(longest, length);
      }
    }
    if (longest > 0) return size - (begin + longest);
  }
  return size;
}

// Step 4.
void ApplyDry(const SlotParams& params, Ids history, std::vector<float>& z) {
  if (!params.has_dry()) return;
  Ids window = history;
  if (params.dry_penalty_last_n >= 0 &&
      window.size() > static_cast<size_t>(params.dry_penalty_last_n)) {
    window = window.last(params.dry_penalty_last_n);
  }
  const int64_t size = window.size();
  const int64_t limit = TokensSinceBreaker(params.dry_breakers.get(), window);
  std::map<int32_t, int64_t> longest;  // By the token that would follow.
  for (int64_t next = 1; next < size; ++next) {
    int64_t length = 0;
    while (length < next &&
           window[next - 1 - length] == window[size - 1 - length]) {
      ++length;
    }
    length = std::min(length, limit);
    if (length < params.dry_allowed_length) continue;
    int64_t& best = longest[window[next]];
    best = std::max(best, length);
  }
  // More than allowed, as llama.cpp has it, even where allowed_length is 0.
  if (size <= params.dry_allowed_length) return;
  for (const auto& [id, length] : longest) {
    if (params.dry_breakers != nullptr && params.dry_breakers->HasSingle(id)) {
      continue;
    }
    z[id] -=
        DryPenalty(params.dry_multiplier, params.dry_base,
                   params.dry_allowed_length, static_cast<int32_t>(length));
  }
}

// The temperature of step 5.
float TemperatureOf(const SlotParams& params, const std::vector<float>& z) {
  const float max = *std::max_element(z.begin(), z.end());
  if (!(params.dynatemp_range > 0.0f) || !std::isfinite(max)) {
    return params.temperature;
  }
  double sum = 0.0;
  double weighted = 0.0;
  int64_t count = 0;
  for (float value : z) {
    if (value == -INFINITY) continue;
    const double distance = static_cast<double>(value) - max;
    sum += std::exp(distance);
    weighted += std::exp(distance) * distance;
    ++count;
  }
  return DynamicTemperature(params.temperature, params.dynatemp_range,
                            params.dynatemp_exponent,
                            std::log(sum) - weighted / sum, count);
}

// Steps 2 to 5: the f32 logits that are compared and drawn from. Sets
// *is_greedy if no step follows.
std::vector<float> ProcessedLogits(absl::Span<const float> logits,
                                   const SlotParams& params, Ids history,
                                   int32_t num_prompt_tokens, int64_t position,
                                   bool* is_greedy) {
  std::vector<float> z(logits.begin(), logits.end());
  ApplyBiasAndMasks(params, history, num_prompt_tokens, position, z);
  ApplyPenalties(params, history, num_prompt_tokens, z);
  ApplyDry(params, history, z);
  *is_greedy = params.temperature < kMinTemperature;
  if (*is_greedy) return z;
  const float temperature = TemperatureOf(params, z);
  *is_greedy = temperature < kMinTemperature;
  if (*is_greedy) return z;
  for (float& value : z) value /= temperature;
  return z;
}

// A row during steps 6 to 11: the ids that stay, by descending logit.
class Candidates {
 public:
  explicit Candidates(const std::vector<float>& z) : z_(z), ids_(z.size()) {
    for (size_t i = 0; i < ids_.size(); ++i) ids_[i] = static_cast<int32_t>(i);
    std::stable_sort(ids_.begin(), ids_.end(),
                     [this](int32_t a, int32_t b) { return z_[a] > z_[b]; });
    while (ids_.size() > 1 && z_[ids_.back()] == -INFINITY) ids_.pop_back();
  }

  const std::vector<int32_t>& ids() const { return ids_; }
  float max() const { return z_[ids_[0]]; }
  size_t size() const { return ids_.size(); }
  float logit(size_t rank) const { return z_[ids_[rank]]; }
  double weight(float logit) const {
    return std::exp(static_cast<double>(logit) - max());
  }
  double TotalWeight() const {
    double total = 0.0;
    for (int32_t id : ids_) total += weight(z_[id]);
    return total;
  }

  void KeepAtLeast(float threshold) {
    while (!(z_[ids_.back()] >= threshold)) ids_.pop_back();
  }
  void KeepAtMost(float threshold) {
    while (!(z_[ids_.front()] <= threshold)) ids_.erase(ids_.begin());
  }

  void TopNSigma(float n) {
    double mean = 0.0;
    for (int32_t id : ids_) mean += static_cast<double>(z_[id]) / size();
    double variance = 0.0;
    for (int32_t id : ids_) {
      variance += (z_[id] - mean) * (z_[id] - mean) / size();
    }
    KeepAtLeast(static_cast<float>(max() - n * std::sqrt(variance)));
  }

  // The smallest prefix of (key, weight), by ascending key, that has the share
  // `target` of all weight: returns its last key.
  static double KeyOfShare(std::vector<std::pair<double, double>> entries,
                           double target) {
    std::sort(entries.begin(), entries.end());
    double total = 0.0;
    for (const auto& [key, weight] : entries) total += weight;
    double sum = 0.0;
    for (const auto& [key, weight] : entries) {
      sum += weight;
      if (sum >= target * total) return key;
    }
    return entries.back().first;
  }

  void Typical(float typical_p) {
    double weighted = 0.0;
    for (int32_t id : ids_) {
      weighted += weight(z_[id]) * (static_cast<double>(z_[id]) - max());
    }
    const float center = static_cast<float>(max() + weighted / TotalWeight());
    std::vector<std::pair<double, double>> entries;
    for (int32_t id : ids_) {
      entries.emplace_back(std::abs(z_[id] - center), weight(z_[id]));
    }
    const double distance = KeyOfShare(entries, typical_p);
    std::vector<int32_t> kept;
    for (int32_t id : ids_) {
      if (std::abs(z_[id] - center) <= distance) kept.push_back(id);
    }
    ids_ = kept;
  }

  void TopP(float top_p) {
    std::vector<std::pair<double, double>> entries;
    for (int32_t id : ids_) entries.emplace_back(-z_[id], weight(z_[id]));
    KeepAtLeast(static_cast<float>(-KeyOfShare(entries, top_p)));
  }

  void ExcludeTopChoices(float xtc_threshold) {
    const double least = xtc_threshold * TotalWeight();
    size_t last = 0;
    while (last + 1 < size() && weight(logit(last + 1)) >= least) ++last;
    if (weight(max()) >= least) KeepAtMost(logit(last));
  }

 private:
  const std::vector<float>& z_;
  std::vector<int32_t> ids_;
};

// Steps 6 to 11: the ids that stay. Requires: some logit is finite.
std::vector<int32_t> KeptIds(const std::vector<float>& z,
                             const SlotParams& params, bool xtc_applies) {
  Candidates candidates(z);
  if (params.top_n_sigma > 0.0f) candidates.TopNSigma(params.top_n_sigma);
  if (params.min_p > 0.0f) {
    candidates.KeepAtLeast(MinPThreshold(candidates.max(), params.min_p));
  }
  if (params.top_k > 0 && params.top_k < static_cast<int>(candidates.size())) {
    candidates.KeepAtLeast(candidates.logit(params.top_k - 1));
  }
  if (params.typical_p < 1.0f) candidates.Typical(params.typical_p);
  if (params.top_p < 1.0f) candidates.TopP(params.top_p);
  if (xtc_applies) candidates.ExcludeTopChoices(params.xtc_threshold);
  return candidates.ids();
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

  bool is_greedy = false;
  const std::vector<float> z = ProcessedLogits(
      logits, params, history, num_prompt_tokens, position, &is_greedy);
  // max_element gives the first of equals.
  sample.token =
      static_cast<int32_t>(std::max_element(z.begin(), z.end()) - z.begin());
  sample.all_masked = z[sample.token] == -INFINITY;
  if (!is_greedy && std::isfinite(z[sample.token])) {
    std::vector<int32_t> ids =
        KeptIds(z, params,
                XtcApplies(params.draw_key, position, params.xtc_probability));
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
  bool is_greedy = false;
  const std::vector<float> z = ProcessedLogits(
      logits, params, history, num_prompt_tokens, position, &is_greedy);
  const std::vector<int32_t> ids = KeptIds(z, params, /*xtc_applies=*/false);
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
