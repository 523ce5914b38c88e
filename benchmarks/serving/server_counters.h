// What a server counts itself, read from its /metrics before and after a load:
// vLLM's counters of speculation and of time in the queue.
#ifndef QUIRE_BENCHMARKS_SERVING_SERVER_COUNTERS_H_
#define QUIRE_BENCHMARKS_SERVING_SERVER_COUNTERS_H_

#include <map>

#include "absl/strings/string_view.h"

namespace quire {

// Sums over all engines that the page lists.
struct ServerCounters {
  bool has_speculation = false;
  double num_drafts = 0;
  double num_draft_tokens = 0;
  double num_accepted_tokens = 0;
  std::map<int, double> num_accepted_by_position;
  bool has_queue_time = false;
  double queue_seconds = 0;
  double num_queued = 0;  // Requests whose time that is.

  // What was counted since `before`.
  ServerCounters Since(const ServerCounters& before) const;
};

// Of a page in Prometheus' text format; lines that are none, or of no interest,
// are skipped.
ServerCounters ReadServerCounters(absl::string_view page);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_SERVING_SERVER_COUNTERS_H_
