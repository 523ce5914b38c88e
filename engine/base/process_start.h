// When the process was started, from the kernel's records.
#ifndef QUIRE_ENGINE_BASE_PROCESS_START_H_
#define QUIRE_ENGINE_BASE_PROCESS_START_H_

#include "absl/time/time.h"

namespace quire {

// Time since the process was created, to a clock tick (10 ms); zero if /proc
// cannot be read.
absl::Duration TimeSinceProcessStart();

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_PROCESS_START_H_
