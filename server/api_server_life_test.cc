// Draining, failing, clients that go, and a full queue.
// (server/api_server_fixture.h)
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/api_server.h"
#include "server/api_server_fixture.h"
#include "server/gate.h"
#include "server/http/test_client.h"
#include "server/recording_responder.h"

namespace quire {
namespace {

TEST_F(ApiServerTest, MaxTokensIsClippedToTheContext) {
  Start();
  const std::string prompt(kMaxModelLen - 3, 'a');
  const Json answer = Parse(Complete(
      absl::StrCat(R"({"prompt":")", prompt,
                   R"(","max_tokens":2147483647,"ignore_eos":true})")));
  EXPECT_EQ(answer["usage"]["prompt_tokens"], kMaxModelLen - 2);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 2);
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
}

TEST_F(ApiServerTest, DrainingFinishesWhatRuns) {
  Gate gate;
  on_collect_ = gate.Waiter();
  Start();
  TestClient stream = Connect();
  std::string body = kHi;
  body.insert(1, R"("stream":true,)");
  stream.Send(RequestText({"POST", "/v1/chat/completions"}, body));
  TestClient plain = Connect();
  plain.Send(RequestText({"POST", "/v1/chat/completions"}, kHi));
  gate.AwaitReached(kHangTimeout);
  EXPECT_TRUE(WaitUntil([&] {
    const EngineStats stats = loop_->Stats();
    return http_->num_open_requests() == 2 &&
           stats.num_running + stats.num_waiting == 2;
  }));
  api_->StartDraining();
  EXPECT_EQ(Status("/health"), 503);
  EXPECT_EQ(Status("/health/ready"), 503);
  EXPECT_EQ(Status("/health/live"), 200);
  EXPECT_EQ(Status("/metrics"), 200);
  for (const Route& route : kApiRoutes) {
    ExpectError(Ask(route, "{}"), 503, "service_unavailable_error", nullptr,
                "service_unavailable");
  }
  gate.Open();
  EXPECT_EQ(Parse(plain.Receive())["usage"]["completion_tokens"], 5);
  const std::vector<Json> events = ParseEvents(stream.Receive().body);
  EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "length");
  ExpectIdle();
}

TEST_F(ApiServerTest, EngineFailureIsSeenEverywhere) {
  Gate gate;
  on_collect_ = gate.Waiter();
  fail_collect_ = [](int64_t) { return absl::InternalError("secret"); };
  Start();
  std::vector<TestClient> clients;
  for (int i = 0; i < 12; ++i) {
    clients.push_back(Connect());
    std::string body = kHi;
    if (i % 2 == 0) body.insert(1, R"("stream":true,)");
    clients.back().Send(RequestText({"POST", "/v1/chat/completions"}, body));
  }
  EXPECT_TRUE(WaitUntil([&] {
    const EngineStats stats = loop_->Stats();
    return stats.num_running + stats.num_waiting == 12;
  }));
  gate.Open();
  for (int i = 0; i < 12; ++i) {
    const TestResponse response = clients[i].Receive();
    EXPECT_TRUE(response.is_complete);
    EXPECT_FALSE(absl::StrContains(response.body, "secret")) << response.body;
    // A stream that has not begun answers with a status, too.
    if (response.status == 200) {
      EXPECT_EQ(i % 2, 0);
      const std::vector<Json> events = ParseEvents(response.body);
      ASSERT_FALSE(events.empty());
      EXPECT_TRUE(events.back().contains("error"));
    } else {
      EXPECT_GE(response.status, 500);
      EXPECT_TRUE(Parse(response).contains("error"));
    }
  }
  // Steps fail until the engine gives up.
  for (int i = 0; i < 5 && loop_->Health().ok(); ++i) {
    EXPECT_GE(Chat(kHi).status, 500);
  }
  EXPECT_FALSE(loop_->Health().ok());
  EXPECT_EQ(Status("/health"), 503);
  EXPECT_EQ(Status("/health/ready"), 503);
  EXPECT_EQ(Status("/health/live"), 503);
  ExpectError(Chat(kHi), 503, "service_unavailable_error", nullptr,
              "service_unavailable");
}

TEST_F(ApiServerTest, DisconnectBeforeTheFirstTokenAborts) {
  Gate gate;
  on_collect_ = gate.Waiter();
  Start();
  TestClient client = Connect();
  client.Send(RequestText({"POST", "/v1/completions"}, kLong));
  gate.AwaitReached(kHangTimeout);
  client.Close();
  EXPECT_TRUE(WaitUntil([&] { return http_->num_open_requests() == 0; }));
  gate.Open();
  ExpectIdle();
  EXPECT_LT(loop_->Stats().num_generation_tokens, 4000);
  EXPECT_TRUE(absl::StrContains(
      Ask({"GET", "/metrics"}).body,
      R"({engine="0",finished_reason="abort",model_name="m"} 1)"));
}

TEST_F(ApiServerTest, DisconnectWithinTheStreamAborts) {
  Start();
  TestClient client = Connect();
  client.Send(RequestText({"POST", "/v1/completions"}, kLong));
  EXPECT_NE(client.ReceiveUntil("data: {"), "");
  client.Close();
  ExpectIdle();
  EXPECT_LT(loop_->Stats().num_generation_tokens, 7999);
  EXPECT_TRUE(absl::StrContains(
      Ask({"GET", "/metrics"}).body,
      R"({engine="0",finished_reason="abort",model_name="m"} 1)"));
}

TEST_F(ApiServerTest, FullQueueIsOverload) {
  Gate gate;
  on_collect_ = gate.Waiter();
  engine_options_.max_num_seqs = 1;
  engine_options_.max_num_queued_reqs = 2;
  Start();
  TestClient running = Connect();
  running.Send(RequestText({"POST", "/v1/chat/completions"}, kHi));
  gate.AwaitReached(kHangTimeout);
  std::vector<TestClient> waiting;
  for (int i = 0; i < 8; ++i) {
    waiting.push_back(Connect());
    waiting.back().Send(RequestText({"POST", "/v1/chat/completions"}, kHi));
  }
  // Some wait, the others are refused at once, also in part: both prompts of a
  // call or none.
  EXPECT_TRUE(WaitUntil([&] { return loop_->Stats().num_waiting >= 1; }));
  TestResponse refused;
  EXPECT_TRUE(WaitUntil([&] { return http_->num_open_requests() <= 3; }));
  refused = Complete(R"({"prompt":["a","b","c"],"stream":true})",
                     "X-Request-Id: mine\r\n");
  ExpectError(refused, 503, "service_unavailable_error", nullptr,
              "service_unavailable");
  EXPECT_EQ(refused.Field("x-request-id"), "mine");
  gate.Open();
  int num_served = 0;
  for (TestClient& client : waiting) {
    const TestResponse response = client.Receive();
    if (response.status == 200) {
      ++num_served;
    } else {
      ExpectError(response, 503, "service_unavailable_error", nullptr,
                  "service_unavailable");
    }
  }
  EXPECT_EQ(running.Receive().status, 200);
  EXPECT_GE(num_served, 1);
  EXPECT_LE(num_served, 3);
  ExpectIdle();
}

}  // namespace
}  // namespace quire
