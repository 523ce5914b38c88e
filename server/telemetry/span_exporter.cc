#include "server/telemetry/span_exporter.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/percent_encoding.h"
#include "engine/base/status.h"
#include "server/telemetry/http_post.h"
#include "server/telemetry/otlp_span.h"

namespace quire {
namespace {

constexpr absl::Duration kEndTimeout = absl::Seconds(2);
constexpr int kMaxTries = 4;  // Of one batch.
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(500);
constexpr absl::Duration kLongestBackoff = absl::Seconds(30);
constexpr char kTracesPath[] = "/v1/traces";

// The answers after which the specification wants another try.
bool IsRetryable(int status) {
  return status == 429 || (status >= 502 && status <= 504);
}

bool IsFieldName(absl::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '-' || c == '_';
  });
}

// "a=b,c=d", values percent-encoded.
absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ParsePairs(
    const char* variable, absl::string_view text, bool are_fields) {
  std::vector<std::pair<std::string, std::string>> pairs;
  for (absl::string_view pair : absl::StrSplit(text, ',')) {
    pair = absl::StripAsciiWhitespace(pair);
    if (pair.empty()) continue;
    const size_t equals = pair.find('=');
    const absl::string_view name =
        absl::StripAsciiWhitespace(pair.substr(0, equals));
    std::string value;
    if (equals != absl::string_view::npos) {
      value =
          PercentDecoded(absl::StripAsciiWhitespace(pair.substr(equals + 1)));
    }
    const bool is_ok =
        equals != absl::string_view::npos && !name.empty() &&
        (!are_fields || (IsFieldName(name) &&
                         std::all_of(value.begin(), value.end(), [](char c) {
                           return absl::ascii_isprint(c);
                         })));
    if (!is_ok) {
      return absl::InvalidArgumentError(
          absl::StrCat(variable, " must be name=value,name=value"));
    }
    pairs.emplace_back(std::string(name), std::move(value));
  }
  return pairs;
}

}  // namespace

struct SpanExporter::State {
  State(const SpanExporterOptions& options, std::unique_ptr<HttpPoster> poster,
        std::shared_ptr<TelemetryCounts> counts)
      : options(options),
        poster(std::move(poster)),
        counts(std::move(counts)) {}

  void Run();
  // True if the collector has them.
  bool Send(const std::vector<std::string>& spans);
  // By the trace's identifier, so that all who take part decide alike.
  bool IsSampled(absl::string_view trace_id) const;

  const SpanExporterOptions options;
  const std::unique_ptr<HttpPoster> poster;
  const std::shared_ptr<TelemetryCounts> counts;
  std::atomic<bool> is_abandoned{false};  // No time left to send anything.
  std::mutex mu;
  std::condition_variable has_work;
  std::condition_variable is_ended;
  std::vector<std::string> queue;  // Guarded by mu, as all below.
  bool is_stopping = false;
  bool has_ended = false;
};

bool SpanExporter::State::Send(const std::vector<std::string>& spans) {
  std::vector<std::pair<std::string, std::string>> resource = {
      {"service.name", options.service_name},
      {"service.version", options.version}};
  resource.insert(resource.end(), options.resource.begin(),
                  options.resource.end());
  const std::string body =
      EncodeExportRequest(resource, options.version, spans);
  absl::Duration backoff = kFirstBackoff;
  for (int i = 0; i < kMaxTries; ++i) {
    const absl::StatusOr<PostAnswer> answer =
        poster->Post("application/json", body, options.timeout, is_abandoned);
    if (answer.ok() && answer->status >= 200 && answer->status < 300) {
      return true;
    }
    if (answer.ok() && !IsRetryable(answer->status)) return false;
    absl::Duration wait = backoff;
    if (answer.ok()) wait = std::max(wait, answer->retry_after);
    wait = std::min(wait, kLongestBackoff);
    backoff *= 2;
    std::unique_lock<std::mutex> lock(mu);
    // In the end there is no time for a second try.
    if (has_work.wait_for(lock, absl::ToChronoMilliseconds(wait),
                          [this] { return is_stopping; })) {
      return false;
    }
  }
  return false;
}

void SpanExporter::State::Run() {
  std::unique_lock<std::mutex> lock(mu);
  for (;;) {
    has_work.wait_for(
        lock, absl::ToChronoMilliseconds(options.batch_delay), [this] {
          return is_stopping ||
                 queue.size() >= static_cast<size_t>(options.max_batch_spans);
        });
    if (queue.empty()) {
      if (is_stopping) break;
      continue;
    }
    const size_t size = std::min<size_t>(queue.size(), options.max_batch_spans);
    std::vector<std::string> batch(
        std::make_move_iterator(queue.begin()),
        std::make_move_iterator(queue.begin() + size));
    queue.erase(queue.begin(), queue.begin() + size);
    lock.unlock();
    bool is_sent = false;
    try {
      is_sent = Send(batch);
    } catch (...) {
      // No memory for the batch: lost.
    }
    (is_sent ? counts->num_spans_exported : counts->num_spans_dropped) += size;
    lock.lock();
  }
  has_ended = true;
  is_ended.notify_all();
}

bool SpanExporter::State::IsSampled(absl::string_view trace_id) const {
  if (options.sampled_part >= 1) return true;
  uint64_t low = 0;
  if (!absl::SimpleHexAtoi(trace_id.substr(16), &low)) return false;
  return static_cast<double>(low) < options.sampled_part * 0x1p64;
}

absl::StatusOr<std::shared_ptr<SpanExporter>> SpanExporter::Create(
    const SpanExporterOptions& options,
    std::shared_ptr<TelemetryCounts> counts) {
  QUIRE_ASSIGN_OR_RETURN(const PostTarget target,
                         ParsePostTarget(options.endpoint));
  QUIRE_ASSIGN_OR_RETURN(
      std::unique_ptr<HttpPoster> poster,
      HttpPoster::Create(target, options.authorities_file, options.headers));
  auto state =
      std::make_shared<State>(options, std::move(poster), std::move(counts));
  // The signals are others', and a closed connection is an error, not an end.
  sigset_t all, previous;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &previous);
  absl::Status status;
  try {
    std::thread([state] {
      pthread_setname_np(pthread_self(), "spans");
      state->Run();
    }).detach();
  } catch (const std::system_error&) {
    status = absl::UnavailableError("traces: cannot start a thread");
  }
  pthread_sigmask(SIG_SETMASK, &previous, nullptr);
  if (!status.ok()) return status;
  return std::shared_ptr<SpanExporter>(new SpanExporter(std::move(state)));
}

SpanExporter::~SpanExporter() {
  std::unique_lock<std::mutex> lock(state_->mu);
  state_->is_stopping = true;
  state_->has_work.notify_all();
  const auto has_ended = [this] { return state_->has_ended; };
  if (state_->is_ended.wait_for(lock, absl::ToChronoMilliseconds(kEndTimeout),
                                has_ended)) {
    return;
  }
  state_->is_abandoned = true;
  // A wait for the collector ends by itself now; one for the name service may
  // not.
  state_->is_ended.wait_for(lock, std::chrono::milliseconds(200), has_ended);
}

void SpanExporter::OnBegin(RequestRecord* record) {
  if (!record->is_api) return;
  TraceContext& trace = record->trace;
  if (trace.has_trace() && state_->options.follows_parent) return;
  if (!trace.has_trace()) {
    trace.trace_id = NewTraceId();
    trace.span_id = NewSpanId();
  }
  trace.is_sampled = state_->IsSampled(trace.trace_id);
}

void SpanExporter::OnEnd(const RequestRecord& record) {
  if (!record.is_api || !record.trace.is_sampled) return;
  std::string span = EncodeSpan(record);
  std::lock_guard<std::mutex> lock(state_->mu);
  if (state_->queue.size() >=
      static_cast<size_t>(state_->options.max_queued_spans)) {
    ++state_->counts->num_spans_dropped;
    return;
  }
  state_->queue.push_back(std::move(span));
  if (state_->queue.size() ==
      static_cast<size_t>(state_->options.max_batch_spans)) {
    state_->has_work.notify_all();
  }
}

absl::StatusOr<std::unique_ptr<SpanExporterOptions>> ReadSpanExporterOptions(
    const std::string& endpoint,
    const std::function<const char*(const char*)>& get_variable) {
  const auto get = [&](const char* name) {
    const char* const value = get_variable(name);
    return absl::StripAsciiWhitespace(value == nullptr ? "" : value);
  };
  // The variable of the signal wins over the one of all signals.
  const auto get_of_traces = [&](const char* name) {
    const absl::string_view value =
        get(absl::StrCat("OTEL_EXPORTER_OTLP_TRACES_", name).c_str());
    return value.empty()
               ? get(absl::StrCat("OTEL_EXPORTER_OTLP_", name).c_str())
               : value;
  };
  std::string url = endpoint;
  if (!url.empty()) {
    QUIRE_ASSIGN_OR_RETURN(const PostTarget target, ParsePostTarget(url));
    if (target.path == "/") {
      url = absl::StrCat(absl::StripSuffix(url, "/"), kTracesPath);
    }
  } else if (absl::EqualsIgnoreCase(get("OTEL_SDK_DISABLED"), "true") ||
             get("OTEL_TRACES_EXPORTER") == "none") {
    return nullptr;
  } else if (!get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").empty()) {
    url = std::string(get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"));
  } else if (!get("OTEL_EXPORTER_OTLP_ENDPOINT").empty()) {
    url =
        absl::StrCat(absl::StripSuffix(get("OTEL_EXPORTER_OTLP_ENDPOINT"), "/"),
                     kTracesPath);
  } else {
    return nullptr;
  }
  auto options = std::make_unique<SpanExporterOptions>();
  options->endpoint = url;
  options->authorities_file = std::string(get_of_traces("CERTIFICATE"));
  if (get_of_traces("PROTOCOL") == "grpc") {
    return absl::InvalidArgumentError(
        "OTEL_EXPORTER_OTLP_PROTOCOL: traces go over HTTP (port 4318 of most "
        "collectors), not gRPC");
  }
  QUIRE_ASSIGN_OR_RETURN(
      options->headers,
      ParsePairs("OTEL_EXPORTER_OTLP_HEADERS", get_of_traces("HEADERS"),
                 /*are_fields=*/true));
  QUIRE_ASSIGN_OR_RETURN(
      options->resource,
      ParsePairs("OTEL_RESOURCE_ATTRIBUTES", get("OTEL_RESOURCE_ATTRIBUTES"),
                 /*are_fields=*/false));
  std::erase_if(options->resource, [&options](const auto& attribute) {
    if (attribute.first != "service.name") return false;
    options->service_name = attribute.second;
    return true;
  });
  if (!get("OTEL_SERVICE_NAME").empty()) {
    options->service_name = std::string(get("OTEL_SERVICE_NAME"));
  }
  absl::string_view sampler = get("OTEL_TRACES_SAMPLER");
  if (sampler.empty()) sampler = "parentbased_always_on";
  options->follows_parent = absl::ConsumePrefix(&sampler, "parentbased_");
  if (sampler == "always_off") {
    options->sampled_part = 0;
  } else if (sampler == "traceidratio") {
    const absl::string_view part = get("OTEL_TRACES_SAMPLER_ARG");
    if (!part.empty() &&
        (!absl::SimpleAtod(part, &options->sampled_part) ||
         !(options->sampled_part >= 0) || options->sampled_part > 1)) {
      return absl::InvalidArgumentError(
          "OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1");
    }
  } else if (sampler != "always_on") {
    return absl::InvalidArgumentError(
        "OTEL_TRACES_SAMPLER must be always_on, always_off or traceidratio, "
        "with or without parentbased_ in front");
  }
  return options;
}

}  // namespace quire
