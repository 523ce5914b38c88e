#include "engine/base/cpu_quota.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace quire {
namespace {

int CpusFromQuota(int64_t quota, int64_t period) {
  if (quota <= 0 || period <= 0) return kNoCpuLimit;
  const int64_t cpus = quota / period + (quota % period != 0 ? 1 : 0);
  return static_cast<int>(std::min<int64_t>(cpus, kNoCpuLimit));
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

int CgroupCpuLimit(FileReader read_file) {
  int limit = kNoCpuLimit;
  for (const CgroupDirectory& directory : OwnCgroups("cpu", read_file)) {
    if (directory.is_v2) {
      const auto cpu_max = read_file(absl::StrCat(directory.path, "/cpu.max"));
      if (cpu_max) limit = std::min(limit, CpusFromCpuMax(*cpu_max));
      continue;
    }
    const auto quota =
        read_file(absl::StrCat(directory.path, "/cpu.cfs_quota_us"));
    const auto period =
        read_file(absl::StrCat(directory.path, "/cpu.cfs_period_us"));
    if (quota && period) {
      limit = std::min(limit, CpusFromCfsQuota(*quota, *period));
    }
  }
  return limit;
}

}  // namespace quire
