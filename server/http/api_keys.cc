#include "server/http/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"

namespace quire {
namespace {

std::array<uint8_t, 32> Sha256(absl::string_view text) {
  std::array<uint8_t, 32> digest;
  SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(),
         digest.data());
  return digest;
}

}  // namespace

ApiKeys::ApiKeys(const std::vector<std::string>& keys)
    : is_open_(keys.empty()) {
  for (const std::string& key : keys) {
    if (!key.empty()) digests_.push_back(Sha256(key));
  }
}

bool ApiKeys::Accepts(absl::string_view authorization) const {
  if (is_open_) return true;
  constexpr absl::string_view kScheme = "bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) return false;
  const Digest digest =
      Sha256(absl::StripAsciiWhitespace(authorization.substr(kScheme.size())));
  int num_equal = 0;
  for (const Digest& known : digests_) {
    num_equal += CRYPTO_memcmp(known.data(), digest.data(), digest.size()) == 0;
  }
  return num_equal > 0;
}

}  // namespace quire
