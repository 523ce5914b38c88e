// The strict reader of request heads (RFC 9112) that stands in front of
// cpp-httplib.
//
// The packaged library has known holes in its own parser (header count and line
// length without limit, percent-decoding of values, CL with TE, ranges, ...).
// Nothing reaches it but a head that was accepted here and written anew by
// CleanHead.
#ifndef QUIRE_SERVER_HTTP_HEAD_GUARD_H_
#define QUIRE_SERVER_HTTP_HEAD_GUARD_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace quire {

struct HeadLimits {
  int64_t max_head_bytes = 0;
  int max_fields = 0;
  int64_t max_target_bytes = 0;
};

// An answer of the transport itself. `message` is a literal of ours: nothing of
// the request is repeated to the client.
struct HttpError {
  int status = 0;
  const char* message = "";
};

struct RequestHead {
  std::string method;
  std::string path;  // The target up to "?". Never percent-decoded.
  int minor_version = 1;
  // Names in lower case, values trimmed, in the order they came. All fields,
  // also those that CleanHead leaves out.
  std::vector<std::pair<std::string, std::string>> fields;

  bool keep_alive = true;
  bool expect_continue = false;
  // The connection may go on in the protocol that the field Upgrade names.
  bool offers_upgrade = false;
  bool is_chunked = false;
  int64_t content_length = 0;  // 0 if absent; of no meaning if is_chunked.

  // The first value of `name` (lower case); empty if absent.
  absl::string_view Field(absl::string_view name) const;
  bool has_body() const { return is_chunked || content_length > 0; }
};

// Looks for the blank line that ends a head while its bytes arrive; every byte
// is looked at once. One scanner per head.
class HeadScanner {
 public:
  // `data`: all bytes of the request so far, from its first one; grows from
  // call to call. Sets `head_size` to the size of the head with its blank line
  // once that is there, else to 0. Fails as soon as it is certain that the head
  // will not be accepted: 400 (control characters, line ends other than CR LF),
  // 414, 431.
  std::optional<HttpError> Scan(absl::string_view data,
                                const HeadLimits& limits, size_t* head_size);

 private:
  size_t num_scanned_ = 0;
  bool is_past_request_line_ = false;
};

// Parses a complete head as HeadScanner found it. 400 (malformed), 414, 415
// (Content-Encoding), 417 (Expect), 431, 501 (Transfer-Encoding other than
// chunked), 505. `head` is of no use after an error.
std::optional<HttpError> ParseHead(absl::string_view data,
                                   const HeadLimits& limits, RequestHead* head);

// The head as cpp-httplib gets it: no query, no body (its framing is ours), no
// field that concerns the connection or the framing or that makes the library
// act (ranges, compression, names it sets itself), and with every "%" of a
// value escaped because the library decodes them.
std::string CleanHead(const RequestHead& head);

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_HEAD_GUARD_H_
