// Requests: framing, limits, errors, authentication, connections.
#include "server/http_server.h"

#include <sys/resource.h>
#include <sys/socket.h>

#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "server/http/server_fixture.h"

namespace quire {
namespace {

constexpr absl::string_view kHealth = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
constexpr absl::string_view kEcho = "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n";

std::string Post(absl::string_view body, absl::string_view fields = "") {
  return absl::StrCat("POST /echo HTTP/1.1\r\nHost: x\r\n", fields,
                      "Content-Length: ", body.size(), "\r\n\r\n", body);
}

TEST_F(HttpServerTest, AnswersAndKeepsTheConnection) {
  Start();
  TestClient client = Connect();
  for (int i = 0; i < 3; ++i) {
    const TestResponse response = client.Ask(kHealth);
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, "ok");
    EXPECT_EQ(response.Field("content-type"), "text/plain");
    EXPECT_EQ(response.Field("content-length"), "2");
    EXPECT_EQ(response.Field("connection"), "");
    EXPECT_FALSE(response.Field("date").empty());
  }
  EXPECT_TRUE(WaitUntil([&] { return server_->num_open_requests() == 0; }));
}

TEST_F(HttpServerTest, ClosesWhenAsked) {
  Start();
  TestClient client = Connect();
  const TestResponse response = client.Ask(
      "GET /health HTTP/1.1\r\nHost: x\r\nConnection: foo, CLOSE\r\n\r\n");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.Field("connection"), "close");
  EXPECT_TRUE(client.ReceiveEof());
}

TEST_F(HttpServerTest, Http10ClosesAndNeedsNoHost) {
  Start();
  TestClient client = Connect();
  const TestResponse response = client.Ask("GET /health HTTP/1.0\r\n\r\n");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, "ok");
  EXPECT_TRUE(client.ReceiveEof());
}

TEST_F(HttpServerTest, ServesPipelinedRequestsInOrder) {
  Start();
  TestClient client = Connect();
  std::string requests;
  for (int i = 0; i < 50; ++i)
    absl::StrAppend(&requests, Post(absl::StrCat(i)));
  // Answered without a handler, hence at once, between the others.
  requests += "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n";
  requests += Post("last");
  ASSERT_TRUE(client.Send(requests));
  for (int i = 0; i < 50; ++i) {
    const TestResponse response = client.Receive();
    EXPECT_EQ(response.status, 200);
    EXPECT_TRUE(absl::EndsWith(response.body, absl::StrCat("\n\n", i)));
  }
  EXPECT_EQ(client.Receive().status, 404);
  EXPECT_TRUE(absl::EndsWith(client.Receive().body, "last"));
}

TEST_F(HttpServerTest, ManyPipelinedErrorsDoNotRecurse) {
  Start();
  TestClient client = Connect();
  constexpr int kNumRequests = 5000;
  std::string requests;
  for (int i = 0; i < kNumRequests; ++i) {
    requests += "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n";
  }
  ASSERT_TRUE(client.Send(requests));
  for (int i = 0; i < kNumRequests; ++i) {
    ASSERT_EQ(client.Receive().status, 404);
  }
}

TEST_F(HttpServerTest, HandlersSeeTheRequestAsSent) {
  Start();
  const TestResponse response =
      Ask(Post("{}",
               "X-Percent: a%0d%0ab%41\r\nContent-Type: Application/JSON; "
               "charset=utf-8\r\nREMOTE_ADDR: 1.2.3.4\r\nRange: "
               "bytes=0-1,0-1\r\nX-Empty:\r\nUser-Agent:  me \t\r\n"));
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(absl::StartsWith(response.body, "POST /echo\n"));
  EXPECT_TRUE(absl::StrContains(response.body, "\nx-percent=a%0d%0ab%41\n"));
  EXPECT_TRUE(absl::StrContains(
      response.body, "\ncontent-type=Application/JSON; charset=utf-8\n"));
  EXPECT_TRUE(absl::StrContains(response.body, "\nuser-agent=me\n"));
  EXPECT_FALSE(absl::StrContains(response.body, "1.2.3.4"));
  EXPECT_FALSE(absl::StrContains(response.body, "range"));
  EXPECT_TRUE(absl::EndsWith(response.body, "\n\n{}"));
}

TEST_F(HttpServerTest, LeavesTheQueryOutOfThePath) {
  Start();
  const TestResponse response =
      Ask("GET /echo?a=%zz&b HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(absl::StartsWith(response.body, "GET /echo\n"));
}

// The tail is everything, as it came; the library in between decodes nothing.
TEST_F(HttpServerTest, LastSegmentOfARouteMayStandForAnything) {
  Start();
  const auto get = [this](absl::string_view target) {
    return Ask(absl::StrCat("GET ", target, " HTTP/1.1\r\nHost: x\r\n\r\n"));
  };
  for (const char* tail :
       {"a", "a/b/c", "/", "a%2Fb", "%00%0d%0a", "%zz%", "..", "../echo",
        "{name}", "literal/", "liter%61l", "a;b=c", "()[]*\\|"}) {
    const TestResponse response = get(absl::StrCat("/names/", tail, "?query"));
    EXPECT_EQ(response.status, 200) << tail;
    EXPECT_EQ(response.body, absl::StrCat("/names/", tail, "\n", tail));
  }
  EXPECT_EQ(get("/names/literal").body, "literal");
  for (const char* target : {"/names/", "/names", "/name/a", "//names/a"}) {
    EXPECT_EQ(get(target).status, 404) << target;
  }
}

TEST_F(HttpServerTest, LastSegmentOfARouteIsBehindTheKeyToo) {
  options_.api_keys = {"k"};
  Start();
  const std::string get = "GET /names/a HTTP/1.1\r\nHost: x\r\n";
  EXPECT_EQ(Ask(get + "\r\n").status, 401);
  EXPECT_EQ(Ask(get + "Authorization: Bearer k\r\n\r\n").status, 200);
  EXPECT_EQ(Ask("POST /names/a HTTP/1.1\r\nHost: x\r\n\r\n").status, 405);
}

TEST_F(HttpServerTest, HeadHasTheLengthButNoBody) {
  Start();
  TestClient client = Connect();
  client.Send("HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n");
  const TestResponse response = client.Receive(/*has_no_body=*/true);
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.Field("content-length"), "2");
  client.Send("HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(client.Receive(/*has_no_body=*/true).status, 404);
  // Nothing of a body is left in between.
  EXPECT_EQ(client.Ask(kHealth).body, "ok");
}

TEST_F(HttpServerTest, FormAndMultipartBodiesArriveUntouched) {
  Start();
  // curl -d sends JSON as a form; cpp-httplib alone answers 413 above 8 KiB.
  const std::string body =
      absl::StrCat("{\"a\":\"%41&=+", std::string(100000, 'x'));
  for (const char* type :
       {"application/x-www-form-urlencoded", "multipart/form-data; boundary=b",
        "multipart/form-data"}) {
    const TestResponse response =
        Ask(Post(body, absl::StrCat("Content-Type: ", type, "\r\n")));
    EXPECT_EQ(response.status, 200) << type;
    EXPECT_TRUE(absl::EndsWith(response.body, body)) << type;
    EXPECT_TRUE(
        absl::StrContains(response.body, absl::StrCat("content-type=", type)));
  }
}

TEST_F(HttpServerTest, TakesBodiesUpToTheLimit) {
  options_.max_body_bytes = 1 << 20;
  Start();
  const std::string body(1 << 20, 'b');
  const TestResponse response = Ask(Post(body));
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(absl::EndsWith(response.body, absl::StrCat("\n\n", body)));
  // Refused by its announcement, and though it is sent all the same.
  TestClient client = Connect();
  EXPECT_EQ(client.Ask(Post(body + "b")).status, 413);
  EXPECT_TRUE(client.ReceiveEof());
}

TEST_F(HttpServerTest, LimitsTheMemoryOfAllBodies) {
  options_.max_body_bytes = 1000;
  Start();
  // All but the last byte of each: 64 fit, and a few bytes more.
  std::vector<TestClient> clients;
  for (int i = 0; i < 64; ++i) {
    clients.push_back(Connect());
    const std::string request = Post(std::string(1000, 'b'));
    clients.back().Send(
        absl::string_view(request).substr(0, request.size() - 1));
  }
  TestClient refused = Connect();
  // The bodies above may arrive after this one, so one of them may be refused
  // in its place.
  refused.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n" +
               std::string(998, 'b'));
  clients.push_back(std::move(refused));
  int num_refused = 0;
  int num_served = 0;
  EXPECT_TRUE(WaitUntil([&] {
    for (TestClient& client : clients) {
      char byte;
      if (recv(client.fd(), &byte, 1, MSG_DONTWAIT | MSG_PEEK) > 0) {
        const TestResponse response = client.Receive();
        EXPECT_EQ(response.status, 503);
        EXPECT_EQ(response.Field("retry-after"), "1");
        ++num_refused;
        break;
      }
    }
    return num_refused > 0;
  }));
  for (TestClient& client : clients) {
    client.Send("b");
    num_served += client.Receive().status == 200;
  }
  EXPECT_EQ(num_served, 64);
  // What they took was given back.
  for (int i = 0; i < 70; ++i) {
    ASSERT_EQ(Ask(Post(std::string(1000, 'b'))).status, 200);
  }
}

TEST_F(HttpServerTest, DecodesChunkedBodiesSplitAnywhere) {
  Start();
  const std::string request =
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
      "4\r\nabcd\r\n00A;ext=\"1\"\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n";
  TestClient client = Connect();
  for (size_t split = 1; split < request.size(); ++split) {
    client.Send(absl::string_view(request).substr(0, split));
    client.Send(absl::string_view(request).substr(split));
    const TestResponse response = client.Receive();
    ASSERT_EQ(response.status, 200) << split;
    ASSERT_TRUE(absl::EndsWith(response.body, "\n\nabcd0123456789")) << split;
  }
  for (const char c : request) client.Send(std::string(1, c));
  EXPECT_TRUE(absl::EndsWith(client.Receive().body, "\n\nabcd0123456789"));
}

TEST_F(HttpServerTest, LimitsChunkedBodies) {
  options_.max_body_bytes = 16;
  Start();
  const std::string head =
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  EXPECT_EQ(Ask(head + "10\r\n0123456789abcdef\r\n0\r\n\r\n").status, 200);
  EXPECT_EQ(Ask(head + "11\r\n").status, 413);
  EXPECT_EQ(Ask(head + "8\r\n01234567\r\n9\r\n").status, 413);
  EXPECT_EQ(Ask(head + "fffffffffffffffff\r\n").status, 413);
  EXPECT_EQ(Ask(head + "-1\r\n").status, 400);
  EXPECT_EQ(Ask(head + "0x4\r\n").status, 400);
  EXPECT_EQ(Ask(head + "4\nabcd").status, 400);
  EXPECT_EQ(Ask(head + "4\r\nabcde\r\n").status, 400);
  EXPECT_EQ(Ask(head + " 4\r\n").status, 400);
  EXPECT_EQ(Ask(head + "\r\n").status, 400);
  EXPECT_EQ(num_echoes_, 1);
}

TEST_F(HttpServerTest, AnswersExpectContinue) {
  Start();
  TestClient client = Connect();
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: "
      "100-continue\r\n\r\n");
  EXPECT_EQ(client.Receive().status, 100);
  client.Send("abc");
  EXPECT_TRUE(absl::EndsWith(client.Receive().body, "\n\nabc"));
  // A body that will be refused is not asked for.
  const TestResponse response = client.Ask(
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\nExpect: "
      "100-continue\r\n\r\n");
  EXPECT_EQ(response.status, 413);
  EXPECT_EQ(Ask("GET /echo HTTP/1.1\r\nHost: x\r\nExpect: x\r\n\r\n").status,
            417);
}

// Each rule of the head guard once through the socket; head_guard_test has the
// variants. One per known hole of the library (CVE-2025-46728, -53628, -52887,
// -66570, CVE-2026-22776, -28435, -34441, -45352, -45372, ...) is among them.
TEST_F(HttpServerTest, RefusesMalformedAndHostileHeads) {
  Start();
  const std::string get = "GET /echo HTTP/1.1\r\nHost: x\r\n";
  const std::string post = "POST /echo HTTP/1.1\r\nHost: x\r\n";
  std::string many_fields;
  for (int i = 0; i < 200; ++i) absl::StrAppend(&many_fields, "a: b\r\n");
  std::string large_head;
  for (int i = 0; i < 20; ++i) {
    absl::StrAppend(&large_head, "a: ", std::string(4000, 'b'), "\r\n");
  }
  const struct {
    std::string request;
    int status;
  } kCases[] = {
      {"GET /echo\r\n\r\n", 400},                 // HTTP/0.9
      {"\x16\x03\x01\x02", 400},                  // TLS
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},  // HTTP/2
      {"G@T /echo HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"GET http://x/echo HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"GET /echo HTTP/3.0\r\nHost: x\r\n\r\n", 505},
      {"GET /echo HTTP/1.1\nHost: x\n\n", 400},
      {"GET /echo HTTP/1.1\r\n\r\n", 400},
      {"GET /" + std::string(3000, 'a') + " HTTP/1.1\r\n", 414},
      {get + "Host: x\r\n\r\n", 400},
      {get + "Bad Name: x\r\n\r\n", 400},
      {get + "a: b\r\n folded\r\n\r\n", 400},
      {get + "a: \x01\r\n\r\n", 400},
      {get + std::string("a: \0b\r\n\r\n", 9), 400},
      {get + many_fields + "\r\n", 431},
      {get + large_head + "\r\n", 431},
      {get + "a: " + std::string(100000, 'b'), 431},
      {post + "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400},
      {post + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx", 400},
      {post + "Content-Length: -1\r\n\r\n", 400},
      {post + "Content-Length: 99999999999999999999\r\n\r\n", 413},
      {post + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501},
      {post + "Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", 415},
      {post + "Transfer-Encoding: chunked\r\n\r\n-8\r\n", 400},
  };
  for (const auto& test_case : kCases) {
    TestClient client = Connect();
    const TestResponse response = client.Ask(test_case.request);
    EXPECT_EQ(response.status, test_case.status)
        << test_case.request.substr(0, 200);
    EXPECT_TRUE(absl::StartsWith(response.body, "{\"error\":"));
    EXPECT_EQ(response.Field("connection"), "close");
    EXPECT_TRUE(client.ReceiveEof());
  }
  EXPECT_EQ(num_echoes_, 0);
  EXPECT_EQ(Ask(kHealth).status, 200);
}

TEST_F(HttpServerTest, BodiesAreNeverReadAsRequests) {
  Start();
  TestClient client = Connect();
  // The library leaves the body of a GET in the connection.
  const std::string hidden = "GET /echo HTTP/1.1\r\nHost: hidden\r\n\r\n";
  EXPECT_EQ(client
                .Ask(absl::StrCat("GET /health HTTP/1.1\r\nHost: x\r\n",
                                  "Content-Length: ", hidden.size(), "\r\n\r\n",
                                  hidden))
                .body,
            "ok");
  EXPECT_TRUE(absl::StartsWith(client.Ask(Post("")).body, "POST /echo\n"));
  EXPECT_EQ(num_echoes_, 1);
  // An error leaves a body unread: nothing of it may be served.
  client.Send(absl::StrCat("GET /nowhere HTTP/1.1\r\nHost: x\r\n",
                           "Content-Length: ", hidden.size(), "\r\n\r\n",
                           hidden));
  EXPECT_EQ(client.Receive().status, 404);
  EXPECT_TRUE(client.ReceiveEof());
  EXPECT_EQ(num_echoes_, 1);
}

TEST_F(HttpServerTest, UnknownPathsAndMethods) {
  Start();
  const TestResponse missing = Ask("GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(missing.status, 404);
  EXPECT_EQ(missing.Field("content-type"), "application/json");
  EXPECT_TRUE(absl::StartsWith(missing.body, "{\"error\":{\"message\":\""));
  for (const char* path : {"/", "/health/", "//health", "/HEALTH", "/healt%68",
                           "/./health", "/echo/../health"}) {
    EXPECT_EQ(
        Ask(absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: x\r\n\r\n")).status,
        404)
        << path;
  }
  TestClient client = Connect();
  const TestResponse wrong =
      client.Ask("DELETE /echo HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.Field("allow"), "GET, HEAD, POST");
  EXPECT_EQ(client.Ask("BREW /health HTTP/1.1\r\nHost: x\r\n\r\n").status, 405);
  EXPECT_EQ(client.Ask(kHealth).status, 200);
}

TEST_F(HttpServerTest, AsksForAKeyBeforeTheBody) {
  options_.api_keys = {"first-key", "second-key"};
  Start();
  EXPECT_EQ(Ask(kHealth).status, 200);
  TestClient client = Connect();
  const TestResponse refused = client.Ask(
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n");
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.Field("www-authenticate"), "Bearer");
  EXPECT_TRUE(absl::StrContains(refused.body, "invalid_api_key"));
  EXPECT_TRUE(client.ReceiveEof());
  for (const char* value :
       {"Bearer", "Bearer ", "Basic first-key", "first-key", "Bearer first-ke",
        "Bearer first-key2", "Bearer first-key, Bearer second-key",
        "Bearer first%2dkey"}) {
    EXPECT_EQ(
        Ask(Post("x", absl::StrCat("Authorization: ", value, "\r\n"))).status,
        401)
        << value;
  }
  EXPECT_EQ(Ask(Post("x",
                     "Authorization: Bearer first-key\r\n"
                     "Authorization: Bearer first-key\r\n"))
                .status,
            400);
  EXPECT_EQ(num_echoes_, 0);
  EXPECT_EQ(Ask(Post("x", "Authorization: Bearer first-key\r\n")).status, 200);
  EXPECT_EQ(Ask(Post("x", "authorization: bearer second-key \r\n")).status,
            200);
  // Unknown paths need none: there is nothing behind them.
  EXPECT_EQ(Ask("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n").status, 404);
}

TEST_F(HttpServerTest, FailedHandlersAnswer500WithoutTheirText) {
  Start();
  TestClient client = Connect();
  const TestResponse thrown =
      client.Ask("GET /throw HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(thrown.status, 500);
  EXPECT_FALSE(absl::StrContains(thrown.head + thrown.body, "secret"));
  EXPECT_EQ(client.Ask("GET /drop HTTP/1.1\r\nHost: x\r\n\r\n").status, 500);
  EXPECT_EQ(client.Ask(kHealth).status, 200);
}

TEST_F(HttpServerTest, ErrorBodiesCanBeReplaced) {
  options_.error_body = [](int status, absl::string_view message) {
    if (status == 405) throw std::runtime_error("renderer");
    return absl::StrCat("<", status, ":", message, ">");
  };
  Start();
  EXPECT_EQ(Ask("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n").body,
            "<404:no such path>");
  EXPECT_EQ(Ask("PUT /echo HTTP/1.1\r\nHost: x\r\n\r\n").status, 405);
  EXPECT_TRUE(absl::StartsWith(
      Ask("GET /drop HTTP/1.1\r\nHost: x\r\n\r\n").body, "<500:"));
}

TEST_F(HttpServerTest, HeadDeadline) {
  options_.head_timeout = absl::Milliseconds(100);
  Start();
  TestClient client = Connect();
  client.Send("GET /health HTTP/1.1\r\nHos");
  EXPECT_EQ(client.Receive().status, 408);
  EXPECT_TRUE(client.ReceiveEof());
}

TEST_F(HttpServerTest, HeadDeadlineIsNotMovedByBytes) {
  options_.head_timeout = absl::Milliseconds(200);
  Start();
  TestClient client = Connect();
  client.Send("GET /health HTTP/1.1\r\n");
  const absl::Time start = absl::Now();
  // One byte at a time for as long as the server listens to it.
  std::string answer;
  while (absl::Now() - start < absl::Seconds(20)) {
    if (!client.Send("a") || server_->num_open_requests() > 0) break;
    char byte;
    if (recv(client.fd(), &byte, 1, MSG_DONTWAIT | MSG_PEEK) > 0) break;
    absl::SleepFor(absl::Milliseconds(5));  // The pace of the attack.
  }
  EXPECT_EQ(client.Receive().status, 408);
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
}

TEST_F(HttpServerTest, BodyDeadline) {
  options_.body_timeout = absl::Milliseconds(100);
  Start();
  TestClient client = Connect();
  client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc");
  EXPECT_EQ(client.Receive().status, 408);
  EXPECT_TRUE(client.ReceiveEof());
  EXPECT_EQ(num_echoes_, 0);
}

TEST_F(HttpServerTest, BodyMustKeepUpARate) {
  options_.body_grace = absl::Milliseconds(100);
  options_.body_timeout = absl::Minutes(10);
  Start();
  TestClient client = Connect();
  client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc");
  EXPECT_EQ(client.Receive().status, 408);
  EXPECT_TRUE(client.ReceiveEof());
  TestClient chunked = Connect();
  chunked.Send(
      "POST /echo HTTP/1.1\r\nHost: x\r\n"
      "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
  EXPECT_EQ(chunked.Receive().status, 408);
  EXPECT_EQ(num_echoes_, 0);
}

TEST_F(HttpServerTest, BytesOfTheBodyBuyTime) {
  options_.body_grace = absl::Milliseconds(1);
  options_.min_body_bytes_per_second = 1;
  Start();
  TestClient client = Connect();
  // 10 bytes pay for 10 seconds, of which 50 ms are used.
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n"
      "0123456789");
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_EQ(client.Ask("ab").status, 200);
}

TEST_F(HttpServerTest, TellsOfEveryResponse) {
  using Response = std::tuple<std::string, std::string, int>;
  std::mutex mu;
  std::vector<Response> seen;
  options_.api_keys = {"key"};
  options_.max_body_bytes = 10;
  options_.on_response = [&](absl::string_view method, absl::string_view route,
                             int status) {
    std::lock_guard<std::mutex> lock(mu);
    seen.emplace_back(std::string(method), std::string(route), status);
  };
  Start();
  for (const char* request :
       {"GET /health?x HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n",
        "BREW /health HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /names/secret HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /park HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n",
        "GET /drop HTTP/1.1\r\nHost: x\r\n\r\n", "\x01\r\n\r\n"}) {
    Ask(request);
  }
  auto [client, responder] = Park();
  responder->StartStream();
  responder->Write("data: x\n\n");
  responder->Finish();
  EXPECT_EQ(client.Receive().status, 200);
  const std::vector<Response> expected = {
      {"GET", "/health", 200},       {"GET", "", 404},
      {"BREW", "/health", 405},      {"GET", "/echo", 401},
      {"GET", "/names/{name}", 401}, {"POST", "/park", 413},
      {"GET", "/drop", 500},         {"", "", 400},
      {"GET", "/park", 200}};
  std::lock_guard<std::mutex> lock(mu);
  EXPECT_EQ(seen, expected);
}

TEST_F(HttpServerTest, IdleConnectionsAreClosedSilently) {
  options_.keep_alive_timeout = absl::Milliseconds(100);
  Start();
  TestClient fresh = Connect();
  TestClient used = Connect();
  EXPECT_EQ(used.Ask(kHealth).status, 200);
  for (TestClient* client : {&fresh, &used}) {
    std::string rest;
    EXPECT_TRUE(client->ReceiveEof(&rest));
    EXPECT_EQ(rest, "");
  }
}

TEST_F(HttpServerTest, SlowClientsDoNotHoldWorkers) {
  options_.num_workers = 1;
  Start();
  std::vector<TestClient> slow;
  for (int i = 0; i < 200; ++i) {
    slow.push_back(Connect());
    slow.back().Send(i % 2 ? "GET /hea"
                           : "POST /echo HTTP/1.1\r\nHost: x\r\n"
                             "Content-Length: 100\r\n\r\nabc");
  }
  EXPECT_EQ(Ask(kHealth).body, "ok");
  EXPECT_EQ(num_echoes_, 0);
}

TEST_F(HttpServerTest, OverTheConnectionLimitAnswers503) {
  options_.max_connections = 4;
  Start();
  std::vector<std::pair<TestClient, std::shared_ptr<HttpResponder>>> parked;
  for (int i = 0; i < 4; ++i) parked.push_back(Park());
  TestClient refused = Connect();
  const TestResponse response = refused.Ask(kEcho);
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.Field("retry-after"), "1");
  EXPECT_TRUE(refused.ReceiveEof());
  refused.Close();
  // Who watches the server is answered, once.
  TestClient probe = Connect();
  EXPECT_EQ(probe.Ask(kHealth).status, 200);
  EXPECT_TRUE(probe.ReceiveEof());
  probe.Close();
  EXPECT_EQ(num_echoes_, 0);
  parked.clear();
  EXPECT_TRUE(WaitUntil([&] { return Ask(kEcho).status == 200; }));
}

TEST_F(HttpServerTest, WhoAsksForNothingMakesRoom) {
  options_.max_connections = 4;
  Start();
  auto [busy, responder] = Park();
  // Many more than the limit and what may be refused beyond it.
  std::vector<TestClient> idle;
  for (int i = 0; i < 1000; ++i) {
    idle.push_back(Connect());
    if (i % 2) idle.back().Send("GET /hea");
  }
  EXPECT_EQ(Ask(kHealth).status, 200);
  EXPECT_EQ(Ask(kEcho).status, 200);
  EXPECT_TRUE(idle.front().ReceiveEof());
  responder->Send(200, "text/plain", "not closed");
  EXPECT_EQ(busy.Receive().body, "not closed");
}

TEST_F(HttpServerTest, OutOfDescriptorsAnswers503) {
  Start();
  rlimit old_limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old_limit), 0);
  TestClient client = Connect();
  ASSERT_EQ(client.Ask(kHealth).status, 200);
  // Descriptors are given out lowest first: with the limit right above this
  // one, the server, which shares the process, gets no other.
  TestClient refused;
  rlimit limit = old_limit;
  limit.rlim_cur = refused.fd() + 1;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_TRUE(refused.Connect(port()));
  const TestResponse response = refused.Receive();
  EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &old_limit), 0);
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.Field("retry-after"), "1");
  EXPECT_EQ(client.Ask(kHealth).status, 200);
  EXPECT_EQ(Ask(kHealth).status, 200);
}

TEST_F(HttpServerTest, SurvivesAStormOfConnects) {
  Start();
  std::vector<TestClient> clients;
  for (int i = 0; i < 1000; ++i) {
    clients.push_back(Connect());
    ASSERT_TRUE(clients.back().Send(kHealth)) << i;
  }
  for (TestClient& client : clients) EXPECT_EQ(client.Receive().status, 200);
}

TEST_F(HttpServerTest, PortInUse) {
  Start();
  HttpServerOptions options = options_;
  options.port = port();
  auto second = HttpServer::Create(options);
  ASSERT_TRUE(second.ok());
  const absl::Status status = (*second)->Start();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(absl::StrContains(status.message(), absl::StrCat(port())));
  EXPECT_TRUE(absl::StrContains(status.message(), "in use")) << status;
}

TEST_F(HttpServerTest, OptionsAreChecked) {
  HttpServerOptions options;
  options.port = 65536;
  EXPECT_FALSE(HttpServer::Create(options).ok());
  options = HttpServerOptions();
  options.num_workers = 0;
  EXPECT_FALSE(HttpServer::Create(options).ok());
  options = HttpServerOptions();
  options.stream_ping_interval = absl::ZeroDuration();
  EXPECT_FALSE(HttpServer::Create(options).ok());
}

}  // namespace
}  // namespace quire
