#include "engine/base/cpu_topology.h"

#include <sched.h>

#include <algorithm>
#include <optional>
#include <string>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/cpu_quota.h"
#include "engine/base/status.h"

namespace quire {
namespace {

constexpr int kMaxCpu = 65535;

// The list in a file of /sys; empty if there is none.
std::vector<int> ReadList(const std::string& path, FileReader read_file) {
  const std::optional<std::string> text = read_file(path);
  if (!text.has_value()) return {};
  return ParseCpuList(absl::StripAsciiWhitespace(*text))
      .value_or(std::vector<int>());
}

// One CPU of each core, then the others, each in the order given.
std::vector<CpuInfo> CoresFirst(absl::Span<const CpuInfo> cpus) {
  std::vector<CpuInfo> ordered;
  std::vector<CpuInfo> siblings;
  std::vector<int> seen;
  for (const CpuInfo& cpu : cpus) {
    const bool is_new =
        std::find(seen.begin(), seen.end(), cpu.core) == seen.end();
    (is_new ? ordered : siblings).push_back(cpu);
    if (is_new) seen.push_back(cpu.core);
  }
  ordered.insert(ordered.end(), siblings.begin(), siblings.end());
  return ordered;
}

int NumCores(absl::Span<const CpuInfo> cpus) {
  std::vector<int> cores;
  for (const CpuInfo& cpu : cpus) cores.push_back(cpu.core);
  std::sort(cores.begin(), cores.end());
  cores.erase(std::unique(cores.begin(), cores.end()), cores.end());
  return static_cast<int>(cores.size());
}

std::vector<int> NodesOf(absl::Span<const CpuInfo> cpus) {
  std::vector<int> nodes;
  for (const CpuInfo& cpu : cpus) nodes.push_back(cpu.node);
  std::sort(nodes.begin(), nodes.end());
  nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
  return nodes;
}

// The first of each node, then the second of each, ...
std::vector<CpuInfo> SpreadOverNodes(const std::vector<CpuInfo>& cpus,
                                     const std::vector<int>& nodes) {
  std::vector<std::vector<CpuInfo>> of_node(nodes.size());
  for (const CpuInfo& cpu : cpus) {
    const auto node = std::find(nodes.begin(), nodes.end(), cpu.node);
    of_node[node - nodes.begin()].push_back(cpu);
  }
  std::vector<CpuInfo> spread;
  for (size_t i = 0; spread.size() < cpus.size(); ++i) {
    for (const std::vector<CpuInfo>& node : of_node) {
      if (i < node.size()) spread.push_back(node[i]);
    }
  }
  return spread;
}

}  // namespace

absl::StatusOr<std::vector<int>> ParseCpuList(absl::string_view text) {
  const auto fail = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not a list of CPUs such as 0-3,8"));
  };
  std::vector<int> cpus;
  for (absl::string_view range : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> ends = absl::StrSplit(range, '-');
    int first = 0;
    int last = 0;
    for (absl::string_view end : ends) {
      // SimpleAtoi would take signs and spaces.
      if (end.empty() ||
          !std::all_of(end.begin(), end.end(), absl::ascii_isdigit)) {
        return fail();
      }
    }
    if (ends.size() > 2 || !absl::SimpleAtoi(ends[0], &first) ||
        !absl::SimpleAtoi(ends.back(), &last) || first > last ||
        last > kMaxCpu) {
      return fail();
    }
    for (int cpu = first; cpu <= last; ++cpu) {
      if (std::find(cpus.begin(), cpus.end(), cpu) != cpus.end()) return fail();
      cpus.push_back(cpu);
    }
  }
  return cpus;
}

std::vector<int> AllowedCpus() {
  // Machines with more than CPU_SETSIZE CPUs need a larger mask: EINVAL.
  for (int num_cpus = CPU_SETSIZE; num_cpus <= CPU_SETSIZE << 6;
       num_cpus *= 2) {
    cpu_set_t* const set = CPU_ALLOC(num_cpus);
    QUIRE_CHECK(set != nullptr);
    const size_t num_bytes = CPU_ALLOC_SIZE(num_cpus);
    std::vector<int> cpus;
    if (sched_getaffinity(0, num_bytes, set) == 0) {
      for (int cpu = 0; cpu < num_cpus; ++cpu) {
        if (CPU_ISSET_S(cpu, num_bytes, set)) cpus.push_back(cpu);
      }
    }
    CPU_FREE(set);
    if (!cpus.empty()) return cpus;
  }
  std::vector<int> all(std::max(1u, std::thread::hardware_concurrency()));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int>(i);
  return all;
}

std::vector<CpuInfo> ReadCpuTopology(absl::Span<const int> cpus,
                                     FileReader read_file) {
  std::vector<CpuInfo> result;
  for (int cpu : cpus) {
    const std::vector<int> siblings =
        ReadList(absl::StrCat("/sys/devices/system/cpu/cpu", cpu,
                              "/topology/thread_siblings_list"),
                 read_file);
    CpuInfo info;
    info.cpu = cpu;
    info.core = siblings.empty()
                    ? cpu
                    : *std::min_element(siblings.begin(), siblings.end());
    result.push_back(info);
  }
  for (int node : ReadList("/sys/devices/system/node/online", read_file)) {
    const std::vector<int> cpus_of_node = ReadList(
        absl::StrCat("/sys/devices/system/node/node", node, "/cpulist"),
        read_file);
    for (CpuInfo& info : result) {
      if (std::find(cpus_of_node.begin(), cpus_of_node.end(), info.cpu) !=
          cpus_of_node.end()) {
        info.node = node;
      }
    }
  }
  return result;
}

absl::StatusOr<NumaPolicy> ParseNumaPolicy(absl::string_view name) {
  if (name == "auto") return NumaPolicy::kAuto;
  if (name == "off") return NumaPolicy::kOff;
  if (name == "isolate") return NumaPolicy::kIsolate;
  return absl::InvalidArgumentError(
      absl::StrCat("'", name, "' is not auto, off or isolate"));
}

absl::StatusOr<ThreadPlacement> PlaceThreads(const PlacementRequest& request,
                                             absl::Span<const CpuInfo> allowed,
                                             int quota, int current_cpu) {
  QUIRE_CHECK(!allowed.empty());
  std::vector<CpuInfo> cpus;
  for (int wanted : request.cpus) {
    const auto found =
        std::find_if(allowed.begin(), allowed.end(),
                     [&](const CpuInfo& info) { return info.cpu == wanted; });
    if (found == allowed.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("CPU ", wanted, " is not among the ", allowed.size(),
                       " that this process may use"));
    }
    cpus.push_back(*found);
  }
  const bool is_listed = !cpus.empty();
  if (!is_listed) cpus = CoresFirst(allowed);
  if (request.numa == NumaPolicy::kIsolate) {
    int node = cpus[0].node;
    for (const CpuInfo& info : allowed) {
      if (info.cpu == current_cpu) node = info.node;
    }
    std::vector<CpuInfo> own;
    for (const CpuInfo& info : cpus) {
      if (info.node == node) own.push_back(info);
    }
    // A list without CPUs of this node stands as it is.
    if (!own.empty()) cpus = own;
  }
  ThreadPlacement placement;
  placement.num_threads = request.num_threads;
  if (placement.num_threads <= 0) {
    placement.num_threads = is_listed
                                ? static_cast<int>(cpus.size())
                                : std::max(1, std::min(NumCores(cpus), quota));
  }
  const std::vector<int> nodes = NodesOf(cpus);
  const bool is_spread =
      nodes.size() > 1 && request.numa == NumaPolicy::kAuto && !is_listed;
  if (is_spread) cpus = SpreadOverNodes(cpus, nodes);
  const bool is_pinned =
      is_listed || is_spread || request.numa == NumaPolicy::kIsolate;
  std::vector<CpuInfo> chosen;
  for (int i = 0; i < placement.num_threads; ++i) {
    chosen.push_back(cpus[i % cpus.size()]);
  }
  placement.node_ids = is_pinned && request.numa != NumaPolicy::kOff
                           ? NodesOf(chosen)
                           : std::vector<int>{chosen[0].node};
  for (const CpuInfo& info : chosen) {
    if (is_pinned) placement.cpus.push_back(info.cpu);
    const auto node = std::find(placement.node_ids.begin(),
                                placement.node_ids.end(), info.node);
    placement.nodes.push_back(
        node == placement.node_ids.end()
            ? 0
            : static_cast<int>(node - placement.node_ids.begin()));
  }
  return placement;
}

absl::StatusOr<ThreadPlacement> PlaceThreads(const PlacementRequest& request) {
  return PlaceThreads(request, ReadCpuTopology(AllowedCpus(), ReadSystemFile),
                      CgroupCpuLimit(ReadSystemFile), sched_getcpu());
}

void PinThisThread(int cpu) {
  cpu_set_t* const set = CPU_ALLOC(kMaxCpu + 1);
  QUIRE_CHECK(set != nullptr);
  const size_t num_bytes = CPU_ALLOC_SIZE(kMaxCpu + 1);
  CPU_ZERO_S(num_bytes, set);
  CPU_SET_S(cpu, num_bytes, set);
  // The CPU may have gone since; then the thread runs where it may.
  (void)sched_setaffinity(0, num_bytes, set);
  CPU_FREE(set);
}

}  // namespace quire
