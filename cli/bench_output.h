// What the benchmarks share: files of results, progress, and ending by a
// signal.
#ifndef QUIRE_CLI_BENCH_OUTPUT_H_
#define QUIRE_CLI_BENCH_OUTPUT_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace quire {

// Writes `text` to `path`: whole, by renaming a new file, or, with `appends`,
// at its end. UNAVAILABLE with the path and the reason.
absl::Status WriteTextFile(const std::string& path, absl::string_view text,
                           bool appends = false);

// Whether WriteTextFile can write there, as far as can be seen without doing
// so: a benchmark asks before it measures. OK for an empty path; UNAVAILABLE
// with the path and the reason.
absl::Status CheckWritable(const std::string& path, bool appends = false);

// Prints why requests failed, one message of `errors` for each (empty: it has
// not failed), the most frequent first, with how many had each.
void PrintRequestErrors(const std::vector<std::string>& errors);

// Prints "quire: <message>" to standard error; returns `exit_code`.
int FailBench(const absl::Status& status, int exit_code);

// True from the first SIGINT or SIGTERM on; the second one ends the process.
const std::atomic<bool>& InterruptFlag();

// A line on standard error that is drawn over and at last taken away, if that
// is a terminal. FailBench takes it away, too.
class ProgressLine {
 public:
  explicit ProgressLine(bool is_enabled);
  ~ProgressLine() { Clear(); }

  // "label  42% [#####     ] 42/100 rest"; without a total only "label rest".
  // Drawn ten times a second at most, and when all is done.
  void Show(absl::string_view label, int64_t done, int64_t total,
            absl::string_view rest);
  // Takes it away: before anything else is printed.
  void Clear();

 private:
  const bool is_enabled_;
  absl::Time next_ = absl::InfinitePast();
};

}  // namespace quire

#endif  // QUIRE_CLI_BENCH_OUTPUT_H_
