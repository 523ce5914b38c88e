#include "engine/model/rope_config.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

using nlohmann::json;

constexpr int64_t kMaxPositions = 1 << 26;

// Peng et al. 2023, arXiv:2309.00071, section 3.4 (sqrt(1/t) =
// 0.1 ln(s) + 1), with the mscale weights of transformers'
// _compute_yarn_parameters.
double YarnMagnitude(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

absl::Status ParseYarn(JsonFields& fields, RopeConfig& rope) {
  QUIRE_ASSIGN_OR_RETURN(const auto beta_fast,
                         fields.Number("beta_fast", 0, 1e6));
  QUIRE_ASSIGN_OR_RETURN(const auto beta_slow,
                         fields.Number("beta_slow", 0, 1e6));
  QUIRE_ASSIGN_OR_RETURN(const auto attention_factor,
                         fields.Number("attention_factor", 0, 1e6));
  QUIRE_ASSIGN_OR_RETURN(const auto mscale, fields.Number("mscale", 0, 1e6));
  QUIRE_ASSIGN_OR_RETURN(const auto mscale_all_dim,
                         fields.Number("mscale_all_dim", 0, 1e6));
  QUIRE_ASSIGN_OR_RETURN(const auto truncate, fields.Bool("truncate"));
  // As transformers: 0 counts as absent for these four.
  if (beta_fast.value_or(0) != 0) rope.beta_fast = *beta_fast;
  if (beta_slow.value_or(0) != 0) rope.beta_slow = *beta_slow;
  rope.truncate = truncate.value_or(true);
  if (attention_factor) {
    rope.attention_factor = *attention_factor;
  } else if (mscale.value_or(0) != 0 && mscale_all_dim.value_or(0) != 0) {
    rope.attention_factor = YarnMagnitude(rope.factor, *mscale) /
                            YarnMagnitude(rope.factor, *mscale_all_dim);
  } else {
    rope.attention_factor = YarnMagnitude(rope.factor, 1.0);
  }
  return absl::OkStatus();
}

absl::Status ParseLlama3(JsonFields& fields, RopeConfig& rope) {
  QUIRE_ASSIGN_OR_RETURN(const auto low,
                         fields.Number("low_freq_factor", 1e-3, 1e6));
  QUIRE_ASSIGN_OR_RETURN(const auto high,
                         fields.Number("high_freq_factor", 1e-3, 1e6));
  if (!low) return fields.Error("low_freq_factor", "missing");
  if (!high) return fields.Error("high_freq_factor", "missing");
  if (*high <= *low) {
    return fields.Error(
        "high_freq_factor",
        absl::StrCat(*high, " must exceed low_freq_factor ", *low));
  }
  rope.low_freq_factor = *low;
  rope.high_freq_factor = *high;
  return absl::OkStatus();
}

// Ding et al. 2024, arXiv:2402.13753; the attention factor of section 3.4 of
// the Phi-3 report's code, as transformers' _compute_longrope_parameters.
absl::Status ParseLongRope(JsonFields& fields, const RopeDefaults& defaults,
                           RopeConfig& rope) {
  const size_t num_pairs = RotaryDim(rope, defaults.head_dim) / 2;
  for (const auto& [name, factors] :
       {std::pair("short_factor", &rope.short_factors),
        std::pair("long_factor", &rope.long_factors)}) {
    QUIRE_ASSIGN_OR_RETURN(*factors, fields.Numbers(name, 1e-3, 1e6));
    if (factors->size() != num_pairs) {
      return fields.Error(
          name, absl::StrCat("has ", factors->size(), " entries, not ",
                             num_pairs, " (half of the rotated elements)"));
    }
  }
  QUIRE_ASSIGN_OR_RETURN(const auto attention_factor,
                         fields.Number("attention_factor", 1e-3, 1e6));
  if (attention_factor) {
    rope.attention_factor = *attention_factor;
  } else if (rope.factor > 1) {
    if (rope.original_max_position_embeddings < 2) {
      return fields.Error("original_max_position_embeddings",
                          "1 leaves no attention_factor");
    }
    rope.attention_factor =
        std::sqrt(1 + std::log(rope.factor) /
                          std::log(rope.original_max_position_embeddings));
  }
  return absl::OkStatus();
}

absl::Status ParseScaledRope(JsonFields& fields, const RopeDefaults& defaults,
                             RopeConfig& rope) {
  QUIRE_ASSIGN_OR_RETURN(const auto factor, fields.Number("factor", 1e-3, 1e6));
  if (rope.type != RopeType::kLinear) {
    QUIRE_ASSIGN_OR_RETURN(
        const auto original,
        fields.Int("original_max_position_embeddings", 1, kMaxPositions));
    rope.original_max_position_embeddings =
        defaults.original_max_positions.value_or(
            original.value_or(defaults.max_positions));
  }
  if (factor) {
    rope.factor = *factor;
  } else if (rope.type == RopeType::kYarn || rope.type == RopeType::kLongRope) {
    rope.factor = static_cast<double>(defaults.max_positions) /
                  rope.original_max_position_embeddings;
  } else {
    return fields.Error("factor", "missing");
  }
  switch (rope.type) {
    case RopeType::kYarn:
      return ParseYarn(fields, rope);
    case RopeType::kLlama3:
      return ParseLlama3(fields, rope);
    case RopeType::kLongRope:
      return ParseLongRope(fields, defaults, rope);
    case RopeType::kNone:
    case RopeType::kDefault:
    case RopeType::kLinear:
      break;
  }
  return absl::OkStatus();
}

absl::Status ParsePartial(JsonFields& fields, const RopeDefaults& defaults,
                          RopeConfig& rope) {
  constexpr char kName[] = "partial_rotary_factor";
  QUIRE_ASSIGN_OR_RETURN(const auto partial, fields.Number(kName, 0, 1e9));
  if (!defaults.reads_partial_rotary_factor && partial.value_or(1.0) != 1.0) {
    return fields.Error(kName, absl::StrCat(*partial, " is not supported"));
  }
  rope.partial_rotary_factor = partial.value_or(defaults.partial_rotary_factor);
  const double factor = rope.partial_rotary_factor;
  const int rotary_dim = factor <= 1 ? RotaryDim(rope, defaults.head_dim) : 0;
  if (rotary_dim < 2 || rotary_dim % 2 != 0) {
    return fields.Error(kName,
                        absl::StrCat(factor, " of head_dim ", defaults.head_dim,
                                     " is not an even number of elements"));
  }
  return absl::OkStatus();
}

}  // namespace

int RotaryDim(const RopeConfig& rope, int head_dim) {
  if (rope.type == RopeType::kNone) return 0;
  return static_cast<int>(head_dim * rope.partial_rotary_factor);
}

absl::StatusOr<RopeConfig> ParseRopeObject(JsonFields& inner,
                                           const RopeDefaults& defaults) {
  RopeConfig rope;
  QUIRE_ASSIGN_OR_RETURN(const auto theta,
                         inner.Number("rope_theta", 1.0, 1e12));
  rope.theta = theta.value_or(defaults.theta);
  QUIRE_RETURN_IF_ERROR(ParsePartial(inner, defaults, rope));
  QUIRE_ASSIGN_OR_RETURN(const auto new_type, inner.String("rope_type"));
  QUIRE_ASSIGN_OR_RETURN(const auto old_type, inner.String("type"));
  const std::string type = new_type.value_or(old_type.value_or("default"));
  if (type == "linear") {
    rope.type = RopeType::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeType::kLlama3;
  } else if (type == "yarn") {
    rope.type = RopeType::kYarn;
  } else if (type == "longrope" || type == "su") {  // Its name at first.
    rope.type = RopeType::kLongRope;
  } else if (type != "default") {
    return inner.Error(
        new_type ? "rope_type" : "type",
        absl::StrCat("\"", type, "\" is not supported (supported: default, ",
                     "linear, llama3, longrope, yarn)"));
  }
  if (rope.type != RopeType::kDefault) {
    QUIRE_RETURN_IF_ERROR(ParseScaledRope(inner, defaults, rope));
  }
  // A field of RoPE always changes results, so none is passed over.
  for (const std::string& unread : inner.Unread()) {
    return inner.Error(
        unread, absl::StrCat("not supported for rope_type \"", type, "\""));
  }
  return rope;
}

absl::StatusOr<RopeConfig> ParseRope(JsonFields& fields,
                                     const std::string& path,
                                     const RopeDefaults& defaults) {
  RopeDefaults outer = defaults;
  QUIRE_ASSIGN_OR_RETURN(const auto theta,
                         fields.Number("rope_theta", 1.0, 1e12));
  outer.theta = theta.value_or(defaults.theta);
  QUIRE_ASSIGN_OR_RETURN(
      const auto original,
      fields.Int("original_max_position_embeddings", 1, kMaxPositions));
  if (original) outer.original_max_positions = original;
  RopeConfig rope;
  rope.theta = outer.theta;
  QUIRE_RETURN_IF_ERROR(ParsePartial(fields, defaults, rope));
  outer.partial_rotary_factor = rope.partial_rotary_factor;
  QUIRE_ASSIGN_OR_RETURN(const json* parameters,
                         fields.Object("rope_parameters"));
  QUIRE_ASSIGN_OR_RETURN(const json* scaling, fields.Object("rope_scaling"));
  // transformers lets rope_scaling win where both are given.
  const char* name = scaling != nullptr ? "rope_scaling" : "rope_parameters";
  const json* object = scaling != nullptr ? scaling : parameters;
  if (object == nullptr || object->empty()) return rope;
  JsonFields inner(*object, path, absl::StrCat(name, "."));
  return ParseRopeObject(inner, outer);
}

}  // namespace quire
