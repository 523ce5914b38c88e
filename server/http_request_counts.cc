#include "server/http_request_counts.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace quire {
namespace {

constexpr absl::string_view kMethods[] = {"GET",   "HEAD",   "POST",   "PUT",
                                          "PATCH", "DELETE", "OPTIONS"};
constexpr absl::string_view kOther = "other";

}  // namespace

void HttpRequestCounts::Count(absl::string_view method,
                              absl::string_view handler, int status) {
  if (std::find(std::begin(kMethods), std::end(kMethods), method) ==
      std::end(kMethods)) {
    method = kOther;
  }
  if (handler.empty()) handler = kOther;
  std::lock_guard<std::mutex> lock(mu_);
  ++counts_[Key(handler, method, status)];
}

std::string HttpRequestCounts::Render() const {
  std::lock_guard<std::mutex> lock(mu_);
  if (counts_.empty()) return "";
  std::string text =
      "# HELP http_requests_total HTTP responses by route, method and status.\n"
      "# TYPE http_requests_total counter\n";
  for (const auto& [key, count] : counts_) {
    const auto& [handler, method, status] = key;
    // Routes are ours: nothing in them needs escaping.
    absl::StrAppend(&text, "http_requests_total{handler=\"", handler,
                    "\",method=\"", method, "\",status=\"", status, "\"} ",
                    count, "\n");
  }
  return text;
}

}  // namespace quire
