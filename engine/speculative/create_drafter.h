// The one place that names all drafters.
#ifndef QUIRE_ENGINE_SPECULATIVE_CREATE_DRAFTER_H_
#define QUIRE_ENGINE_SPECULATIVE_CREATE_DRAFTER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "engine/model/loaded_model.h"
#include "engine/speculative/drafter.h"
#include "engine/speculative/speculative_config.h"

namespace quire {

// Requires: a method other than kNone; `target` is loaded and outlives the
// drafter. UNIMPLEMENTED for a method that is not built; otherwise errors as
// LoadModel's.
absl::StatusOr<std::unique_ptr<Drafter>> CreateDrafter(
    const SpeculativeConfig& config, LoadedModel* target);

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_CREATE_DRAFTER_H_
