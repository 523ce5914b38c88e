#include "engine/model/pack_linear.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace quire {

absl::StatusOr<std::unique_ptr<PackedWeight>> PackLinear(
    const LinearSpec& spec, const std::vector<LinearSource>& sources,
    const WeightLoader& weights, Backend& backend) {
  const auto error = [&](absl::StatusCode code, const LinearSource& source,
                         absl::string_view what) {
    return absl::Status(code, absl::StrCat(weights.path(), ": tensor \"",
                                           source.name, ".weight\": ", what));
  };
  for (size_t i = 0; i < spec.parts.size(); ++i) {
    const WeightPart& part = spec.parts[i];
    if (backend.SupportsLinear(part.data.dtype, part.format)) continue;
    return error(absl::StatusCode::kInvalidArgument, sources[i],
                 absl::StrCat(backend.Description(), " does not compute with ",
                              DTypeName(part.data.dtype), " weights"));
  }
  absl::StatusOr<std::unique_ptr<PackedWeight>> packed =
      backend.PackLinear(spec);
  if (packed.ok()) return packed;
  return error(packed.status().code(), sources[0], packed.status().message());
}

}  // namespace quire
