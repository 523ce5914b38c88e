// What a model directory's config.json and generation_config.json say, checked
// and spelled out per layer, so that the decoder reads fields and never the
// model's name.
//
// Fields and their defaults are those of Hugging Face transformers
// (models/*/configuration_*.py, modeling_rope_utils.py).
#ifndef QUIRE_ENGINE_MODEL_MODEL_CONFIG_H_
#define QUIRE_ENGINE_MODEL_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/weights/quantization_config.h"
#include "kernels/backend.h"
#include "kernels/dtype.h"

namespace quire {

enum class RopeType : uint8_t {
  kNone,  // No rotation: a NoPE layer, or learned positions.
  kDefault,
  kLinear,
  kLlama3,
  kYarn,
  kLongRope,
};

// See rope.h for the formulas.
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  // Share of a head's elements that are rotated, from the front.
  double partial_rotary_factor = 1.0;
  double factor = 1.0;  // kLinear, kLlama3, kYarn.
  // kLlama3, kYarn, kLongRope: positions of the model before scaling.
  int64_t original_max_position_embeddings = 0;
  double low_freq_factor = 1.0;   // kLlama3.
  double high_freq_factor = 4.0;  // kLlama3.
  double beta_fast = 32.0;        // kYarn.
  double beta_slow = 1.0;         // kYarn.
  bool truncate = true;           // kYarn.
  // kYarn, kLongRope: multiplies cosines and sines; resolved from the fields
  // attention_factor, mscale, mscale_all_dim and factor.
  double attention_factor = 1.0;
  // kLongRope: a divisor for each pair; short up to the original positions.
  std::vector<double> short_factors;
  std::vector<double> long_factors;

  friend bool operator==(const RopeConfig&, const RopeConfig&) = default;
};

// Elements of a head that are rotated; 0: none.
int RotaryDim(const RopeConfig& rope, int head_dim);

enum class NormKind : uint8_t { kRms, kLayer };

enum class QkNorm : uint8_t {
  kNone,
  kHead,      // Each head; one weight [head_dim] for all.
  kEachHead,  // Each head with a weight of its own.
  kAllHeads,  // All heads together: a weight [num_heads * head_dim].
};

struct LayerConfig {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;
  int sliding_window = 0;  // Positions attended to, own included; 0: all.
  RopeConfig rope;
  float attention_scale = 0.0f;    // Of q . k.
  float attention_softcap = 0.0f;  // cap * tanh(score / cap) if > 0.
  QkNorm qk_norm = QkNorm::kNone;
  Epilogue::Activation activation = Epilogue::Activation::kSwiGlu;
  // Attention and MLP both read the attention's norm of the same input.
  bool is_parallel = false;
  bool has_qkv_bias = false;
  bool has_output_bias = false;  // Of the attention's output projection.
  bool has_mlp_bias = false;

  friend bool operator==(const LayerConfig&, const LayerConfig&) = default;
};

// Names of a layer's tensors, behind "<prefix>layers.<i>." and without
// ".weight" and ".bias". An empty name: the layer has no such part.
struct LayerTensorNames {
  std::string attention_norm = "input_layernorm";
  std::string q = "self_attn.q_proj";
  std::string k = "self_attn.k_proj";
  std::string v = "self_attn.v_proj";
  std::string qkv;  // In place of q, k and v: their rows in this order.
  std::string q_norm = "self_attn.q_norm";
  std::string k_norm = "self_attn.k_norm";
  std::string output = "self_attn.o_proj";
  // Norms of what a branch computed, before and after it is added.
  std::string attention_branch_norm;
  std::string attention_sum_norm;
  std::string mlp_norm = "post_attention_layernorm";
  std::string gate = "mlp.gate_proj";
  std::string up = "mlp.up_proj";
  std::string gate_up;  // In place of gate and up: their rows in this order.
  std::string down = "mlp.down_proj";
  std::string mlp_branch_norm;
  std::string mlp_sum_norm;
};

struct TensorNames {
  // The first with which the checkpoint has the embedding counts.
  std::vector<std::string> prefixes = {"model."};
  std::string embedding = "embed_tokens";
  std::string positions;  // Learned positions; empty: none.
  std::string project_in, project_out;
  std::string final_norm = "norm";
  std::vector<std::string> heads = {"lm_head"};  // As prefixes, without one.
  LayerTensorNames layer;
  // Of parts that generating without drafts does not need.
  std::vector<std::string> ignored_prefixes;
};

struct ModelConfig {
  // kLongRope: a sequence longer than this is computed, from its first token
  // on, with other positions. 0: the model has no such switch.
  int RopeSwitchLength() const;

  std::string architecture;  // "LlamaForCausalLM".
  std::string model_type;    // "llama".
  // The file names the architecture without its head ("Qwen3Model").
  bool is_trunk = false;
  int vocab_size = 0;
  int hidden_size = 0;
  // Of the token embedding; project_in and project_out lead to hidden_size and
  // back if it is another one.
  int embedding_size = 0;
  int max_position_embeddings = 0;
  NormKind norm_kind = NormKind::kRms;
  float norm_eps = 1e-6f;
  float norm_weight_offset = 0.0f;  // Added to every norm's weight.
  bool norms_have_bias = false;     // kLayer; QK-norms never do.
  bool tie_word_embeddings = false;
  float embedding_scale = 1.0f;
  // The scale takes part as a number of the weights' dtype.
  bool rounds_embedding_scale = false;
  int position_offset = 0;      // Row of learned positions for position 0.
  float residual_scale = 1.0f;  // Of what a branch adds.
  float logits_scale = 1.0f;
  float logits_softcap = 0.0f;  // After the scale; cap * tanh(x / cap) if > 0.
  TensorNames tensors;
  std::vector<LayerConfig> layers;
  // Layers that predict further tokens from the last hidden states (MTP),
  // behind "model.mtp_layers.<i>.".
  int num_mtp_layers = 0;
  // How quantized tensors are to be read.
  QuantizationConfig quantization;
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
