// A head that drafts from its target's hidden states: one decoder layer that
// reads, for position p, the target's hidden states of token p and the
// embedding of token p + 1, and says what token p + 2 is. A chain goes on from
// the layer's own output in place of the target's.
//
// EAGLE-3 (Li et al. 2025, arXiv:2503.01840, section 3.1), with the names of
// the published checkpoints; e is the embedding, [a; b] a concatenation, and
// taps are hidden states of three layers of the target:
//   f = fc [tap_1; tap_2; tap_3], or the output of the step before
//   h = o_proj attention([input_layernorm(e); hidden_norm(f)]) + f
//   output = h + mlp(post_attention_layernorm(h))
//   logits = lm_head norm(output), over a part of the vocabulary
// MTP (MiMo-7B, arXiv:2505.07608, modeling_mimo.py); the tap is what the
// target's logits are made of:
//   x = input_proj [hidden_layernorm(tap or output); token_layernorm(e)]
//   output = final_layernorm(layer(x)), a layer of the target's kind
//   logits = the target's head on output
// A product with a concatenation is computed as the sum of two products.
#ifndef QUIRE_ENGINE_MODEL_DRAFT_HEAD_H_
#define QUIRE_ENGINE_MODEL_DRAFT_HEAD_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/draft_head_config.h"
#include "engine/model/model.h"
#include "engine/weights/safetensors.h"
#include "engine/weights/weight_loader.h"
#include "kernels/backend.h"

namespace quire {

class DraftHead : public Model {
 public:
  // As CreateModel; packs what the head has of its own.
  static absl::StatusOr<std::unique_ptr<DraftHead>> Create(
      const DraftHeadConfig& config, const ModelOptions& options,
      const Checkpoint& checkpoint, WeightLoader& weights, Backend& backend);

  // What the head reads from now on: the target's matrices where it has none,
  // and its taps. Before the first step. Requires: the target is on a backend
  // of which this one's is a companion, and outlives it.
  // INVALID_ARGUMENT if the target has no such matrix.
  absl::Status SetTarget(const Model& target, const Backend& target_backend);

  // A step reads the taps, whose rows its tokens are, or else what the last
  // step gathered, row by row of its logits.
  void set_reads_taps(bool reads_taps) { reads_taps_ = reads_taps; }
  absl::Status Forward(Backend& backend, Step& step) override;

  // The target's id of what the head draws.
  int32_t TargetIdOf(int32_t draft_id) const {
    return target_ids_.empty() ? draft_id : target_ids_[draft_id];
  }

  int64_t weights_bytes() const override { return weights_bytes_; }
  DType dtype() const override { return dtype_; }

 private:
  friend class DraftHeadBuilder;

  absl::Status ForwardEagle(Backend& backend, Step& step, TensorView input);
  absl::Status ForwardMtp(Backend& backend, Step& step, TensorView input);
  // Attention of qkv and MLP; stream += both.
  absl::Status FinishLayer(Backend& backend, Step& step, TensorView stream,
                           TensorView residual);

  DraftHeadConfig config_;
  std::vector<std::unique_ptr<PackedWeight>> fc_;  // By tap; EAGLE.
  // The halves of a matrix over a concatenation: EAGLE's qkv, MTP's projection.
  std::unique_ptr<PackedWeight> of_embedding_;
  std::unique_ptr<PackedWeight> of_hidden_;
  std::unique_ptr<PackedWeight> qkv_;  // MTP.
  std::unique_ptr<PackedWeight> output_;
  std::unique_ptr<PackedWeight> gate_up_;
  std::unique_ptr<PackedWeight> down_;
  std::unique_ptr<PackedWeight> own_embedding_;
  std::unique_ptr<PackedWeight> own_head_;
  const PackedWeight* embedding_ = nullptr;
  const PackedWeight* head_ = nullptr;
  NormSpec embedding_norm_;
  NormSpec hidden_norm_;
  NormSpec attention_norm_;  // MTP.
  NormSpec mlp_norm_;
  NormSpec final_norm_;
  int attention_ = 0;
  std::vector<TensorView> taps_;
  bool reads_taps_ = true;
  std::vector<int32_t> target_ids_;  // Empty: the same.
  int64_t weights_bytes_ = 0;
  DType dtype_ = DType::kF32;
  DType activation_dtype_ = DType::kF32;

  struct Buffers {
    int embedded = 0;
    int input = 0;     // f, or x.
    int stream = 0;    // The residual stream.
    int normed = 0;    // MTP's output.
    int gathered = 0;  // [num_logit_rows, hidden_size]
    int qkv = 0;
    int attention = 0;
    int mlp = 0;
    int logits = 0;
  } buffers_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_DRAFT_HEAD_H_
