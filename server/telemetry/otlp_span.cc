#include "server/telemetry/otlp_span.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "server/json_text.h"

namespace quire {
namespace {

// SpanKind and StatusCode of trace.proto.
constexpr int kSpanKindServer = 2;
constexpr int kStatusError = 2;

// A list of KeyValue.
class Attributes {
 public:
  void AddString(absl::string_view name, absl::string_view value) {
    if (value.empty()) return;
    Begin(name);
    out_ += R"("stringValue":)";
    AppendJsonString(value, &out_);
    out_ += "}}";
  }
  void AddInt(absl::string_view name, int64_t value) {
    Begin(name);
    absl::StrAppend(&out_, R"("intValue":")", value, R"("}})");
  }
  void AddDouble(absl::string_view name, double value) {
    Begin(name);
    out_ += R"("doubleValue":)";
    AppendJsonNumber(value, &out_);
    out_ += "}}";
  }
  // In seconds; nothing if either end is unknown.
  void AddInterval(absl::string_view name, absl::Time from, absl::Time to) {
    if (from == absl::InfinitePast() || to == absl::InfinitePast()) return;
    AddDouble(name, absl::ToDoubleSeconds(to - from));
  }
  void AddList(absl::string_view name, absl::string_view only_value) {
    Begin(name);
    out_ += R"("arrayValue":{"values":[{"stringValue":)";
    AppendJsonString(only_value, &out_);
    out_ += "}]}}}";
  }
  std::string Finish() { return absl::StrCat("[", out_, "]"); }

 private:
  void Begin(absl::string_view name) {
    if (!out_.empty()) out_ += ',';
    out_ += R"({"key":)";
    AppendJsonString(name, &out_);
    out_ += R"(,"value":{)";
  }

  std::string out_;
};

void AddEngineAttributes(const RequestRecord& record, Attributes* attributes) {
  attributes->AddString("gen_ai.operation.name", record.operation);
  attributes->AddString("gen_ai.request.model", record.model);
  attributes->AddString("gen_ai.response.model", record.model);
  if (record.temperature >= 0) {
    attributes->AddDouble("gen_ai.request.temperature", record.temperature);
  }
  if (record.top_p >= 0) {
    attributes->AddDouble("gen_ai.request.top_p", record.top_p);
  }
  if (record.max_tokens > 0) {
    attributes->AddInt("gen_ai.request.max_tokens", record.max_tokens);
  }
  attributes->AddInt("gen_ai.request.n", record.n);
  attributes->AddInt("gen_ai.usage.prompt_tokens", record.num_prompt_tokens);
  attributes->AddInt("gen_ai.usage.completion_tokens",
                     record.num_completion_tokens);
  attributes->AddInt("gen_ai.usage.cached_tokens", record.num_cached_tokens);
  attributes->AddInterval("gen_ai.latency.time_in_queue", record.arrival_time,
                          record.scheduled_time);
  attributes->AddInterval("gen_ai.latency.time_to_first_token",
                          record.arrival_time, record.first_token_time);
  attributes->AddInterval("gen_ai.latency.time_in_model_prefill",
                          record.scheduled_time, record.first_token_time);
  attributes->AddInterval("gen_ai.latency.time_in_model_decode",
                          record.first_token_time, record.last_token_time);
  attributes->AddInterval("gen_ai.latency.time_in_model_inference",
                          record.scheduled_time, record.last_token_time);
  attributes->AddInterval("gen_ai.latency.e2e", record.arrival_time,
                          record.end_time);
  if (record.finish_reason != nullptr) {
    attributes->AddList("gen_ai.response.finish_reasons", record.finish_reason);
  }
}

}  // namespace

std::string EncodeSpan(const RequestRecord& record) {
  Attributes attributes;
  attributes.AddString("gen_ai.request.id", record.request_id);
  attributes.AddString("http.request.method", record.method);
  attributes.AddString("http.route", record.route);
  attributes.AddInt("http.response.status_code", record.status);
  attributes.AddString("quire.key.owner", record.owner);
  if (record.operation != nullptr) AddEngineAttributes(record, &attributes);
  const bool is_error = record.status >= 500 || record.is_cut_off;
  if (record.is_cut_off) {
    attributes.AddString("error.type", "client_gone");
  } else if (record.status >= 400) {
    attributes.AddString("error.type", absl::StrCat(record.status));
  }
  const TraceContext& trace = record.trace;
  const int64_t start = absl::ToUnixNanos(record.wall_arrival);
  const int64_t end = record.end_time == absl::InfinitePast()
                          ? start
                          : start + absl::ToInt64Nanoseconds(
                                        record.end_time - record.arrival_time);
  std::string out = absl::StrCat(R"({"traceId":")", trace.trace_id,
                                 R"(","spanId":")", trace.span_id, "\"");
  if (!trace.parent_id.empty()) {
    absl::StrAppend(&out, R"(,"parentSpanId":")", trace.parent_id, "\"");
  }
  if (!trace.state.empty()) {
    out += R"(,"traceState":)";
    AppendJsonString(trace.state, &out);
  }
  out += R"(,"name":)";
  AppendJsonString(record.operation != nullptr
                       ? "llm_request"
                       : absl::StrCat(record.method, " ", record.route),
                   &out);
  absl::StrAppend(&out, R"(,"kind":)", kSpanKindServer, R"(,"flags":)",
                  trace.is_sampled ? 1 : 0, R"(,"startTimeUnixNano":")", start,
                  R"(","endTimeUnixNano":")", end, R"(","attributes":)",
                  attributes.Finish());
  if (is_error) {
    absl::StrAppend(&out, R"(,"status":{"code":)", kStatusError, "}");
  }
  out += '}';
  return out;
}

std::string EncodeExportRequest(
    const std::vector<std::pair<std::string, std::string>>& resource,
    absl::string_view version, absl::Span<const std::string> spans) {
  Attributes attributes;
  for (const auto& [name, value] : resource) attributes.AddString(name, value);
  std::string out = absl::StrCat(
      R"({"resourceSpans":[{"resource":{"attributes":)", attributes.Finish(),
      R"(},"scopeSpans":[{"scope":{"name":"quire","version":)");
  AppendJsonString(version, &out);
  absl::StrAppend(&out, R"(},"spans":[)", absl::StrJoin(spans, ","), "]}]}]}");
  return out;
}

}  // namespace quire
