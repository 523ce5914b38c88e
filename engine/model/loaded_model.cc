#include "engine/model/loaded_model.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "engine/base/clock.h"
#include "engine/base/memory_limit.h"
#include "engine/base/status.h"
#include "engine/model/draft_head.h"
#include "engine/model/gguf_model.h"
#include "engine/weights/gguf.h"
#include "engine/weights/safetensors.h"

namespace quire {
namespace {

// A server that shares its machine leaves most of it to others; whoever wants
// more says so in bytes.
constexpr double kAutomaticKvFraction = 0.25;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

absl::Status ValidateLoadOptions(const LoadOptions& options) {
  if (options.max_num_seqs < 1 || options.max_num_batched_tokens < 1 ||
      options.block_size < 1 || options.max_model_len < 0 ||
      options.kv_cache_memory_bytes < 0 ||
      !(options.device_memory_utilization > 0 &&
        options.device_memory_utilization <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_num_seqs ", options.max_num_seqs, ", max_num_batched_tokens ",
        options.max_num_batched_tokens, ", block_size ", options.block_size,
        ", max_model_len ", options.max_model_len, ", kv_cache_memory_bytes ",
        options.kv_cache_memory_bytes, ", device_memory_utilization ",
        options.device_memory_utilization, ": out of range"));
  }
  return absl::OkStatus();
}

// The format in which a checkpoint's matrices are stored, for a person: what
// its configuration says, or that of its largest share of blocks; empty: dense.
std::string StoredQuantization(const Checkpoint& checkpoint,
                               const ModelConfig& config) {
  if (config.quantization.method != QuantizationMethod::kNone) {
    return QuantizationMethodName(config.quantization.method);
  }
  std::map<std::string, int64_t> num_elements;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (tensor.format != QuantFormat::kDense) {
      num_elements[QuantFormatName(tensor.format)] += tensor.num_elements;
    }
  }
  std::string largest;
  for (const auto& [format, count] : num_elements) {
    if (largest.empty() || count > num_elements[largest]) largest = format;
  }
  return largest;
}

// Whether the layout of compressed-tensors, which knows several formats, holds
// fp8 and no other.
bool IsCompressedFp8(const Checkpoint& checkpoint, const ModelConfig& config) {
  if (config.quantization.method != QuantizationMethod::kCompressedTensors) {
    return false;
  }
  bool has_fp8 = false;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (absl::EndsWith(name, ".weight_packed") ||
        tensor.dtype == StoredDType::kI8) {
      return false;
    }
    has_fp8 |= tensor.dtype == StoredDType::kF8E4M3;
  }
  return has_fp8;
}

// Whether the options ask for what the model already is, or can become.
absl::Status CheckQuantization(const std::string& directory,
                               const Checkpoint& checkpoint,
                               const LoadedModel& loaded,
                               const LoadOptions& options,
                               const Backend& backend) {
  const std::string& stored = loaded.quantization;
  const std::string wanted = options.quantization
                                 ? QuantFormatName(options.quantization->format)
                                 : options.stored_quantization;
  if (wanted.empty() || wanted == stored ||
      (wanted == QuantFormatName(QuantFormat::kFp8) &&
       IsCompressedFp8(checkpoint, loaded.config))) {
    return absl::OkStatus();
  }
  const auto error = [&](absl::string_view message) {
    return absl::FailedPreconditionError(
        absl::StrCat("--quantization ", wanted, ": ", message));
  };
  if (!stored.empty()) {
    return error(
        absl::StrCat(directory, " is quantized already (", stored, ")"));
  }
  if (!options.quantization) {
    return error(absl::StrCat(directory, " is not quantized"));
  }
  if (!backend.SupportsLinear(DType::kU8, options.quantization->format)) {
    return error(absl::StrCat(backend.Description(),
                              " does not compute with such weights"));
  }
  return absl::OkStatus();
}

// Rows of logits to reserve for scoring prompts: as many as 64 MiB hold, which
// is 110 for a vocabulary of 152,000 and a step's whole budget for 32,000.
int ScoredTokensPerStep(int vocab_size, int max_num_tokens) {
  constexpr int64_t kMaxBytes = int64_t{64} << 20;
  constexpr int64_t kMinTokens = 16;  // The default of EngineOptions.
  return static_cast<int>(std::clamp<int64_t>(
      kMaxBytes / (vocab_size * int64_t{sizeof(float)}), kMinTokens,
      std::max<int64_t>(max_num_tokens, kMinTokens)));
}

// How the weights are to be read; notes in `loaded` how they are quantized.
absl::StatusOr<WeightLoaderOptions> MakeLoaderOptions(
    const std::string& directory, const Checkpoint& checkpoint,
    const LoadOptions& options, LoadedModel& loaded) {
  loaded.quantization = StoredQuantization(checkpoint, loaded.config);
  QUIRE_RETURN_IF_ERROR(CheckQuantization(directory, checkpoint, loaded,
                                          options, *loaded.backend));
  WeightLoaderOptions loader_options;
  loader_options.dtype = options.dtype;
  loader_options.progress = options.progress;
  loader_options.supports = [backend = loaded.backend.get()](
                                DType dtype, QuantFormat format) {
    return backend->SupportsLinear(dtype, format);
  };
  loader_options.stored = loaded.config.quantization;
  if (loaded.quantization.empty() && options.quantization) {
    loader_options.quantization = options.quantization;
    loaded.quantization = QuantFormatName(options.quantization->format);
  }
  loader_options.num_threads = options.num_threads;
  return loader_options;
}

absl::Status LackOfMemory(const std::string& directory, int64_t needed,
                          int64_t usable, std::optional<int64_t> free_bytes,
                          const LoadOptions& options) {
  constexpr double kGiB = 1 << 30;
  if (!free_bytes) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%s: the weights need %.1f GiB of memory, %.1f GiB are available",
        directory, needed / kGiB, usable / kGiB));
  }
  return absl::ResourceExhaustedError(absl::StrFormat(
      "%s: the weights need %.1f GiB, and of the %.1f GiB that are free on the "
      "GPU %.1f GiB may be used (--gpu-memory-utilization %g): raise that, use "
      "quantized weights (--quantization) or a GPU with more memory",
      directory, needed / kGiB, *free_bytes / kGiB, usable / kGiB,
      options.device_memory_utilization));
}

// What the workspace takes is known only now: a length that nobody asked for is
// lowered to what the KV cache then holds.
absl::Status FitModelLength(const LoadOptions& options, LoadedModel& loaded) {
  EngineShape& shape = loaded.shape;
  QUIRE_ASSIGN_OR_RETURN(MemoryPlan plan, loaded.backend->PlanMemory(shape));
  if (options.companion.kv_bytes_per_token > 0) {
    // Of what the others leave, or of what was asked for.
    const int64_t own =
        KvBytesPerToken(loaded.config, loaded.kv_cache_dtype, options.parallel);
    const int64_t both = own + options.companion.kv_bytes_per_token;
    plan.num_blocks = static_cast<int>(std::min<int64_t>(
        plan.num_blocks,
        std::max<int64_t>(plan.kv_bytes + plan.unused_bytes, 0) /
            (both * options.block_size)));
    shape.kv_bytes = plan.num_blocks * int64_t{options.block_size} * own;
  }
  const int64_t fitting = int64_t{plan.num_blocks} * shape.block_size;
  if (options.max_model_len > 0 || fitting >= shape.max_model_len ||
      fitting < 2) {
    return absl::OkStatus();  // Prepare says what does not fit.
  }
  loaded.warnings.push_back(absl::StrCat(
      "max_model_len lowered from ", shape.max_model_len, " to ", fitting,
      ": the KV cache holds no longer sequence beside weights and workspace"));
  shape.max_model_len = static_cast<int>(fitting);
  return absl::OkStatus();
}

struct OpenedModel {
  ModelConfig config;
  GenerationConfig generation;
  std::shared_ptr<const Checkpoint> checkpoint;
  std::optional<EmbeddingConfig> embedding;
};

absl::StatusOr<OpenedModel> OpenGguf(const std::string& path,
                                     const LoadOptions& options) {
  QUIRE_ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> file,
                         GgufFile::Open(path));
  QUIRE_ASSIGN_OR_RETURN(GgufModelConfig config, ReadGgufModelConfig(*file));
  OpenedModel opened;
  QUIRE_ASSIGN_OR_RETURN(
      opened.checkpoint,
      OpenGgufCheckpoint(file, config.model, options.num_threads));
  if (options.task == ModelTask::kEmbed ||
      (config.is_embedding && options.task != ModelTask::kGenerate)) {
    opened.embedding.emplace();
    if (config.is_mean_pooling) opened.embedding->pooling = Pooling::kMean;
    if (options.pooling) opened.embedding->pooling = *options.pooling;
  }
  opened.config = std::move(config.model);
  opened.generation = std::move(config.generation);
  return opened;
}

absl::StatusOr<OpenedModel> OpenModel(const std::string& path,
                                      const LoadOptions& options) {
  if (IsGgufPath(path)) return OpenGguf(path, options);
  OpenedModel opened;
  QUIRE_ASSIGN_OR_RETURN(ModelDirectoryConfig config,
                         ReadModelDirectoryConfig(path));
  opened.config = std::move(config.model);
  opened.generation = std::move(config.generation);
  QUIRE_ASSIGN_OR_RETURN(opened.checkpoint, Checkpoint::Open(path));
  QUIRE_ASSIGN_OR_RETURN(
      opened.embedding,
      ResolveEmbedding(path, opened.config, options.task, options.pooling));
  return opened;
}

}  // namespace

absl::Status CheckModelConfig(const std::string& path, int tensor_parallel_size,
                              int pipeline_parallel_size) {
  const auto check = [&](const ModelConfig& config) {
    absl::Status status = CheckTensorParallelSize(config, tensor_parallel_size);
    status.Update(LayersOfStage(config, {0, pipeline_parallel_size}).status());
    return status;
  };
  if (!IsGgufPath(path)) {
    QUIRE_ASSIGN_OR_RETURN(const ModelDirectoryConfig config,
                           ReadModelDirectoryConfig(path));
    return check(config.model);
  }
  QUIRE_ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> file,
                         GgufFile::Open(path));
  QUIRE_ASSIGN_OR_RETURN(const GgufModelConfig config,
                         ReadGgufModelConfig(*file));
  return check(config.model);
}

absl::StatusOr<TensorSplit> TensorSplit::Open(
    const std::string& path,
    const std::optional<QuantizationScheme>& quantization) {
  ModelConfig config;
  std::shared_ptr<const Checkpoint> checkpoint;
  if (IsGgufPath(path)) {
    QUIRE_ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> file,
                           GgufFile::Open(path));
    QUIRE_ASSIGN_OR_RETURN(GgufModelConfig of_file, ReadGgufModelConfig(*file));
    config = std::move(of_file.model);
    QUIRE_ASSIGN_OR_RETURN(checkpoint, OpenGgufHeaders(file, config));
  } else {
    QUIRE_ASSIGN_OR_RETURN(ModelDirectoryConfig of_directory,
                           ReadModelDirectoryConfig(path));
    config = std::move(of_directory.model);
    QUIRE_ASSIGN_OR_RETURN(checkpoint, Checkpoint::Open(path));
  }
  WeightLoaderOptions options;
  options.stored = config.quantization;
  if (StoredQuantization(*checkpoint, config).empty()) {
    options.quantization = quantization;
  }
  return TensorSplit(std::move(config),
                     WeightLoader(std::move(checkpoint), std::move(options)));
}

absl::Status TensorSplit::Check(int size) const {
  return CheckTensorParallelSize(config_, weights_, size);
}

namespace {

absl::StatusOr<DType> KvCacheDType(const LoadOptions& options,
                                   const ModelConfig& config,
                                   const WeightLoader& weights,
                                   const Backend& backend) {
  if (options.kv_cache_dtype) return *options.kv_cache_dtype;
  QUIRE_ASSIGN_OR_RETURN(const DType dtype, WeightDType(config, weights));
  const DType activations = backend.ActivationDType(dtype);
  return activations == DType::kF32 ? dtype : activations;
}

}  // namespace

int64_t KvBytesPerToken(const ModelConfig& config, DType kv_dtype,
                        const ParallelConfig& parallel) {
  const absl::StatusOr<std::vector<int>> kv_heads =
      KvHeadsOfRank(config, parallel);
  QUIRE_CHECK(kv_heads.ok());
  int64_t num_bytes = 0;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    num_bytes += int64_t{2} * (*kv_heads)[i] *
                 KvHeadBytes(kv_dtype, config.layers[i].head_dim);
  }
  return num_bytes;
}

absl::StatusOr<KvPlan> PlanKvMemory(const ModelConfig& config,
                                    const LoadOptions& options,
                                    int64_t available, bool owns_memory) {
  QUIRE_RETURN_IF_ERROR(ValidateLoadOptions(options));
  if (!owns_memory) available /= options.parallel.local_size;
  const int64_t own_bytes_per_token = KvBytesPerToken(
      config, options.kv_cache_dtype.value_or(DType::kBF16), options.parallel);
  const int64_t bytes_per_token =
      own_bytes_per_token + options.companion.kv_bytes_per_token;
  const int64_t bytes_per_block = bytes_per_token * options.block_size;
  const auto sequence_bytes = [&](int64_t max_model_len) {
    return RoundUp(max_model_len, options.block_size) * bytes_per_token;
  };
  KvPlan plan;
  const bool is_len_fixed = options.max_model_len > 0;
  if (is_len_fixed && options.max_model_len > config.max_position_embeddings) {
    plan.warning = absl::StrCat("max_model_len ", options.max_model_len,
                                " exceeds the model's max_position_embeddings ",
                                config.max_position_embeddings,
                                ": answers beyond it may be poor");
  }
  int64_t max_model_len =
      is_len_fixed ? options.max_model_len : config.max_position_embeddings;
  int64_t budget = options.kv_cache_memory_bytes;
  if (budget == 0) {
    budget = owns_memory ? available
                         : static_cast<int64_t>(kAutomaticKvFraction *
                                                static_cast<double>(available));
    // A length that was asked for may take more than the automatic share.
    if (is_len_fixed && sequence_bytes(max_model_len) <= available) {
      budget = std::max(budget, sequence_bytes(max_model_len));
    }
  }
  // The cache is mapped and touched as it fills: what is not there would end
  // the process in the middle of its work.
  if (options.kv_cache_memory_bytes > available) {
    return absl::ResourceExhaustedError(
        absl::StrCat(options.kv_cache_memory_bytes,
                     " bytes of KV cache were asked for, but ", available,
                     " bytes of memory are available beside the weights"));
  }
  if (sequence_bytes(max_model_len) > budget) {
    const int64_t fitting = budget / bytes_per_block * options.block_size;
    if (is_len_fixed || fitting == 0) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "one sequence of ", is_len_fixed ? max_model_len : options.block_size,
          " tokens needs ",
          sequence_bytes(is_len_fixed ? max_model_len : options.block_size),
          " bytes of KV cache, but there are ", budget,
          owns_memory
              ? ": lower --max-model-len or --max-num-seqs, raise "
                "--gpu-memory-utilization, or use quantized weights or a "
                "smaller --kv-cache-dtype"
              : ": lower --max-model-len or raise --kv-cache-memory-bytes"));
    }
    plan.warning = absl::StrCat("max_model_len lowered from ", max_model_len,
                                " to ", fitting, ": ", budget,
                                " bytes of KV cache hold no longer sequence (",
                                bytes_per_token, " bytes per token)");
    max_model_len = fitting;
  }
  plan.max_model_len = static_cast<int>(max_model_len);
  plan.kv_bytes = budget;
  if (options.kv_cache_memory_bytes == 0) {
    int64_t needed = 0;
    if (!__builtin_mul_overflow(sequence_bytes(max_model_len),
                                int64_t{options.max_num_seqs}, &needed)) {
      plan.kv_bytes = std::min(budget, needed);
    }
  }
  if (bytes_per_token > own_bytes_per_token) {
    plan.kv_bytes = plan.kv_bytes / bytes_per_block * options.block_size *
                    own_bytes_per_token;
  }
  return plan;
}

namespace {

// All ranks' smallest figures: one plans for all. On devices with memory of
// their own the ranks are alike, and each takes what it has.
absl::Status AgreeOnMemory(Communicator* ranks, int64_t bytes_per_token,
                           KvPlan* plan) {
  if (ranks == nullptr || ranks->is_on_device()) return absl::OkStatus();
  // f32 holds both halves of an integer below 2^48 exactly.
  constexpr int64_t kHalf = int64_t{1} << 24;
  const int64_t kv_tokens = plan->kv_bytes / bytes_per_token;
  const int64_t own[2] = {kv_tokens, plan->max_model_len};
  float own_halves[4];
  for (int i = 0; i < 2; ++i) {
    own_halves[2 * i] = static_cast<float>(own[i] / kHalf);
    own_halves[2 * i + 1] = static_cast<float>(own[i] % kHalf);
  }
  std::vector<float> all(4 * ranks->size());
  QUIRE_RETURN_IF_ERROR(ranks->AllGather(
      TensorView::Vector(own_halves, DType::kF32, 4),
      TensorView::Matrix(all.data(), DType::kF32, ranks->size(), 4), nullptr));
  int64_t least[2] = {own[0], own[1]};
  for (size_t i = 0; i < all.size(); i += 2) {
    int64_t& of_all = least[i / 2 % 2];
    of_all = std::min(of_all, static_cast<int64_t>(all[i]) * kHalf +
                                  static_cast<int64_t>(all[i + 1]));
  }
  const int64_t min_tokens = least[0];
  plan->max_model_len = static_cast<int>(least[1]);
  if (min_tokens < kv_tokens) plan->kv_bytes = min_tokens * bytes_per_token;
  return absl::OkStatus();
}

}  // namespace

namespace {

// What a load knows beside the model itself.
struct LoadState {
  WeightLoader weights;
  std::shared_ptr<const Checkpoint> checkpoint;
  int64_t needed_bytes = 0;  // For weights.
  int64_t usable_bytes = 0;  // For weights and all else.
  std::optional<int64_t> free_device_bytes;
};

// Reads configuration and headers into `loaded`, and finds the weights' size.
absl::StatusOr<LoadState> OpenForLoading(const std::string& path,
                                         const LoadOptions& options,
                                         LoadedModel& loaded) {
  QUIRE_ASSIGN_OR_RETURN(OpenedModel opened, OpenModel(path, options));
  loaded.config = std::move(opened.config);
  loaded.generation_config = std::move(opened.generation);
  loaded.embedding = std::move(opened.embedding);
  loaded.warnings = loaded.config.warnings;
  if (loaded.embedding && loaded.embedding->max_input_tokens > 0) {
    loaded.config.max_position_embeddings =
        std::min(loaded.config.max_position_embeddings,
                 loaded.embedding->max_input_tokens);
  }
  QUIRE_ASSIGN_OR_RETURN(
      WeightLoaderOptions loader_options,
      MakeLoaderOptions(path, *opened.checkpoint, options, loaded));
  LoadState state{WeightLoader(opened.checkpoint, std::move(loader_options)),
                  opened.checkpoint};
  const ParallelConfig& parallel = options.parallel;
  QUIRE_RETURN_IF_ERROR(CheckTensorParallelSize(loaded.config, state.weights,
                                                parallel.tensor_size));
  QUIRE_RETURN_IF_ERROR(KvHeadsOfRank(loaded.config, parallel).status());
  state.needed_bytes = state.weights.ExpectedBytes(
      {parallel.tensor_rank(), parallel.tensor_size},
      {parallel.pipeline_rank(), parallel.pipeline_size});
  if (loaded.backend->OwnsMemory()) {
    QUIRE_ASSIGN_OR_RETURN(state.free_device_bytes,
                           loaded.backend->FreeDeviceBytes());
  }
  QUIRE_RETURN_IF_ERROR(ValidateLoadOptions(options));
  state.usable_bytes =
      (state.free_device_bytes
           ? static_cast<int64_t>(options.device_memory_utilization *
                                  static_cast<double>(*state.free_device_bytes))
           : AvailableMemoryBytes()) -
      options.companion.other_bytes;
  if (state.usable_bytes < state.needed_bytes) {
    return LackOfMemory(path, state.needed_bytes, state.usable_bytes,
                        state.free_device_bytes, options);
  }
  QUIRE_ASSIGN_OR_RETURN(
      loaded.kv_cache_dtype,
      KvCacheDType(options, loaded.config, state.weights, *loaded.backend));
  return state;
}

// Packs the weights.
absl::Status LoadWeights(const LoadOptions& options, int max_model_len,
                         LoadState& state, LoadedModel& loaded) {
  const absl::Time start = Clock::Monotonic()->Now();
  ModelOptions model_options;
  model_options.parallel = options.parallel;
  model_options.max_model_len = max_model_len;
  model_options.kv_dtype = loaded.kv_cache_dtype;
  model_options.taps = options.taps;
  if (loaded.embedding) model_options.pooling = loaded.embedding->pooling;
  QUIRE_ASSIGN_OR_RETURN(
      loaded.model, CreateModel(loaded.config, model_options, state.weights,
                                *loaded.backend));
  loaded.weights_time = Clock::Monotonic()->Now() - start;
  if (std::string unused = state.weights.UnusedTensorsWarning();
      !unused.empty()) {
    loaded.warnings.push_back(std::move(unused));
  }
  for (std::string& note : state.weights.Notes()) {
    loaded.warnings.push_back(std::move(note));
  }
  if (options.progress) {
    options.progress(state.checkpoint->num_bytes(),
                     state.checkpoint->num_bytes());
  }
  loaded.num_parameters = state.weights.num_parameters();
  loaded.dtype = loaded.model->dtype();
  return absl::OkStatus();
}

// What options and configuration say of the shape; not its memory.
void SetShape(const LoadOptions& options, int max_model_len,
              LoadedModel& loaded) {
  EngineShape& shape = loaded.shape;
  shape.max_num_seqs = options.max_num_seqs;
  shape.max_num_tokens = options.max_num_batched_tokens;
  shape.num_drafts = options.num_drafts;
  shape.max_model_len = max_model_len;
  shape.vocab_size = loaded.config.vocab_size;
  shape.block_size = options.block_size;
  shape.steps_in_flight = options.steps_in_flight > 0
                              ? options.steps_in_flight
                              : std::max(loaded.backend->UsefulStepsInFlight(),
                                         options.parallel.pipeline_size);
}

absl::Status PrepareToRun(LoadedModel& loaded) {
  const EngineShape& shape = loaded.shape;
  QUIRE_ASSIGN_OR_RETURN(loaded.memory, loaded.backend->Prepare(shape));
  loaded.runner = std::make_unique<BackendModelRunner>(
      loaded.backend.get(), loaded.model.get(), shape.max_num_seqs,
      shape.steps_in_flight);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoadedModel> LoadModel(const std::string& path,
                                      const LoadOptions& options,
                                      std::unique_ptr<Backend> backend) {
  LoadedModel loaded;
  loaded.backend = std::move(backend);
  QUIRE_ASSIGN_OR_RETURN(LoadState state,
                         OpenForLoading(path, options, loaded));
  const bool owns_memory = state.free_device_bytes.has_value();
  const ParallelConfig& parallel = options.parallel;
  LoadOptions kv_options = options;
  kv_options.kv_cache_dtype = loaded.kv_cache_dtype;
  QUIRE_ASSIGN_OR_RETURN(
      KvPlan plan,
      PlanKvMemory(loaded.config, kv_options,
                   state.usable_bytes - state.needed_bytes, owns_memory));
  if (!plan.warning.empty()) loaded.warnings.push_back(plan.warning);
  // Of all in a tensor group, then of all groups.
  for (Communicator* const ranks : {parallel.tensor, parallel.pipeline}) {
    QUIRE_RETURN_IF_ERROR(AgreeOnMemory(
        ranks, KvBytesPerToken(loaded.config, loaded.kv_cache_dtype, parallel),
        &plan));
  }
  QUIRE_RETURN_IF_ERROR(
      LoadWeights(options, plan.max_model_len, state, loaded));
  SetShape(options, plan.max_model_len, loaded);
  EngineShape& shape = loaded.shape;
  loaded.max_num_scored_tokens =
      ScoredTokensPerStep(loaded.config.vocab_size, shape.max_num_tokens);
  shape.max_logit_rows =
      std::min(options.max_num_seqs * (1 + options.num_drafts) +
                   loaded.max_num_scored_tokens,
               options.max_num_batched_tokens);
  shape.kv_bytes = plan.kv_bytes;
  if (loaded.embedding) shape.pooled_cols = loaded.config.hidden_size;
  shape.tensor_ranks = parallel.tensor;
  shape.pipeline_ranks = parallel.pipeline;
  if (owns_memory) {
    shape.device_bytes = state.usable_bytes;
    shape.kv_bytes = options.kv_cache_memory_bytes;
    QUIRE_RETURN_IF_ERROR(FitModelLength(options, loaded));
  }
  QUIRE_RETURN_IF_ERROR(PrepareToRun(loaded));
  return loaded;
}

absl::StatusOr<LoadedModel> BeginLoadingCompanion(
    const std::string& path, const LoadOptions& options,
    std::unique_ptr<Backend> backend) {
  LoadedModel loaded;
  loaded.backend = std::move(backend);
  QUIRE_ASSIGN_OR_RETURN(LoadState state,
                         OpenForLoading(path, options, loaded));
  int max_model_len = loaded.config.max_position_embeddings;
  if (options.max_model_len > 0) {
    max_model_len = std::min(max_model_len, options.max_model_len);
  }
  QUIRE_RETURN_IF_ERROR(LoadWeights(options, max_model_len, state, loaded));
  SetShape(options, max_model_len, loaded);
  loaded.shape.max_logit_rows = options.max_num_seqs;
  return loaded;
}

absl::StatusOr<LoadedModel> BeginLoadingHead(const std::string& path,
                                             const DraftHeadConfig& head,
                                             const LoadOptions& options,
                                             std::unique_ptr<Backend> backend) {
  LoadedModel loaded;
  loaded.backend = std::move(backend);
  loaded.config = head.model;
  loaded.warnings = head.kind == DraftHeadKind::kEagle3
                        ? head.model.warnings
                        : std::vector<std::string>();
  QUIRE_RETURN_IF_ERROR(ValidateLoadOptions(options));
  QUIRE_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint,
                         Checkpoint::Open(path));
  WeightLoaderOptions loader_options;
  loader_options.dtype = options.dtype;
  loader_options.supports = [backend = loaded.backend.get()](
                                DType dtype, QuantFormat format) {
    return backend->SupportsLinear(dtype, format);
  };
  loader_options.stored = head.model.quantization;
  loader_options.num_threads = options.num_threads;
  WeightLoader weights(checkpoint, std::move(loader_options));
  const bool is_eagle = head.kind == DraftHeadKind::kEagle3;
  QUIRE_ASSIGN_OR_RETURN(
      const DType dtype,
      weights.PackedDType(
          is_eagle ? "fc.weight" : "model.mtp_layers.0.mlp.down_proj.weight"));
  const DType activations = loaded.backend->ActivationDType(dtype);
  loaded.kv_cache_dtype = options.kv_cache_dtype.value_or(
      activations == DType::kF32 ? dtype : activations);
  ModelOptions model_options;
  // As long as the target: beyond its own positions it drafts no better than
  // it can, and no worse than not at all.
  model_options.max_model_len = options.max_model_len;
  model_options.kv_dtype = loaded.kv_cache_dtype;
  QUIRE_ASSIGN_OR_RETURN(
      loaded.model, DraftHead::Create(head, model_options, *checkpoint, weights,
                                      *loaded.backend));
  if (std::string unused = weights.UnusedTensorsWarning();
      is_eagle && !unused.empty()) {
    loaded.warnings.push_back(std::move(unused));
  }
  loaded.num_parameters = weights.num_parameters();
  loaded.dtype = loaded.model->dtype();
  SetShape(options, options.max_model_len, loaded);
  loaded.shape.max_num_seqs = 2 * options.max_num_seqs;
  loaded.shape.max_logit_rows = options.max_num_seqs;
  loaded.shape.num_input_ids = head.num_input_ids;
  loaded.shape.steps_in_flight = 1;
  return loaded;
}

absl::StatusOr<DType> PackedDTypeOf(const std::string& directory,
                                    const ModelConfig& config) {
  QUIRE_ASSIGN_OR_RETURN(std::shared_ptr<const Checkpoint> checkpoint,
                         Checkpoint::Open(directory));
  WeightLoaderOptions options;
  options.stored = config.quantization;
  return WeightDType(config,
                     WeightLoader(std::move(checkpoint), std::move(options)));
}

absl::StatusOr<CompanionMemory> MemoryOfCompanion(
    const LoadedModel& companion) {
  CompanionMemory memory;
  memory.kv_bytes_per_token =
      KvBytesPerToken(companion.config, companion.kv_cache_dtype);
  if (!companion.backend->OwnsMemory()) return memory;
  EngineShape shape = companion.shape;
  // Only what does not grow with the cache counts.
  shape.kv_bytes = memory.kv_bytes_per_token * shape.max_model_len;
  QUIRE_ASSIGN_OR_RETURN(const MemoryPlan plan,
                         companion.backend->PlanMemory(shape));
  memory.other_bytes = plan.workspace_bytes + plan.graphs_bytes;
  return memory;
}

absl::Status FinishLoadingCompanion(const LoadedModel& other,
                                    LoadedModel* companion,
                                    int num_more_blocks) {
  EngineShape& shape = companion->shape;
  shape.max_model_len =
      std::min(shape.max_model_len, other.shape.max_model_len);
  const int64_t num_blocks = int64_t{other.memory.num_blocks} + num_more_blocks;
  shape.kv_bytes =
      KvBytesPerToken(companion->config, companion->kv_cache_dtype) *
      shape.block_size * num_blocks;
  QUIRE_RETURN_IF_ERROR(PrepareToRun(*companion));
  if (companion->memory.num_blocks == num_blocks) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("the KV caches have ", num_blocks,
                                          " and ", companion->memory.num_blocks,
                                          " blocks"));
}

}  // namespace quire
