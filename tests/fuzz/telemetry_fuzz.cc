// What a request leaves in log and trace: trace context as the client sent it,
// lines and spans with whatever text.
//
// Input: traceparent, tracestate and a text, each but the last ended by a line
// end.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "server/json_text.h"
#include "server/telemetry/otlp_span.h"
#include "server/telemetry/request_record.h"
#include "server/telemetry/server_log.h"

namespace quire {
namespace {

void CheckLine(const std::string& line, bool is_json) {
  for (const char c : line) QUIRE_CHECK(static_cast<uint8_t>(c) >= 0x20);
  if (!is_json) return;
  const auto parsed = ParseJson(line);
  QUIRE_CHECK(parsed.ok() && parsed->is_object());
}

void Run(absl::string_view input) {
  const std::vector<absl::string_view> parts =
      absl::StrSplit(input, absl::MaxSplits('\n', 2));
  const std::string parent(parts[0]);
  const std::string state(parts.size() > 1 ? parts[1] : "");
  const std::string text(parts.back());
  RequestRecord record;
  record.trace =
      ReadTraceContext({{"traceparent", parent}, {"tracestate", state}});
  if (record.trace.has_trace()) {
    // What was taken is what was sent, and is taken again.
    QUIRE_CHECK(absl::StartsWith(
        parent.substr(3),
        absl::StrCat(record.trace.trace_id, "-", record.trace.parent_id, "-")));
    const auto again = ParseTraceParent(TraceResponse(record.trace));
    QUIRE_CHECK(again.has_value());
    QUIRE_CHECK(again->trace_id == record.trace.trace_id);
    QUIRE_CHECK(again->is_sampled == record.trace.is_sampled);
    QUIRE_CHECK(record.trace.state.size() <= 512);
    QUIRE_CHECK(CombineTraceState({record.trace.state}) == record.trace.state);
  }
  record.request_id = IsHarmlessRequestId(text) ? text : "other";
  record.method = record.owner = record.model = record.path = record.body =
      text;
  record.operation = "chat";
  for (const LogFormat format : {LogFormat::kText, LogFormat::kJson}) {
    const bool is_json = format == LogFormat::kJson;
    const absl::Time now = absl::UnixEpoch();
    CheckLine(FormatRequestLine(format, record, now), is_json);
    CheckLine(FormatMessageLine(format, LogLevel::kError, text, now), is_json);
  }
  const std::string request =
      EncodeExportRequest({{text, text}}, "1", {EncodeSpan(record)});
  CheckLine(request, /*is_json=*/true);
}

}  // namespace
}  // namespace quire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quire::Run(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
