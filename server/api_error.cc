#include "server/api_error.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/json_text.h"

namespace quire {
namespace {

constexpr char kCodePayload[] = "quire/code";
// Longer, and a client that obeys comes when all has changed.
constexpr absl::Duration kMaxOverloadWait = absl::Seconds(60);
constexpr size_t kMaxMessageBytes = 1024;

const char* ErrorType(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    case 504:
      return "timeout_error";
    case 505:  // The client chose the version.
      return "invalid_request_error";
    default:
      return http_status < 500 ? "invalid_request_error" : "server_error";
  }
}

const char* DefaultCode(int http_status) {
  switch (http_status) {
    case 401:
      return "invalid_api_key";
    case 404:
      return "not_found";
    case 405:
      return "method_not_allowed";
    case 429:
      return "rate_limit_exceeded";
    case 500:
      return "internal_error";
    case 503:
      return "service_unavailable";
    case 504:
      return "deadline_exceeded";
    default:
      return "";
  }
}

std::string Body(int http_status, absl::string_view message,
                 absl::string_view parameter, absl::string_view code) {
  if (code.empty()) code = DefaultCode(http_status);
  std::string out = R"({"error":{"message":)";
  // Messages quote what the client sent, which may be megabytes.
  AppendJsonString(message.substr(0, kMaxMessageBytes), &out);
  out += R"(,"type":)";
  AppendJsonString(ErrorType(http_status), &out);
  out += R"(,"param":)";
  if (parameter.empty()) {
    out += "null";
  } else {
    AppendJsonString(parameter, &out);
  }
  out += R"(,"code":)";
  if (code.empty()) {
    out += "null";
  } else {
    AppendJsonString(code, &out);
  }
  out += "}}";
  return out;
}

std::string Payload(const absl::Status& status, const char* name) {
  const auto payload = status.GetPayload(name);
  return payload.has_value() ? std::string(*payload) : std::string();
}

void SetRetryAfter(absl::Duration wait, absl::Status* status) {
  const int64_t seconds = absl::ToInt64Seconds(
      wait + absl::Seconds(1) - absl::Nanoseconds(1));  // Rounded up.
  status->SetPayload(kRetryAfterPayload,
                     absl::Cord(absl::StrCat(std::max<int64_t>(1, seconds))));
}

}  // namespace

absl::Status ParameterError(absl::string_view parameter,
                            absl::string_view message, absl::string_view code) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kParameterPayload, absl::Cord(parameter));
  if (!code.empty()) status.SetPayload(kCodePayload, absl::Cord(code));
  return status;
}

absl::Status RateLimitError(absl::string_view message, absl::Duration wait) {
  absl::Status status = absl::ResourceExhaustedError(message);
  SetRetryAfter(wait, &status);
  return status;
}

absl::Status OverloadError(absl::string_view message, absl::Duration wait) {
  absl::Status status = absl::UnavailableError(message);
  SetRetryAfter(std::min(wait, kMaxOverloadWait), &status);
  return status;
}

std::string RetryAfter(const absl::Status& status) {
  const int http_status = HttpStatus(status);
  if (http_status != 429 && http_status != 503) return "";
  const std::string seconds = Payload(status, kRetryAfterPayload);
  return seconds.empty() ? "1" : seconds;
}

int HttpStatus(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string ErrorBody(const absl::Status& status) {
  const int http_status = HttpStatus(status);
  // What went wrong inside is for the log, not for the client.
  const absl::string_view message = http_status == 500
                                        ? absl::string_view("internal error")
                                        : status.message();
  std::string code = Payload(status, kCodePayload);
  if (http_status == 404 && code.empty()) code = "model_not_found";
  return Body(http_status, message, Payload(status, kParameterPayload), code);
}

std::string ErrorBody(int http_status, absl::string_view message) {
  return Body(http_status, message, "", "");
}

}  // namespace quire
