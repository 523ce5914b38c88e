#include "engine/speculative/link/edge_link.h"

#include <string>

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(EdgeLinkTest, ParsesUrls) {
  const struct {
    const char* text;
    bool has_tls;
    const char* host;
    int port;
  } cases[] = {
      {"http://cloud", false, "cloud", 80},
      {"https://cloud.example", true, "cloud.example", 443},
      {"https://cloud.example:8443/", true, "cloud.example", 8443},
      {"http://10.0.0.1:8080/v1", false, "10.0.0.1", 8080},
      {"http://[::1]:8080", false, "::1", 8080},
      {"https://[fe80::1]/v1/", true, "fe80::1", 443},
  };
  for (const auto& expected : cases) {
    const auto url = ParseLinkUrl(expected.text);
    ASSERT_TRUE(url.ok()) << url.status();
    EXPECT_EQ(url->has_tls, expected.has_tls) << expected.text;
    EXPECT_EQ(url->host, expected.host) << expected.text;
    EXPECT_EQ(url->port, expected.port) << expected.text;
  }
}

TEST(EdgeLinkTest, RefusesWhatIsNoUrl) {
  for (const char* text :
       {"", "cloud", "ftp://cloud", "http://", "http://:80", "http://a:0",
        "http://a:65536", "http://a:x", "http://a:", "http://[::1",
        "http://a/b", "http://a b", "http://a\r\nX: y", "http://u@h"}) {
    EXPECT_FALSE(ParseLinkUrl(text).ok()) << text;
  }
}

TEST(EdgeLinkTest, ABadFileOfAuthoritiesIsNamed) {
  EdgeLinkOptions options;
  options.url = {true, "localhost", 1};
  options.ca_file = "/nonexistent/ca.pem";
  const auto link = EdgeLink::Create(options, nullptr);
  ASSERT_TRUE(absl::IsInvalidArgument(link.status())) << link.status();
  EXPECT_NE(std::string(link.status().message()).find("/nonexistent/ca.pem"),
            std::string::npos);
}

}  // namespace
}  // namespace quire
