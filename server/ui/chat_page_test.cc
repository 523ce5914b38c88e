#include "server/ui/chat_page.h"

#include <openssl/sha.h>

#include <memory>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/http/test_client.h"

namespace quire {
namespace {

constexpr size_t kMaxPageBytes = 60 << 10;
constexpr int64_t kHashedBytes = SHA256_DIGEST_LENGTH;

class ChatPageTest : public testing::Test {
 protected:
  explicit ChatPageTest(bool has_page = true) {
    HttpServerOptions options;
    options.port = 0;
    options.num_workers = 1;
    options.api_keys = {"secret"};
    auto server = HttpServer::Create(options);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    if (has_page) AddChatPage(server_.get());
    EXPECT_TRUE(server_->Start().ok());
  }

  TestResponse Ask(absl::string_view method, absl::string_view fields = "",
                   bool has_no_body = false) {
    TestClient client;
    EXPECT_TRUE(client.Connect(server_->port()));
    client.Send(
        absl::StrCat(method, " / HTTP/1.1\r\nHost: x\r\n", fields, "\r\n"));
    return client.Receive(has_no_body || method == "HEAD");
  }

  std::unique_ptr<HttpServer> server_;
};

class NoChatPageTest : public ChatPageTest {
 protected:
  NoChatPageTest() : ChatPageTest(/*has_page=*/false) {}
};

// The text between the page's only <tag> and its end.
std::string ContentOf(const std::string& page, absl::string_view tag) {
  const std::string begin = absl::StrCat("<", tag, ">");
  const size_t from = page.find(begin) + begin.size();
  return page.substr(from, page.find(absl::StrCat("</", tag, ">")) - from);
}

std::string PolicyHash(const std::string& text) {
  std::string digest(kHashedBytes, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(),
         reinterpret_cast<unsigned char*>(&digest[0]));
  return absl::StrCat("'sha256-", absl::Base64Escape(digest), "'");
}

TEST_F(ChatPageTest, ServesThePageWithoutAKey) {
  const TestResponse page = Ask("GET");
  EXPECT_EQ(page.status, 200);
  EXPECT_EQ(page.Field("content-type"), "text/html; charset=utf-8");
  EXPECT_EQ(page.Field("cache-control"), "no-cache");
  EXPECT_EQ(page.Field("x-content-type-options"), "nosniff");
  EXPECT_TRUE(absl::StartsWith(page.body, "<!DOCTYPE html>"));
  EXPECT_TRUE(absl::EndsWith(page.body, "</html>\n"));
  EXPECT_LE(page.body.size(), kMaxPageBytes);
}

TEST_F(ChatPageTest, PolicyAllowsOnlyThePagesOwnScriptAndStyle) {
  const TestResponse page = Ask("GET");
  const std::string policy = page.Field("content-security-policy");
  for (const std::string& directive :
       {std::string("default-src 'none'"), std::string("connect-src 'self'"),
        absl::StrCat("script-src ", PolicyHash(ContentOf(page.body, "script"))),
        absl::StrCat("style-src ", PolicyHash(ContentOf(page.body, "style"))),
        std::string("frame-ancestors 'none'"),
        std::string("require-trusted-types-for 'script'")}) {
    EXPECT_TRUE(absl::StrContains(absl::StrCat(policy, ";"),
                                  absl::StrCat(directive, ";")))
        << directive << " in " << policy;
  }
  EXPECT_FALSE(absl::StrContains(policy, "unsafe"));
}

TEST_F(ChatPageTest, NeverParsesHtmlAndLoadsNothing) {
  const TestResponse page = Ask("GET");
  for (const char* word : {"innerHTML", "outerHTML", "insertAdjacentHTML",
                           "document.write", "eval(", "Function(", " src="}) {
    EXPECT_FALSE(absl::StrContains(page.body, word)) << word;
  }
}

TEST_F(ChatPageTest, AnswersNotModifiedToItsTag) {
  const std::string etag = Ask("GET").Field("etag");
  ASSERT_GT(etag.size(), 2u);
  for (const std::string& match :
       {etag, absl::StrCat("W/", etag), absl::StrCat("\"other\", ", etag),
        std::string("*")}) {
    const TestResponse again =
        Ask("GET", absl::StrCat("If-None-Match: ", match, "\r\n"),
            /*has_no_body=*/true);
    EXPECT_EQ(again.status, 304) << match;
    EXPECT_EQ(again.body, "");
    EXPECT_EQ(again.Field("etag"), etag);
    EXPECT_FALSE(again.Field("content-security-policy").empty());
  }
  EXPECT_EQ(Ask("GET", "If-None-Match: \"other\"\r\n").status, 200);
}

TEST_F(ChatPageTest, AnswersHead) {
  const TestResponse page = Ask("GET");
  const TestResponse head = Ask("HEAD");
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.body, "");
  EXPECT_EQ(head.Field("content-length"), absl::StrCat(page.body.size()));
  EXPECT_EQ(head.Field("etag"), page.Field("etag"));
  EXPECT_EQ(Ask("POST").status, 405);
}

TEST_F(NoChatPageTest, RootIsUnknown) { EXPECT_EQ(Ask("GET").status, 404); }

}  // namespace
}  // namespace quire
