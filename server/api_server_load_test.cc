// What the API does under load: deadlines, shares of keys, stages of shedding,
// and what it tells of it. (server/api_server_fixture.h)
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "gtest/gtest.h"
#include "server/api_server_fixture.h"
#include "server/gate.h"
#include "server/http/test_client.h"

namespace quire {
namespace {

constexpr char kKeyA[] = "Authorization: Bearer a\r\n";
constexpr char kKeyB[] = "Authorization: Bearer b\r\n";
constexpr char kShort[] = R"({"prompt":"hi","max_tokens":2})";

// Whether a prompt is in the cache tells who asked it.
TEST_F(ApiServerTest, KeysDoNotShareWhatIsCached) {
  http_options_.api_keys = {"a", "b"};
  Start();
  const std::string body = absl::StrCat(R"({"max_tokens":1,"prompt":")",
                                        std::string(100, 'x'), R"("})");
  const auto num_cached = [&](const char* key) {
    const Json usage = Parse(Complete(body, key))["usage"];
    return usage["prompt_tokens_details"]["cached_tokens"].get<int>();
  };
  EXPECT_EQ(num_cached(kKeyA), 0);
  EXPECT_GT(num_cached(kKeyA), 0);
  EXPECT_EQ(num_cached(kKeyB), 0);
  EXPECT_GT(num_cached(kKeyB), 0);
}

// The engine's thread stands in its first step until gate_ opens.
class LoadedServerTest : public ApiServerTest {
 protected:
  ~LoadedServerTest() override { gate_->Open(); }

  void StartBlocked(const char* fields = "") {
    on_collect_ = [gate = gate_] { gate->Wait(); };
    engine_options_.max_num_seqs = 1;
    engine_options_.max_num_batched_tokens = 64;
    Start();
    Send(kShort, fields);
    gate_->AwaitReached(kHangTimeout);
  }
  // A request that nobody waits for.
  void Send(absl::string_view body, absl::string_view fields = "") {
    const int num_before = NumQueued();
    clients_.push_back(Connect());
    ASSERT_TRUE(clients_.back().Send(
        RequestText({"POST", "/v1/completions"}, body, fields)));
    ASSERT_TRUE(WaitUntil([&] { return NumQueued() > num_before; }));
  }
  int NumQueued() {
    const EngineStats stats = loop_->Stats();
    return stats.num_waiting + stats.num_running;
  }

  // Shared with the engine, which stops after this is gone.
  const std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();
  std::vector<TestClient> clients_;
};

TEST_F(LoadedServerTest, TimeoutsEndWhatWaits) {
  StartBlocked();
  clients_.push_back(Connect());
  TestClient& client = clients_.back();
  ASSERT_TRUE(client.Send(
      RequestText({"POST", "/v1/completions"},
                  R"({"prompt":"hi","max_tokens":2,"timeout":0.05})")));
  ASSERT_TRUE(WaitUntil([&] { return NumQueued() == 2; }));
  const absl::Time over = Clock::Monotonic()->Now() + absl::Milliseconds(60);
  ASSERT_TRUE(WaitUntil([&] { return Clock::Monotonic()->Now() > over; }));
  gate_->Open();
  ExpectError(client.Receive(), 504, "timeout_error", nullptr,
              "deadline_exceeded");
  ExpectIdle();
  EXPECT_TRUE(absl::StrContains(
      Ask({"GET", "/metrics"}).body,
      "quire:requests_overdue_total{engine=\"0\",model_name=\"m\",state="
      "\"waiting\"} 1"));
}

TEST_F(ApiServerTest, TimeoutsEndWhatRuns) {
  // Steps long enough that the answer cannot be complete.
  on_collect_ = [] {
    const absl::Time begin = Clock::Monotonic()->Now();
    while (Clock::Monotonic()->Now() - begin < absl::Milliseconds(1)) {
    }
  };
  Start();
  // Of the field and the header, the shorter one.
  const TestResponse stream =
      Complete(R"({"prompt":"hi","max_tokens":8000,"ignore_eos":true,
                   "stream":true,"timeout":1000})",
               "X-Request-Timeout: 0.1\r\n");
  EXPECT_EQ(stream.status, 200);
  EXPECT_TRUE(absl::StrContains(stream.body, "deadline_exceeded"));
  EXPECT_FALSE(absl::StrContains(stream.body, "finish_reason\":\"length"));
  const TestResponse whole = Complete(
      R"({"prompt":"hi","max_tokens":8000,"ignore_eos":true,"timeout":0.1})");
  ExpectError(whole, 504, "timeout_error", nullptr, "deadline_exceeded");
  ExpectIdle();
}

TEST_F(ApiServerTest, TimeoutsOfTheServer) {
  gate_options_.default_timeout = absl::Milliseconds(100);
  gate_options_.max_timeout = absl::Milliseconds(200);
  on_collect_ = [] {
    const absl::Time begin = Clock::Monotonic()->Now();
    while (Clock::Monotonic()->Now() - begin < absl::Milliseconds(1)) {
    }
  };
  Start();
  for (const char* timeout : {"", R"(,"timeout":1000)"}) {
    const TestResponse response =
        Complete(absl::StrCat(R"({"prompt":"hi","max_tokens":8000,)",
                              R"("ignore_eos":true)", timeout, "}"));
    EXPECT_EQ(response.status, 504) << response.body;
  }
}

TEST_F(ApiServerTest, ImpossibleTimeoutsAreNamed) {
  Start();
  const char* const kInvalid = "invalid_request_error";
  for (const char* timeout : {"0", "-1", "\"1\"", "1e300", "true"}) {
    ExpectError(
        Complete(absl::StrCat(R"({"prompt":"a","timeout":)", timeout, "}")),
        400, kInvalid, "timeout", nullptr);
  }
  for (const char* timeout : {"0", "-1", "nan", "soon", "1s"}) {
    ExpectError(
        Complete(kShort, absl::StrCat("X-Request-Timeout: ", timeout, "\r\n")),
        400, kInvalid, "X-Request-Timeout", nullptr);
  }
  EXPECT_EQ(Complete(kShort, "X-Request-Timeout: 31536000\r\n").status, 200);
  EXPECT_EQ(Complete(R"({"prompt":"a","max_tokens":1,"timeout":null})").status,
            200);
}

TEST_F(LoadedServerTest, AKeyThatFloodsIsToldSoAndOthersAreServed) {
  http_options_.api_keys = {"a", "b"};
  engine_options_.max_num_queued_reqs = 20;
  StartBlocked(kKeyA);
  TestResponse refused;
  for (int i = 0; i < 10; ++i) Send(kShort, kKeyA);
  refused = Complete(kShort, kKeyA);
  ASSERT_EQ(refused.status, 429) << refused.body;
  EXPECT_TRUE(absl::StrContains(refused.body, "share of the queue"));
  EXPECT_FALSE(refused.Field("retry-after").empty());
  Send(kShort, kKeyB);
  gate_->Open();
  // B's is answered before the last of A's: only that it is answered is told
  // here, the order by the scheduler's tests.
  EXPECT_EQ(clients_.back().Receive().status, 200);
  ExpectIdle();
  EXPECT_EQ(loop_->Stats().refusals.num_share_full, 1);
}

TEST_F(LoadedServerTest, ALoneKeyHasTheWholeQueue) {
  http_options_.api_keys = {"a"};
  engine_options_.max_num_queued_reqs = 20;
  StartBlocked(kKeyA);
  for (int i = 0; i < 15; ++i) Send(kShort, kKeyA);
  EXPECT_EQ(loop_->Stats().refusals.num_share_full, 0);
}

TEST_F(LoadedServerTest, StagesRefuseMoreAndMore) {
  engine_options_.max_num_queued_reqs = 100;
  engine_options_.scheduling_policy = SchedulingPolicy::kPriority;
  StartBlocked();
  const auto stage = [&] { return Parse(Ask({"GET", "/load"}))["shed_stage"]; };
  // Refused by the stage, or by the model's name, which is looked at later.
  const auto is_shed = [&](const char* body) {
    const TestResponse response = Complete(body);
    EXPECT_TRUE(response.status == 503 || response.status == 504)
        << response.body;
    EXPECT_EQ(response.Field("retry-after").empty(), response.status == 504);
    return response.status == 503;
  };
  // A deadline that is over refuses what the stage lets pass.
  const char* const kExtra = R"({"prompt":"a","n":2,"timeout":1e-9})";
  const char* const kLow = R"({"prompt":"a","priority":1,"timeout":1e-9})";
  const char* const kPlain = R"({"prompt":"a","timeout":1e-9})";
  // The first slot counts as free until the first step is over.
  const auto fill = [&](int num_waiting) {
    while (NumQueued() < num_waiting + 1) Send(kShort);
  };
  fill(84);
  EXPECT_FALSE(is_shed(kExtra));
  EXPECT_EQ(stage(), "none");
  fill(86);
  EXPECT_TRUE(is_shed(kExtra));
  EXPECT_TRUE(is_shed(R"({"prompt":["a","b"],"timeout":1e-9})"));
  EXPECT_TRUE(
      is_shed(R"({"prompt":"a","echo":true,"logprobs":1,"timeout":1e-9})"));
  EXPECT_FALSE(is_shed(kLow));
  EXPECT_EQ(stage(), "extras");
  fill(93);
  EXPECT_TRUE(is_shed(kLow));
  EXPECT_FALSE(is_shed(kPlain));
  EXPECT_EQ(stage(), "low_priority");
  fill(95);
  EXPECT_TRUE(is_shed(kPlain));
  EXPECT_EQ(stage(), "everything");
  // Before anything is parsed.
  EXPECT_EQ(Complete("{").status, 503);
  const std::string metrics = Ask({"GET", "/metrics"}).body;
  EXPECT_TRUE(absl::StrContains(
      metrics, "quire:shed_stage{engine=\"0\",model_name=\"m\"} 3"));
  EXPECT_TRUE(absl::StrContains(metrics,
                                "quire:requests_refused_total{engine=\"0\","
                                "model_name=\"m\",reason=\"stage_extras\"} 3"));
  EXPECT_TRUE(absl::StrContains(metrics, "reason=\"stage_low_priority\"} 1"));
  EXPECT_TRUE(absl::StrContains(metrics, "reason=\"stage_everything\"} 2"));
  // Probes never wait, and what was accepted is answered.
  EXPECT_EQ(Status("/health/ready"), 200);
  gate_->Open();
  ExpectIdle();
  EXPECT_EQ(Complete(kShort).status, 200);
  EXPECT_EQ(stage(), "none");
}

TEST_F(LoadedServerTest, LoadTellsWhatVllmAndSglangTell) {
  StartBlocked();
  Send(kShort);
  Send(kShort);
  const Json load = Parse(Ask({"GET", "/load"}));
  EXPECT_EQ(load["server_load"], 3);
  EXPECT_EQ(load["dp_rank"], 0);
  EXPECT_EQ(load["num_reqs"], 3);
  EXPECT_GE(load["num_waiting_reqs"], 2);
  EXPECT_EQ(load["shed_stage"], "none");
  for (const char* name :
       {"num_tokens", "num_running_reqs", "num_waiting_tokens",
        "kv_cache_usage", "predicted_queue_delay_seconds", "saturation"}) {
    EXPECT_TRUE(load[name].is_number()) << name;
    EXPECT_GE(load[name], 0) << name;
  }
  gate_->Open();
  ExpectIdle();
}

TEST_F(ApiServerTest, KeyLimitsCountTokenizingToo) {
  const std::string path = absl::StrCat(testing::TempDir(), "/load_keys.yaml");
  {
    // SHA-256 of "a".
    std::ofstream file(path);
    file << "keys:\n- {name: team, requests_per_minute: 3, weight: 2, sha256: "
            "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb}"
            "\n";
  }
  http_options_.api_keys_file = path;
  Start();
  EXPECT_EQ(Ask({"POST", "/tokenize"}, R"({"prompt":"a"})", kKeyA).status, 200);
  EXPECT_EQ(Ask({"POST", "/detokenize"}, R"({"tokens":[98]})", kKeyA).status,
            200);
  // Also what is wrong.
  EXPECT_EQ(Ask({"POST", "/tokenize"}, "{", kKeyA).status, 400);
  for (const char* route : {"/tokenize", "/detokenize"}) {
    const TestResponse refused = Ask({"POST", route}, "{}", kKeyA);
    EXPECT_EQ(refused.status, 429);
    EXPECT_FALSE(refused.Field("retry-after").empty());
  }
  std::remove(path.c_str());
}

}  // namespace
}  // namespace quire
