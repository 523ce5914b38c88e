#include "engine/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace quire {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

double Llama3Frequency(const RopeConfig& config, double frequency) {
  const double original = config.original_max_position_embeddings;
  const double wavelength = kTwoPi / frequency;
  if (wavelength < original / config.high_freq_factor) return frequency;
  if (wavelength > original / config.low_freq_factor) {
    return frequency / config.factor;
  }
  const double smooth = (original / wavelength - config.low_freq_factor) /
                        (config.high_freq_factor - config.low_freq_factor);
  return (1 - smooth) * frequency / config.factor + smooth * frequency;
}

// The index (a real number) of the pair that turns `num_rotations` times within
// the original context.
double YarnIndex(const RopeConfig& config, double num_rotations, int head_dim) {
  return head_dim *
         std::log(config.original_max_position_embeddings /
                  (num_rotations * kTwoPi)) /
         (2 * std::log(config.theta));
}

double YarnFrequency(const RopeConfig& config, double frequency, int pair,
                     int head_dim) {
  double low = YarnIndex(config, config.beta_fast, head_dim);
  double high = YarnIndex(config, config.beta_slow, head_dim);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, head_dim - 1.0);
  if (low == high) high += 0.001;  // The ramp must not divide by zero.
  // 0 for pairs that turn often (kept), 1 for those that turn seldom
  // (interpolated).
  const double ramp = std::clamp((pair - low) / (high - low), 0.0, 1.0);
  return frequency / config.factor * ramp + frequency * (1 - ramp);
}

}  // namespace

std::vector<float> RopeFrequencies(const RopeConfig& config, int head_dim,
                                   bool is_long) {
  const int rotary_dim = RotaryDim(config, head_dim);
  std::vector<float> frequencies(rotary_dim / 2);
  for (int pair = 0; pair < rotary_dim / 2; ++pair) {
    double frequency = std::pow(config.theta, -2.0 * pair / rotary_dim);
    switch (config.type) {
      case RopeType::kNone:
      case RopeType::kDefault:
        break;
      case RopeType::kLinear:
        frequency /= config.factor;
        break;
      case RopeType::kLlama3:
        frequency = Llama3Frequency(config, frequency);
        break;
      case RopeType::kYarn:
        frequency = YarnFrequency(config, frequency, pair, rotary_dim);
        break;
      case RopeType::kLongRope:
        frequency /=
            (is_long ? config.long_factors : config.short_factors)[pair];
        break;
    }
    frequencies[pair] = static_cast<float>(frequency);
  }
  return frequencies;
}

void FillRopeRows(const RopeConfig& config, absl::Span<const float> frequencies,
                  int64_t begin, int64_t end, float* table) {
  const int half = static_cast<int>(frequencies.size());
  const float scale = static_cast<float>(config.attention_factor);
  for (int64_t position = begin; position < end; ++position) {
    float* row = table + position * 2 * half;
    for (int pair = 0; pair < half; ++pair) {
      // The product in f32, as the models were trained: at long contexts it
      // differs from the exact angle, and the models know the rounded one.
      const float angle = static_cast<float>(position) * frequencies[pair];
      row[pair] = std::cos(angle) * scale;
      row[half + pair] = std::sin(angle) * scale;
    }
  }
}

std::vector<float> RopeTable(const RopeConfig& config, int head_dim,
                             int64_t num_positions, bool is_long) {
  const std::vector<float> frequencies =
      RopeFrequencies(config, head_dim, is_long);
  std::vector<float> table(num_positions * RotaryDim(config, head_dim));
  FillRopeRows(config, frequencies, 0, num_positions, table.data());
  return table;
}

}  // namespace quire
