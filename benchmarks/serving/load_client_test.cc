#include "benchmarks/serving/load_client.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/serving/fake_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class Recorder : public ResponseHandler {
 public:
  void OnEvent(absl::string_view data, double now) override {
    events.emplace_back(data);
    EXPECT_GE(now, last_time);
    last_time = now;
  }
  void OnEnd(const ResponseEnd& response, double) override {
    EXPECT_FALSE(is_done);
    is_done = true;
    end = response;
  }
  std::vector<std::string> events;
  ResponseEnd end;
  bool is_done = false;
  double last_time = 0;
};

std::unique_ptr<LoadClient> Connect(int port,
                                    const LoadClientOptions& options = {}) {
  ServerUrl url;
  url.host = "127.0.0.1";
  url.port = port;
  auto client = LoadClient::Create(url, options);
  EXPECT_TRUE(client.ok()) << client.status();
  return client.ok() ? std::move(*client) : nullptr;
}

void PollUntilIdle(LoadClient* client) {
  const double deadline = MonotonicSeconds() + 30;
  while (client->num_open() > 0 && MonotonicSeconds() < deadline) {
    client->Poll(1);
  }
  EXPECT_EQ(client->num_open(), 0);
}

Recorder FetchOne(LoadClient* client, const std::string& body = "{}") {
  Recorder recorder;
  HttpMessage message;
  message.path = "/path";
  message.headers = {{"X-Name", "value"}};
  message.body = body;
  client->Start(message, &recorder);
  PollUntilIdle(client);
  return recorder;
}

TEST(LoadClientTest, StreamsOverOneConnection) {
  FakeServer server([](int number, const std::string&) {
    return FakeAnswer{StreamAnswer({absl::StrCat(number), "[DONE]"})};
  });
  const auto client = Connect(server.port());
  for (int i = 0; i < 3; ++i) {
    const Recorder recorder = FetchOne(client.get());
    EXPECT_TRUE(recorder.end.status.ok()) << recorder.end.status;
    EXPECT_EQ(recorder.end.http_status, 200);
    EXPECT_TRUE(recorder.end.is_event_stream);
    EXPECT_THAT(recorder.events, ElementsAre(absl::StrCat(i), "[DONE]"));
  }
  EXPECT_EQ(server.num_connections(), 1);
  EXPECT_EQ(
      server.requests()[0],
      absl::StrCat("POST /path HTTP/1.1\r\nHost: 127.0.0.1:", server.port(),
                   "\r\nX-Name: value\r\nContent-Length: 2\r\n\r\n{}"));
}

TEST(LoadClientTest, ManyAtOnce) {
  FakeServer server([](int, const std::string& request) {
    return FakeAnswer{StreamAnswer({request.substr(request.size() - 4)})};
  });
  const auto client = Connect(server.port());
  std::vector<Recorder> recorders(200);
  for (size_t i = 0; i < recorders.size(); ++i) {
    HttpMessage message;
    message.path = "/";
    message.body = absl::StrCat(1000 + i);
    client->Start(message, &recorders[i]);
  }
  EXPECT_EQ(client->num_open(), 200);
  PollUntilIdle(client.get());
  for (size_t i = 0; i < recorders.size(); ++i) {
    EXPECT_THAT(recorders[i].events, ElementsAre(absl::StrCat(1000 + i)));
  }
}

TEST(LoadClientTest, LargeBodies) {
  FakeServer server([](int, const std::string& request) {
    return FakeAnswer{SizedAnswer(
        200, absl::StrCat(request.size() - request.find("\r\n\r\n") - 4))};
  });
  const auto client = Connect(server.port());
  const Recorder recorder = FetchOne(client.get(), std::string(20 << 20, 'x'));
  EXPECT_TRUE(recorder.end.status.ok()) << recorder.end.status;
  EXPECT_EQ(recorder.end.body, absl::StrCat(20 << 20));
}

TEST(LoadClientTest, ErrorsOfHttpAreAnswers) {
  FakeServer server([](int, const std::string&) {
    return FakeAnswer{SizedAnswer(500, "it broke")};
  });
  const auto client = Connect(server.port());
  const Recorder recorder = FetchOne(client.get());
  EXPECT_TRUE(recorder.end.status.ok());
  EXPECT_EQ(recorder.end.http_status, 500);
  EXPECT_EQ(recorder.end.body, "it broke");
}

TEST(LoadClientTest, ClosedInTheMiddle) {
  FakeServer server([](int, const std::string&) {
    return FakeAnswer{StreamAnswer({"a", "b"}, /*ends=*/false),
                      /*closes=*/true};
  });
  const auto client = Connect(server.port());
  const Recorder recorder = FetchOne(client.get());
  EXPECT_EQ(recorder.end.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(recorder.end.status.message()), HasSubstr("middle"));
  EXPECT_THAT(recorder.events, ElementsAre("a", "b"));
}

TEST(LoadClientTest, NotHttp) {
  FakeServer server([](int, const std::string&) {
    return FakeAnswer{"220 mail.example ESMTP\r\n\r\n"};
  });
  const auto client = Connect(server.port());
  EXPECT_EQ(FetchOne(client.get()).end.status.code(),
            absl::StatusCode::kDataLoss);
}

// The first connection answers once and then closes on the second request.
TEST(LoadClientTest, AKeptConnectionThatDiedIsReplaced) {
  FakeServer server([](int number, const std::string&) {
    if (number == 1) return FakeAnswer{"", /*closes=*/true};
    return FakeAnswer{SizedAnswer(200, absl::StrCat(number))};
  });
  const auto client = Connect(server.port());
  EXPECT_EQ(FetchOne(client.get()).end.body, "0");
  EXPECT_EQ(FetchOne(client.get()).end.body, "2");
  EXPECT_EQ(server.num_connections(), 2);
}

TEST(LoadClientTest, AFreshConnectionThatClosesIsAnError) {
  FakeServer server([](int, const std::string&) {
    return FakeAnswer{"", /*closes=*/true};
  });
  const auto client = Connect(server.port());
  EXPECT_THAT(std::string(FetchOne(client.get()).end.status.message()),
              HasSubstr("without an answer"));
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST(LoadClientTest, SilenceEnds) {
  FakeServer server([](int, const std::string&) {
    return FakeAnswer{"", false, /*is_silent=*/true};
  });
  LoadClientOptions options;
  options.idle_timeout_seconds = 0.05;
  const auto client = Connect(server.port(), options);
  EXPECT_EQ(FetchOne(client.get()).end.status.code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(LoadClientTest, Cancelled) {
  FakeServer server([](int, const std::string&) {
    return FakeAnswer{"", false, /*is_silent=*/true};
  });
  const auto client = Connect(server.port());
  Recorder recorder;
  client->Start(HttpMessage{"GET", "/", {}, ""}, &recorder);
  client->Poll(0);
  client->CancelAll();
  EXPECT_TRUE(recorder.is_done);
  EXPECT_EQ(recorder.end.status.code(), absl::StatusCode::kCancelled);
  const ResponseEnd end =
      client->Fetch(HttpMessage{"GET", "/", {}, ""}, /*timeout_seconds=*/0.01);
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(LoadClientTest, AFetchIsCancelled) {
  std::atomic<bool> is_cancelled{false};
  FakeServer server([&](int, const std::string&) {
    is_cancelled = true;
    return FakeAnswer{"", false, /*is_silent=*/true};
  });
  const auto client = Connect(server.port());
  const ResponseEnd end = client->Fetch(HttpMessage{"GET", "/", {}, ""},
                                        /*timeout_seconds=*/60, &is_cancelled);
  EXPECT_EQ(end.status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(client->num_open(), 0);
}

TEST(LoadClientTest, NothingListens) {
  ServerUrl url;
  url.host = "127.0.0.1";
  url.port = UnusedPort();
  const auto client = LoadClient::Create(url, {});
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(client.status().message()),
              HasSubstr(absl::StrCat("127.0.0.1:", url.port)));
}

TEST(LoadClientTest, TlsWithWhoSpeaksNone) {
  FakeServer server(
      [](int, const std::string&) { return FakeAnswer{SizedAnswer(200, "")}; });
  ServerUrl url;
  url.host = "127.0.0.1";
  url.port = server.port();
  url.is_tls = true;
  LoadClientOptions options;
  options.connect_timeout_seconds = 0.2;
  // The server waits for a head that never comes.
  const absl::Status status = LoadClient::Create(url, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no handshake within"));
}

TEST(ServerUrlTest, Parts) {
  const auto url = ParseServerUrl("https://api.example.com/base/v1/");
  ASSERT_TRUE(url.ok());
  EXPECT_TRUE(url->is_tls);
  EXPECT_EQ(url->host, "api.example.com");
  EXPECT_EQ(url->port, 443);
  EXPECT_EQ(url->prefix, "/base/v1");
  const auto v6 = ParseServerUrl("http://[::1]:81");
  ASSERT_TRUE(v6.ok());
  EXPECT_EQ(v6->host, "::1");
  EXPECT_EQ(v6->Origin(), "http://[::1]:81");
}

TEST(ServerUrlTest, Malformed) {
  for (const char* text :
       {"", "localhost:80", "ftp://x", "http://", "http://:80", "http://a:0",
        "http://a:65536", "http://a:b", "http://a:", "http://a b",
        "http://u:p@h", "http://a?b", "http://[::1", "http://[::1]x",
        "http://a\r\nX: y"}) {
    EXPECT_EQ(ParseServerUrl(text).status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
}

}  // namespace
}  // namespace quire
