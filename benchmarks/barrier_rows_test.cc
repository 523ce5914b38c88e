#include "benchmarks/barrier_rows.h"

#include <map>

#include "engine/base/thread_pool.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using Rows = std::map<std::string, std::vector<double>>;

Rows Measure(const std::string& filter) {
  ThreadPlacement placement;
  placement.num_threads = 2;
  placement.nodes = {0, 0};
  placement.node_ids = {0};
  Rows rows;
  MeasureBarriers(
      placement, 3, filter,
      [&](const std::string& name, const std::vector<double>& seconds) {
        EXPECT_TRUE(rows.emplace(name, seconds).second) << name;
      });
  return rows;
}

TEST(BarrierRowsTest, EveryNumberOfThreads) {
  const Rows rows = Measure("");
  std::vector<std::string> names = {"loop barrier, 1 thread"};
  if (AvailableCpus() > 1) {
    names.insert(names.end(),
                 {"loop barrier, 2 threads", "full barrier, 2 threads",
                  "full barrier, 2 threads, asleep"});
  }
  EXPECT_EQ(rows.size(), 2 * names.size());
  for (const std::string& name : names) {
    ASSERT_EQ(rows.count(name), 1u) << name;
    ASSERT_EQ(rows.count(name + ", p99"), 1u) << name;
    const std::vector<double>& medians = rows.at(name);
    const std::vector<double>& tails = rows.at(name + ", p99");
    ASSERT_EQ(medians.size(), 3u);
    ASSERT_EQ(tails.size(), 3u);
    for (size_t i = 0; i < medians.size(); ++i) {
      EXPECT_GT(medians[i], 0) << name;
      EXPECT_LE(medians[i], tails[i]) << name;
    }
  }
}

TEST(BarrierRowsTest, OnlyWhatIsAskedFor) {
  EXPECT_TRUE(Measure("no such row").empty());
  const Rows tails = Measure("loop barrier, 1 thread, p99");
  ASSERT_EQ(tails.size(), 1u);
  EXPECT_EQ(tails.begin()->first, "loop barrier, 1 thread, p99");
}

}  // namespace
}  // namespace quire
