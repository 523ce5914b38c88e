#include "server/http/response_head.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace quire {
namespace {

const char* ReasonPhrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 414:
      return "URI Too Long";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "";  // Allowed to be empty (RFC 9112 4).
  }
}

bool IsFieldName(absl::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '-' || c == '_';
  });
}

bool IsFieldValue(absl::string_view value) {
  return std::all_of(value.begin(), value.end(), [](unsigned char c) {
    return c == '\t' || (c >= 0x20 && c != 0x7f);
  });
}

bool IsOurs(absl::string_view name) {
  for (const char* ours : {"connection", "content-length", "transfer-encoding",
                           "date", "keep-alive", "upgrade", "trailer"}) {
    if (absl::EqualsIgnoreCase(name, ours)) return true;
  }
  return false;
}

void AppendDate(time_t now, std::string* out) {
  static constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed",
                                          "Thu", "Fri", "Sat"};
  static constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr",
                                            "May", "Jun", "Jul", "Aug",
                                            "Sep", "Oct", "Nov", "Dec"};
  // Not strftime: its names depend on the locale.
  tm utc;
  if (gmtime_r(&now, &utc) == nullptr) return;
  absl::StrAppendFormat(out, "Date: %s, %02d %s %d %02d:%02d:%02d GMT\r\n",
                        kDays[utc.tm_wday], utc.tm_mday, kMonths[utc.tm_mon],
                        utc.tm_year + 1900, utc.tm_hour, utc.tm_min,
                        utc.tm_sec);
}

}  // namespace

void AppendResponseHead(const ResponseHead& head, const HttpHeaders& headers,
                        time_t now, std::string* out) {
  absl::StrAppend(out, "HTTP/1.1 ", head.status, " ", ReasonPhrase(head.status),
                  "\r\n");
  AppendDate(now, out);
  if (!head.content_type.empty() && IsFieldValue(head.content_type)) {
    absl::StrAppend(out, "Content-Type: ", head.content_type, "\r\n");
  }
  const bool has_no_body = head.status == 204 || head.status == 304;
  if (head.framing == BodyFraming::kChunked) {
    absl::StrAppend(out, "Transfer-Encoding: chunked\r\n");
  } else if (head.framing == BodyFraming::kLength && !has_no_body) {
    absl::StrAppend(out, "Content-Length: ", head.content_length, "\r\n");
  }
  if (!head.keep_alive) absl::StrAppend(out, "Connection: close\r\n");
  for (const auto& [name, value] : headers) {
    if (!IsFieldName(name) || !IsFieldValue(value) || IsOurs(name)) continue;
    absl::StrAppend(out, name, ": ", value, "\r\n");
  }
  out->append("\r\n");
}

std::string DefaultErrorBody(int status, absl::string_view message) {
  std::string escaped;
  for (const char c : message) {
    if (c == '"' || c == '\\') escaped += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) escaped += c;
  }
  return absl::StrCat(
      "{\"error\":{\"message\":\"", escaped, "\",\"type\":\"",
      status >= 500 ? "server_error" : "invalid_request_error",
      "\",\"param\":null,\"code\":",
      status == 401 ? "\"invalid_api_key\"" : absl::StrCat(status), "}}");
}

}  // namespace quire
