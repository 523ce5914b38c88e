#include "server/http_request_counts.h"

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(HttpRequestCountsTest, CountsByHandlerMethodAndStatus) {
  HttpRequestCounts counts;
  EXPECT_EQ(counts.Render(), "");
  counts.Count("GET", "/health", 200);
  counts.Count("GET", "/health", 200);
  counts.Count("GET", "/health", 503);
  counts.Count("HEAD", "/health", 200);
  EXPECT_EQ(
      counts.Render(),
      "# HELP http_requests_total HTTP responses by route, method and status.\n"
      "# TYPE http_requests_total counter\n"
      "http_requests_total{handler=\"/health\",method=\"GET\",status=\"200\"} "
      "2\n"
      "http_requests_total{handler=\"/health\",method=\"GET\",status=\"503\"} "
      "1\n"
      "http_requests_total{handler=\"/health\",method=\"HEAD\",status=\"200\"} "
      "1\n");
}

TEST(HttpRequestCountsTest, ClientsCannotAddLabelValues) {
  HttpRequestCounts counts;
  for (int i = 0; i < 100; ++i) {
    counts.Count(absl::StrCat("BREW", i, "\"\n"), "", 404);
  }
  const std::string text = counts.Render();
  EXPECT_EQ(text.substr(text.rfind("http_requests_total{")),
            "http_requests_total{handler=\"other\",method=\"other\",status="
            "\"404\"} 100\n");
  EXPECT_LT(text.size(), 300u);
}

}  // namespace
}  // namespace quire
