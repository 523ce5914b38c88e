// Tables of the rotary position embedding.
//
// Su et al. 2021, arXiv:2104.09864, equation 15: pair i of a head at position p
// is rotated by p * theta_i, theta_i = theta^(-2i / head_dim). The variants
// change theta_i only; in all of them a table row is the same function of p.
#ifndef QUIRE_ENGINE_MODEL_ROPE_H_
#define QUIRE_ENGINE_MODEL_ROPE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/model/model_config.h"

namespace quire {

// theta_i for i in [0, RotaryDim / 2), rounded to f32 as the reference
// implementations hold them; below, head_dim is RotaryDim(config, head_dim).
//   kDefault: as above.
//   kLinear:  theta_i / factor (Chen et al. 2023, arXiv:2306.15595, equation 4:
//             positions divided by factor).
//   kLlama3:  theta_i / factor where the wavelength 2 pi / theta_i exceeds
//             original / low_freq_factor, theta_i where it is below original /
//             high_freq_factor, linear in the number of rotations between
//             (Llama 3.1; meta-llama/llama-models, models/llama3/model.py,
//             apply_scaling).
//   kYarn:    a ramp over the index from theta_i to theta_i / factor (Peng et
//             al. 2023, arXiv:2309.00071, section 3.2 "NTK-by-parts"; ramp by
//             index as in transformers' _compute_yarn_parameters).
//   kLongRope: theta_i / long_factors[i] if `is_long`, else theta_i /
//             short_factors[i] (Ding et al. 2024, arXiv:2402.13753).
// Requires: RotaryDim(config, head_dim) is even.
std::vector<float> RopeFrequencies(const RopeConfig& config, int head_dim,
                                   bool is_long = false);

// Rows [begin, end) of a table [positions, RotaryDim], row p: RotaryDim / 2
// cosines, then as many sines of p * theta_i, times attention_factor:
// AttentionSpec::rope_table.
//   frequencies: RopeFrequencies; table: row 0.
void FillRopeRows(const RopeConfig& config, absl::Span<const float> frequencies,
                  int64_t begin, int64_t end, float* table);

// The whole table.
std::vector<float> RopeTable(const RopeConfig& config, int head_dim,
                             int64_t num_positions, bool is_long = false);

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_ROPE_H_
