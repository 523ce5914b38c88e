// Which CPUs compute: what the process may use, which of them share a core or a
// NUMA node, and where each thread goes.
#ifndef QUIRE_ENGINE_BASE_CPU_TOPOLOGY_H_
#define QUIRE_ENGINE_BASE_CPU_TOPOLOGY_H_

#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/base/system_file.h"

namespace quire {

// "0-3,8" as the kernel and taskset write it, in the order given, each CPU
// once. INVALID_ARGUMENT for anything else, and for CPUs beyond 65535.
absl::StatusOr<std::vector<int>> ParseCpuList(absl::string_view text);

// The CPUs of the scheduling affinity, ascending: also what a cgroup's cpuset
// leaves. Never empty.
std::vector<int> AllowedCpus();

struct CpuInfo {
  int cpu = 0;
  int core = 0;  // The smallest CPU of its core.
  int node = 0;  // NUMA node.
};

// The given CPUs, in their order, with what /sys says of them; where it says
// nothing, each is a core of its own on node 0.
std::vector<CpuInfo> ReadCpuTopology(absl::Span<const int> cpus,
                                     FileReader read_file);

enum class NumaPolicy {
  kAuto,     // Pin threads and place weights if there is more than one node.
  kOff,      // Leave it to the operating system.
  kIsolate,  // Only CPUs of the node on which the process runs.
};

// "auto", "off" or "isolate". INVALID_ARGUMENT for other names.
absl::StatusOr<NumaPolicy> ParseNumaPolicy(absl::string_view name);

struct PlacementRequest {
  int num_threads = 0;    // <= 0: see PlaceThreads.
  std::vector<int> cpus;  // Only these, one thread on each; empty: any.
  NumaPolicy numa = NumaPolicy::kAuto;
};

struct ThreadPlacement {
  int num_threads = 1;
  std::vector<int> cpus;      // [num_threads], or empty: not pinned.
  std::vector<int> nodes;     // [num_threads], indices into node_ids.
  std::vector<int> node_ids;  // Of the operating system; at least one entry.
};

// Where threads go. By default there is one for each physical core among the
// allowed CPUs, but not more than `quota` (of the cgroup): two threads of a
// core share its arithmetic. They are pinned if request.cpus says where, or if
// the CPUs lie on several nodes and numa is kAuto: then threads are spread over
// the nodes evenly, cores first. More threads than CPUs take turns.
// INVALID_ARGUMENT for a CPU in request.cpus that is not among `allowed`.
//   current_cpu: where the caller runs; for kIsolate.
absl::StatusOr<ThreadPlacement> PlaceThreads(const PlacementRequest& request,
                                             absl::Span<const CpuInfo> allowed,
                                             int quota, int current_cpu);

// The same for this process.
absl::StatusOr<ThreadPlacement> PlaceThreads(const PlacementRequest& request);

// Pins the calling thread. Best effort: without effect where it is forbidden.
void PinThisThread(int cpu);

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_CPU_TOPOLOGY_H_
