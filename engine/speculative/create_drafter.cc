#include "engine/speculative/create_drafter.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/model/draft_head_config.h"
#include "engine/model/gguf_model.h"
#include "engine/model/model_config.h"
#include "engine/speculative/head_drafter.h"
#include "engine/speculative/model_drafter.h"
#include "engine/speculative/ngram_drafter.h"
#include "engine/speculative/suffix_drafter.h"

namespace quire {

namespace {

absl::Status BeginHead(const std::string& target_path,
                       const LoadOptions& options,
                       std::unique_ptr<Backend> backend, BegunDrafter* begun) {
  const SpeculativeConfig& config = begun->config;
  const char* const name = DraftMethodName(config.method);
  if (IsGgufPath(target_path)) {
    return absl::UnimplementedError(absl::StrCat(name, " beside a GGUF file"));
  }
  QUIRE_ASSIGN_OR_RETURN(const ModelDirectoryConfig target,
                         ReadModelDirectoryConfig(target_path));
  const bool is_mtp = config.method == DraftMethod::kMtp;
  const std::string& path = is_mtp ? target_path : config.model;
  QUIRE_ASSIGN_OR_RETURN(begun->head,
                         is_mtp ? MakeMtpConfig(path, target.model)
                                : ReadEagle3Config(path, target.model));
  LoadOptions head_options = options;
  if (head_options.max_model_len == 0) {
    head_options.max_model_len = target.model.max_position_embeddings;
  }
  if (!is_mtp && !head_options.dtype) {
    // A head computes on the model's activations, of 16 bits on a GPU, whatever
    // it is stored in (the authors' heads: f16, for models in bf16).
    QUIRE_ASSIGN_OR_RETURN(const DType dtype,
                           PackedDTypeOf(target_path, target.model));
    const DType activations = backend->ActivationDType(dtype);
    if (activations != DType::kF32) head_options.dtype = activations;
  }
  QUIRE_ASSIGN_OR_RETURN(
      begun->draft,
      BeginLoadingHead(path, *begun->head, head_options, std::move(backend)));
  QUIRE_ASSIGN_OR_RETURN(begun->memory, MemoryOfCompanion(*begun->draft));
  EngineShape shape;
  shape.max_num_seqs = options.max_num_seqs;
  shape.block_size = options.block_size;
  begun->memory.other_bytes +=
      begun->memory.kv_bytes_per_token * options.block_size *
      HeadDrafter::NumBlocksBeside(shape, config.num_speculative_tokens);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BegunDrafter> BeginDrafter(const SpeculativeConfig& config,
                                          const std::string& target_path,
                                          const LoadOptions& options,
                                          Backend& target_backend) {
  QUIRE_CHECK(config.method != DraftMethod::kNone);
  BegunDrafter begun;
  begun.config = config;
  if (config.method == DraftMethod::kNgram ||
      config.method == DraftMethod::kSuffix) {
    return begun;
  }
  const bool has_ranks =
      options.parallel.tensor_size * options.parallel.pipeline_size > 1;
  if (has_ranks && IsHeadMethod(config.method)) {
    return absl::UnimplementedError(
        absl::StrCat("drafting by ", DraftMethodName(config.method),
                     " with several ranks; ngram, suffix and draft_model draft "
                     "there"));
  }
  if (has_ranks && target_backend.OwnsMemory()) {
    // Each GPU plans its memory by itself, and all have to plan alike.
    return absl::UnimplementedError(
        "a draft model beside a model on several GPUs; ngram and suffix draft "
        "there");
  }
  LoadOptions draft_options = options;
  draft_options.quantization.reset();
  draft_options.stored_quantization.clear();
  draft_options.task = ModelTask::kGenerate;
  draft_options.pooling.reset();
  draft_options.num_drafts = 0;
  draft_options.progress = nullptr;
  // Of several ranks the first alone drafts; drafts go to the others with its
  // plans.
  draft_options.parallel = ParallelConfig();
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                         target_backend.CreateCompanion());
  if (IsHeadMethod(config.method)) {
    QUIRE_RETURN_IF_ERROR(
        BeginHead(target_path, draft_options, std::move(backend), &begun));
    return begun;
  }
  QUIRE_ASSIGN_OR_RETURN(
      begun.draft,
      BeginLoadingCompanion(config.model, draft_options, std::move(backend)));
  QUIRE_ASSIGN_OR_RETURN(begun.memory, MemoryOfCompanion(*begun.draft));
  return begun;
}

absl::StatusOr<std::unique_ptr<Drafter>> FinishDrafter(BegunDrafter begun,
                                                       LoadedModel* target) {
  const SpeculativeConfig& config = begun.config;
  if (config.method == DraftMethod::kNgram) {
    return std::make_unique<NgramDrafter>(config.prompt_lookup_min,
                                          config.prompt_lookup_max);
  }
  if (config.method == DraftMethod::kSuffix) {
    return std::make_unique<SuffixDrafter>(config.suffix);
  }
  QUIRE_CHECK(begun.draft.has_value());
  LoadedModel& draft = *begun.draft;
  if (begun.head.has_value()) {
    const int max_drafts = config.num_speculative_tokens;
    QUIRE_RETURN_IF_ERROR(FinishLoadingCompanion(
        *target, &draft,
        HeadDrafter::NumBlocksBeside(target->shape, max_drafts)));
    const int max_positions = draft.config.max_position_embeddings;
    return HeadDrafter::Create(DraftMethodName(config.method), std::move(draft),
                               max_positions, max_drafts, *target);
  }
  if (draft.num_parameters > target->num_parameters) {
    return absl::InvalidArgumentError(absl::StrCat(
        config.model, ": the draft model has ", draft.num_parameters,
        " parameters, more than the model's ", target->num_parameters));
  }
  QUIRE_RETURN_IF_ERROR(FinishLoadingCompanion(*target, &draft));
  return std::make_unique<ModelDrafter>(std::move(draft),
                                        target->config.vocab_size);
}

}  // namespace quire
