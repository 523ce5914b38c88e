// Who may ask: checks "Authorization: Bearer KEY".
#ifndef QUIRE_SERVER_HTTP_API_KEYS_H_
#define QUIRE_SERVER_HTTP_API_KEYS_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/http_server.h"

namespace quire {

// Keys from the command line and from a file, which may change. Keeps digests
// only. Thread-safe.
//
// The file is YAML; nothing in it is secret:
//
//   keys:
//     - name: team-a                # in metrics and logs; [A-Za-z0-9._-], <=
//     64
//       sha256: 9f86d081884c7d65…   # of the key, in hexadecimal
//       max_concurrent_requests: 8  # this and what follows may be left out
//       requests_per_minute: 600
//       tokens_per_minute: 100000
//       weight: 2                   # of its share of the engine, to others' 1
//     - name: team-a                # a name may have several keys, which share
//       sha256: 60303ae22b998861…   # its limits, given with the first
class ApiKeys {
 public:
  // Without keys and file, everybody is accepted. An empty key is nobody's;
  // those of `keys` belong to owners "key-1", "key-2", … without limits, names
  // that the file may not use. INVALID_ARGUMENT naming file, entry and field if
  // the file is not as above.
  static absl::StatusOr<std::unique_ptr<ApiKeys>> Create(
      const std::vector<std::string>& keys, const std::string& file);

  // Whose key the value of an Authorization field carries; null: nobody's.
  std::shared_ptr<const ApiKeyOwner> Authenticate(
      absl::string_view authorization) const;

  // Keys are asked for, and there is none: the file lists nobody.
  bool LetsNobodyIn() const;

  // Reads the file again if it has changed. True if it did. With an error, as
  // Create's (also where there is no file any more), the keys in force stay,
  // and the same file is not tried again.
  absl::StatusOr<bool> ReloadIfChanged();

 private:
  using Digest = std::array<uint8_t, 32>;  // SHA-256
  // By the digest of the key's digest and a secret of the process: what the
  // time of a lookup tells is about a value that nobody outside can compute.
  using Keys = std::map<Digest, std::shared_ptr<const ApiKeyOwner>>;

  ApiKeys(const std::vector<std::string>& keys, const std::string& file);
  Digest Blind(const Digest& digest) const;
  absl::StatusOr<std::shared_ptr<const Keys>> Load() const;
  std::string FileVersion() const;

  const std::string file_;
  const Digest secret_;
  const std::shared_ptr<const ApiKeyOwner> anybody_;  // Null if keys are asked.
  Keys fixed_keys_;                                   // Of the command line.
  std::string file_version_;  // Of the last attempt; by who reloads.
  mutable std::mutex mu_;
  std::shared_ptr<const Keys> keys_;  // Guarded by mu_.
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_API_KEYS_H_
