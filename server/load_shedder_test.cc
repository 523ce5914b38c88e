#include "server/load_shedder.h"

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "server/api_error.h"

namespace quire {
namespace {

constexpr absl::Duration kWait = absl::Seconds(7);
constexpr RequestTraits kPlain;
constexpr RequestTraits kExtra = {.has_extras = true};
constexpr RequestTraits kLow = {.priority = 1};
constexpr RequestTraits kUrgent = {.priority = -1};

class LoadShedderTest : public testing::Test {
 protected:
  void Set(double use) { shedder_.Update({.queue = use}); }
  bool Accepts(const RequestTraits& traits) {
    return shedder_.Check(traits, kWait).ok();
  }

  LoadShedder shedder_;
};

TEST_F(LoadShedderTest, EachStageRefusesMore) {
  Set(0.84);
  EXPECT_EQ(shedder_.stage(), ShedStage::kNone);
  for (const auto& traits : {kPlain, kExtra, kLow, kUrgent}) {
    EXPECT_TRUE(Accepts(traits));
  }
  EXPECT_TRUE(shedder_.Check(kWait).ok());

  Set(0.85);
  EXPECT_EQ(shedder_.stage(), ShedStage::kExtras);
  EXPECT_FALSE(Accepts(kExtra));
  for (const auto& traits : {kPlain, kLow, kUrgent}) {
    EXPECT_TRUE(Accepts(traits));
  }

  Set(0.92);
  EXPECT_EQ(shedder_.stage(), ShedStage::kLowPriority);
  EXPECT_FALSE(Accepts(kExtra));
  EXPECT_FALSE(Accepts(kLow));
  EXPECT_TRUE(Accepts(kPlain));
  EXPECT_TRUE(Accepts(kUrgent));
  EXPECT_TRUE(shedder_.Check(kWait).ok());

  Set(0.95);
  EXPECT_EQ(shedder_.stage(), ShedStage::kEverything);
  for (const auto& traits : {kPlain, kExtra, kLow, kUrgent}) {
    EXPECT_FALSE(Accepts(traits));
  }
  EXPECT_FALSE(shedder_.Check(kWait).ok());

  EXPECT_EQ(shedder_.num_refused(ShedStage::kExtras), 3);
  EXPECT_EQ(shedder_.num_refused(ShedStage::kLowPriority), 2);
  EXPECT_EQ(shedder_.num_refused(ShedStage::kEverything), 3);
}

TEST_F(LoadShedderTest, RefusalsAre503WithTheTimeToWait) {
  Set(1);
  const absl::Status status = shedder_.Check(kWait);
  EXPECT_EQ(HttpStatus(status), 503);
  EXPECT_EQ(RetryAfter(status), "7");
  EXPECT_TRUE(absl::StrContains(status.message(), "overloaded"));
}

TEST_F(LoadShedderTest, AStageEndsBelowWhereItBegan) {
  Set(0.95);
  Set(0.93);
  EXPECT_EQ(shedder_.stage(), ShedStage::kEverything);
  Set(0.91);
  EXPECT_EQ(shedder_.stage(), ShedStage::kLowPriority);
  Set(0.83);
  EXPECT_EQ(shedder_.stage(), ShedStage::kExtras);
  Set(0.9);  // It does not climb by this.
  EXPECT_EQ(shedder_.stage(), ShedStage::kExtras);
  Set(0.81);
  EXPECT_EQ(shedder_.stage(), ShedStage::kNone);
  Set(0.84);
  EXPECT_EQ(shedder_.stage(), ShedStage::kNone);
}

TEST_F(LoadShedderTest, TheLargestSignalCounts) {
  EXPECT_EQ(shedder_.Update({.queue = 0.1, .body_memory = 0.93}),
            ShedStage::kLowPriority);
  EXPECT_EQ(shedder_.Update({.queue = 0.1, .host_memory = 0.86}),
            ShedStage::kExtras);
  EXPECT_EQ(shedder_.Update({}), ShedStage::kNone);
}

TEST_F(LoadShedderTest, HostMemoryIsAPart) {
  const double use = HostMemoryUse();
  EXPECT_GE(use, 0);
  EXPECT_LE(use, 1);
}

}  // namespace
}  // namespace quire
