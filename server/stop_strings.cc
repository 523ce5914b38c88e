#include "server/stop_strings.h"

#include <algorithm>
#include <utility>

namespace quire {
namespace {

// Length of the longest proper prefix of `stop` that ends `text`.
size_t PartialMatch(absl::string_view text, absl::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0;
       --length) {
    if (text.substr(text.size() - length) == stop.substr(0, length)) {
      return length;
    }
  }
  return 0;
}

}  // namespace

StopStringMatcher::StopStringMatcher(std::vector<std::string> stop_strings,
                                     bool include_stop)
    : stop_strings_(std::move(stop_strings)), include_stop_(include_stop) {}

std::string StopStringMatcher::Append(absl::string_view piece, bool may_stop) {
  if (stopped_.has_value()) return "";
  if (stop_strings_.empty()) return std::string(piece);
  const size_t old_size = held_back_.size();
  held_back_.append(piece.data(), piece.size());
  size_t first = std::string::npos;
  const std::string* found = nullptr;
  for (const std::string& stop : stop_strings_) {
    // What ended before this piece might not stop.
    const size_t begin =
        old_size < stop.size() ? 0 : old_size - stop.size() + 1;
    const size_t at = held_back_.find(stop, begin);
    if (at == std::string::npos || !may_stop) continue;
    if (found == nullptr || at < first ||
        (at == first && stop.size() > found->size())) {
      first = at;
      found = &stop;
    }
  }
  if (found != nullptr) {
    stopped_ = *found;
    held_back_.resize(first + (include_stop_ ? found->size() : 0));
    return std::exchange(held_back_, "");
  }
  size_t keep = 0;
  for (const std::string& stop : stop_strings_) {
    keep = std::max(keep, PartialMatch(held_back_, stop));
  }
  std::string text = held_back_.substr(0, held_back_.size() - keep);
  held_back_.erase(0, text.size());
  return text;
}

std::string StopStringMatcher::Finish() {
  if (stopped_.has_value()) return "";
  return std::exchange(held_back_, "");
}

}  // namespace quire
