// Sends spans to an OpenTelemetry collector: OTLP over HTTP, JSON encoding.
#ifndef QUIRE_SERVER_TELEMETRY_SPAN_EXPORTER_H_
#define QUIRE_SERVER_TELEMETRY_SPAN_EXPORTER_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/telemetry/request_record.h"
#include "server/telemetry/telemetry_counts.h"

namespace quire {

struct SpanExporterOptions {
  std::string endpoint;  // URL of the signal: "http://host:4318/v1/traces".
  std::string authorities_file;  // PEM; empty: the system's.
  std::vector<std::pair<std::string, std::string>> headers;
  // Beside service.name and service.version.
  std::vector<std::pair<std::string, std::string>> resource;
  std::string service_name = "quire";
  std::string version;
  // Of requests that come without a trace the part that begins one.
  double sampled_part = 1;
  // A trace that comes with a request is recorded if its flag says so; else as
  // if there was none.
  bool follows_parent = true;
  // The batch processor of the OpenTelemetry specification, with its defaults.
  int max_queued_spans = 2048;
  int max_batch_spans = 512;
  absl::Duration batch_delay = absl::Seconds(5);
  absl::Duration timeout = absl::Seconds(10);  // Of one export.
};

// The variables of the OpenTelemetry specification; `endpoint`, if it is not
// empty, wins over OTEL_EXPORTER_OTLP[_TRACES]_ENDPOINT and gets /v1/traces if
// it names no path. Null: there is no endpoint, or OTEL_SDK_DISABLED is true.
// INVALID_ARGUMENT names the variable.
absl::StatusOr<std::unique_ptr<SpanExporterOptions>> ReadSpanExporterOptions(
    const std::string& endpoint,
    const std::function<const char*(const char*)>& get_variable);

// Thread-safe. Requests of API routes become spans (EncodeSpan), which wait in
// a bounded queue; a thread sends them in batches. A collector that is slow,
// gone or refuses costs spans, which are counted, and nothing else.
class SpanExporter : public RequestObserver {
 public:
  // INVALID_ARGUMENT for what cannot be an endpoint.
  static absl::StatusOr<std::shared_ptr<SpanExporter>> Create(
      const SpanExporterOptions& options,
      std::shared_ptr<TelemetryCounts> counts);
  // Sends what is queued, for two seconds at most.
  ~SpanExporter() override;
  SpanExporter(const SpanExporter&) = delete;
  SpanExporter& operator=(const SpanExporter&) = delete;

  void OnBegin(RequestRecord* record) override;
  void OnEnd(const RequestRecord& record) override;

 private:
  struct State;
  explicit SpanExporter(std::shared_ptr<State> state)
      : state_(std::move(state)) {}

  // The thread's, too: it may wait for the name service.
  const std::shared_ptr<State> state_;
};

}  // namespace quire

#endif  // QUIRE_SERVER_TELEMETRY_SPAN_EXPORTER_H_
