// Keeps a thread off the core of the thread that wakes it.
#ifndef QUIRE_ENGINE_BASE_OTHER_CORE_H_
#define QUIRE_ENGINE_BASE_OTHER_CORE_H_

#include <sched.h>
#include <sys/types.h>

#include <atomic>

namespace quire {

// A woken thread is often queued on the waker's core, and since Linux 6.12 it
// goes first there as soon as the waker has run for a while (EEVDF:
// kernel/sched/fair.c, update_curr and protect_slice), whatever its policy or
// niceness: the waker stands still for as long as the other has to do. Where
// the waker has more to lose, the other one gets all cores but that one. Best
// effort; without effect where there is one core, or where it is forbidden.
//
// One thread calls Bind, once; one thread calls Avoid.
class OtherCore {
 public:
  // On the thread that is to be elsewhere.
  void Bind();
  // On the waker, before it wakes the other: from now on the core that it is
  // on now. Costs a system call where that is another one than last time.
  void Avoid();

 private:
  cpu_set_t allowed_;          // Of the bound thread, when it was bound.
  std::atomic<pid_t> tid_{0};  // 0: nothing to be kept away.
  int avoided_cpu_ = -1;       // The waker's.
};

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_OTHER_CORE_H_
