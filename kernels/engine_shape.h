// The check of an engine's shape that every backend makes.
#ifndef QUIRE_KERNELS_ENGINE_SHAPE_H_
#define QUIRE_KERNELS_ENGINE_SHAPE_H_

#include "absl/status/status.h"
#include "kernels/backend.h"

namespace quire {

// INVALID_ARGUMENT with all figures if one is out of its range.
absl::Status ValidateEngineShape(const EngineShape& shape);

}  // namespace quire

#endif  // QUIRE_KERNELS_ENGINE_SHAPE_H_
