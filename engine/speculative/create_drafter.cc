#include "engine/speculative/create_drafter.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/speculative/model_drafter.h"
#include "engine/speculative/ngram_drafter.h"
#include "engine/speculative/suffix_drafter.h"

namespace quire {

absl::StatusOr<BegunDrafter> BeginDrafter(const SpeculativeConfig& config,
                                          const LoadOptions& options,
                                          Backend& target_backend) {
  QUIRE_CHECK(config.method != DraftMethod::kNone);
  BegunDrafter begun;
  begun.config = config;
  if (config.method == DraftMethod::kNgram ||
      config.method == DraftMethod::kSuffix) {
    return begun;
  }
  if (config.method != DraftMethod::kDraftModel) {
    return absl::UnimplementedError(
        absl::StrCat("drafting by ", DraftMethodName(config.method),
                     " is not built; there are ngram, suffix and draft_model"));
  }
  if (options.parallel.tensor_size * options.parallel.pipeline_size > 1 &&
      target_backend.FreeDeviceBytes().has_value()) {
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
