// Counts HTTP responses for /metrics, those that never reach a handler
// included.
#ifndef QUIRE_SERVER_HTTP_REQUEST_COUNTS_H_
#define QUIRE_SERVER_HTTP_REQUEST_COUNTS_H_

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "absl/strings/string_view.h"

namespace quire {

// Thread-safe.
class HttpRequestCounts {
 public:
  // `handler`: the path of a route, or empty if the request hit none. What a
  // client can invent (methods, paths) must not become a label value, or it
  // could fill the memory: unknown methods and empty handlers count as "other".
  void Count(absl::string_view method, absl::string_view handler, int status);

  // The family http_requests_total in Prometheus' text format; empty before the
  // first request.
  std::string Render() const;

 private:
  // Handler, method, status.
  using Key = std::tuple<std::string, std::string, int>;

  // A std::mutex: ThreadSanitizer does not see through the packaged abseil's.
  mutable std::mutex mu_;
  std::map<Key, int64_t> counts_;  // Guarded by mu_.
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_REQUEST_COUNTS_H_
