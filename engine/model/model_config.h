// What a model directory's config.json and generation_config.json say, checked
// and spelled out per layer, so that the decoder reads fields and never the
// model's name.
//
// Fields and their defaults are those of Hugging Face transformers
// (models/{llama,mistral,qwen2,qwen3}/configuration_*.py,
// modeling_rope_utils.py).
#ifndef QUIRE_ENGINE_MODEL_MODEL_CONFIG_H_
#define QUIRE_ENGINE_MODEL_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/dtype.h"

namespace quire {

enum class RopeType : uint8_t { kDefault, kLinear, kLlama3, kYarn };

// See rope.h for the formulas.
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double factor = 1.0;  // kLinear, kLlama3, kYarn.
  // kLlama3 and kYarn: positions of the model before scaling.
  int64_t original_max_position_embeddings = 0;
  double low_freq_factor = 1.0;   // kLlama3.
  double high_freq_factor = 4.0;  // kLlama3.
  double beta_fast = 32.0;        // kYarn.
  double beta_slow = 1.0;         // kYarn.
  bool truncate = true;           // kYarn.
  // kYarn: multiplies cosines and sines; resolved from attention_factor,
  // mscale, mscale_all_dim and factor.
  double attention_factor = 1.0;

  friend bool operator==(const RopeConfig&, const RopeConfig&) = default;
};

struct LayerConfig {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;
  int sliding_window = 0;  // Positions attended to, own included; 0: all.
  RopeConfig rope;
  bool has_qk_norm = false;  // RMS norm of each head of q and k.
  bool has_qkv_bias = false;
  bool has_output_bias = false;  // Of the attention's output projection.
  bool has_mlp_bias = false;

  friend bool operator==(const LayerConfig&, const LayerConfig&) = default;
};

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM".
  std::string model_type;    // "llama".
  // The file names the architecture without its head ("Qwen3Model").
  bool is_trunk = false;
  int vocab_size = 0;
  int hidden_size = 0;
  int max_position_embeddings = 0;
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = false;
  std::vector<LayerConfig> layers;
  // The dtype the file says its weights are in; the weights themselves decide.
  std::optional<DType> dtype;
  // From config.json; generation_config.json goes first.
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
  std::optional<int32_t> pad_token_id;
  // For a person: fields that were ignored though nothing is known about them.
  std::vector<std::string> warnings;
};

// Parses config.json. `path` names it in messages. INVALID_ARGUMENT naming file
// and field: not JSON, a wrong type, out of limits, missing, or a value that
// would change results and is not supported.
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view text,
                                             const std::string& path);

// Defaults for requests that leave a field out, as the model's authors advise.
struct GenerationConfig {
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
  std::optional<int32_t> pad_token_id;
  bool do_sample = true;  // False advises greedy decoding.
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int32_t> top_k;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int32_t> max_new_tokens;
};

// As ParseModelConfig. Token ids must lie in [0, vocab_size).
absl::StatusOr<GenerationConfig> ParseGenerationConfig(absl::string_view text,
                                                       const std::string& path,
                                                       int vocab_size);

struct ModelDirectoryConfig {
  ModelConfig model;
  // From generation_config.json if there is one; ids that it leaves out are
  // config.json's.
  GenerationConfig generation;
};

// Reads both files of `directory`. NOT_FOUND if there is no config.json.
absl::StatusOr<ModelDirectoryConfig> ReadModelDirectoryConfig(
    const std::string& directory);

// The values of config.json's model_type that ParseModelConfig accepts.
std::vector<std::string> SupportedModelTypes();

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_MODEL_CONFIG_H_
