// Whether a process that says nothing hangs, or is held up by its machine or by
// the network: what a watcher may conclude, and from what.
#ifndef QUIRE_ENGINE_PARALLEL_LIVENESS_H_
#define QUIRE_ENGINE_PARALLEL_LIVENESS_H_

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace quire {

// Of the thread that gives signs of life, in every rank: it is looked for by
// the ranks of the same host. At most 15 characters.
inline constexpr char kBeatThreadName[] = "quire-beats";
void NameBeatThread();  // The calling one.

// The time that a watcher was awake to see. What passes while it is stopped
// itself, gets no CPU or sits in a machine that sleeps says nothing about whom
// it watches. Thread-compatible.
class WakefulTime {
 public:
  // interval: what the watcher means to sleep between two looks.
  explicit WakefulTime(absl::Duration interval) : max_step_(2 * interval) {}

  // Now the watcher is awake. `now`: of Clock::Monotonic.
  void Advance(absl::Time now) {
    if (last_ != absl::InfinitePast())
      total_ += std::min(now - last_, max_step_);
    last_ = now;
  }
  absl::Duration total() const { return total_; }

 private:
  const absl::Duration max_step_;
  absl::Time last_ = absl::InfinitePast();
  absl::Duration total_ = absl::ZeroDuration();
};

// The signs of life of one rank, in the watcher's WakefulTime.
// Thread-compatible.
class BeatRecord {
 public:
  void Heard(absl::Duration now);
  absl::Duration SilenceAt(absl::Duration now) const { return now - last_; }
  // Nothing comes because nothing gets through. When that ends, what has been
  // sent comes when its sender tries again, and TCP waits twice as long after
  // each attempt: for as long as it was out, at most.
  void NoteUnreachable(absl::Duration now) { outage_ = now - last_; }
  // Of this silence; zero: the host was there all the time.
  absl::Duration outage() const { return outage_; }
  // The longest silence of the last half minute that has ended: what the
  // machine and the network of that rank do to its signs of life. (An
  // adaptive failure detector's only statistic; Hayashibara et al. 2004, SRDS,
  // fit a distribution.)
  absl::Duration LongestGap() const {
    return std::max(longest_gap_, previous_longest_gap_);
  }

 private:
  absl::Duration last_ = absl::ZeroDuration();
  absl::Duration outage_ = absl::ZeroDuration();
  // Of this period and of the one before.
  absl::Duration period_begin_ = absl::ZeroDuration();
  absl::Duration longest_gap_ = absl::ZeroDuration();
  absl::Duration previous_longest_gap_ = absl::ZeroDuration();
};

// For how long this process has done nothing though it should: none of its
// threads but the calling one, always the same, has used a CPU, wants one, or
// waits for a disk or for memory. Thread-compatible.
class IdleRecord {
 public:
  // A look, now and then: that time until `now`, of a WakefulTime.
  //   is_working: there is something to do, and nobody else to wait for.
  //   progress: changes with what has been done.
  absl::Duration Update(absl::Duration now, bool is_working, int64_t progress);

 private:
  absl::Duration since_ = absl::ZeroDuration();
  absl::Duration cpu_time_ = absl::ZeroDuration();  // At that time.
  int64_t progress_ = 0;
};

// What a look at a silent rank has found.
enum class SilenceCause : uint8_t {
  kHangs,        // It could speak: it sleeps, or its host answers for it.
  kStopped,      // By a signal or a debugger.
  kStarved,      // It waits for a CPU, a disk or memory; or nobody can say.
  kUnreachable,  // Its host does not answer either.
};

// Of a process of this host, by the states of its beat thread: sleeping, it
// could have woken up.
SilenceCause LookAtProcess(int pid);
// Of who is at the other end of a TCP connection on which this side sends now
// and then: the peer's kernel acknowledges what a process does not read. Of
// other sockets: kHangs.
SilenceCause LookAtConnection(int fd);

struct SilenceLimits {
  absl::Duration heartbeat_timeout;  // Of who could speak.
  absl::Duration watchdog;           // Of anybody, at least as long.
};

// A watcher looks for the cause of a silence that is longer than this: before
// it counts, so that a network that was out and is back is known.
absl::Duration SilenceToLookInto(const SilenceLimits& limits);

// After which silence of its beats a rank is given up. While it loads, the
// kernel may hold up its threads for each other (mappings, pinned memory).
absl::Duration MaxSilence(SilenceCause cause, bool is_serving,
                          const BeatRecord& beats, const SilenceLimits& limits);

// "no sign of life for 1s", and that it is stopped.
std::string DescribeSilence(SilenceCause cause, absl::Duration silence);

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_LIVENESS_H_
