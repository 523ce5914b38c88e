#include "server/key_limiter.h"

#include <memory>
#include <utility>
#include <vector>

#include "engine/base/clock.h"
#include "gtest/gtest.h"
#include "server/api_error.h"

namespace quire {
namespace {

class KeyLimiterTest : public testing::Test {
 protected:
  std::unique_ptr<KeyTicket> Admit(int64_t num_prompt_tokens = 1) {
    auto ticket = limiter_.Admit(owner_);
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    if (!ticket.ok()) return nullptr;
    if (*ticket != nullptr) (*ticket)->CountTokens(num_prompt_tokens);
    return *std::move(ticket);
  }
  // The seconds that a refusal asks for, after its message.
  std::string Refusal() {
    const auto ticket = limiter_.Admit(owner_);
    EXPECT_FALSE(ticket.ok());
    EXPECT_EQ(HttpStatus(ticket.status()), 429);
    return absl::StrCat(ticket.status().message(), " / ",
                        RetryAfter(ticket.status()));
  }

  FakeClock clock_;
  KeyLimiter limiter_{&clock_};
  ApiKeyOwner owner_{"team", {}};
};

TEST_F(KeyLimiterTest, WithoutLimitsEverythingIsAdmitted) {
  std::vector<std::unique_ptr<KeyTicket>> tickets;
  for (int i = 0; i < 1000; ++i) tickets.push_back(Admit(1 << 20));
  owner_.name = "";
  EXPECT_EQ(Admit(), nullptr);
}

TEST_F(KeyLimiterTest, RequestsAtATimeEndWithTheirTickets) {
  owner_.limits.max_concurrent_requests = 2;
  auto first = Admit();
  auto second = Admit();
  EXPECT_EQ(Refusal(),
            "the limit of this API key is reached: 2 requests at a time / 1");
  first->Release();
  first->Release();  // Counts once.
  auto third = Admit();
  Refusal();
  second.reset();
  Admit();
  // Another key has its own.
  owner_.name = "other";
  Admit();
}

TEST_F(KeyLimiterTest, RequestsPerMinuteRefillSteadily) {
  owner_.limits.requests_per_minute = 6;
  for (int i = 0; i < 6; ++i) Admit();
  EXPECT_EQ(Refusal(),
            "the limit of this API key is reached: 6 requests per minute / "
            "10");
  clock_.Advance(absl::Seconds(9));
  EXPECT_EQ(Refusal().substr(Refusal().size() - 3), "/ 1");
  clock_.Advance(absl::Seconds(1));
  Admit();
  Refusal();
  // Never more than a minute's worth.
  clock_.Advance(absl::Hours(1));
  for (int i = 0; i < 6; ++i) Admit();
  Refusal();
}

TEST_F(KeyLimiterTest, TokensOfPromptsAndAnswersAreOneBudget) {
  owner_.limits.tokens_per_minute = 600;  // 10 per second.
  auto ticket = Admit(/*num_prompt_tokens=*/400);
  ticket->CountTokens(300);  // 100 owed.
  EXPECT_EQ(Refusal(),
            "the limit of this API key is reached: 600 tokens per minute / "
            "11");
  clock_.Advance(absl::Seconds(10));
  Refusal();
  clock_.Advance(absl::Milliseconds(100));
  // Longer than a minute's worth: served, and owed.
  Admit(/*num_prompt_tokens=*/6000);
  clock_.Advance(absl::Seconds(599));
  Refusal();
  clock_.Advance(absl::Seconds(2));
  Admit();
}

TEST_F(KeyLimiterTest, ChangedLimitsCountAtOnceAndInProportion) {
  owner_.limits.requests_per_minute = 10;
  for (int i = 0; i < 5; ++i) Admit();
  owner_.limits.requests_per_minute = 100;  // Half of it is left.
  for (int i = 0; i < 50; ++i) Admit();
  Refusal();
  owner_.limits.requests_per_minute = 0;
  for (int i = 0; i < 1000; ++i) Admit();
}

}  // namespace
}  // namespace quire
