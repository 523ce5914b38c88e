#include "benchmarks/rank_rows.h"

#include <map>

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(RankRowsTest, MeasuresPlansAndSums) {
  std::map<std::string, std::vector<double>> rows;
  const absl::Status status = MeasureRanks(
      1, "2 ranks",
      [&](const std::string& name, const std::vector<double>& seconds) {
        rows[name] = seconds;
      });
  ASSERT_TRUE(status.ok()) << status;
  for (const char* name :
       {"plan 1 decodes, 2 ranks", "plan 1 decodes, 2 ranks, send",
        "plan 64 decodes, 2 ranks", "all-reduce 8 KiB, 2 ranks",
        "all-reduce 8 KiB, 2 ranks, TCP", "all-reduce 256 KiB, 2 ranks",
        "all-reduce 256 KiB, 2 ranks, TCP", "rank barrier, 2 ranks",
        "rank barrier, 2 ranks, p99", "rank barrier, 2 ranks, TCP",
        "rank barrier, 2 ranks, TCP, p99"}) {
    ASSERT_EQ(rows[name].size(), 1u) << name;
    EXPECT_GT(rows[name][0], 0) << name;
  }
  EXPECT_EQ(rows.size(), 12u);
  EXPECT_LE(rows["rank barrier, 2 ranks"][0],
            rows["rank barrier, 2 ranks, p99"][0]);
}

}  // namespace
}  // namespace quire
