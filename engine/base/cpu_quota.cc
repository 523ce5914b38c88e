#include "engine/base/cpu_quota.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace quire {
namespace {

int CpusFromQuota(int64_t quota, int64_t period) {
  if (quota <= 0 || period <= 0) return kNoCpuLimit;
  const int64_t cpus = quota / period + (quota % period != 0 ? 1 : 0);
  return static_cast<int>(std::min<int64_t>(cpus, kNoCpuLimit));
}

// One CPU hierarchy: where it is mounted and which of its groups is at the
// mount's root ("/" unless a container bind-mounts a subtree).
struct Hierarchy {
  std::string mount_point;
  std::string root;
  bool is_v2 = false;
};

// Lines of /proc/self/mountinfo (proc(5)): "id parent major:minor root
// mount_point options [optional fields] - fs_type source super_options".
std::vector<Hierarchy> ParseMountInfo(absl::string_view text) {
  std::vector<Hierarchy> hierarchies;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> halves =
        absl::StrSplit(line, absl::MaxSplits(" - ", 1));
    if (halves.size() != 2) continue;
    const std::vector<absl::string_view> left = absl::StrSplit(halves[0], ' ');
    const std::vector<absl::string_view> right = absl::StrSplit(halves[1], ' ');
    if (left.size() < 5 || right.empty()) continue;
    bool has_cpu = false;
    if (right[0] == "cgroup") {
      for (absl::string_view option : absl::StrSplit(right.back(), ',')) {
        has_cpu |= option == "cpu";
      }
    }
    if (right[0] != "cgroup2" && !has_cpu) continue;
    hierarchies.push_back({std::string(left[4]), std::string(left[3]),
                           /*is_v2=*/right[0] == "cgroup2"});
  }
  return hierarchies;
}

// This process's group in the v1 cpu hierarchy or in v2, from lines
// "id:controllers:path" of /proc/self/cgroup.
std::string GroupPath(absl::string_view text, bool is_v2) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> fields =
        absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    if (is_v2) {
      if (fields[0] == "0" && fields[1].empty()) return std::string(fields[2]);
      continue;
    }
    for (absl::string_view controller : absl::StrSplit(fields[1], ',')) {
      if (controller == "cpu") return std::string(fields[2]);
    }
  }
  return "/";
}

}  // namespace

int CpusFromCpuMax(absl::string_view cpu_max) {
  const std::vector<absl::string_view> fields =
      absl::StrSplit(cpu_max, absl::ByAnyChar(" \t\n"), absl::SkipEmpty());
  int64_t quota = 0;
  int64_t period = 100'000;  // The kernel's default when only a quota is there.
  if (fields.empty() || !absl::SimpleAtoi(fields[0], &quota)) {
    return kNoCpuLimit;
  }
  if (fields.size() > 1 && !absl::SimpleAtoi(fields[1], &period)) {
    return kNoCpuLimit;
  }
  return CpusFromQuota(quota, period);
}

int CpusFromCfsQuota(absl::string_view quota_us, absl::string_view period_us) {
  int64_t quota = 0;
  int64_t period = 0;
  if (!absl::SimpleAtoi(quota_us, &quota) ||
      !absl::SimpleAtoi(period_us, &period)) {
    return kNoCpuLimit;
  }
  return CpusFromQuota(quota, period);
}

int CgroupCpuLimit(
    absl::FunctionRef<std::optional<std::string>(const std::string&)>
        read_file) {
  const std::optional<std::string> groups = read_file("/proc/self/cgroup");
  const std::optional<std::string> mounts = read_file("/proc/self/mountinfo");
  if (!groups || !mounts) return kNoCpuLimit;
  int limit = kNoCpuLimit;
  for (const Hierarchy& hierarchy : ParseMountInfo(*mounts)) {
    const std::string group = GroupPath(*groups, hierarchy.is_v2);
    absl::string_view path = group;
    // Without a cgroup namespace a container sees the host's path, while its
    // mount starts at its own group.
    if (hierarchy.root != "/" && !absl::ConsumePrefix(&path, hierarchy.root)) {
      path = "";
    }
    // A parent's limit binds too: walk up to the mount's root.
    while (true) {
      while (absl::ConsumeSuffix(&path, "/")) {
      }
      const std::string directory = absl::StrCat(hierarchy.mount_point, path);
      if (hierarchy.is_v2) {
        const auto cpu_max = read_file(absl::StrCat(directory, "/cpu.max"));
        if (cpu_max) limit = std::min(limit, CpusFromCpuMax(*cpu_max));
      } else {
        const auto quota =
            read_file(absl::StrCat(directory, "/cpu.cfs_quota_us"));
        const auto period =
            read_file(absl::StrCat(directory, "/cpu.cfs_period_us"));
        if (quota && period) {
          limit = std::min(limit, CpusFromCfsQuota(*quota, *period));
        }
      }
      const size_t slash = path.rfind('/');
      if (slash == absl::string_view::npos) break;
      path = path.substr(0, slash);
    }
  }
  return limit;
}

}  // namespace quire
