#include "engine/base/memory_limit.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace quire {
namespace {

// Version 1 says "none" by the largest multiple of a page.
constexpr int64_t kAlmostNoLimit = int64_t{1} << 62;

// "max" is none.
std::optional<int64_t> NumberIn(FileReader read_file, const std::string& path) {
  const std::optional<std::string> text = read_file(path);
  int64_t value = 0;
  if (!text || !absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &value)) {
    return std::nullopt;
  }
  return value;
}

// The sum of the lines "NAME VALUE" of a file with one of these names; a unit
// behind the value is left out.
std::optional<int64_t> SumOfLines(FileReader read_file, const std::string& path,
                                  const std::vector<std::string>& names) {
  const std::optional<std::string> text = read_file(path);
  if (!text) return std::nullopt;
  std::optional<int64_t> sum;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    const std::vector<absl::string_view> fields =
        absl::StrSplit(line, ' ', absl::SkipEmpty());
    int64_t value = 0;
    if (fields.size() >= 2 &&
        std::find(names.begin(), names.end(), fields[0]) != names.end() &&
        absl::SimpleAtoi(fields[1], &value)) {
      sum = sum.value_or(0) + value;
    }
  }
  return sum;
}

int64_t LimitOf(FileReader read_file, const CgroupDirectory& directory) {
  const std::optional<int64_t> limit = NumberIn(
      read_file,
      absl::StrCat(directory.path,
                   directory.is_v2 ? "/memory.max" : "/memory.limit_in_bytes"));
  return limit && *limit < kAlmostNoLimit ? *limit : kNoMemoryLimit;
}

}  // namespace

int64_t CgroupMemoryLimit(FileReader read_file) {
  int64_t limit = kNoMemoryLimit;
  for (const CgroupDirectory& directory : OwnCgroups("memory", read_file)) {
    limit = std::min(limit, LimitOf(read_file, directory));
  }
  return limit;
}

int64_t AvailableMemoryBytes(FileReader read_file) {
  int64_t available = kNoMemoryLimit;
  if (const auto kib =
          SumOfLines(read_file, "/proc/meminfo", {"MemAvailable:"})) {
    available = *kib * 1024;
  }
  for (const CgroupDirectory& directory : OwnCgroups("memory", read_file)) {
    const int64_t limit = LimitOf(read_file, directory);
    const auto used = NumberIn(
        read_file, absl::StrCat(directory.path,
                                directory.is_v2 ? "/memory.current"
                                                : "/memory.usage_in_bytes"));
    if (limit == kNoMemoryLimit || !used) continue;
    // Of version 1 the totals count groups below, as the usage does.
    const std::string prefix = directory.is_v2 ? "" : "total_";
    const int64_t cached =
        SumOfLines(read_file, absl::StrCat(directory.path, "/memory.stat"),
                   {prefix + "active_file", prefix + "inactive_file"})
            .value_or(0);
    const int64_t taken = std::max<int64_t>(*used - cached, 0);
    available = std::min(available, std::max<int64_t>(limit - taken, 0));
  }
  return available;
}

}  // namespace quire
