// One POST to a collector that the operator named: HTTP/1.1, plain or TLS.
// Nothing else of the server connects to anywhere on its account, and nothing
// of a request reaches it but as data. Not cpp-httplib's client: the packaged
// version has faults of its own, and no deadline for the whole.
#ifndef QUIRE_SERVER_TELEMETRY_HTTP_POST_H_
#define QUIRE_SERVER_TELEMETRY_HTTP_POST_H_

#include <openssl/ssl.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace quire {

struct PostTarget {
  bool is_tls = false;
  std::string host;  // A name or an address, IPv6 without brackets.
  std::string port;
  std::string path = "/";  // With the query.
};

// "http://host:4318/v1/traces", "https://…". INVALID_ARGUMENT otherwise; what
// could not stand in a request line is refused.
absl::StatusOr<PostTarget> ParsePostTarget(absl::string_view url);

struct PostAnswer {
  int status = 0;
  absl::Duration retry_after;  // Zero: not said.
};

// Thread-compatible; blocks up to `timeout`, and longer only as long as the
// name service does.
class HttpPoster {
 public:
  // `authorities_file`: PEM, in place of the system's; may be empty.
  static absl::StatusOr<std::unique_ptr<HttpPoster>> Create(
      const PostTarget& target, const std::string& authorities_file,
      std::vector<std::pair<std::string, std::string>> fields);

  // UNAVAILABLE if no answer came; an early end once `is_stopping` is set.
  absl::StatusOr<PostAnswer> Post(absl::string_view content_type,
                                  absl::string_view body,
                                  absl::Duration timeout,
                                  const std::atomic<bool>& is_stopping) const;

 private:
  HttpPoster(PostTarget target,
             std::vector<std::pair<std::string, std::string>> fields)
      : target_(std::move(target)), fields_(std::move(fields)) {}

  const PostTarget target_;
  const std::vector<std::pair<std::string, std::string>> fields_;
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> tls_{nullptr,
                                                         &SSL_CTX_free};
};

}  // namespace quire

#endif  // QUIRE_SERVER_TELEMETRY_HTTP_POST_H_
