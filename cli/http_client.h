// The client side of quire's own API, for `quire chat` and `quire drain`.
#ifndef QUIRE_CLI_HTTP_CLIENT_H_
#define QUIRE_CLI_HTTP_CLIENT_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace httplib {
class Client;
}

namespace quire {

// Thread-compatible. Connects per call. Errors: INVALID_ARGUMENT for a URL that
// is neither http[s]://HOST[:PORT] nor unix:PATH and for authorities that
// cannot be read, UNAVAILABLE if nobody answers or the connection breaks,
// DEADLINE_EXCEEDED if nothing comes for long, FAILED_PRECONDITION if the
// server's certificate is not one of the authorities', UNKNOWN with the
// server's message for an answer that is not 2xx (PostStreaming:
// INVALID_ARGUMENT for 4xx).
class HttpClient {
 public:
  // ca_file: PEM authorities of the server's certificate; empty: the system's.
  static absl::StatusOr<HttpClient> Create(const std::string& url,
                                           const std::string& api_key,
                                           const std::string& ca_file = "");

  // timeout: without a byte of the answer; at least a second.
  absl::StatusOr<std::string> Get(
      const std::string& path,
      absl::Duration timeout = absl::Minutes(10)) const;

  // POSTs JSON and calls `on_event` with the data of each server-sent event;
  // it returns false to hang up.
  absl::Status PostStreaming(
      const std::string& path, const std::string& body,
      const std::function<bool(absl::string_view data)>& on_event) const;

 private:
  // Where, with what, and how the server is trusted.
  struct Target {
    std::string origin;       // For messages.
    std::string unix_socket;  // Empty: TCP.
    std::string api_key;
    std::string ca_file;
  };

  explicit HttpClient(Target target);
  std::unique_ptr<httplib::Client> Connect() const;

  Target target_;
};

}  // namespace quire

#endif  // QUIRE_CLI_HTTP_CLIENT_H_
