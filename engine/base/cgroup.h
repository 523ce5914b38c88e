// The control groups that this process is in, of both versions of the kernel's
// interface (admin-guide/cgroup-v2.rst, admin-guide/cgroup-v1).
#ifndef QUIRE_ENGINE_BASE_CGROUP_H_
#define QUIRE_ENGINE_BASE_CGROUP_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/base/system_file.h"

namespace quire {

struct CgroupDirectory {
  std::string path;
  bool is_v2 = false;
};

// Those of `controller` ("cpu", "memory"): in every mounted hierarchy this
// process's own and all above it up to the mount's root, whose limits bind,
// too. `read_file` is asked for /proc/self/cgroup and /proc/self/mountinfo.
std::vector<CgroupDirectory> OwnCgroups(absl::string_view controller,
                                        FileReader read_file);

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_CGROUP_H_
