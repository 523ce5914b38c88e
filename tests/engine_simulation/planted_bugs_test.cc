// The negative control: with a bug switched on, the simulation must fail, in
// the way that bug fails; without it, the same history must be clean.
#include "tests/engine_simulation/planted_bugs.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "tests/engine_simulation/campaign.h"
#include "tests/engine_simulation/shrink.h"
#include "tests/engine_simulation/simulation.h"

namespace quire {
namespace {

constexpr int64_t kMaxSteps = 1'000'000;

class Plant {
 public:
  explicit Plant(PlantedBug bug) { active_planted_bug = bug; }
  ~Plant() { active_planted_bug = PlantedBug::kNone; }
};

class PlantedBugTest : public testing::TestWithParam<PlantedBugInfo> {};

TEST_P(PlantedBugTest, IsFound) {
  const PlantedBugInfo& info = GetParam();
  Progress progress;
  absl::Status status;
  {
    Plant plant(info.bug);
    status = RunSeedsApart(1, 1, kMaxSteps, &progress);
  }
  ASSERT_FALSE(status.ok()) << "not found";
  std::printf("%s: seed %lld, after %lld steps: %s\n", info.name,
              static_cast<long long>(progress.seed),
              static_cast<long long>(progress.coverage[Covered::kSteps]),
              std::string(status.message()).c_str());
  EXPECT_TRUE(std::any_of(info.symptoms.begin(), info.symptoms.end(),
                          [&status](absl::string_view symptom) {
                            return absl::StartsWith(status.message(), symptom);
                          }))
      << status;
  // It is the plant that fails: without it, the whole history is clean.
  const absl::Status healthy =
      SimulateApart(DrawHistory(progress.seed), INT64_MAX);
  EXPECT_TRUE(healthy.ok()) << healthy;
}

INSTANTIATE_TEST_SUITE_P(
    All, PlantedBugTest, testing::ValuesIn(AllPlantedBugs()),
    [](const testing::TestParamInfo<PlantedBugInfo>& info) {
      return absl::StrReplaceAll(info.param.name, {{"-", "_"}});
    });

TEST(PlantedBugsTest, TheTableHasThemAll) {
  const auto& bugs = AllPlantedBugs();
  ASSERT_EQ(bugs.size() + 1, static_cast<size_t>(PlantedBug::kNumPlantedBugs));
  for (size_t i = 0; i < bugs.size(); ++i) {
    EXPECT_EQ(static_cast<size_t>(bugs[i].bug), i + 1);
    EXPECT_FALSE(bugs[i].symptoms.empty()) << bugs[i].name;
  }
}

// The seed and the number of steps that a failure prints are enough to see it
// again, and one step less is clean.
TEST(PlantedBugsTest, AFailureReplaysExactly) {
  Plant plant(PlantedBug::kCopyForgotten);
  Progress progress;
  const absl::Status status = RunSeedsApart(1, 1, kMaxSteps, &progress);
  ASSERT_FALSE(status.ok());
  Progress replay;
  EXPECT_EQ(RunSeedsApart(progress.seed, 1, progress.num_steps(), &replay),
            status);
  EXPECT_EQ(replay.seed, progress.seed);
  EXPECT_EQ(replay.num_steps(), progress.num_steps());
  EXPECT_TRUE(
      RunSeedsApart(progress.seed, 1, progress.num_steps() - 1, &replay).ok());
}

class ShrinkTest : public testing::TestWithParam<PlantedBug> {};

TEST_P(ShrinkTest, FewRequestsAreLeft) {
  Plant plant(GetParam());
  // The failure of a large history, so that there is something to shrink.
  History history;
  absl::Status status;
  int64_t num_steps = 0;
  for (uint64_t seed = 1; seed < 2000 && status.ok(); ++seed) {
    history = DrawHistory(seed);
    if (history.requests.size() < 10) continue;
    Progress progress;
    status = RunSeedsApart(seed, 1, 1'000, &progress);
    if (progress.seed != seed) status = absl::OkStatus();  // Of another one.
    num_steps = progress.num_steps();
  }
  ASSERT_FALSE(status.ok());
  const std::string signature = SignatureOf(status);
  const auto fails = [&](const History& candidate) {
    return SignatureOf(SimulateApart(candidate, 2 * num_steps + 100)) ==
           signature;
  };
  ASSERT_TRUE(fails(history));
  const size_t num_before = history.requests.size();
  const History small = Shrink(history, fails, /*max_runs=*/2000);
  EXPECT_TRUE(fails(small));
  EXPECT_LE(small.requests.size(), 3u) << num_before << "\n" << Describe(small);
  EXPECT_LT(Describe(small).size(), 2000u) << Describe(small);
  // It is still this bug's failure, and needs what the bug needs.
  active_planted_bug = PlantedBug::kNone;
  EXPECT_TRUE(SimulateApart(small, INT64_MAX).ok());
  if (GetParam() == PlantedBug::kForeignResultAccepted) {
    EXPECT_EQ(small.step_faults.size(), 1u);
  }
  std::printf("from %zu requests to %zu:\n%s", num_before,
              small.requests.size(), Describe(small).c_str());
}

INSTANTIATE_TEST_SUITE_P(Some, ShrinkTest,
                         testing::Values(PlantedBug::kCopyForgotten,
                                         PlantedBug::kDoubleRelease,
                                         PlantedBug::kPlaceLostByPreemption,
                                         PlantedBug::kChildrenNotEvicted,
                                         PlantedBug::kForeignResultAccepted));

}  // namespace
}  // namespace quire
