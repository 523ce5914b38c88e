#include "engine/parallel/group_key.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <fstream>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {

absl::StatusOr<GroupKey> GroupKey::Create(absl::string_view secret) {
  GroupKey key;
  key.secret_ = std::string(absl::StripTrailingAsciiWhitespace(secret));
  if (key.secret_.size() < kMinBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the group's key has ", key.secret_.size(),
                     " bytes, and needs at least ", kMinBytes));
  }
  return key;
}

absl::StatusOr<GroupKey> GroupKey::ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  }
  absl::StatusOr<GroupKey> key = Create(text.str());
  if (key.ok()) return key;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": ", key.status().message()));
}

std::string GroupKey::Prove(absl::string_view role,
                            absl::string_view worker_nonce,
                            absl::string_view leader_nonce,
                            absl::string_view message) const {
  // Of fixed sizes but for the last one, so that no two have the same bytes.
  QUIRE_CHECK(worker_nonce.size() == kNonceBytes &&
              leader_nonce.size() == kNonceBytes);
  const std::string bytes =
      absl::StrCat("quire ", role, "\n", worker_nonce, leader_nonce, message);
  unsigned char mac[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  QUIRE_CHECK(HMAC(EVP_sha256(), secret_.data(),
                   static_cast<int>(secret_.size()),
                   reinterpret_cast<const unsigned char*>(bytes.data()),
                   bytes.size(), mac, &size) != nullptr &&
              size == kMacBytes);
  return std::string(reinterpret_cast<const char*>(mac), size);
}

bool GroupKey::IsProof(absl::string_view proof, absl::string_view role,
                       absl::string_view worker_nonce,
                       absl::string_view leader_nonce,
                       absl::string_view message) const {
  if (empty() || proof.size() != kMacBytes ||
      worker_nonce.size() != kNonceBytes ||
      leader_nonce.size() != kNonceBytes) {
    return false;
  }
  const std::string expected = Prove(role, worker_nonce, leader_nonce, message);
  return CRYPTO_memcmp(proof.data(), expected.data(), kMacBytes) == 0;
}

std::string GroupKey::MakeNonce() {
  std::string nonce(kNonceBytes, '\0');
  QUIRE_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(nonce.data()),
                         kNonceBytes) == 1);
  return nonce;
}

}  // namespace quire
