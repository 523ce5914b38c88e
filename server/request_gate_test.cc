#include "server/request_gate.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "server/api_error.h"

namespace quire {
namespace {

// Says what it is told to say.
class StillEngine : public EngineLoop {
 public:
  RequestId NewRequestId() override { return 1; }
  absl::Status Submit(Request) override { return absl::OkStatus(); }
  void Abort(RequestId, int32_t, bool) override {}
  void StartDraining() override {}
  bool WaitUntilIdle(absl::Duration) override { return true; }
  EngineStats Stats() const override { return stats; }
  absl::Status Health() const override { return absl::OkStatus(); }
  bool is_hanging() const override { return false; }

  EngineStats stats;
};

class RequestGateTest : public testing::Test {
 protected:
  HttpRequest MakeRequest(size_t num_bytes, const std::string& field = "") {
    HttpRequest request;
    request.body.assign(num_bytes, ' ');
    request.arrival_time = clock_.Now();
    if (!field.empty()) request.headers = {{"x-request-timeout", field}};
    return request;
  }
  // Seconds from the arrival; none: there is no deadline.
  std::optional<double> Timeout(const RequestGateOptions& options,
                                const std::string& field,
                                std::optional<double> timeout) {
    RequestGate gate(options, &clock_);
    const auto deadline = gate.Deadline(MakeRequest(0, field), timeout);
    EXPECT_TRUE(deadline.ok()) << deadline.status();
    if (*deadline == absl::InfiniteFuture()) return std::nullopt;
    return absl::ToDoubleSeconds(*deadline - clock_.Now());
  }

  FakeClock clock_;
  StillEngine engine_;
};

TEST_F(RequestGateTest, BodiesShareOneBudgetOfMemory) {
  RequestGateOptions options;
  options.max_parsing_bytes = 32 * 1000;
  RequestGate gate(options, &clock_);
  {
    const auto first = gate.Enter(MakeRequest(600), engine_);
    ASSERT_TRUE(first.ok());
    const auto second = gate.Enter(MakeRequest(200), engine_);
    ASSERT_TRUE(second.ok());
    const auto third = gate.Enter(MakeRequest(300), engine_);
    EXPECT_EQ(HttpStatus(third.status()), 503);
    EXPECT_EQ(RetryAfter(third.status()), "1");
    EXPECT_TRUE(absl::StrContains(third.status().message(), "memory"));
    EXPECT_EQ(gate.Figures(engine_.stats).num_refused_memory, 1);
  }
  EXPECT_TRUE(gate.Enter(MakeRequest(1000), engine_).ok());
}

TEST_F(RequestGateTest, MemoryForParsingMovesTheStages) {
  RequestGateOptions options;
  options.max_parsing_bytes = 32 * 1000;
  RequestGate gate(options, &clock_);
  {
    const auto held = gate.Enter(MakeRequest(900), engine_);
    ASSERT_TRUE(held.ok());
    const auto other = gate.Enter(MakeRequest(10), engine_);
    EXPECT_EQ(gate.Figures(engine_.stats).stage, ShedStage::kExtras);
    EXPECT_FALSE(gate.Check({.has_extras = true}, engine_).ok());
    EXPECT_TRUE(gate.Check({}, engine_).ok());
  }
  // Also where nobody comes any more.
  EXPECT_EQ(gate.Figures(engine_.stats).stage, ShedStage::kNone);
}

TEST_F(RequestGateTest, DeadlinesOfALinkAreHeldToTheServers) {
  const absl::Time arrival = absl::UnixEpoch() + absl::Seconds(100);
  const absl::Time never = absl::InfiniteFuture();
  EXPECT_EQ(RequestGate({}, &clock_).Deadline(arrival, never), never);
  RequestGateOptions options;
  options.default_timeout = absl::Seconds(10);
  options.max_timeout = absl::Seconds(30);
  const RequestGate gate(options, &clock_);
  EXPECT_EQ(gate.Deadline(arrival, never), arrival + absl::Seconds(10));
  EXPECT_EQ(gate.Deadline(arrival, arrival + absl::Seconds(20)),
            arrival + absl::Seconds(20));
  EXPECT_EQ(gate.Deadline(arrival, arrival + absl::Hours(1)),
            arrival + absl::Seconds(30));
}

TEST_F(RequestGateTest, RefusalsTellThePredictedWait) {
  RequestGate gate({}, &clock_);
  engine_.stats.queue_use = 1;
  engine_.stats.predicted_delay = absl::Milliseconds(3500);
  const auto refused = gate.Enter(MakeRequest(1), engine_);
  EXPECT_EQ(HttpStatus(refused.status()), 503);
  EXPECT_EQ(RetryAfter(refused.status()), "4");
  engine_.stats.predicted_delay = absl::Hours(24);
  EXPECT_EQ(RetryAfter(gate.Enter(MakeRequest(1), engine_).status()), "60");
  EXPECT_EQ(gate.Figures(engine_.stats).num_refused[3], 2);
}

TEST_F(RequestGateTest, TheShortestTimeoutCounts) {
  const RequestGateOptions none;
  EXPECT_EQ(Timeout(none, "", std::nullopt), std::nullopt);
  EXPECT_EQ(Timeout(none, "", 5.0), 5);
  EXPECT_EQ(Timeout(none, "2.5", std::nullopt), 2.5);
  EXPECT_EQ(Timeout(none, "2.5", 5.0), 2.5);
  EXPECT_EQ(Timeout(none, "7", 5.0), 5);
  RequestGateOptions options;
  options.default_timeout = absl::Seconds(10);
  EXPECT_EQ(Timeout(options, "", std::nullopt), 10);
  EXPECT_EQ(Timeout(options, "", 50.0), 50);
  options.max_timeout = absl::Seconds(20);
  EXPECT_EQ(Timeout(options, "", std::nullopt), 10);
  EXPECT_EQ(Timeout(options, "", 50.0), 20);
  options.default_timeout = absl::ZeroDuration();
  EXPECT_EQ(Timeout(options, "", std::nullopt), 20);
  EXPECT_EQ(Timeout(none, "31536000", std::nullopt), 365 * 86400.0);
}

TEST_F(RequestGateTest, TimeoutsNobodyMeansAreRefused) {
  RequestGate gate({}, &clock_);
  for (const char* field :
       {"0", "-1", "nan", "inf", "1e9", "1e308", "x", "5s"}) {
    const auto deadline = gate.Deadline(MakeRequest(0, field), std::nullopt);
    EXPECT_EQ(HttpStatus(deadline.status()), 400) << field;
  }
}

TEST_F(RequestGateTest, SubmitsRefusalsAreTheServersOrTheCallersOwn) {
  absl::Status status = absl::ResourceExhaustedError("full");
  status.SetPayload(kRetryAfterPayload, absl::Cord("9"));
  EXPECT_EQ(HttpStatus(SubmitRefusal(status)), 503);
  EXPECT_EQ(RetryAfter(SubmitRefusal(status)), "9");
  status.SetPayload(kOwnLimitPayload, absl::Cord("queue"));
  EXPECT_EQ(HttpStatus(SubmitRefusal(status)), 429);
  EXPECT_EQ(RetryAfter(SubmitRefusal(status)), "9");
  EXPECT_EQ(HttpStatus(SubmitRefusal(absl::DeadlineExceededError("late"))),
            504);
  EXPECT_EQ(HttpStatus(SubmitRefusal(absl::UnavailableError("drains"))), 503);
}

}  // namespace
}  // namespace quire
