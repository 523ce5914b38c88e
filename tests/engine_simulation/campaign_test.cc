#include "tests/engine_simulation/campaign.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "absl/strings/match.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(CampaignTest, HandsBackStatusAndProgress) {
  Campaign clean([](Progress* progress) {
    progress->seed = 17;
    progress->coverage[Covered::kSteps] = 4;
    return absl::OkStatus();
  });
  EXPECT_TRUE(clean.Wait().ok());
  EXPECT_EQ(clean.progress().seed, 17);
  EXPECT_EQ(clean.progress().num_steps(), 4);
  // Longer than a pipe holds.
  const std::string text(1 << 20, 'x');
  Campaign failing(
      [&text](Progress*) { return absl::InternalError("I2: " + text); });
  EXPECT_EQ(failing.Wait(), absl::InternalError("I2: " + text));
}

TEST(CampaignTest, AFailedCheckIsAFinding) {
  const int one = 1;
  Campaign campaign([&one](Progress* progress) {
    progress->seed = 3;
    QUIRE_CHECK(one == 2);
    return absl::OkStatus();
  });
  const absl::Status status = campaign.Wait();
  EXPECT_TRUE(absl::StartsWith(status.message(), "check: one == 2 ("))
      << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "campaign_test.cc:"))
      << status;
  EXPECT_EQ(campaign.progress().seed, 3);
}

TEST(CampaignTest, DeathsAreFindings) {
  Campaign killed([](Progress*) {
    kill(getpid(), SIGKILL);
    return absl::OkStatus();
  });
  EXPECT_EQ(killed.Wait(), absl::InternalError("crash: signal 9"));
  Campaign endless([](Progress*) {
    raise(SIGALRM);
    return absl::OkStatus();
  });
  EXPECT_TRUE(absl::StartsWith(endless.Wait().message(), "hang: "));
  Campaign leaving([](Progress*) -> absl::Status { _exit(9); });
  EXPECT_EQ(leaving.Wait(), absl::InternalError("crash: exit status 9"));
}

TEST(CampaignTest, TheDestructorEndsTheChild) {
  Campaign campaign([](Progress*) -> absl::Status {
    while (true) pause();
  });
}

}  // namespace
}  // namespace quire
