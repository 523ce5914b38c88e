#include "engine/base/cpu_quota.h"

#include <map>

#include "gtest/gtest.h"

namespace quire {
namespace {

using FileMap = std::map<std::string, std::string>;

int Limit(const FileMap& files) {
  return CgroupCpuLimit(
      [&](const std::string& path) -> std::optional<std::string> {
        const auto it = files.find(path);
        if (it == files.end()) return std::nullopt;
        return it->second;
      });
}

TEST(CpuQuotaTest, CpuMaxRoundsUp) {
  EXPECT_EQ(CpusFromCpuMax("max 100000\n"), kNoCpuLimit);
  EXPECT_EQ(CpusFromCpuMax("200000 100000\n"), 2);
  EXPECT_EQ(CpusFromCpuMax("200001 100000\n"), 3);
  EXPECT_EQ(CpusFromCpuMax("10000 100000\n"), 1);
  EXPECT_EQ(CpusFromCpuMax("300000"), 3);
}

TEST(CpuQuotaTest, MalformedMeansNoLimit) {
  EXPECT_EQ(CpusFromCpuMax(""), kNoCpuLimit);
  EXPECT_EQ(CpusFromCpuMax("x y"), kNoCpuLimit);
  EXPECT_EQ(CpusFromCpuMax("100000 0"), kNoCpuLimit);
  EXPECT_EQ(CpusFromCpuMax("100000 -5"), kNoCpuLimit);
  EXPECT_EQ(CpusFromCfsQuota("abc", "100000"), kNoCpuLimit);
}

TEST(CpuQuotaTest, CfsQuota) {
  EXPECT_EQ(CpusFromCfsQuota("-1\n", "100000\n"), kNoCpuLimit);
  EXPECT_EQ(CpusFromCfsQuota("150000\n", "100000\n"), 2);
  EXPECT_EQ(CpusFromCfsQuota("50000\n", "100000\n"), 1);
}

TEST(CpuQuotaTest, NoFilesNoLimit) { EXPECT_EQ(Limit({}), kNoCpuLimit); }

TEST(CpuQuotaTest, V2TakesTightestParent) {
  const FileMap files = {
      {"/proc/self/cgroup", "0::/kubepods/pod1/leaf\n"},
      {"/proc/self/mountinfo",
       "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"},
      {"/sys/fs/cgroup/kubepods/pod1/leaf/cpu.max", "800000 100000\n"},
      {"/sys/fs/cgroup/kubepods/pod1/cpu.max", "300000 100000\n"},
      {"/sys/fs/cgroup/kubepods/cpu.max", "max 100000\n"},
  };
  EXPECT_EQ(Limit(files), 3);
}

TEST(CpuQuotaTest, V2NamespacedRoot) {
  const FileMap files = {
      {"/proc/self/cgroup", "0::/\n"},
      {"/proc/self/mountinfo",
       "1 0 0:1 / / rw - ext4 /dev/x rw\n"
       "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup rw\n"},
      {"/sys/fs/cgroup/cpu.max", "150000 100000\n"},
  };
  EXPECT_EQ(Limit(files), 2);
}

TEST(CpuQuotaTest, V1WithBindMountedSubtree) {
  const FileMap files = {
      {"/proc/self/cgroup",
       "5:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n0::/\n"},
      {"/proc/self/mountinfo",
       "40 30 0:30 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup "
       "rw,cpu,cpuacct\n"
       "41 30 0:31 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup "
       "rw,memory\n"},
      {"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000\n"},
      {"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"},
  };
  EXPECT_EQ(Limit(files), 4);
}

TEST(CpuQuotaTest, CpusetHierarchyIsNotTheCpuHierarchy) {
  const FileMap files = {
      {"/proc/self/cgroup", "3:cpuset:/a\n1:cpu:/b\n"},
      {"/proc/self/mountinfo",
       "40 30 0:30 / /cg/cpuset rw - cgroup cgroup rw,cpuset\n"
       "41 30 0:31 / /cg/cpu rw - cgroup cgroup rw,cpu\n"},
      {"/cg/cpuset/a/cpu.cfs_quota_us", "100000\n"},
      {"/cg/cpuset/a/cpu.cfs_period_us", "100000\n"},
      {"/cg/cpu/b/cpu.cfs_quota_us", "250000\n"},
      {"/cg/cpu/b/cpu.cfs_period_us", "100000\n"},
  };
  EXPECT_EQ(Limit(files), 3);
}

}  // namespace
}  // namespace quire
