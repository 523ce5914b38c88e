// What tells the families apart: defaults, tensor names and the fields of
// config.json that only some of them have. For model_config.cc.
//
// Facts are those of Hugging Face transformers,
// models/<family>/{configuration,modeling}_<family>.py.
#ifndef QUIRE_ENGINE_MODEL_FAMILIES_H_
#define QUIRE_ENGINE_MODEL_FAMILIES_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/model/json_fields.h"
#include "engine/model/model_config.h"
#include "engine/model/rope_config.h"

namespace quire {

// Which layers see a window, where layer_types does not say it.
enum class WindowPattern : uint8_t {
  kNone,
  kAllLayers,
  kQwen,        // Those from max_window_layers on, if use_sliding_window.
  kPeriodic,    // All but each n-th.
  kLayerTypes,  // None; layer_types may, if use_sliding_window.
};

struct Family {
  std::string model_type;
  std::string architecture;
  // Not empty: the decoder is described by the object text_config, as a model
  // of this type; nothing below counts.
  std::string text_model_type;
  // Values of absent fields; 0: the field is required.
  int64_t default_vocab_size = 0;
  int64_t default_heads = 0;
  int64_t default_kv_heads = 0;  // 0: num_attention_heads.
  int64_t default_head_dim = 0;  // 0: hidden_size / num_attention_heads.
  int64_t default_positions = 2048;
  double default_eps = 1e-6;
  bool default_tied = false;
  Epilogue::Activation default_activation = Epilogue::Activation::kSwiGlu;
  RopeDefaults rope;
  // Names of fields; an empty eps_field: always the default.
  std::string intermediate_field = "intermediate_size";
  std::string activation_field = "hidden_act";
  std::string eps_field = "rms_norm_eps";
  // Whether config.json's attention_bias and mlp_bias are read.
  bool reads_attention_bias = false;
  bool reads_mlp_bias = false;
  bool always_has_qkv_bias = false;
  WindowPattern window = WindowPattern::kNone;
  int64_t default_window = 0;  // 0: none.
  int64_t default_period = 0;  // kPeriodic.
  bool has_rope = true;
  bool has_rope_by_layer = false;  // `adapt` reads it.
  QkNorm qk_norm = QkNorm::kNone;
  // Reads the family's own fields and adapts what the common ones gave; null:
  // nothing to do. Called with all layers in place.
  absl::Status (*adapt)(JsonFields& fields, const std::string& path,
                        const Family& family, ModelConfig& config) = nullptr;
};

absl::Span<const Family> Families();

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_FAMILIES_H_
