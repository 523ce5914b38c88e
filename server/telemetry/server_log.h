// The log of a server: a line for each request that has ended, and messages.
#ifndef QUIRE_SERVER_TELEMETRY_SERVER_LOG_H_
#define QUIRE_SERVER_TELEMETRY_SERVER_LOG_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/telemetry/log_writer.h"
#include "server/telemetry/request_record.h"
#include "server/telemetry/telemetry_counts.h"

namespace quire {

enum class LogFormat : uint8_t {
  kText,  // "<time> INFO request id=… route=…", values quoted where needed.
  kJson,  // One object per line.
};

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError };

// Names and values that a message has beside its text. Names are ours, plain
// words: "KV cache" is kv_cache in JSON.
using LogFields = std::vector<std::pair<std::string, std::string>>;

struct ServerLogOptions {
  LogFormat format = LogFormat::kText;
  LogLevel level = LogLevel::kInfo;  // What is below is not written.
  int request_fd = 1;                // Of requests; and with kJson
  int message_fd = 2;                // of messages, too.
  int64_t max_queued_bytes = 1 << 20;
  // The beginning of requests' bodies, which hold prompts, is told, so many
  // bytes of it. 0: not at all.
  int64_t max_body_bytes = 0;
};

// Of a request at info, of a message at its level. What clients sent is escaped
// and at most 256 bytes of it (the body: see above), so that no client writes a
// line of its own. Probes have no line, but at debug.
// Thread-safe; never waits for a descriptor.
class ServerLog : public RequestObserver {
 public:
  ServerLog(const ServerLogOptions& options,
            std::shared_ptr<TelemetryCounts> counts);

  void Message(LogLevel level, absl::string_view text,
               const LogFields& fields = {});

  void OnEnd(const RequestRecord& record) override;
  int64_t max_body_bytes() const override {
    return options_.level <= LogLevel::kInfo ? options_.max_body_bytes : 0;
  }

  // Waits until what was logged before is written or lost; false on timeout.
  bool Flush(absl::Duration timeout);

 private:
  const ServerLogOptions options_;
  LogWriter request_writer_;
  std::unique_ptr<LogWriter> message_writer_;  // Null: the same.
};

// A line without its end. `now`: wall clock.
std::string FormatRequestLine(LogFormat format, const RequestRecord& record,
                              absl::Time now);
std::string FormatMessageLine(LogFormat format, LogLevel level,
                              absl::string_view text, absl::Time now,
                              const LogFields& fields = {});

}  // namespace quire

#endif  // QUIRE_SERVER_TELEMETRY_SERVER_LOG_H_
