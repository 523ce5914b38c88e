#include "server/telemetry/trace_context.h"

#include <algorithm>
#include <random>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace quire {
namespace {

constexpr size_t kTraceIdDigits = 32;
constexpr size_t kSpanIdDigits = 16;
// "00-", trace, "-", span, "-", flags.
constexpr size_t kTraceParentSize = 3 + kTraceIdDigits + 1 + kSpanIdDigits + 3;
constexpr size_t kMaxStateMembers = 32;
constexpr size_t kMaxStateBytes = 512;
constexpr size_t kLongMemberBytes = 128;

bool IsLowerHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
  });
}

bool IsZero(absl::string_view text) {
  return text.find_first_not_of('0') == absl::string_view::npos;
}

bool IsStateKey(absl::string_view key) {
  if (key.empty() || key.size() > 256) return false;
  if (!absl::ascii_islower(key[0]) && !absl::ascii_isdigit(key[0])) {
    return false;
  }
  return std::all_of(key.begin(), key.end(), [](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) ||
           absl::StrContains("_-*/@", c);
  });
}

bool IsStateValue(absl::string_view value) {
  if (value.empty() || value.size() > 256 || value.back() == ' ') return false;
  return std::all_of(value.begin(), value.end(), [](char c) {
    return c >= 0x20 && c <= 0x7e && c != ',' && c != '=';
  });
}

size_t JoinedSize(const std::vector<absl::string_view>& members) {
  size_t size = members.empty() ? 0 : members.size() - 1;
  for (const absl::string_view member : members) size += member.size();
  return size;
}

uint64_t RandomNonZero() {
  thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  uint64_t value = 0;
  while (value == 0) value = generator();
  return value;
}

}  // namespace

std::optional<TraceContext> ParseTraceParent(absl::string_view value) {
  if (value.size() < kTraceParentSize) return std::nullopt;
  const absl::string_view version = value.substr(0, 2);
  const absl::string_view trace_id = value.substr(3, kTraceIdDigits);
  const absl::string_view parent_id =
      value.substr(4 + kTraceIdDigits, kSpanIdDigits);
  const absl::string_view flags = value.substr(kTraceParentSize - 2, 2);
  const bool has_dashes = value[2] == '-' && value[3 + kTraceIdDigits] == '-' &&
                          value[kTraceParentSize - 3] == '-';
  if (!has_dashes || !IsLowerHex(version) || version == "ff" ||
      !IsLowerHex(trace_id) || IsZero(trace_id) || !IsLowerHex(parent_id) ||
      IsZero(parent_id) || !IsLowerHex(flags)) {
    return std::nullopt;
  }
  if (value.size() > kTraceParentSize &&
      (version == "00" || value[kTraceParentSize] != '-')) {
    return std::nullopt;
  }
  TraceContext context;
  context.trace_id = std::string(trace_id);
  context.parent_id = std::string(parent_id);
  const char last = flags[1];
  const int digit = absl::ascii_isdigit(last) ? last - '0' : last - 'a' + 10;
  context.is_sampled = (digit & 1) != 0;
  return context;
}

std::string CombineTraceState(const std::vector<absl::string_view>& values) {
  std::vector<absl::string_view> members;
  std::vector<absl::string_view> keys;
  for (const absl::string_view value : values) {
    for (absl::string_view member : absl::StrSplit(value, ',')) {
      while (!member.empty() && (member[0] == ' ' || member[0] == '\t')) {
        member.remove_prefix(1);
      }
      while (!member.empty() &&
             (member.back() == ' ' || member.back() == '\t')) {
        member.remove_suffix(1);
      }
      if (member.empty()) continue;
      const size_t equals = member.find('=');
      if (equals == absl::string_view::npos ||
          !IsStateKey(member.substr(0, equals)) ||
          !IsStateValue(member.substr(equals + 1)) ||
          members.size() == kMaxStateMembers ||
          std::find(keys.begin(), keys.end(), member.substr(0, equals)) !=
              keys.end()) {
        return "";
      }
      members.push_back(member);
      keys.push_back(member.substr(0, equals));
    }
  }
  for (size_t i = members.size(); i-- > 0;) {
    if (JoinedSize(members) <= kMaxStateBytes) break;
    if (members[i].size() > kLongMemberBytes) {
      members.erase(members.begin() + i);
    }
  }
  while (JoinedSize(members) > kMaxStateBytes) members.pop_back();
  return absl::StrJoin(members, ",");
}

TraceContext ReadTraceContext(
    const std::vector<std::pair<std::string, std::string>>& fields) {
  const std::string* parent = nullptr;
  std::vector<absl::string_view> states;
  for (const auto& [name, value] : fields) {
    if (name == "traceparent") {
      if (parent != nullptr) return {};
      parent = &value;
    } else if (name == "tracestate") {
      states.push_back(value);
    }
  }
  if (parent == nullptr) return {};
  std::optional<TraceContext> context = ParseTraceParent(*parent);
  if (!context.has_value()) return {};
  context->state = CombineTraceState(states);
  context->span_id = NewSpanId();
  return *std::move(context);
}

std::string TraceResponse(const TraceContext& context) {
  return absl::StrCat("00-", context.trace_id, "-", context.span_id,
                      context.is_sampled ? "-01" : "-00");
}

std::string NewTraceId() {
  return absl::StrFormat("%016x%016x", RandomNonZero(), RandomNonZero());
}

std::string NewSpanId() { return absl::StrFormat("%016x", RandomNonZero()); }

}  // namespace quire
