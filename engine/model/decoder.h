// The dense decoder of all families: Touvron et al. 2023, arXiv:2302.13971,
// section 2.2, with grouped-query attention (Ainslie et al. 2023,
// arXiv:2305.13245). Families differ in ModelConfig's fields only: where the
// norms are, what is scaled, which parts there are and what they are called.
#ifndef QUIRE_ENGINE_MODEL_DECODER_H_
#define QUIRE_ENGINE_MODEL_DECODER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model/model.h"
#include "kernels/backend.h"

namespace quire {

// Norms that a layer does not have are kNone.
struct DecoderLayer {
  NormSpec attention_norm;
  std::unique_ptr<PackedWeight> qkv;
  int attention_spec = 0;
  int attention_layer = 0;  // Among the layers of the spec.
  std::unique_ptr<PackedWeight> output;
  NormSpec attention_branch_norm;
  NormSpec attention_sum_norm;
  NormSpec mlp_norm;
  std::unique_ptr<PackedWeight> gate_up;  // Or up alone.
  Epilogue::Activation activation = Epilogue::Activation::kSwiGlu;
  std::unique_ptr<PackedWeight> down;
  NormSpec mlp_branch_norm;
  NormSpec mlp_sum_norm;
  bool is_parallel = false;
};

// Made by CreateDecoder; decoder_builder.cc fills it.
class Decoder : public Model {
 public:
  absl::Status Forward(Backend& backend, Step& step) override;
  bool draws() const override { return is_last_stage(); }
  absl::Span<const int> tap_buffers() const override { return tap_buffers_; }
  const PackedWeight* embedding() const override {
    return project_in_ == nullptr && positions_ == nullptr ? embedding_.get()
                                                           : nullptr;
  }
  const PackedWeight* head() const override {
    if (project_out_ != nullptr) return nullptr;
    return head_ != nullptr ? head_.get() : embedding_.get();
  }
  int64_t weights_bytes() const override { return weights_bytes_; }
  DType dtype() const override { return dtype_; }

 private:
  friend class DecoderBuilder;

  absl::Status Embed(Backend& backend, Step& step);
  // Keeps what is tapped at this place.
  absl::Status Tap(Backend& backend, Step& step, int place,
                   const NormSpec& norm);
  absl::Status ForwardLayer(Backend& backend, Step& step,
                            const DecoderLayer& layer);
  absl::Status Logits(Backend& backend, Step& step, TensorView logits);
  // hidden += residual_scale * branch_norm(x W^T), then sum_norm.
  absl::Status AddBranch(Backend& backend, Step& step, TensorView x,
                         const PackedWeight& weight,
                         const NormSpec& branch_norm, const NormSpec& sum_norm);
  // Layers narrower than the widest use the front of the buffer.
  static TensorView Narrowed(TensorView view, int64_t cols) {
    view.cols = view.row_stride = cols;
    return view;
  }

  std::vector<DecoderLayer> layers_;
  std::unique_ptr<PackedWeight> embedding_;
  std::unique_ptr<PackedWeight> positions_;    // Null: none are learned.
  std::unique_ptr<PackedWeight> project_in_;   // Null: of hidden_size.
  std::unique_ptr<PackedWeight> project_out_;  // Null: of hidden_size.
  std::unique_ptr<PackedWeight> head_;         // Null: the embedding's table.
  NormSpec final_norm_;
  float embedding_scale_ = 1.0f;
  float residual_scale_ = 1.0f;
  float logits_scale_ = 1.0f;
  float logits_softcap_ = 0.0f;
  std::vector<int> taps_;
  std::vector<int> tap_buffers_;
  int64_t weights_bytes_ = 0;
  DType dtype_ = DType::kF32;
  Pooling pooling_ = Pooling::kNone;
  Communicator* tensor_ranks_ = nullptr;  // Null: this rank has everything.
  // A stage of several: the layers in between are those of layer_range_.
  Communicator* pipeline_ranks_ = nullptr;
  StepProgress* progress_ = nullptr;  // Null: nobody watches.
  IndexRange layer_range_;
  bool is_first_stage() const {
    return pipeline_ranks_ == nullptr || pipeline_ranks_->rank() == 0;
  }
  bool is_last_stage() const {
    return pipeline_ranks_ == nullptr ||
           pipeline_ranks_->rank() + 1 == pipeline_ranks_->size();
  }

  // Activation buffers: ids, resolved to views after Prepare.
  struct Buffers {
    int embedded = 0;  // [num_tokens, embedding_size]; with project_in_.
    int hidden = 0;    // [num_tokens, hidden_size], the residual stream.
    // [num_tokens, widest qkv]; also what a branch computed, before its norm or
    // its sum over the ranks.
    int qkv = 0;
    int attention = 0;  // [num_tokens, widest num_heads * head_dim].
    int mlp = 0;        // [num_tokens, widest intermediate_size].
    // [num_logit_rows, vocab_size, or what each rank has of it], f32.
    int logits = 0;
  } buffers_;
};

// The part of a layer's intermediate_size that a rank has: whole blocks or
// groups of down's format. INVALID_ARGUMENT if there are fewer than ranks.
absl::StatusOr<IndexRange> MlpColumns(const ModelConfig& config,
                                      const WeightLoader& weights,
                                      int layer_idx, ShardSpec shard);

// A factory of model.h.
absl::StatusOr<std::unique_ptr<Model>> CreateDecoder(
    const ModelConfig& config, const ModelOptions& options,
    WeightLoader& weights, Backend& backend);

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_DECODER_H_
