// Checks "Authorization: Bearer KEY".
#ifndef QUIRE_SERVER_HTTP_API_KEYS_H_
#define QUIRE_SERVER_HTTP_API_KEYS_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace quire {

// Immutable, hence thread-safe. Keeps digests only.
class ApiKeys {
 public:
  // No keys: everything is accepted. Empty keys are ignored.
  explicit ApiKeys(const std::vector<std::string>& keys);

  // Whether the value of an Authorization field carries one of the keys. The
  // time taken does not depend on which key matched or how far: digests of
  // equal size are compared as a whole, and all of them.
  bool Accepts(absl::string_view authorization) const;

 private:
  using Digest = std::array<uint8_t, 32>;  // SHA-256
  bool is_open_;
  std::vector<Digest> digests_;
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_API_KEYS_H_
