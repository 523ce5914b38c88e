#include "benchmarks/serving/server_counters.h"

#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace quire {
namespace {

constexpr int kMaxPosition = 1023;

// The value of label `name` in `labels` ("a="1",b="2""), or empty.
absl::string_view LabelOf(absl::string_view labels, absl::string_view name) {
  for (absl::string_view label : absl::StrSplit(labels, ',')) {
    label = absl::StripAsciiWhitespace(label);
    if (absl::ConsumePrefix(&label, name) &&
        absl::ConsumePrefix(&label, "=\"") &&
        absl::ConsumeSuffix(&label, "\"")) {
      return label;
    }
  }
  return "";
}

void AddSample(absl::string_view name, absl::string_view labels, double value,
               ServerCounters* counters) {
  if (absl::ConsumePrefix(&name, "vllm:request_queue_time_seconds_")) {
    if (name == "sum") counters->queue_seconds += value;
    if (name == "count") {
      counters->num_queued += value;
      counters->has_queue_time = true;
    }
    return;
  }
  if (!absl::ConsumePrefix(&name, "vllm:spec_decode_num_")) return;
  // Clients of Prometheus put it behind counters; old ones did not.
  absl::ConsumeSuffix(&name, "_total");
  if (name == "drafts") {
    counters->num_drafts += value;
    counters->has_speculation = true;
  } else if (name == "draft_tokens") {
    counters->num_draft_tokens += value;
  } else if (name == "accepted_tokens") {
    counters->num_accepted_tokens += value;
  } else if (name == "accepted_tokens_per_pos") {
    int position = 0;
    if (absl::SimpleAtoi(LabelOf(labels, "position"), &position) &&
        position >= 0 && position <= kMaxPosition) {
      counters->num_accepted_by_position[position] += value;
    }
  }
}

}  // namespace

ServerCounters ServerCounters::Since(const ServerCounters& before) const {
  ServerCounters since = *this;
  since.num_drafts -= before.num_drafts;
  since.num_draft_tokens -= before.num_draft_tokens;
  since.num_accepted_tokens -= before.num_accepted_tokens;
  since.queue_seconds -= before.queue_seconds;
  since.num_queued -= before.num_queued;
  for (auto& [position, count] : since.num_accepted_by_position) {
    const auto it = before.num_accepted_by_position.find(position);
    if (it != before.num_accepted_by_position.end()) count -= it->second;
  }
  return since;
}

ServerCounters ReadServerCounters(absl::string_view page) {
  ServerCounters counters;
  for (absl::string_view line : absl::StrSplit(page, '\n')) {
    line = absl::StripAsciiWhitespace(line);
    if (!absl::StartsWith(line, "vllm:")) continue;
    // NAME VALUE [TIME], or NAME{LABELS} VALUE [TIME].
    const size_t name_end = line.find_first_of("{ ");
    if (name_end == absl::string_view::npos) continue;
    const absl::string_view name = line.substr(0, name_end);
    absl::string_view labels, rest = line.substr(name_end);
    if (absl::ConsumePrefix(&rest, "{")) {
      const size_t labels_end = rest.rfind('}');
      if (labels_end == absl::string_view::npos) continue;
      labels = rest.substr(0, labels_end);
      rest.remove_prefix(labels_end + 1);
    }
    rest = absl::StripLeadingAsciiWhitespace(rest);
    double value = 0;
    if (absl::SimpleAtod(rest.substr(0, rest.find(' ')), &value) &&
        std::isfinite(value)) {
      AddSample(name, labels, value, &counters);
    }
  }
  return counters;
}

}  // namespace quire
