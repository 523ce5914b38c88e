// Errors as OpenAI's clients expect them. Fixed texts: no pointers, paths or
// exception messages ever reach a client.
#ifndef QUIRE_SERVER_API_ERROR_H_
#define QUIRE_SERVER_API_ERROR_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace quire {

// INVALID_ARGUMENT that names the request's parameter; `code` is OpenAI's
// machine-readable reason, e.g. "context_length_exceeded", or empty.
absl::Status ParameterError(absl::string_view parameter,
                            absl::string_view message,
                            absl::string_view code = "");

// RESOURCE_EXHAUSTED: a limit of the caller's own, who may come back after
// `wait`.
absl::Status RateLimitError(absl::string_view message, absl::Duration wait);

// UNAVAILABLE: a limit of the server's.
absl::Status OverloadError(absl::string_view message, absl::Duration wait);

// Seconds for the field Retry-After of a 429 or 503, at least 1; empty for what
// has none.
std::string RetryAfter(const absl::Status& status);

// The HTTP status of an error: 400 INVALID_ARGUMENT and OUT_OF_RANGE, 401
// UNAUTHENTICATED, 404 NOT_FOUND, 413 body too large, 429 RESOURCE_EXHAUSTED,
// 503 UNAVAILABLE, 504 DEADLINE_EXCEEDED, 500 the rest.
int HttpStatus(const absl::Status& status);

// {"error":{"message","type","param","code"}}.
std::string ErrorBody(const absl::Status& status);
std::string ErrorBody(int http_status, absl::string_view message);

}  // namespace quire

#endif  // QUIRE_SERVER_API_ERROR_H_
