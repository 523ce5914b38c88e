// The client side of quire's own API, for `quire chat` and `quire drain`.
#ifndef QUIRE_CLI_HTTP_CLIENT_H_
#define QUIRE_CLI_HTTP_CLIENT_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quire {

// Thread-compatible. Connects per call. Errors: INVALID_ARGUMENT for a URL that
// is not http://HOST[:PORT], UNAVAILABLE if nobody answers, UNKNOWN with the
// server's message for an answer that is not 2xx (PostStreaming:
// INVALID_ARGUMENT for 4xx).
class HttpClient {
 public:
  static absl::StatusOr<HttpClient> Create(const std::string& url,
                                           const std::string& api_key);

  absl::StatusOr<std::string> Get(const std::string& path) const;

  // POSTs JSON and calls `on_event` with the data of each server-sent event;
  // it returns false to hang up.
  absl::Status PostStreaming(
      const std::string& path, const std::string& body,
      const std::function<bool(absl::string_view data)>& on_event) const;

 private:
  HttpClient(std::string origin, std::string api_key);

  std::string origin_;
  std::string api_key_;
};

}  // namespace quire

#endif  // QUIRE_CLI_HTTP_CLIENT_H_
