// The fields of config.json that describe the rotary position embedding.
#ifndef QUIRE_ENGINE_MODEL_ROPE_CONFIG_H_
#define QUIRE_ENGINE_MODEL_ROPE_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/model/json_fields.h"
#include "engine/model/model_config.h"

namespace quire {

// What holds where config.json says nothing.
struct RopeDefaults {
  double theta = 10000.0;
  double partial_rotary_factor = 1.0;
  // Of the model's code; without, the field must say 1 if it is there.
  bool reads_partial_rotary_factor = false;
  int64_t max_positions = 0;
  // Of kLlama3, kYarn, kLongRope; none: max_positions.
  std::optional<int64_t> original_max_positions;
  int head_dim = 0;
};

// RoPE is spelled in two ways: rope_theta beside an optional rope_scaling, or
// (transformers 5) rope_parameters with both in it. Reads these fields of
// `fields`, an object of the file `path`. INVALID_ARGUMENT naming the field.
absl::StatusOr<RopeConfig> ParseRope(JsonFields& fields,
                                     const std::string& path,
                                     const RopeDefaults& defaults);

// The same for one object that holds everything ("rope_parameters"): `inner`.
absl::StatusOr<RopeConfig> ParseRopeObject(JsonFields& inner,
                                           const RopeDefaults& defaults);

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_ROPE_CONFIG_H_
