#include "engine/base/cgroup.h"

#include <optional>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace quire {
namespace {

// One hierarchy: where it is mounted and which of its groups is at the mount's
// root ("/" unless a container bind-mounts a subtree).
struct Hierarchy {
  std::string mount_point;
  std::string root;
  bool is_v2 = false;
};

bool IsListed(absl::string_view name, absl::string_view list) {
  return absl::c_linear_search(
      std::vector<absl::string_view>(absl::StrSplit(list, ',')), name);
}

// Lines of /proc/self/mountinfo (proc(5)): "id parent major:minor root
// mount_point options [optional fields] - fs_type source super_options".
std::vector<Hierarchy> ParseMountInfo(absl::string_view text,
                                      absl::string_view controller) {
  std::vector<Hierarchy> hierarchies;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> halves =
        absl::StrSplit(line, absl::MaxSplits(" - ", 1));
    if (halves.size() != 2) continue;
    const std::vector<absl::string_view> left = absl::StrSplit(halves[0], ' ');
    const std::vector<absl::string_view> right = absl::StrSplit(halves[1], ' ');
    if (left.size() < 5 || right.empty()) continue;
    const bool is_v2 = right[0] == "cgroup2";
    const bool is_v1 =
        right[0] == "cgroup" && IsListed(controller, right.back());
    if (!is_v1 && !is_v2) continue;
    hierarchies.push_back({std::string(left[4]), std::string(left[3]), is_v2});
  }
  return hierarchies;
}

// This process's group in the controller's v1 hierarchy or in v2, from lines
// "id:controllers:path" of /proc/self/cgroup.
std::string GroupPath(absl::string_view text, absl::string_view controller,
                      bool is_v2) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> fields =
        absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    if (is_v2 ? fields[0] == "0" && fields[1].empty()
              : IsListed(controller, fields[1])) {
      return std::string(fields[2]);
    }
  }
  return "/";
}

}  // namespace

std::vector<CgroupDirectory> OwnCgroups(absl::string_view controller,
                                        FileReader read_file) {
  std::vector<CgroupDirectory> directories;
  const std::optional<std::string> groups = read_file("/proc/self/cgroup");
  const std::optional<std::string> mounts = read_file("/proc/self/mountinfo");
  if (!groups || !mounts) return directories;
  for (const Hierarchy& hierarchy : ParseMountInfo(*mounts, controller)) {
    const std::string group = GroupPath(*groups, controller, hierarchy.is_v2);
    absl::string_view path = group;
    // Without a cgroup namespace a container sees the host's path, while its
    // mount starts at its own group.
    if (hierarchy.root != "/" && !absl::ConsumePrefix(&path, hierarchy.root)) {
      path = "";
    }
    for (;;) {
      while (absl::ConsumeSuffix(&path, "/")) {
      }
      directories.push_back(
          {absl::StrCat(hierarchy.mount_point, path), hierarchy.is_v2});
      const size_t slash = path.rfind('/');
      if (slash == absl::string_view::npos) break;
      path = path.substr(0, slash);
    }
  }
  return directories;
}

}  // namespace quire
