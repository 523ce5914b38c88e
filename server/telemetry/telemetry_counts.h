// What telemetry itself has lost and done, for /metrics.
#ifndef QUIRE_SERVER_TELEMETRY_TELEMETRY_COUNTS_H_
#define QUIRE_SERVER_TELEMETRY_TELEMETRY_COUNTS_H_

#include <atomic>
#include <cstdint>

namespace quire {

// Thread-safe.
struct TelemetryCounts {
  std::atomic<int64_t> num_log_lines_dropped{0};
  std::atomic<int64_t> num_spans_exported{0};
  std::atomic<int64_t> num_spans_dropped{0};
};

}  // namespace quire

#endif  // QUIRE_SERVER_TELEMETRY_TELEMETRY_COUNTS_H_
