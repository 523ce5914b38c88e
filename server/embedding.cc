#include "server/embedding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace quire {

std::vector<float> FinishEmbedding(absl::Span<const float> pooled,
                                   int dimensions, bool normalize) {
  if (dimensions > 0) pooled = pooled.first(dimensions);
  std::vector<float> values(pooled.begin(), pooled.end());
  if (!normalize) return values;
  double sum = 0;
  for (const float value : values) sum += double{value} * value;
  const double length = std::max(std::sqrt(sum), 1e-12);
  for (float& value : values) value = static_cast<float>(value / length);
  return values;
}

void AppendBase64Floats(absl::Span<const float> values, std::string* out) {
  static_assert(std::endian::native == std::endian::little);
  *out += absl::Base64Escape(
      absl::string_view(reinterpret_cast<const char*>(values.data()),
                        values.size() * sizeof(float)));
}

}  // namespace quire
