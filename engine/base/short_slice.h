// Threads that wake often, work for microseconds and sleep again.
#ifndef QUIRE_ENGINE_BASE_SHORT_SLICE_H_
#define QUIRE_ENGINE_BASE_SHORT_SLICE_H_

namespace quire {

// Asks the operating system for the shortest time slice for the calling thread.
// Where every core computes, a thread that wakes waits for the rest of some
// thread's slice, about 3 ms on 4 cores; one with a shorter slice of its own
// goes first (EEVDF, Linux 6.12: kernel/sched/fair.c, PREEMPT_SHORT). Its share
// of the CPU stays the same. Best effort: without effect on older kernels, or
// where it is forbidden.
void TakeShortSlices();

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_SHORT_SLICE_H_
