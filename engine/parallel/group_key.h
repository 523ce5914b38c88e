// The secret that the ranks of several hosts may share, so that nobody else can
// join them or learn what they run.
#ifndef QUIRE_ENGINE_PARALLEL_GROUP_KEY_H_
#define QUIRE_ENGINE_PARALLEL_GROUP_KEY_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quire {

// Who knows the key proves it by a MAC over two random nonces, one of each
// side, so that no proof can be used again (a challenge and response in both
// directions; HMAC, RFC 2104, with SHA-256). It protects the joining: what is
// sent afterwards is neither encrypted nor signed.
class GroupKey {
 public:
  static constexpr size_t kNonceBytes = 32;
  static constexpr size_t kMacBytes = 32;
  static constexpr size_t kMinBytes = 16;

  // No key: whoever reaches the port is asked who it is.
  GroupKey() = default;
  // INVALID_ARGUMENT for less than kMinBytes, without white space at the end.
  static absl::StatusOr<GroupKey> Create(absl::string_view secret);
  // INVALID_ARGUMENT naming the file.
  static absl::StatusOr<GroupKey> ReadFile(const std::string& path);

  bool empty() const { return secret_.empty(); }
  // Of `role`, so that no side's proof serves the other one, and of `message`,
  // which comes with it.
  std::string Prove(absl::string_view role, absl::string_view worker_nonce,
                    absl::string_view leader_nonce,
                    absl::string_view message = "") const;
  // Takes as long for a wrong proof as for the right one.
  bool IsProof(absl::string_view proof, absl::string_view role,
               absl::string_view worker_nonce, absl::string_view leader_nonce,
               absl::string_view message = "") const;

  // kNonceBytes that nobody can guess.
  static std::string MakeNonce();

 private:
  std::string secret_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_GROUP_KEY_H_
