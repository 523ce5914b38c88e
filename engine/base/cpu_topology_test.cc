#include "engine/base/cpu_topology.h"

#include <map>

#include "engine/base/cpu_quota.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Two nodes of two cores with two threads each: CPU c and c + 4 share a core,
// node 0 has the cores 0 and 1.
std::vector<CpuInfo> TwoNodes() {
  const std::map<std::string, std::string> files = {
      {"/sys/devices/system/node/online", "0-1\n"},
      {"/sys/devices/system/node/node0/cpulist", "0-1,4-5\n"},
      {"/sys/devices/system/node/node1/cpulist", "2-3,6-7\n"},
      {"/sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0,4\n"},
      {"/sys/devices/system/cpu/cpu4/topology/thread_siblings_list", "0,4\n"},
      {"/sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "1,5\n"},
      {"/sys/devices/system/cpu/cpu5/topology/thread_siblings_list", "1,5\n"},
      {"/sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "2,6\n"},
      {"/sys/devices/system/cpu/cpu6/topology/thread_siblings_list", "2,6\n"},
      {"/sys/devices/system/cpu/cpu3/topology/thread_siblings_list", "3,7\n"},
      {"/sys/devices/system/cpu/cpu7/topology/thread_siblings_list", "3,7\n"},
  };
  return ReadCpuTopology(
      {0, 1, 2, 3, 4, 5, 6, 7}, [&](const std::string& path) {
        const auto file = files.find(path);
        return file == files.end() ? std::nullopt : std::optional(file->second);
      });
}

// One node, two cores of two threads: 0 and 1, 2 and 3.
std::vector<CpuInfo> OneNode() {
  return {{0, 0, 0}, {1, 0, 0}, {2, 2, 0}, {3, 2, 0}};
}

ThreadPlacement Place(const PlacementRequest& request,
                      const std::vector<CpuInfo>& allowed,
                      int quota = kNoCpuLimit, int current_cpu = 0) {
  const auto placement = PlaceThreads(request, allowed, quota, current_cpu);
  EXPECT_TRUE(placement.ok()) << placement.status();
  return placement.value_or(ThreadPlacement());
}

TEST(ParseCpuListTest, ListsAndRanges) {
  EXPECT_THAT(*ParseCpuList("0"), ElementsAre(0));
  EXPECT_THAT(*ParseCpuList("0-3,8"), ElementsAre(0, 1, 2, 3, 8));
  EXPECT_THAT(*ParseCpuList("8,2-3"), ElementsAre(8, 2, 3));
  for (const char* bad : {"", ",", "1,", "-1", "1-", "3-1", "1-2-3", "a", "1 ",
                          "+1", "0-99999999", "1,1", "0-2,1", "99999999999"}) {
    EXPECT_EQ(ParseCpuList(bad).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bad;
  }
}

TEST(ReadCpuTopologyTest, CoresAndNodes) {
  const std::vector<CpuInfo> cpus = TwoNodes();
  ASSERT_EQ(cpus.size(), 8u);
  for (const CpuInfo& info : cpus) {
    EXPECT_EQ(info.core, info.cpu % 4);
    EXPECT_EQ(info.node, info.cpu % 4 / 2);
  }
}

TEST(ReadCpuTopologyTest, WithoutSysEachCpuIsACore) {
  const std::vector<CpuInfo> cpus =
      ReadCpuTopology({3, 5}, [](const std::string&) { return std::nullopt; });
  EXPECT_EQ(cpus[0].core, 3);
  EXPECT_EQ(cpus[1].core, 5);
  EXPECT_EQ(cpus[1].node, 0);
}

TEST(PlaceThreadsTest, OneThreadForEachCore) {
  EXPECT_EQ(Place({}, OneNode()).num_threads, 2);
  EXPECT_EQ(Place({}, TwoNodes()).num_threads, 4);
  EXPECT_EQ(Place({}, TwoNodes(), /*quota=*/3).num_threads, 3);
  EXPECT_EQ(Place({}, TwoNodes(), /*quota=*/0).num_threads, 1);
  // A cpuset that has only one thread of each core, or both of one.
  EXPECT_EQ(Place({}, {{0, 0, 0}, {2, 2, 0}}).num_threads, 2);
  EXPECT_EQ(Place({}, {{0, 0, 0}, {1, 0, 0}}).num_threads, 1);
}

TEST(PlaceThreadsTest, OneNodeIsNotPinned) {
  const ThreadPlacement placement = Place({}, OneNode());
  EXPECT_THAT(placement.cpus, IsEmpty());
  EXPECT_THAT(placement.node_ids, ElementsAre(0));
  EXPECT_THAT(placement.nodes, ElementsAre(0, 0));
}

TEST(PlaceThreadsTest, NodesShareTheThreads) {
  ThreadPlacement placement = Place({}, TwoNodes());
  EXPECT_THAT(placement.cpus, ElementsAre(0, 2, 1, 3));
  EXPECT_THAT(placement.nodes, ElementsAre(0, 1, 0, 1));
  EXPECT_THAT(placement.node_ids, ElementsAre(0, 1));
  // Siblings only when all cores have a thread; then CPUs take turns.
  placement = Place({.num_threads = 9}, TwoNodes());
  EXPECT_THAT(placement.cpus, ElementsAre(0, 2, 1, 3, 4, 6, 5, 7, 0));
  placement = Place({.num_threads = 1}, TwoNodes());
  EXPECT_THAT(placement.node_ids, ElementsAre(0));
}

TEST(PlaceThreadsTest, Off) {
  const ThreadPlacement placement =
      Place({.numa = NumaPolicy::kOff}, TwoNodes());
  EXPECT_THAT(placement.cpus, IsEmpty());
  EXPECT_EQ(placement.node_ids.size(), 1u);
  EXPECT_THAT(placement.nodes, ElementsAre(0, 0, 0, 0));
}

TEST(PlaceThreadsTest, IsolateTakesTheOwnNode) {
  const ThreadPlacement placement =
      Place({.numa = NumaPolicy::kIsolate}, TwoNodes(), kNoCpuLimit,
            /*current_cpu=*/7);
  EXPECT_THAT(placement.cpus, ElementsAre(2, 3));
  EXPECT_THAT(placement.node_ids, ElementsAre(1));
}

TEST(PlaceThreadsTest, ListedCpus) {
  ThreadPlacement placement = Place({.cpus = {7, 0, 4}}, TwoNodes());
  EXPECT_THAT(placement.cpus, ElementsAre(7, 0, 4));
  EXPECT_THAT(placement.nodes, ElementsAre(1, 0, 0));
  EXPECT_THAT(placement.node_ids, ElementsAre(0, 1));
  placement = Place({.cpus = {7, 0}, .numa = NumaPolicy::kOff}, TwoNodes());
  EXPECT_THAT(placement.cpus, ElementsAre(7, 0));
  EXPECT_EQ(placement.node_ids.size(), 1u);
  placement = Place({.num_threads = 3, .cpus = {5, 6}}, TwoNodes());
  EXPECT_THAT(placement.cpus, ElementsAre(5, 6, 5));

  const auto missing = PlaceThreads({.cpus = {0, 9}}, TwoNodes(), 4, 0);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("CPU 9"));
}

TEST(PlaceThreadsTest, ThisProcess) {
  const auto placement = PlaceThreads({});
  ASSERT_TRUE(placement.ok());
  EXPECT_GE(placement->num_threads, 1);
  EXPECT_LE(placement->num_threads, static_cast<int>(AllowedCpus().size()));
}

}  // namespace
}  // namespace quire
