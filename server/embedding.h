// From pooled hidden states to the vector that a client gets.
#ifndef QUIRE_SERVER_EMBEDDING_H_
#define QUIRE_SERVER_EMBEDDING_H_

#include <string>
#include <vector>

#include "absl/types/span.h"

namespace quire {

// The first `dimensions` elements (0: all), then scaled to length 1 if
// `normalize`: as torch.nn.functional.normalize, a vector shorter than 1e-12
// becomes no longer by more than 1e12. Requires: dimensions <= pooled.size().
// Thread-safe.
std::vector<float> FinishEmbedding(absl::Span<const float> pooled,
                                   int dimensions, bool normalize);

// The values as little-endian f32 in base64 (RFC 4648, section 4), appended
// without quotes.
void AppendBase64Floats(absl::Span<const float> values, std::string* out);

}  // namespace quire

#endif  // QUIRE_SERVER_EMBEDDING_H_
