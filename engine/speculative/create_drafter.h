// The one place that names all drafters.
#ifndef QUIRE_ENGINE_SPECULATIVE_CREATE_DRAFTER_H_
#define QUIRE_ENGINE_SPECULATIVE_CREATE_DRAFTER_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/model/loaded_model.h"
#include "engine/speculative/drafter.h"
#include "engine/speculative/speculative_config.h"

namespace quire {

// A drafter whose target is not loaded yet.
struct BegunDrafter {
  SpeculativeConfig config;
  std::optional<LoadedModel> draft;  // Of the methods that have a model.
  // kEagle3, kMtp: what it is, and draft is it.
  std::optional<DraftHeadConfig> head;
  // For LoadOptions::companion of the target; its taps are the head's.
  CompanionMemory memory;
};

// Loads what the drafter has of its own: first, so that what it takes is known
// when the target plans its memory. `target_path` and `options` are the
// target's. Requires: a
// method other than kNone. UNIMPLEMENTED for what does not go together;
// otherwise errors as LoadModel's.
absl::StatusOr<BegunDrafter> BeginDrafter(const SpeculativeConfig& config,
                                          const std::string& target_path,
                                          const LoadOptions& options,
                                          Backend& target_backend);

// Requires: `target` is loaded with begun.memory, and outlives the drafter.
// INVALID_ARGUMENT if the draft model is larger than the target.
absl::StatusOr<std::unique_ptr<Drafter>> FinishDrafter(BegunDrafter begun,
                                                       LoadedModel* target);

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_CREATE_DRAFTER_H_
