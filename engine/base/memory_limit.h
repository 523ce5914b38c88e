// How much memory this process may take.
#ifndef QUIRE_ENGINE_BASE_MEMORY_LIMIT_H_
#define QUIRE_ENGINE_BASE_MEMORY_LIMIT_H_

#include <cstdint>
#include <limits>

#include "engine/base/cgroup.h"

namespace quire {

inline constexpr int64_t kNoMemoryLimit = std::numeric_limits<int64_t>::max();

// Bytes: the tightest limit of the control groups that this process is in.
int64_t CgroupMemoryLimit(FileReader read_file = ReadSystemFile);

// Bytes that this process may still take: the smaller of what the machine has
// available and what the control groups leave, of which the page cache can be
// taken back.
int64_t AvailableMemoryBytes(FileReader read_file = ReadSystemFile);

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_MEMORY_LIMIT_H_
