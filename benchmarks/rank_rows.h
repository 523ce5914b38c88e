// What several processes that run one model spend on each other: the
// distribution of a step's plan, and sums over the ranks of a host.
#ifndef QUIRE_BENCHMARKS_RANK_ROWS_H_
#define QUIRE_BENCHMARKS_RANK_ROWS_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace quire {

// The ranks are processes of their own, as in use (fork, so that the calling
// process must have no other thread that matters to them). Rows:
//   "plan 64 decodes, 3 ranks": from the plan to all other ranks having it:
//     encoded, through the ring, decoded; less the answer's way back, which is
//     taken to be half of a round trip of an empty message.
//   "plan 64 decodes, send": the part of it that rank 0 computes.
//   "all-reduce 8 KiB, 2 ranks": one sum in shared memory.
//   "all-reduce 8 KiB, 2 ranks, TCP": the same over the loopback device, as
//     between hosts, without a network's latency.
//   "rank barrier, 2 ranks", also ", TCP": all ranks have come; with a second
//     row, ", p99", of the 99th percentiles.
// `filter`: only rows with this in their name. Each gets `repetitions` medians
// of many executions, in seconds.
absl::Status MeasureRanks(
    int repetitions, const std::string& filter,
    const std::function<void(const std::string& name,
                             const std::vector<double>& seconds)>& on_row);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_RANK_ROWS_H_
