// Spans in OTLP's JSON encoding: opentelemetry-proto 1.3,
// opentelemetry/proto/trace/v1/trace.proto, and "OTLP/HTTP" of the
// OpenTelemetry specification (identifiers in hexadecimal, 64-bit integers as
// strings).
#ifndef QUIRE_SERVER_TELEMETRY_OTLP_SPAN_H_
#define QUIRE_SERVER_TELEMETRY_OTLP_SPAN_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/telemetry/request_record.h"

namespace quire {

// One object Span. The attributes have vLLM's names (vllm/tracing) where it has
// one, else those of OpenTelemetry's semantic conventions; times in seconds.
// Requests of the engine are named "llm_request" as vLLM's, others by method
// and route.
std::string EncodeSpan(const RequestRecord& record);

// ExportTraceServiceRequest. `resource`: names and values, as they are.
std::string EncodeExportRequest(
    const std::vector<std::pair<std::string, std::string>>& resource,
    absl::string_view version, absl::Span<const std::string> spans);

}  // namespace quire

#endif  // QUIRE_SERVER_TELEMETRY_OTLP_SPAN_H_
