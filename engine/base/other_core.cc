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

bool OtherCore::HasMoved() {
  if (tid_.load(std::memory_order_acquire) == 0) return false;
  const int cpu = sched_getcpu();
  if (cpu < 0 || cpu >= CPU_SETSIZE || cpu == avoided_cpu_) return false;
  avoided_cpu_ = cpu;
  return true;
}

void OtherCore::Allow(const cpu_set_t& cpus) {
  (void)sched_setaffinity(tid_.load(std::memory_order_relaxed), sizeof(cpus),
                          &cpus);
}

void OtherCore::Avoid() {
  if (!HasMoved()) return;
  cpu_set_t others = allowed_;
  CPU_CLR(avoided_cpu_, &others);
  Allow(others);
}

void OtherCore::AvoidAsIDo() {
  if (!HasMoved()) return;
  cpu_set_t others;
  if (sched_getaffinity(0, sizeof(others), &others) != 0) return;
  CPU_AND(&others, &others, &allowed_);
  CPU_CLR(avoided_cpu_, &others);
  if (CPU_COUNT(&others) > 0) Allow(others);
}

}  // namespace quire
