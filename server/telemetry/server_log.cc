#include "server/telemetry/server_log.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "server/json_text.h"

namespace quire {
namespace {

constexpr size_t kMaxTextBytes = 256;

const char* LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "DEBUG";
    case LogLevel::kInfo:
      return "INFO";
    case LogLevel::kWarning:
      return "WARNING";
    case LogLevel::kError:
      break;
  }
  return "ERROR";
}

std::string TimeStamp(absl::Time now) {
  return absl::FormatTime("%Y-%m-%d%ET%H:%M:%E3SZ", now, absl::UTCTimeZone());
}

// Whether a value of a text line needs no quotes.
bool IsPlain(absl::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isgraph(c) && c != '"' && c != '\\' && c != '=';
  });
}

// As a JSON string in which nothing is left that ends a line or steers a
// terminal for some reader: JSON itself lets U+0080 to U+009F (C1: U+009B
// begins a control sequence, U+0085 is a line end) and the line separators
// U+2028 and U+2029 stand as they are.
void AppendLogString(absl::string_view text, std::string* out) {
  std::string quoted;
  AppendJsonString(text, &quoted);
  for (size_t i = 0; i < quoted.size(); ++i) {
    const absl::string_view rest = absl::string_view(quoted).substr(i);
    const auto byte = [&](size_t at) { return static_cast<uint8_t>(rest[at]); };
    if (byte(0) == 0xc2 && byte(1) < 0xa0) {  // The text is UTF-8 by now.
      absl::StrAppend(out, "\\u00", absl::Hex(byte(1), absl::kZeroPad2));
      i += 1;
    } else if (absl::StartsWith(rest, "\xe2\x80\xa8") ||
               absl::StartsWith(rest, "\xe2\x80\xa9")) {
      absl::StrAppend(out, byte(2) == 0xa8 ? "\\u2028" : "\\u2029");
      i += 2;
    } else {
      out->push_back(rest[0]);
    }
  }
}

// One line, field by field, in either format. Names are ours, plain words.
class Line {
 public:
  Line(LogFormat format, LogLevel level, absl::string_view message,
       absl::Time now)
      : is_json_(format == LogFormat::kJson) {
    const std::string time = TimeStamp(now);
    if (is_json_) {
      absl::StrAppend(&text_, R"({"time":")", time, R"(","level":")",
                      LevelName(level), R"(","message":)");
      AppendLogString(message, &text_);
    } else {
      absl::StrAppend(&text_, time, " ", LevelName(level), " ");
      // Control characters and line ends are escaped as in JSON.
      if (std::all_of(message.begin(), message.end(),
                      [](char c) { return absl::ascii_isprint(c); })) {
        absl::StrAppend(&text_, message);
      } else {
        AppendLogString(message, &text_);
      }
    }
  }

  void Add(absl::string_view name, absl::string_view value,
           size_t max_bytes = kMaxTextBytes) {
    if (value.empty()) return;
    AddName(name);
    value = value.substr(0, max_bytes);
    if (!is_json_ && IsPlain(value)) {
      absl::StrAppend(&text_, value);
    } else {
      AppendLogString(value, &text_);
    }
  }
  void AddNumber(absl::string_view name, int64_t value) {
    AddName(name);
    absl::StrAppend(&text_, value);
  }
  void AddFlag(absl::string_view name) {
    AddName(name);
    text_ += "true";
  }
  // In milliseconds, with microseconds; nothing if either end is unknown.
  void AddInterval(absl::string_view name, absl::Time from, absl::Time to) {
    if (from == absl::InfinitePast() || to == absl::InfinitePast()) return;
    AddName(name);
    AppendJsonNumber(std::round(absl::ToDoubleMicroseconds(to - from)) / 1000,
                     &text_);
  }

  std::string Finish() {
    if (is_json_) text_ += '}';
    return std::move(text_);
  }

 private:
  void AddName(absl::string_view name) {
    if (is_json_) {
      absl::StrAppend(&text_, ",\"", name, "\":");
    } else {
      absl::StrAppend(&text_, " ", name, "=");
    }
  }

  const bool is_json_;
  std::string text_;
};

}  // namespace

std::string FormatRequestLine(LogFormat format, const RequestRecord& record,
                              absl::Time now) {
  Line line(format, LogLevel::kInfo, "request", now);
  line.Add("request_id", record.request_id);
  line.Add("trace_id", record.trace.trace_id);
  line.Add("span_id", record.trace.span_id);
  line.Add("method", record.method);
  line.Add("route", record.route);
  line.Add("path", record.path);
  line.AddNumber("status", record.status);
  if (record.refusal != nullptr) line.Add("reason", record.refusal);
  if (record.is_cut_off) line.AddFlag("client_gone");
  line.Add("owner", record.owner);
  if (record.operation != nullptr) {
    line.Add("model", record.model);
    if (record.is_stream) line.AddFlag("stream");
    line.AddNumber("prompt_tokens", record.num_prompt_tokens);
    line.AddNumber("cached_tokens", record.num_cached_tokens);
    line.AddNumber("completion_tokens", record.num_completion_tokens);
    if (record.finish_reason != nullptr) {
      line.Add("finish_reason", record.finish_reason);
    }
    line.AddInterval("queue_ms", record.arrival_time, record.scheduled_time);
    line.AddInterval("ttft_ms", record.arrival_time, record.first_token_time);
  }
  line.AddInterval("total_ms", record.arrival_time, record.end_time);
  // Cut where it was kept.
  line.Add("body", record.body, record.body.size());
  return line.Finish();
}

std::string FormatMessageLine(LogFormat format, LogLevel level,
                              absl::string_view text, absl::Time now,
                              const LogFields& fields) {
  Line line(format, level, text, now);
  for (const auto& [name, value] : fields) {
    line.Add(absl::StrReplaceAll(absl::AsciiStrToLower(name), {{" ", "_"}}),
             value, value.size());
  }
  return line.Finish();
}

ServerLog::ServerLog(const ServerLogOptions& options,
                     std::shared_ptr<TelemetryCounts> counts)
    : options_(options),
      request_writer_(options.request_fd, options.max_queued_bytes, counts) {
  if (options.format == LogFormat::kText &&
      options.message_fd != options.request_fd) {
    message_writer_ = std::make_unique<LogWriter>(
        options.message_fd, options.max_queued_bytes, counts);
  }
}

void ServerLog::Message(LogLevel level, absl::string_view text,
                        const LogFields& fields) {
  if (level < options_.level) return;
  LogWriter& writer =
      message_writer_ != nullptr ? *message_writer_ : request_writer_;
  // In text with the name in front: standard error may be that of many.
  const std::string named = options_.format == LogFormat::kText
                                ? absl::StrCat("quire: ", text)
                                : std::string(text);
  writer.Write(
      FormatMessageLine(options_.format, level, named, absl::Now(), fields));
}

void ServerLog::OnEnd(const RequestRecord& record) {
  const LogLevel level = record.is_probe ? LogLevel::kDebug : LogLevel::kInfo;
  if (level < options_.level) return;
  request_writer_.Write(
      FormatRequestLine(options_.format, record, absl::Now()));
}

bool ServerLog::Flush(absl::Duration timeout) {
  const bool is_flushed = request_writer_.Flush(timeout);
  return (message_writer_ == nullptr || message_writer_->Flush(timeout)) &&
         is_flushed;
}

}  // namespace quire
