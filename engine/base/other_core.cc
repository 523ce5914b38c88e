#include "engine/base/other_core.h"

#include <unistd.h>

namespace quire {

void OtherCore::Bind() {
  // More CPUs than a cpu_set_t holds: an error, and nobody is kept away.
  if (sched_getaffinity(0, sizeof(allowed_), &allowed_) != 0 ||
      CPU_COUNT(&allowed_) < 2) {
    return;
  }
  tid_.store(gettid(), std::memory_order_release);
}

void OtherCore::Avoid() {
  const pid_t tid = tid_.load(std::memory_order_acquire);
  if (tid == 0) return;
  const int cpu = sched_getcpu();
  if (cpu < 0 || cpu == avoided_cpu_) return;
  avoided_cpu_ = cpu;
  cpu_set_t others = allowed_;
  if (cpu < CPU_SETSIZE) CPU_CLR(cpu, &others);
  (void)sched_setaffinity(tid, sizeof(others), &others);
}

}  // namespace quire
