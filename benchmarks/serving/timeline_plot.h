// A page that shows when each request of a load waited and when its tokens
// came.
#ifndef QUIRE_BENCHMARKS_SERVING_TIMELINE_PLOT_H_
#define QUIRE_BENCHMARKS_SERVING_TIMELINE_PLOT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "benchmarks/serving/serving_metrics.h"

namespace quire {

// Gaps between tokens are green below the first, orange below the second, red
// otherwise; milliseconds.
struct TimelineThresholds {
  double low = 25;
  double high = 50;
};
// "25,50": two positive numbers, the second not smaller.
absl::StatusOr<TimelineThresholds> ParseTimelineThresholds(
    absl::string_view text);

// HTML without references to anything else: a line for each request in order of
// its start, up to its first token in blue, then its gaps in their colours.
// Requests that failed are grey over what there was of them.
std::string TimelinePage(const std::vector<RequestResult>& records,
                         double duration, const TimelineThresholds& thresholds,
                         absl::string_view title);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_SERVING_TIMELINE_PLOT_H_
