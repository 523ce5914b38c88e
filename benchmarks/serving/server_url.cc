#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "benchmarks/serving/load_client.h"

namespace quire {

std::string ServerUrl::Origin() const {
  const bool is_v6 = absl::StrContains(host, ":");
  return absl::StrCat(is_tls ? "https://" : "http://", is_v6 ? "[" : "", host,
                      is_v6 ? "]" : "", ":", port);
}

absl::StatusOr<ServerUrl> ParseServerUrl(absl::string_view url) {
  const auto error = [url] {
    return absl::InvalidArgumentError(
        absl::StrCat("'", url, "' is not a URL like http://127.0.0.1:8000"));
  };
  ServerUrl result;
  absl::string_view rest = url;
  if (absl::ConsumePrefix(&rest, "https://")) {
    result.is_tls = true;
    result.port = 443;
  } else if (!absl::ConsumePrefix(&rest, "http://")) {
    return error();
  }
  const size_t slash = std::min(rest.find('/'), rest.size());
  absl::string_view prefix = rest.substr(slash);
  while (absl::ConsumeSuffix(&prefix, "/")) {
  }
  result.prefix = std::string(prefix);
  absl::string_view host = rest.substr(0, slash);
  absl::string_view port;
  if (absl::ConsumePrefix(&host, "[")) {
    const size_t end = host.find(']');
    if (end == absl::string_view::npos) return error();
    port = host.substr(end + 1);
    host = host.substr(0, end);
    if (!port.empty() && !absl::ConsumePrefix(&port, ":")) return error();
  } else if (const size_t colon = host.find(':');
             colon != absl::string_view::npos) {
    port = host.substr(colon + 1);
    host = host.substr(0, colon);
    if (port.empty()) return error();
  }
  if (!port.empty() && (!absl::SimpleAtoi(port, &result.port) ||
                        result.port < 1 || result.port > 65535)) {
    return error();
  }
  for (char c : url) {
    if (c <= ' ' || c == 127) return error();
  }
  if (host.empty() || absl::StrContains(host, "@") ||
      absl::StrContains(url, "?") || absl::StrContains(url, "#")) {
    return error();
  }
  result.host = std::string(host);
  return result;
}

}  // namespace quire
