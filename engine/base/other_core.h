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
// In a virtual machine a thread is queued there even while other cores rest: a
// virtual CPU that has halted looks to its guest like one that the host has
// preempted (KVM's steal time; available_idle_cpu), and is not chosen.
//
// One thread calls Bind, once; one thread calls Avoid or AvoidAsIDo.
class OtherCore {
 public:
  // On the thread that is to be elsewhere.
  void Bind();
  // On the waker, before it wakes the other: from now on the core that it is
  // on now. Costs a system call where that is another one than last time.
  void Avoid();
  // Avoid, and the cores that the waker is itself kept away from are avoided as
  // well. Without effect where that leaves no core.
  void AvoidAsIDo();

 private:
  bool HasMoved();  // The waker, since this was asked last.
  void Allow(const cpu_set_t& cpus);

  cpu_set_t allowed_;          // Of the bound thread, when it was bound.
  std::atomic<pid_t> tid_{0};  // 0: nothing to be kept away.
  int avoided_cpu_ = -1;       // The waker's.
};

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_OTHER_CORE_H_
