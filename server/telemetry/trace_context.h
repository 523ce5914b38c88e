// The trace that a request belongs to: W3C Trace Context, Level 2.
// https://www.w3.org/TR/trace-context-2/
#ifndef QUIRE_SERVER_TELEMETRY_TRACE_CONTEXT_H_
#define QUIRE_SERVER_TELEMETRY_TRACE_CONTEXT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace quire {

// Identifiers are lower-case hexadecimal digits.
struct TraceContext {
  std::string trace_id;   // 32 digits; empty: no trace.
  std::string parent_id;  // 16 digits: the caller's span; empty: there is none.
  std::string span_id;    // 16 digits: this request's.
  std::string state;      // tracestate as one line, as it came; may be empty.
  bool is_sampled = false;

  bool has_trace() const { return !trace_id.empty(); }
};

// `trace_id`, `parent_id` and the sampled flag of a traceparent field. None if
// it is malformed in any way (section 3.2): the standard wants it ignored then,
// whole. Of versions above 00 the part that 00 defines counts.
std::optional<TraceContext> ParseTraceParent(absl::string_view value);

// The tracestate fields of a request, in order, as one. Empty if any member is
// malformed, a key comes twice or there are more than 32 (section 3.3); cut to
// 512 bytes by whole members, long ones first (section 3.3.1.5).
std::string CombineTraceState(const std::vector<absl::string_view>& values);

// The context of a request with these fields (names in lower case), with a
// span of its own if there is a trace. More than one traceparent is as none.
TraceContext ReadTraceContext(
    const std::vector<std::pair<std::string, std::string>>& fields);

// "00-<trace>-<this span>-<flags>", for the field traceresponse.
std::string TraceResponse(const TraceContext& context);

// Random, never all zeros. Unique, not secret. Thread-safe.
std::string NewTraceId();
std::string NewSpanId();

}  // namespace quire

#endif  // QUIRE_SERVER_TELEMETRY_TRACE_CONTEXT_H_
