// The dense decoder of all families: Touvron et al. 2023, arXiv:2302.13971,
// section 2.2, with grouped-query attention (Ainslie et al. 2023,
// arXiv:2305.13245). Families differ in ModelConfig's fields only: where the
// norms are, what is scaled, which parts there are and what they are called.
#ifndef QUIRE_ENGINE_MODEL_DECODER_H_
#define QUIRE_ENGINE_MODEL_DECODER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "engine/model/model.h"

namespace quire {

// A factory of model.h.
absl::StatusOr<std::unique_ptr<Model>> CreateDecoder(
    const ModelConfig& config, const ModelOptions& options,
    WeightLoader& weights, Backend& backend);

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_DECODER_H_
