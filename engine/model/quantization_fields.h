// The objects quantization_config and compression_config of config.json, as
// AutoGPTQ and GPTQModel, AutoAWQ, transformers (FineGrainedFP8), vLLM's
// AutoFP8 and compressed-tensors write them.
#ifndef QUIRE_ENGINE_MODEL_QUANTIZATION_FIELDS_H_
#define QUIRE_ENGINE_MODEL_QUANTIZATION_FIELDS_H_

#include <string>

#include "absl/status/status.h"
#include "engine/model/json_fields.h"
#include "engine/weights/quantization_config.h"

namespace quire {

// Leaves `config` alone if the fields have no such object. INVALID_ARGUMENT,
// naming file and field and what is supported, for a method, a width or an
// option that would give other weights.
absl::Status ParseQuantization(JsonFields& fields, const std::string& path,
                               QuantizationConfig& config);

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_QUANTIZATION_FIELDS_H_
