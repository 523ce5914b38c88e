// What is told of requests, from the socket to the observer.
#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "server/api_server_fixture.h"
#include "server/telemetry/request_record.h"

namespace quire {
namespace {

constexpr char kTrace[] = "0af7651916cd43dd8448eb211c80319c";
constexpr char kParentField[] =
    "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";

// Keeps the records of all requests that have ended.
class Recorder : public RequestObserver {
 public:
  void OnBegin(RequestRecord* record) override {
    std::lock_guard<std::mutex> lock(mu_);
    ++num_begun_;
  }
  void OnEnd(const RequestRecord& record) override {
    std::lock_guard<std::mutex> lock(mu_);
    records_.push_back(record);
    changed_.notify_all();
  }
  int64_t max_body_bytes() const override { return 16; }

  // The first `count`; fewer if they do not come.
  std::vector<RequestRecord> Wait(size_t count) {
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait_for(lock, absl::ToChronoMilliseconds(kHangTimeout),
                      [&] { return records_.size() >= count; });
    return records_;
  }
  int num_begun() {
    std::lock_guard<std::mutex> lock(mu_);
    return num_begun_;
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  std::vector<RequestRecord> records_;  // Guarded by mu_, as the next one.
  int num_begun_ = 0;
};

class TelemetryTest : public ApiServerTest {
 protected:
  TelemetryTest() { http_options_.observer = recorder_; }

  // The record of the only request.
  RequestRecord TheRecord() {
    const std::vector<RequestRecord> records = recorder_->Wait(1);
    EXPECT_EQ(records.size(), 1u);
    return records.empty() ? RequestRecord() : records[0];
  }

  const std::shared_ptr<Recorder> recorder_ = std::make_shared<Recorder>();
};

TEST_F(TelemetryTest, TellsOfAWholeAnswer) {
  http_options_.api_keys = {"k"};
  Start();
  const TestResponse response = Chat(
      kHi, absl::StrCat("Authorization: Bearer k\r\nX-Request-Id: my-id\r\n",
                        kParentField, "tracestate: a=1\r\n"));
  ASSERT_EQ(response.status, 200);
  const RequestRecord record = TheRecord();
  EXPECT_EQ(record.request_id, "my-id");
  EXPECT_EQ(record.trace.trace_id, kTrace);
  EXPECT_EQ(record.trace.state, "a=1");
  EXPECT_EQ(response.Field("traceresponse"),
            absl::StrCat("00-", kTrace, "-", record.trace.span_id, "-01"));
  EXPECT_EQ(record.method, "POST");
  EXPECT_EQ(record.route, "/v1/chat/completions");
  EXPECT_EQ(record.path, "");
  EXPECT_EQ(record.status, 200);
  EXPECT_EQ(record.owner, "key-1");
  EXPECT_TRUE(record.is_api);
  EXPECT_FALSE(record.is_cut_off);
  EXPECT_STREQ(record.operation, "chat");
  EXPECT_EQ(record.model, "m");
  EXPECT_FALSE(record.is_stream);
  EXPECT_EQ(record.max_tokens, 5);
  EXPECT_EQ(record.body, std::string(kHi).substr(0, 16));
  const Json usage = Parse(response)["usage"];
  EXPECT_EQ(record.num_prompt_tokens, usage["prompt_tokens"]);
  EXPECT_EQ(record.num_completion_tokens, 5);
  EXPECT_STREQ(record.finish_reason, "length");
  EXPECT_LE(record.arrival_time, record.scheduled_time);
  EXPECT_LE(record.scheduled_time, record.first_token_time);
  EXPECT_LE(record.first_token_time, record.last_token_time);
  EXPECT_LE(record.last_token_time, record.end_time);
}

TEST_F(TelemetryTest, TellsOfAStream) {
  Start();
  const TestResponse response = Complete(
      R"({"prompt":"hi","max_tokens":3,"stream":true,"ignore_eos":true,
          "request_id":"in-body"})");
  ASSERT_EQ(response.status, 200);
  EXPECT_EQ(response.Field("x-request-id"), "in-body");
  const RequestRecord record = TheRecord();
  EXPECT_EQ(record.request_id, "in-body");
  EXPECT_TRUE(record.is_stream);
  EXPECT_EQ(record.num_completion_tokens, 3);
  EXPECT_FALSE(record.trace.has_trace());
  EXPECT_EQ(response.Field("traceresponse"), "");
}

TEST_F(TelemetryTest, TellsOfAClientThatWentAway) {
  Start();
  {
    TestClient client = Connect();
    client.Send(RequestText({"POST", "/v1/completions"}, kLong));
    client.ReceiveUntil("data: ");
  }
  const RequestRecord record = TheRecord();
  EXPECT_TRUE(record.is_cut_off);
  EXPECT_EQ(record.status, 200);
  EXPECT_GT(record.num_completion_tokens, 0);
  EXPECT_STREQ(record.finish_reason, "abort");
  ExpectIdle();
}

TEST_F(TelemetryTest, EveryAnswerHasAnId) {
  http_options_.api_keys = {"k"};
  http_options_.max_head_bytes = 1024;
  Start();
  const std::pair<std::string, int> requests[] = {
      {"GET /nowhere?secret=1 HTTP/1.1\r\nHost: x\r\n\r\n", 404},
      {"GET /tokenize HTTP/1.1\r\nHost: x\r\n\r\n", 405},
      {"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 401},
      {"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", 200},
      {"nonsense\r\n\r\n", 400},
      {absl::StrCat("GET / HTTP/1.1\r\nHost: ", std::string(2000, 'x')), 431}};
  size_t num_records = 0;
  for (const auto& [text, status] : requests) {
    const TestResponse response = Connect().Ask(text);
    ASSERT_EQ(response.status, status) << text;
    const std::string id = response.Field("x-request-id");
    EXPECT_TRUE(IsHarmlessRequestId(id)) << id;
    const auto records = recorder_->Wait(++num_records);
    ASSERT_EQ(records.size(), num_records);
    const RequestRecord& record = records.back();
    EXPECT_EQ(record.request_id, id);
    EXPECT_EQ(record.status, status);
    EXPECT_EQ(record.is_probe, status == 200);
    EXPECT_FALSE(record.is_api);  // Strangers have no spans.
    EXPECT_EQ(record.path, status == 404 ? "/nowhere" : "");
  }
  // Those whose heads were not readable have no beginning.
  EXPECT_EQ(recorder_->num_begun(), 4);
}

TEST_F(TelemetryTest, DuplicateAndBadTracesAreNone) {
  Start();
  for (const std::string& fields : {absl::StrCat(kParentField, kParentField),
                                    std::string("traceparent: 00-0-0-01\r\n"),
                                    std::string("tracestate: a=1\r\n")}) {
    EXPECT_EQ(Chat(kHi, fields).Field("traceresponse"), "") << fields;
  }
}

TEST_F(TelemetryTest, ManyRequestsOnOneConnection) {
  Start();
  TestClient client = Connect();
  for (int i = 0; i < 20; ++i) {
    ASSERT_EQ(client.Ask(RequestText({"GET", "/v1/models"}, "")).status, 200);
  }
  const auto records = recorder_->Wait(20);
  std::map<std::string, int> ids;
  for (const RequestRecord& record : records) ++ids[record.request_id];
  EXPECT_EQ(ids.size(), 20u);
}

// Every route says who may use it, and none of those that ask for a key
// answers without one, whatever the method.
TEST_F(TelemetryTest, NoRouteForgetsTheKey) {
  http_options_.api_keys = {"k"};
  Start();
  const auto routes = http_->routes();
  EXPECT_EQ(routes.size(), std::size(kPublicRoutes) + std::size(kApiRoutes));
  for (const HttpRoute& route : routes) {
    const bool is_public =
        std::any_of(std::begin(kPublicRoutes), std::end(kPublicRoutes),
                    [&](const Route& r) { return r.path == route.path; });
    EXPECT_EQ(route.access == RouteAccess::kApi, !is_public) << route.path;
    const Route as_asked = {route.method.c_str(), route.path.c_str()};
    EXPECT_EQ(Ask(as_asked, "{}").status == 401, !is_public) << route.path;
    EXPECT_NE(Ask(as_asked, "{}", "Authorization: Bearer k\r\n").status, 401);
    // Other spellings of the path are other paths.
    // But for what may stand for a name.
    const std::string own_end =
        absl::EndsWith(route.path, "}") ? "" : absl::StrCat(route.path, "/");
    for (const std::string& path :
         {absl::StrCat("/", route.path), own_end,
          absl::StrCat("/.", route.path), absl::StrCat("/x/..", route.path),
          absl::StrReplaceAll(route.path, {{"e", "%65"}}),
          absl::AsciiStrToUpper(route.path)}) {
      if (path == route.path || path.empty()) continue;
      EXPECT_EQ(Ask({route.method.c_str(), path.c_str()}, "{}").status, 404)
          << path;
    }
  }
}

class RequestMetricsTest : public ApiServerTest {
 protected:
  RequestMetricsTest() { has_request_metrics_ = true; }
};

TEST_F(RequestMetricsTest, ArePartOfAnswers) {
  Start();
  const Json whole = Parse(Chat(kHi))["metrics"];
  ASSERT_TRUE(whole.is_object()) << whole;
  for (const char* name : {"time_to_first_token_ms", "generation_time_ms",
                           "queue_time_ms", "mean_itl_ms"}) {
    ASSERT_TRUE(whole[name].is_number()) << name << whole;
    EXPECT_GE(whole[name].get<double>(), 0) << name;
  }
  EXPECT_GT(whole["tokens_per_second"].get<double>(), 0);
  EXPECT_NEAR(whole["mean_itl_ms"].get<double>() * 4,
              whole["generation_time_ms"].get<double>(), 0.01);
  // One token has no gaps.
  EXPECT_TRUE(Parse(Complete(
      R"({"prompt":"a","max_tokens":1})"))["metrics"]["mean_itl_ms"]
                  .is_null());
  // Several generations have no times that are theirs.
  EXPECT_TRUE(
      Parse(Complete(R"({"prompt":"a","max_tokens":2,"n":2})"))["metrics"]
          .is_null());
  EXPECT_TRUE(
      Parse(Complete(R"({"prompt":["a","b"],"max_tokens":2})"))["metrics"]
          .is_null());
  // Of a stream with the usage, if that is asked for.
  const auto events = ParseEvents(
      Complete(R"({"prompt":"a","max_tokens":3,"ignore_eos":true,"stream":true,
                   "stream_options":{"include_usage":true}})")
          .body);
  ASSERT_FALSE(events.empty());
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].contains("metrics"), i + 1 == events.size());
  }
  EXPECT_TRUE(events.back()["metrics"]["queue_time_ms"].is_number());
}

TEST_F(ApiServerTest, HasNoRequestMetricsUnasked) {
  Start();
  EXPECT_FALSE(Parse(Chat(kHi)).contains("metrics"));
}

}  // namespace
}  // namespace quire
