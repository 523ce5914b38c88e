// A model directory, loaded and ready to run.
#ifndef QUIRE_ENGINE_MODEL_LOADED_MODEL_H_
#define QUIRE_ENGINE_MODEL_LOADED_MODEL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/model/backend_model_runner.h"
#include "engine/model/draft_head_config.h"
#include "engine/model/model.h"
#include "engine/model/model_config.h"
#include "engine/model/pooling_config.h"
#include "engine/parallel/parallel_config.h"
#include "engine/weights/weight_loader.h"
#include "kernels/backend.h"

namespace quire {

// What a model takes that has the same blocks of a KV cache of its own (a draft
// model): known once it is loaded, before there is a cache.
struct CompanionMemory {
  int64_t kv_bytes_per_token = 0;
  // Weights, workspace and graphs, as far as they are not taken yet.
  int64_t other_bytes = 0;
};

struct LoadOptions {
  // Of the packed weights; none: as stored.
  std::optional<DType> dtype;
  // None: the model's (vLLM's auto), or that of the backend's activations where
  // those have 16 bits.
  std::optional<DType> kv_cache_dtype;
  // Dense matrices are quantized so while they are loaded; none: not at all.
  // FAILED_PRECONDITION if the model is quantized otherwise already, or if the
  // backend has no kernels for the format.
  std::optional<QuantizationScheme> quantization;
  // Not empty: FAILED_PRECONDITION if the model is not quantized so ("gptq").
  std::string stored_quantization;
  ModelTask task = ModelTask::kAuto;
  std::optional<Pooling> pooling;  // Of embeddings; none: as the model says.
  // Longest sequence, prompt and output. 0: the model's own, lowered (with a
  // warning) to what the KV memory holds.
  int max_model_len = 0;
  // 0: what max_num_seqs sequences of max_model_len need, but at most 25% of
  // the memory available after the weights. On a device with memory of its own:
  // all that weights and workspace leave of device_memory_utilization.
  int64_t kv_cache_memory_bytes = 0;
  // The part of what the device has free that may be taken, in (0, 1].
  double device_memory_utilization = 0.9;
  int max_num_seqs = 64;
  int max_num_batched_tokens = 512;
  int block_size = 16;
  int steps_in_flight = 0;  // 0: what is of use on the device.
  int num_drafts = 0;       // Of a sequence in a step, as a rule.
  // For conversions while loading; <= 0: all that the process may use.
  int num_threads = 0;
  LoadProgress progress;
  // Memory is left for it; kv_cache_memory_bytes is for both.
  CompanionMemory companion;
  std::vector<int> taps;  // ModelOptions::taps.
  // Of this process among those that run the model; the communicators outlive
  // the LoadedModel. All ranks load with the same options otherwise, at the
  // same time: they agree on what their memory allows.
  ParallelConfig parallel;
};

// Members are destroyed in reverse order: users of the backend first.
struct LoadedModel {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  std::unique_ptr<BackendModelRunner> runner;
  ModelConfig config;
  GenerationConfig generation_config;
  std::optional<EmbeddingConfig> embedding;  // None: the model generates.
  EngineShape shape;  // As prepared: max_model_len, num_seqs and so on.
  int max_num_scored_tokens = 0;  // For EngineOptions.
  MemoryPlan memory;
  // From the first weight to the last: of the load alone, without what is
  // allocated and measured afterwards.
  absl::Duration weights_time;
  int64_t num_parameters = 0;
  DType dtype = DType::kF32;
  // Of the model's directory, or of --quantization: "gptq", "q4_k"; empty if
  // the weights are dense.
  std::string quantization;
  DType kv_cache_dtype = DType::kBF16;
  // One line each, for the log.
  std::vector<std::string> warnings;
};

// Loads `path`, a directory (Hugging Face layout: config.json, weights) or
// a GGUF file (a name that ends in .gguf), onto `backend`. Blocks until all is
// ready to serve. NOT_FOUND, INVALID_ARGUMENT or DATA_LOSS for a fault of the
// model's files, naming file and tensor or field; RESOURCE_EXHAUSTED if memory
// does not suffice, with the figures.
absl::StatusOr<LoadedModel> LoadModel(const std::string& path,
                                      const LoadOptions& options,
                                      std::unique_ptr<Backend> backend);

// LoadModel in two halves, for a model whose KV cache follows another one's.
// The first loads everything but allocates no memory for steps; options.
// max_model_len is an upper bound here (0: none). Errors as LoadModel's.
absl::StatusOr<LoadedModel> BeginLoadingCompanion(
    const std::string& path, const LoadOptions& options,
    std::unique_ptr<Backend> backend);
// The same for a head that drafts for `path`'s target: LoadedModel::model is a
// DraftHead, which still has to be told of its target. It has twice
// options.max_num_seqs slots.
absl::StatusOr<LoadedModel> BeginLoadingHead(const std::string& path,
                                             const DraftHeadConfig& head,
                                             const LoadOptions& options,
                                             std::unique_ptr<Backend> backend);
// The dtype in which the matrices of the model in this directory are packed if
// LoadOptions say nothing of it. Reads no weights. Errors as LoadModel's.
absl::StatusOr<DType> PackedDTypeOf(const std::string& directory,
                                    const ModelConfig& config);
absl::StatusOr<CompanionMemory> MemoryOfCompanion(const LoadedModel& companion);
// `other` is loaded, with LoadOptions::companion. The companion gets
// num_more_blocks beside those.
absl::Status FinishLoadingCompanion(const LoadedModel& other,
                                    LoadedModel* companion,
                                    int num_more_blocks = 0);

// Reads and checks the configuration of `path` alone, which is quick; also that
// the model can be split over so many ranks, and cut into so many stages.
// Errors as LoadModel's.
absl::Status CheckModelConfig(const std::string& path,
                              int tensor_parallel_size = 1,
                              int pipeline_parallel_size = 1);

// Over how many ranks a model can be split, by its sizes and by how its weights
// are stored or will be quantized at load. Thread-compatible.
class TensorSplit {
 public:
  // Reads configuration and headers, no weights. Errors as LoadModel's.
  static absl::StatusOr<TensorSplit> Open(
      const std::string& path,
      const std::optional<QuantizationScheme>& quantization);

  // OK, or INVALID_ARGUMENT with the sizes that work.
  absl::Status Check(int size) const;

 private:
  TensorSplit(ModelConfig config, WeightLoader weights)
      : config_(std::move(config)), weights_(std::move(weights)) {}

  ModelConfig config_;
  WeightLoader weights_;  // Loads nothing.
};

// Bytes of KV that one position takes in all layers together, on this rank.
// Requires: the heads can be split (CheckTensorParallelSize).
int64_t KvBytesPerToken(const ModelConfig& config, DType kv_dtype,
                        const ParallelConfig& parallel = {});

struct KvPlan {
  int max_model_len = 0;
  int64_t kv_bytes = 0;
  std::string warning;  // Empty if max_model_len is as asked for.
};

// How long sequences may be and how much memory their KV gets.
// Without options.kv_cache_dtype: in bf16. `available` is what is free after
// the weights; `owns_memory`: on a device, all of it may be taken; else it is
// that of all ranks of the host.
// RESOURCE_EXHAUSTED, with the figures, if not even one sequence fits.
absl::StatusOr<KvPlan> PlanKvMemory(const ModelConfig& config,
                                    const LoadOptions& options,
                                    int64_t available,
                                    bool owns_memory = false);

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_LOADED_MODEL_H_
