#include "cli/drain.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/exit_codes.h"
#include "cli/http_client.h"
#include "engine/base/clock.h"

namespace quire {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(100);
// For one answer: scrapes are answered by a thread of their own.
constexpr absl::Duration kMaxWait = absl::Seconds(10);
// Polls in a row that find nobody.
constexpr int kGoneAfter = 3;

// The value of the series called `name` in Prometheus' text format.
std::optional<double> MetricValue(const std::string& text,
                                  absl::string_view name) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!absl::StartsWith(line, name)) continue;
    const absl::string_view rest = line.substr(name.size());
    if (rest.empty() || (rest[0] != '{' && rest[0] != ' ')) continue;
    double value = 0;
    if (absl::SimpleAtod(line.substr(line.rfind(' ') + 1), &value)) {
      return value;
    }
  }
  return std::nullopt;
}

bool IsLoading(const absl::Status& status) {
  return absl::IsUnknown(status) &&
         absl::StrContains(status.message(), "loading");
}

}  // namespace

int RunDrain(const DrainOptions& options) {
  const auto client = HttpClient::Create(options.url, "", options.ca_file);
  if (!client.ok()) {
    absl::FPrintF(stderr, "quire: %s\n", client.status().message());
    return kExitUsage;
  }
  Clock* const clock = Clock::Monotonic();
  const absl::Time start = clock->Now();
  const absl::Time settled = start + absl::Seconds(options.settle_seconds);
  const absl::Time deadline = start + absl::Seconds(options.timeout_seconds);
  bool was_seen = false;
  int num_unanswered = 0;
  for (;;) {
    const absl::StatusOr<std::string> text =
        client->Get("/metrics", std::min(kMaxWait, deadline - clock->Now()));
    if (was_seen && !text.ok() && !IsLoading(text.status())) {
      // Whoever asked for this may have ended the server, too: it goes once
      // nothing runs. One broken connection alone may have been its last.
      num_unanswered =
          absl::IsUnavailable(text.status()) ? num_unanswered + 1 : 0;
      if (num_unanswered == kGoneAfter) {
        absl::FPrintF(stderr, "quire: the server has ended\n");
        return kExitOk;
      }
      if (clock->Now() >= deadline) {
        absl::FPrintF(stderr, "quire: %s\n", text.status().message());
        return kExitDrainTimeout;
      }
      absl::SleepFor(kPollInterval);
      continue;
    }
    num_unanswered = 0;
    // A server that still loads its model runs nothing.
    if (IsLoading(text.status())) return kExitOk;
    if (!text.ok()) {
      absl::FPrintF(stderr, "quire: %s\n", text.status().message());
      return absl::IsInvalidArgument(text.status()) ? kExitUsage : kExitDevice;
    }
    was_seen = true;
    const auto running = MetricValue(*text, "vllm:num_requests_running");
    const auto waiting = MetricValue(*text, "vllm:num_requests_waiting");
    if (!running.has_value() || !waiting.has_value()) {
      absl::FPrintF(stderr, "quire: %s/metrics does not tell the requests\n",
                    options.url);
      return kExitDevice;
    }
    // An idle server may still be sent requests by whoever has not heard yet
    // that it is about to go.
    const bool is_idle = *running == 0 && *waiting == 0;
    if (is_idle && clock->Now() >= settled) return kExitOk;
    if (clock->Now() >= deadline) {
      absl::FPrintF(stderr, "quire: %g running and %g waiting after %g s\n",
                    *running, *waiting, options.timeout_seconds);
      return kExitDrainTimeout;
    }
    absl::SleepFor(kPollInterval);
  }
}

}  // namespace quire
