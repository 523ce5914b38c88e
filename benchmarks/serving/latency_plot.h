// A picture of a load: latency percentiles and throughput over time, as SVG.
#ifndef QUIRE_BENCHMARKS_SERVING_LATENCY_PLOT_H_
#define QUIRE_BENCHMARKS_SERVING_LATENCY_PLOT_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "benchmarks/serving/serving_metrics.h"

namespace quire {

// Four panels over the time of the load, in up to 60 equal intervals of it:
// time to first token and gaps between tokens (median, 90th and 99th percentile
// of the tokens that came in the interval), tokens per second, and the requests
// open. Records that failed count up to where they came.
// Of kPooling three: end-to-end latency, input tokens per second, open
// requests.
std::string LatencyPlot(const std::vector<RequestResult>& records,
                        double duration, absl::string_view title,
                        LoadTask task = LoadTask::kGeneration);

// A number beside an axis: four digits, or all those before the point.
std::string AxisLabel(double value);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_SERVING_LATENCY_PLOT_H_
