// How many CPUs the control group of this process may use.
#ifndef QUIRE_ENGINE_BASE_CPU_QUOTA_H_
#define QUIRE_ENGINE_BASE_CPU_QUOTA_H_

#include <limits>

#include "absl/strings/string_view.h"
#include "engine/base/cgroup.h"

namespace quire {

inline constexpr int kNoCpuLimit = std::numeric_limits<int>::max();

// CPUs allowed by the text of a cgroup v2 cpu.max ("max 100000" or "<quota>
// <period>", microseconds), rounded up; kNoCpuLimit for "max" or malformed
// text.
int CpusFromCpuMax(absl::string_view cpu_max);

// The same from cgroup v1's cpu.cfs_quota_us (-1: none) and cpu.cfs_period_us.
int CpusFromCfsQuota(absl::string_view quota_us, absl::string_view period_us);

// The tightest limit of the control groups that this process is in (kernel
// documentation: admin-guide/cgroup-v2.rst, scheduler/sched-bwc.rst).
int CgroupCpuLimit(FileReader read_file);

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_CPU_QUOTA_H_
