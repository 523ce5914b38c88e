// Many histories in a process of their own, so that a failed QUIRE_CHECK, a
// crash and an endless loop are findings like any other: with a seed, to be
// replayed and shrunk.
#ifndef QUIRE_TESTS_ENGINE_SIMULATION_CAMPAIGN_H_
#define QUIRE_TESTS_ENGINE_SIMULATION_CAMPAIGN_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "tests/engine_simulation/coverage.h"
#include "tests/engine_simulation/history.h"

namespace quire {

// Kept where the parent can read it, whatever happens to the child.
struct Progress {
  uint64_t seed = 0;         // Of the history being run, or the last one.
  int64_t steps_before = 0;  // Of coverage's steps, those of earlier histories.
  Coverage coverage;

  int64_t num_steps() const { return coverage[Covered::kSteps] - steps_before; }
};

// Draws and runs the histories of first_seed, first_seed + stride, ... until
// max_steps steps are done, the last one perhaps in part, or one fails. A
// history that takes more than kMaxSecondsPerHistory ends the process by
// SIGALRM.
inline constexpr int kMaxSecondsPerHistory = 60;
absl::Status RunSeeds(uint64_t first_seed, uint64_t stride, int64_t max_steps,
                      Progress* progress);

// The same for histories of HistoryKind::kDrafted, whole ones, until in
// num_cases of them drafts were verified.
absl::Status RunDraftedSeeds(uint64_t first_seed, uint64_t stride,
                             int64_t num_cases, Progress* progress);

// A forked process. Thread-compatible; fork only while no other thread runs.
class Campaign {
 public:
  explicit Campaign(const std::function<absl::Status(Progress*)>& body);
  // Kills the child if it still runs.
  ~Campaign();
  Campaign(const Campaign&) = delete;
  Campaign& operator=(const Campaign&) = delete;

  // Becomes readable when there is something for Wait to read.
  int fd() const { return fd_; }
  // Without waiting: true if the child has said all it will.
  bool ReadSome();
  // Blocks until the child has ended. What `body` returned, or INTERNAL
  // "check: ..." for a failed QUIRE_CHECK, "hang: ..." after SIGALRM,
  // "crash: ..." for any other end.
  absl::Status Wait();
  // Changes while the child runs.
  const Progress& progress() const { return *progress_; }

 private:
  Progress* progress_ = nullptr;  // Shared with the child.
  pid_t pid_ = -1;
  int fd_ = -1;  // The child's standard error, then its report.
  std::string text_;
};

// What has the same name, each in a child of its own; *progress is what the
// child left.
absl::Status RunSeedsApart(uint64_t first_seed, uint64_t stride,
                           int64_t max_steps, Progress* progress);
absl::Status RunDraftedSeedsApart(uint64_t first_seed, uint64_t stride,
                                  int64_t num_cases, Progress* progress);
absl::Status SimulateApart(const History& history, int64_t max_steps);

}  // namespace quire

#endif  // QUIRE_TESTS_ENGINE_SIMULATION_CAMPAIGN_H_
