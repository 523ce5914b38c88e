// Weights of a checkpoint on their way into a backend.
#ifndef QUIRE_ENGINE_MODEL_PACK_LINEAR_H_
#define QUIRE_ENGINE_MODEL_PACK_LINEAR_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/weights/weight_loader.h"
#include "kernels/backend.h"

namespace quire {

// Packs `spec`, which `weights` made of `sources` (WeightLoader::Linear).
// INVALID_ARGUMENT for a dtype or format that the backend does not compute
// with, or the backend's own error; both name the file and the tensor.
absl::StatusOr<std::unique_ptr<PackedWeight>> PackLinear(
    const LinearSpec& spec, const std::vector<LinearSource>& sources,
    const WeightLoader& weights, Backend& backend);

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_PACK_LINEAR_H_
