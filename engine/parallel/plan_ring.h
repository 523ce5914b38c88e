// Messages from rank 0 to all other ranks of its host, through shared memory.
#ifndef QUIRE_ENGINE_PARALLEL_PLAN_RING_H_
#define QUIRE_ENGINE_PARALLEL_PLAN_RING_H_

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace quire {

// A message is longer than this only by a bug: a plan that starts 4096
// sequences of 16384 tokens.
inline constexpr int64_t kMaxPlanBytes = int64_t{256} << 20;

// Bytes of shared memory for a ring and up to 64 readers; all zero at first.
int64_t PlanRingBytes();

// A ring of bytes that every reader reads in full: the writer overwrites what
// the slowest one has passed. A message may be longer than the ring; it then
// flows through it. Thread-compatible; `memory` is borrowed.
class PlanRingWriter {
 public:
  PlanRingWriter(char* memory, int num_readers);

  // Blocks while a reader is a whole ring behind. UNAVAILABLE naming the
  // reader's index if that takes longer than `timeout`, or once Stop was
  // called: half a message may be written then, and nothing more can be.
  absl::Status Write(absl::string_view message, absl::Duration timeout);
  // Ends a Write that waits, and all later ones. From any thread.
  void Stop();

 private:
  // Bytes that may be written, at least one.
  absl::StatusOr<uint32_t> WaitForSpace(absl::Duration timeout);

  char* const memory_;
  const int num_readers_;
  uint32_t num_written_ = 0;
};

class PlanRingReader {
 public:
  PlanRingReader(char* memory, int reader_idx);

  // The next message; false if none has begun to come within `timeout`.
  // DATA_LOSS if what comes is no message, or does not go on for
  // `message_timeout`: long enough for a writer that another reader holds up.
  absl::StatusOr<bool> Read(std::string* message, absl::Duration timeout,
                            absl::Duration message_timeout);
  // A message has begun to come. From any thread.
  bool HasMessage() const;

 private:
  // Waits until there are unread bytes: their number, 0 after the timeout.
  uint32_t WaitForBytes(absl::Duration timeout);
  absl::Status Take(char* to, int64_t size, absl::Duration timeout);

  char* const memory_;
  const int reader_idx_;
  std::atomic<uint32_t> num_read_ = 0;  // Written by Read alone.
};

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_PLAN_RING_H_
