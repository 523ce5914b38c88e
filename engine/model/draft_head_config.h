// The configuration of a head that drafts from its target's hidden states.
#ifndef QUIRE_ENGINE_MODEL_DRAFT_HEAD_CONFIG_H_
#define QUIRE_ENGINE_MODEL_DRAFT_HEAD_CONFIG_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model_config.h"

namespace quire {

enum class DraftHeadKind : uint8_t {
  kEagle3,  // Li et al. 2025, arXiv:2503.01840.
  kMtp,     // The layer that MiMo-7B brings along, arXiv:2505.07608.
};

struct DraftHeadConfig {
  DraftHeadKind kind = DraftHeadKind::kEagle3;
  // Of the head itself: one layer; vocab_size is what it draws from, its
  // target's or a part of it.
  ModelConfig model;
  int num_input_ids = 0;  // The target's vocabulary.
  int target_hidden_size = 0;
  // ModelOptions::taps of the target.
  std::vector<int> taps;
  // kEagle3: the layer adds to the normed hidden states, not to those before.
  bool norm_before_residual = false;
};

// A directory in the layout of the published heads (github.com/SafeAILab/EAGLE,
// github.com/sgl-project/SpecForge, as vLLM reads them): config.json with
// draft_vocab_size, weights fc, midlayer.*, norm, lm_head, d2t, t2d and, where
// it is not the target's, embed_tokens. Or in that of
// github.com/vllm-project/speculators: speculators_model_type "eagle3",
// transformer_layer_config, weights layers.0.* in place of midlayer.*.
// INVALID_ARGUMENT naming file and field, also where it does not fit the
// target.
absl::StatusOr<DraftHeadConfig> ReadEagle3Config(const std::string& directory,
                                                 const ModelConfig& target);

// Whether the directory holds such a head, of whatever kind of layer, and no
// model: so says its config.json. False if it cannot be read.
bool IsEagle3Head(const std::string& directory);

// The first layer that a model has for this. INVALID_ARGUMENT if it has none.
absl::StatusOr<DraftHeadConfig> MakeMtpConfig(const std::string& path,
                                              const ModelConfig& target);

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_DRAFT_HEAD_CONFIG_H_
