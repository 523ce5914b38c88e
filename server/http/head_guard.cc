#include "server/http/head_guard.h"

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace quire {
namespace {

// cpp-httplib refuses longer lines (CPPHTTPLIB_HEADER_MAX_LENGTH, 8192).
constexpr size_t kMaxCleanLineBytes = 8000;
// The longest method of the registry has 17 characters; a longer "method" is
// not HTTP.
constexpr size_t kMaxMethodBytes = 20;
// "METHOD " and " HTTP/1.1\r\n" around the target.
constexpr int64_t kRequestLineOverhead = kMaxMethodBytes + 12;
// 10^15 - 1 bytes is far above any limit and far from overflow.
constexpr size_t kMaxContentLengthDigits = 15;

constexpr HttpError kMalformedLine = {400, "malformed request line"};
constexpr HttpError kMalformedField = {400, "malformed header field"};
constexpr HttpError kHeadTooLarge = {431, "request header fields too large"};
constexpr HttpError kTargetTooLong = {414, "request target too long"};

// RFC 9110 5.6.2.
bool IsTokenChar(char c) {
  return absl::ascii_isalnum(c) ||
         (c != '\0' && absl::StrContains("!#$%&'*+-.^_`|~", c));
}

bool IsToken(absl::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), IsTokenChar);
}

bool IsAllDigits(absl::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return c >= '0' && c <= '9';
  });
}

absl::string_view TrimSpace(absl::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) {
    text.remove_prefix(1);
  }
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) {
    text.remove_suffix(1);
  }
  return text;
}

// Whether the comma-separated `list` has the element `word`.
bool ListContains(absl::string_view list, absl::string_view word) {
  while (true) {
    const size_t comma = list.find(',');
    if (absl::EqualsIgnoreCase(TrimSpace(list.substr(0, comma)), word)) {
      return true;
    }
    if (comma == absl::string_view::npos) return false;
    list.remove_prefix(comma + 1);
  }
}

std::optional<HttpError> ParseRequestLine(absl::string_view line,
                                          const HeadLimits& limits,
                                          RequestHead* head) {
  const size_t method_end = line.find(' ');
  if (method_end == absl::string_view::npos || method_end > kMaxMethodBytes) {
    return kMalformedLine;
  }
  const absl::string_view method = line.substr(0, method_end);
  line.remove_prefix(method_end + 1);
  const size_t target_end = line.find(' ');
  if (target_end == absl::string_view::npos) return kMalformedLine;
  const absl::string_view target = line.substr(0, target_end);
  const absl::string_view version = line.substr(target_end + 1);
  if (!IsToken(method)) return kMalformedLine;
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    const bool is_other_version =
        version.size() == 8 && absl::StartsWith(version, "HTTP/") &&
        absl::ascii_isdigit(version[5]) && version[6] == '.' &&
        absl::ascii_isdigit(version[7]);
    if (is_other_version) return HttpError{505, "HTTP version not supported"};
    return kMalformedLine;
  }
  if (static_cast<int64_t>(target.size()) > limits.max_target_bytes) {
    return kTargetTooLong;
  }
  // Origin form only: neither a proxy nor OPTIONS * is served.
  if (target.empty() || target[0] != '/') return kMalformedLine;
  for (const unsigned char c : target) {
    if (c <= 0x20 || c >= 0x7f || c == '#') return kMalformedLine;
  }
  head->method = std::string(method);
  head->path = std::string(target.substr(0, target.find('?')));
  head->minor_version = version[7] - '0';
  return std::nullopt;
}

std::optional<HttpError> ParseField(absl::string_view line, RequestHead* head) {
  // A line that starts with white space (obs-fold) has no token before ":".
  const size_t colon = line.find(':');
  if (colon == absl::string_view::npos || !IsToken(line.substr(0, colon))) {
    return kMalformedField;
  }
  const absl::string_view value = TrimSpace(line.substr(colon + 1));
  const size_t num_percent = std::count(value.begin(), value.end(), '%');
  // Escaping makes three characters of each "%".
  if (line.size() + 2 * num_percent > kMaxCleanLineBytes) return kHeadTooLarge;
  head->fields.emplace_back(absl::AsciiStrToLower(line.substr(0, colon)),
                            std::string(value));
  return std::nullopt;
}

int CountFields(const RequestHead& head, absl::string_view name) {
  return std::count_if(head.fields.begin(), head.fields.end(),
                       [&](const auto& field) { return field.first == name; });
}

// Content-Length and Transfer-Encoding. Whatever two parsers could read in two
// ways is refused, since that is how requests are smuggled (RFC
// 9112 6.3, 11.2).
std::optional<HttpError> ReadFraming(RequestHead* head) {
  const int num_lengths = CountFields(*head, "content-length");
  const int num_codings = CountFields(*head, "transfer-encoding");
  if (num_lengths > 1 || num_codings > 1 || (num_lengths && num_codings)) {
    return HttpError{400, "ambiguous message framing"};
  }
  if (num_lengths == 1) {
    absl::string_view digits = head->Field("content-length");
    if (!IsAllDigits(digits)) return HttpError{400, "invalid Content-Length"};
    while (digits.size() > 1 && digits[0] == '0') digits.remove_prefix(1);
    if (digits.size() > kMaxContentLengthDigits) {
      return HttpError{413, "request body too large"};
    }
    for (const char c : digits) {
      head->content_length = head->content_length * 10 + (c - '0');
    }
  }
  if (num_codings == 1) {
    if (head->minor_version == 0) {
      return HttpError{400, "Transfer-Encoding needs HTTP/1.1"};
    }
    if (!absl::EqualsIgnoreCase(head->Field("transfer-encoding"), "chunked")) {
      return HttpError{501, "transfer coding not supported"};
    }
    head->is_chunked = true;
  }
  return std::nullopt;
}

std::optional<HttpError> CheckHost(const RequestHead& head) {
  const int num_hosts = CountFields(head, "host");
  if (num_hosts > 1 || (num_hosts == 0 && head.minor_version == 1)) {
    return HttpError{400, "exactly one Host field is required"};
  }
  for (const char c : head.Field("host")) {
    // Names, addresses, ports and IPv6 brackets.
    if (!absl::ascii_isalnum(c) && !absl::StrContains("-._~:[]%", c)) {
      return HttpError{400, "invalid Host"};
    }
  }
  return std::nullopt;
}

std::optional<HttpError> Interpret(RequestHead* head) {
  if (auto error = CheckHost(*head)) return error;
  if (auto error = ReadFraming(head)) return error;
  // A second value would be seen by some readers and not by others.
  for (const char* name :
       {"authorization", "content-type", "expect", "upgrade"}) {
    if (CountFields(*head, name) > 1) {
      return HttpError{400, "repeated header field"};
    }
  }
  head->keep_alive = head->minor_version == 1;
  for (const auto& [name, value] : head->fields) {
    if (name == "content-encoding" &&
        !absl::EqualsIgnoreCase(value, "identity")) {
      return HttpError{415, "content codings are not supported"};
    }
    if (name == "connection" && ListContains(value, "close")) {
      head->keep_alive = false;
    }
    // HTTP/1.0 has no upgrades (RFC 9110 7.8).
    if (name == "connection" && ListContains(value, "upgrade")) {
      head->offers_upgrade = head->minor_version == 1 && !head->has_body();
    }
    // HTTP/1.0 clients do not wait for it (RFC 9110 10.1.1).
    if (name == "expect" && head->minor_version == 1) {
      if (!absl::EqualsIgnoreCase(value, "100-continue")) {
        return HttpError{417, "expectation not supported"};
      }
      head->expect_continue = head->has_body();
    }
  }
  return std::nullopt;
}

bool IsForLibrary(absl::string_view name) {
  static constexpr std::array<absl::string_view, 18> kDropped = {
      // Of the connection.
      "connection", "expect", "keep-alive", "proxy-authenticate",
      "proxy-authorization", "proxy-connection", "te", "trailer", "upgrade",
      // Framing, which is done here. The content type would make the library
      // parse forms (with a limit of 8 KiB) and multipart bodies.
      "content-encoding", "content-length", "content-type", "transfer-encoding",
      // Would make the library assemble ranges or compress.
      "accept-encoding", "if-range", "range",
      // Not used here, and an attack surface of others.
      "proxy", "http2-settings"};
  // The library adds REMOTE_ADDR and such itself and looks up the first. It
  // decodes "%" in names too.
  return std::find(kDropped.begin(), kDropped.end(), name) == kDropped.end() &&
         !absl::StartsWith(name, "remote_") &&
         !absl::StartsWith(name, "local_") && !absl::StrContains(name, '%');
}

}  // namespace

absl::string_view RequestHead::Field(absl::string_view name) const {
  for (const auto& field : fields) {
    if (field.first == name) return field.second;
  }
  return {};
}

std::optional<HttpError> HeadScanner::Scan(absl::string_view data,
                                           const HeadLimits& limits,
                                           size_t* head_size) {
  *head_size = 0;
  for (; num_scanned_ < data.size(); ++num_scanned_) {
    const size_t i = num_scanned_;
    const unsigned char c = data[i];
    if (static_cast<int64_t>(i) >= limits.max_head_bytes) return kHeadTooLarge;
    const bool follows_cr = i > 0 && data[i - 1] == '\r';
    if (follows_cr != (c == '\n')) {
      return HttpError{400, "lines must end with CR LF"};
    }
    if (c == 0x7f || (c < 0x20 && c != '\t' && c != '\r' && c != '\n')) {
      return HttpError{400, "control character in the request head"};
    }
    if (c == '\n') {
      is_past_request_line_ = true;
      if (i >= 3 && data[i - 2] == '\n') {
        *head_size = i + 1;
        return std::nullopt;
      }
    }
    if (!is_past_request_line_ &&
        static_cast<int64_t>(i) >=
            limits.max_target_bytes + kRequestLineOverhead) {
      return kTargetTooLong;
    }
  }
  return std::nullopt;
}

std::optional<HttpError> ParseHead(absl::string_view data,
                                   const HeadLimits& limits,
                                   RequestHead* head) {
  *head = RequestHead();
  size_t line_end = data.find("\r\n");
  if (line_end == absl::string_view::npos) return kMalformedLine;
  if (auto error = ParseRequestLine(data.substr(0, line_end), limits, head)) {
    return error;
  }
  while (true) {
    data.remove_prefix(line_end + 2);
    line_end = data.find("\r\n");
    if (line_end == absl::string_view::npos) return kMalformedField;
    if (line_end == 0) break;
    if (static_cast<int>(head->fields.size()) >= limits.max_fields) {
      return kHeadTooLarge;
    }
    if (auto error = ParseField(data.substr(0, line_end), head)) return error;
  }
  return Interpret(head);
}

std::string CleanHead(const RequestHead& head) {
  std::string clean = absl::StrCat(head.method, " ", head.path, " HTTP/1.",
                                   head.minor_version, "\r\n");
  for (const auto& [name, value] : head.fields) {
    if (!IsForLibrary(name) || value.empty()) continue;
    absl::StrAppend(&clean, name, ": ");
    for (const char c : value) {
      if (c == '%') {
        clean += "%25";
      } else {
        clean += c;
      }
    }
    clean += "\r\n";
  }
  clean += "Content-Length: 0\r\n\r\n";
  return clean;
}

}  // namespace quire
