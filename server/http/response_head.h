// Writes response heads.
#ifndef QUIRE_SERVER_HTTP_RESPONSE_HEAD_H_
#define QUIRE_SERVER_HTTP_RESPONSE_HEAD_H_

#include <cstdint>
#include <ctime>
#include <string>

#include "absl/strings/string_view.h"
#include "server/http_server.h"

namespace quire {

enum class BodyFraming : uint8_t {
  kLength,   // Content-Length.
  kChunked,  // Transfer-Encoding: chunked.
  kClose,    // Ends with the connection (HTTP/1.0 streams).
};

struct ResponseHead {
  int status = 200;
  absl::string_view content_type;  // Empty: no such field.
  BodyFraming framing = BodyFraming::kLength;
  int64_t content_length = 0;
  bool keep_alive = true;
};

// Appends status line, fields and blank line. Of `headers`, what is not a valid
// field (CR, LF, NUL, ...) or would change the framing is left out.
void AppendResponseHead(const ResponseHead& head, const HttpHeaders& headers,
                        time_t now, std::string* out);

// {"error": {"message", "type", "param": null, "code"}}, as OpenAI's API has
// it.
std::string DefaultErrorBody(int status, absl::string_view message);

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_RESPONSE_HEAD_H_
