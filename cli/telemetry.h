// The log and the traces of a server, as the command line and the environment
// want them.
#ifndef QUIRE_CLI_TELEMETRY_H_
#define QUIRE_CLI_TELEMETRY_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cli/options.h"
#include "server/telemetry/request_record.h"
#include "server/telemetry/server_log.h"
#include "server/telemetry/telemetry_counts.h"

namespace quire {

struct Telemetry {
  std::shared_ptr<TelemetryCounts> counts;
  std::shared_ptr<ServerLog> log;
  std::shared_ptr<RequestObserver> observer;  // The log, and the exporter.
};

// INVALID_ARGUMENT naming the option or variable.
absl::StatusOr<Telemetry> StartTelemetry(const ServeOptions& options);

// A message on stderr, or with --log-format json an object on stdout, at once:
// where there is no log yet, or none any more. Fields are of JSON only.
void PrintMessage(const ServeOptions& options, LogLevel level,
                  absl::string_view text, const LogFields& fields = {});

// What start-up tells: a table on stdout, or with --log-format json an object,
// by `log` if it is not null.
void PrintReady(const ServeOptions& options, absl::string_view title,
                const LogFields& fields, ServerLog* log);

}  // namespace quire

#endif  // QUIRE_CLI_TELEMETRY_H_
