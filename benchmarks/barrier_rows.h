// What it costs the threads of a pool to begin and to end a loop together.
#ifndef QUIRE_BENCHMARKS_BARRIER_ROWS_H_
#define QUIRE_BENCHMARKS_BARRIER_ROWS_H_

#include <functional>
#include <string>
#include <vector>

#include "engine/base/cpu_topology.h"

namespace quire {

// Rows for pools of 1, 2, ... of the threads of `placement` (beyond 8: powers
// of two and all), as many as there are CPUs at most: others take turns.
//   "loop barrier, 4 threads": ThreadPool::ParallelFor over an empty item for
//     each thread, one loop after the other as in a step: its caller waits only
//     for threads that are inside.
//   "full barrier, 4 threads": the same, but nobody leaves before all are in.
//   "full barrier, 4 threads, asleep": the same, long after the last loop, when
//     idle threads have stopped to poll.
// Each has a second row, ", p99". `on_row` gets the medians and the 99th
// percentiles of many executions in each of `repetitions`, in seconds; the two
// readings of the clock, some 50 ns, are part of them. `filter`: only rows with
// this in their name.
void MeasureBarriers(
    const ThreadPlacement& placement, int repetitions,
    const std::string& filter,
    const std::function<void(const std::string& name,
                             const std::vector<double>& seconds)>& on_row);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_BARRIER_ROWS_H_
