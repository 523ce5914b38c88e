#include "engine/base/memory_limit.h"

#include <map>
#include <string>

#include "gtest/gtest.h"

namespace quire {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

class MemoryLimitTest : public testing::Test {
 protected:
  int64_t Limit() {
    return CgroupMemoryLimit([this](const std::string& p) { return Read(p); });
  }
  int64_t Available() {
    return AvailableMemoryBytes(
        [this](const std::string& p) { return Read(p); });
  }
  std::optional<std::string> Read(const std::string& path) {
    const auto it = files_.find(path);
    if (it == files_.end()) return std::nullopt;
    return it->second;
  }

  std::map<std::string, std::string> files_ = {
      {"/proc/meminfo",
       "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n"}};
};

// As in a container: the own group is the root of what it sees.
void AddContainer(std::map<std::string, std::string>* files) {
  files->insert(
      {{"/proc/self/cgroup", "0::/\n"},
       {"/proc/self/mountinfo",
        "30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n"},
       {"/sys/fs/cgroup/memory.max", "2147483648\n"},
       {"/sys/fs/cgroup/memory.current", "1610612736\n"},
       {"/sys/fs/cgroup/memory.stat",
        "anon 100\nactive_file 268435456\ninactive_file 268435456\n"}});
}

TEST_F(MemoryLimitTest, WithoutGroupsTheMachineIsTheLimit) {
  EXPECT_EQ(Limit(), kNoMemoryLimit);
  EXPECT_EQ(Available(), 8 * kGiB);
  files_.clear();
  EXPECT_EQ(Available(), kNoMemoryLimit);
}

TEST_F(MemoryLimitTest, OfAContainer) {
  AddContainer(&files_);
  EXPECT_EQ(Limit(), 2 * kGiB);
  EXPECT_EQ(Available(), kGiB);
  files_["/sys/fs/cgroup/memory.current"] = "4294967296";
  EXPECT_EQ(Available(), 0);
  files_["/sys/fs/cgroup/memory.max"] = "max\n";
  EXPECT_EQ(Limit(), kNoMemoryLimit);
  EXPECT_EQ(Available(), 8 * kGiB);
}

// As of a service of a host: a group above may be the tightest.
TEST_F(MemoryLimitTest, GroupsAboveBindToo) {
  AddContainer(&files_);
  files_["/proc/self/cgroup"] = "0::/system.slice/quire.service\n";
  files_["/sys/fs/cgroup/memory.max"] = "max";
  files_["/sys/fs/cgroup/system.slice/memory.max"] = "1073741824\n";
  files_["/sys/fs/cgroup/system.slice/memory.current"] = "0\n";
  files_["/sys/fs/cgroup/system.slice/quire.service/memory.max"] =
      "3221225472\n";
  EXPECT_EQ(Limit(), kGiB);
  EXPECT_EQ(Available(), kGiB);
}

TEST_F(MemoryLimitTest, OfTheFirstVersion) {
  files_.insert(
      {{"/proc/self/cgroup", "5:cpu:/other\n4:memory:/docker/abc\n"},
       {"/proc/self/mountinfo",
        "40 30 0:30 / /cg/cpu rw - cgroup cgroup rw,cpu\n"
        "41 30 0:31 /docker/abc /cg/memory ro - cgroup cgroup rw,memory\n"},
       {"/cg/memory/memory.limit_in_bytes", "4294967296\n"},
       {"/cg/memory/memory.usage_in_bytes", "3221225472\n"},
       {"/cg/memory/memory.stat",
        "active_file 1\ntotal_active_file 1073741824\n"}});
  EXPECT_EQ(Limit(), 4 * kGiB);
  EXPECT_EQ(Available(), 2 * kGiB);
  // None.
  files_["/cg/memory/memory.limit_in_bytes"] = "9223372036854771712\n";
  EXPECT_EQ(Limit(), kNoMemoryLimit);
  EXPECT_EQ(Available(), 8 * kGiB);
}

TEST(AvailableMemoryTest, OfThisMachine) {
  EXPECT_GT(AvailableMemoryBytes(), int64_t{1} << 20);
}

}  // namespace
}  // namespace quire
