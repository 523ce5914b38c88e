// Finds stop strings in text that arrives in pieces.
#ifndef QUIRE_SERVER_STOP_STRINGS_H_
#define QUIRE_SERVER_STOP_STRINGS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace quire {

// Holds back text that may become a stop string, and nothing more: what Append
// and Finish return is the text up to the first stop string, whatever the split
// into pieces. Of two that end at the same piece, the one that begins first
// counts, then the longer. Thread-compatible; one per choice.
class StopStringMatcher {
 public:
  // No stop string may be empty. With `include_stop`, the stop string itself is
  // part of the text.
  StopStringMatcher(std::vector<std::string> stop_strings, bool include_stop);

  // Text that is now known to belong to the output. Once stopped() holds a
  // value, further calls return nothing. Without `may_stop`, a stop string that
  // ends in this piece is ordinary text.
  std::string Append(absl::string_view piece, bool may_stop = true);
  // What is held back when the output ends otherwise.
  std::string Finish();

  // The stop string that ended the output.
  const std::optional<std::string>& stopped() const { return stopped_; }
  size_t num_held_back() const { return held_back_.size(); }

 private:
  const std::vector<std::string> stop_strings_;
  const bool include_stop_;
  std::string held_back_;
  std::optional<std::string> stopped_;
};

}  // namespace quire

#endif  // QUIRE_SERVER_STOP_STRINGS_H_
