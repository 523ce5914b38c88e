#include "cli/telemetry.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cli/version.h"
#include "engine/base/status.h"
#include "server/telemetry/span_exporter.h"

namespace quire {
namespace {

LogFormat FormatOf(const ServeOptions& options) {
  return options.log_format == "json" ? LogFormat::kJson : LogFormat::kText;
}

LogLevel LevelOf(const ServeOptions& options) {
  if (options.log_level == "debug") return LogLevel::kDebug;
  if (options.log_level == "warning") return LogLevel::kWarning;
  if (options.log_level == "error") return LogLevel::kError;
  return LogLevel::kInfo;
}

}  // namespace

absl::StatusOr<Telemetry> StartTelemetry(const ServeOptions& options) {
  Telemetry telemetry;
  telemetry.counts = std::make_shared<TelemetryCounts>();
  ServerLogOptions log;
  log.format = FormatOf(options);
  log.level = LevelOf(options);
  if (options.enable_log_requests) log.max_body_bytes = options.max_log_len;
  telemetry.log = std::make_shared<ServerLog>(log, telemetry.counts);
  telemetry.observer = telemetry.log;
  QUIRE_ASSIGN_OR_RETURN(
      std::unique_ptr<SpanExporterOptions> spans,
      ReadSpanExporterOptions(options.otlp_traces_endpoint,
                              [](const char* name) { return getenv(name); }));
  if (spans == nullptr) return telemetry;
  spans->version = kVersion;
  QUIRE_ASSIGN_OR_RETURN(std::shared_ptr<SpanExporter> exporter,
                         SpanExporter::Create(*spans, telemetry.counts));
  // The exporter first: the log's lines carry the trace that it may begin.
  telemetry.observer = CombineObservers({exporter, telemetry.log});
  return telemetry;
}

void PrintMessage(const ServeOptions& options, LogLevel level,
                  absl::string_view text, const LogFields& fields) {
  if (FormatOf(options) == LogFormat::kText) {
    absl::FPrintF(stderr, "quire: %s\n", text);
  } else {
    absl::PrintF("%s\n", FormatMessageLine(LogFormat::kJson, level, text,
                                           absl::Now(), fields));
    fflush(stdout);
  }
}

void PrintReady(const ServeOptions& options, absl::string_view title,
                const LogFields& fields, ServerLog* log) {
  if (FormatOf(options) == LogFormat::kText) {
    absl::PrintF("%s\n", title);
    for (const auto& [name, value] : fields) {
      absl::PrintF("  %-12s %s\n", name, value);
    }
    fflush(stdout);
    return;
  }
  const std::string text = absl::StrCat(title, " is ready");
  if (log != nullptr) {
    log->Message(LogLevel::kInfo, text, fields);
  } else {
    PrintMessage(options, LogLevel::kInfo, text, fields);
  }
}

}  // namespace quire
