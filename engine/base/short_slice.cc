#include "engine/base/short_slice.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace quire {
namespace {

// struct sched_attr of Linux 3.14, sched_setattr(2); glibc 2.36 has none.
struct SchedulingAttributes {
  uint32_t size = sizeof(SchedulingAttributes);
  uint32_t policy = 0;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime = 0;  // Of SCHED_OTHER: the slice, nanoseconds.
  uint64_t deadline = 0;
  uint64_t period = 0;
};

constexpr uint64_t kSliceNanoseconds = 100'000;  // The least that is accepted.

}  // namespace

void TakeShortSlices() {
  SchedulingAttributes attributes;
  if (syscall(SYS_sched_getattr, /*pid=*/0, &attributes, sizeof(attributes),
              /*flags=*/0) != 0 ||
      attributes.policy != SCHED_OTHER) {
    return;
  }
  attributes.size = sizeof(attributes);
  attributes.flags = 0;
  attributes.runtime = kSliceNanoseconds;
  (void)!syscall(SYS_sched_setattr, /*pid=*/0, &attributes, /*flags=*/0);
}

}  // namespace quire
