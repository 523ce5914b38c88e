// Lines to a descriptor, from threads that must not wait for it.
#ifndef QUIRE_SERVER_TELEMETRY_LOG_WRITER_H_
#define QUIRE_SERVER_TELEMETRY_LOG_WRITER_H_

#include <cstdint>
#include <memory>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/telemetry/telemetry_counts.h"

namespace quire {

// Thread-safe. A thread of its own writes; a reader that has stopped, a full
// disk or a closed pipe cost lines, which are counted, and nothing else.
class LogWriter {
 public:
  // `fd` stays the caller's. What waits to be written is at most
  // `max_queued_bytes`, twice that while a write is stuck. `counts` takes the
  // lines lost.
  LogWriter(int fd, int64_t max_queued_bytes,
            std::shared_ptr<TelemetryCounts> counts);
  // Waits for what is queued, a second at most, and less for a reader that takes
  // nothing.
  ~LogWriter();
  LogWriter(const LogWriter&) = delete;
  LogWriter& operator=(const LogWriter&) = delete;

  // Queues `line`, to which a line end is added, or drops it. Never blocks on
  // the descriptor.
  void Write(absl::string_view line);

  // Waits until what was queued before is written or lost; false on timeout.
  bool Flush(absl::Duration timeout);

 private:
  struct State;

  const std::shared_ptr<State> state_;  // The thread's, too: it may be stuck.
};

}  // namespace quire

#endif  // QUIRE_SERVER_TELEMETRY_LOG_WRITER_H_
