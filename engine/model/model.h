// A model whose weights are on a backend.
#ifndef QUIRE_ENGINE_MODEL_MODEL_H_
#define QUIRE_ENGINE_MODEL_MODEL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/model_config.h"
#include "engine/parallel/parallel_config.h"
#include "engine/parallel/sharding.h"
#include "engine/weights/weight_loader.h"
#include "kernels/backend.h"

namespace quire {

struct ModelOptions {
  int max_model_len = 0;  // Rows of the RoPE tables.
  DType kv_dtype = DType::kBF16;
  // Not kNone: the model makes embeddings and has no head.
  Pooling pooling = Pooling::kNone;
  // Hidden states that a draft head wants to see after a step: those that enter
  // these layers, or (kAfterFinalNorm) those that the logits are made of. Of
  // one rank with all layers.
  static constexpr int kAfterFinalNorm = -1;
  std::vector<int> taps;
  // Which part of the model this rank has, and whom it computes with.
  ParallelConfig parallel;
};

// Thread-compatible: the engine thread calls Forward.
class Model {
 public:
  virtual ~Model() = default;

  // Enqueues one step's operations, embedding to sampling (or pooling). Called
  // inside Backend::Run, with the backend the model was created on. Allocates
  // nothing.
  virtual absl::Status Forward(Backend& backend, Step& step) = 0;

  // False of all stages of a pipeline but the last: its steps have no results,
  // and the next ones must say what became of their drafts
  // (StepRow::first_position).
  virtual bool draws() const { return true; }

  // Activation buffers [num_tokens, hidden_size] of the backend, one for each
  // of ModelOptions::taps; of the last step.
  virtual absl::Span<const int> tap_buffers() const { return {}; }
  // The token embedding [vocab_size, hidden_size] and the matrix of the logits
  // (perhaps the same), for a draft head that shares them; null: there is none
  // that fits. They live as long as the model.
  virtual const PackedWeight* embedding() const { return nullptr; }
  virtual const PackedWeight* head() const { return nullptr; }

  // Bytes of packed weights on the backend.
  virtual int64_t weights_bytes() const = 0;

  // The dtype of most weights, as packed.
  virtual DType dtype() const = 0;
};

// OK if the model's heads and vocabulary can be split over so many ranks; else
// INVALID_ARGUMENT with the sizes that work. (Its weights' format may still
// refuse.)
absl::Status CheckTensorParallelSize(const ModelConfig& config, int size);
// The same, and that the weights can be cut as they are stored, or as they will
// be quantized.
absl::Status CheckTensorParallelSize(const ModelConfig& config,
                                     const WeightLoader& weights, int size);

// The layers of a stage; INVALID_ARGUMENT if there are more stages than layers.
absl::StatusOr<IndexRange> LayersOfStage(const ModelConfig& config,
                                         ShardSpec stage);

// The KV heads that one rank has of each layer; none of other stages' layers.
absl::StatusOr<std::vector<int>> KvHeadsOfRank(const ModelConfig& config,
                                               const ParallelConfig& parallel);

// The dtype of most weights, as CreateModel will pack them.
absl::StatusOr<DType> WeightDType(const ModelConfig& config,
                                  const WeightLoader& weights);

// Packs all weights, then declares attention layers and activation buffers;
// `backend` is then ready for Prepare. INVALID_ARGUMENT naming file and tensor
// if a tensor is missing or has the wrong shape or dtype; UNIMPLEMENTED if
// there is no such architecture. On an error nothing usable is left: drop the
// backend.
absl::StatusOr<std::unique_ptr<Model>> CreateModel(const ModelConfig& config,
                                                   const ModelOptions& options,
                                                   WeightLoader& weights,
                                                   Backend& backend);

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_MODEL_H_
