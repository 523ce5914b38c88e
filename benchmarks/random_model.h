// Checkpoints of a given shape with random weights, for speed measurements:
// their content does not matter, their sizes do.
#ifndef QUIRE_BENCHMARKS_RANDOM_MODEL_H_
#define QUIRE_BENCHMARKS_RANDOM_MODEL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quire {

// A dense decoder in bf16; model_type is qwen3 if has_qk_norm, else qwen2 if
// has_qkv_bias, else llama.
struct RandomModelShape {
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 64;
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 32768;
  double rope_theta = 1e6;
  bool is_tied = true;
  bool has_qkv_bias = true;
  bool has_qk_norm = false;

  // Elements of all matrices that multiply every token.
  int64_t LayerMatrixElements() const;
  // Elements of the output matrix (the embedding table if tied).
  int64_t HeadElements() const { return vocab_size * hidden_size; }
};

// The shape of a published model: qwen2.5-0.5b (494M parameters), llama-3.2-1b,
// qwen3-8b or llama-3.1-8b. INVALID_ARGUMENT for another name, with the list.
absl::StatusOr<RandomModelShape> PresetShape(absl::string_view name);
std::vector<std::string> PresetNames();

// Writes config.json and model.safetensors to `directory`, made if need be.
// Weights are normal with deviation 1 / sqrt(columns), so that activations and
// logits stay of ordinary size; a pure function of `seed`.
absl::Status WriteRandomModel(const RandomModelShape& shape, uint64_t seed,
                              const std::string& directory);

// The same for a head that drafts for a model of this shape, as EAGLE-3's
// published ones: one layer of the model's own kind, three hidden states fused,
// 32,000 draft tokens if the model has as many.
absl::Status WriteRandomHead(const RandomModelShape& shape, uint64_t seed,
                             const std::string& directory);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_RANDOM_MODEL_H_
