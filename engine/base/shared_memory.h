// Memory that processes of one host share, and counters in it to wait on.
#ifndef QUIRE_ENGINE_BASE_SHARED_MEMORY_H_
#define QUIRE_ENGINE_BASE_SHARED_MEMORY_H_

#include <atomic>
#include <chrono>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace quire {

// A mapping of an anonymous file (memfd_create): it has no name that could
// collide or stay behind, does not count against the small /dev/shm of a
// container, and goes with its last process. Movable.
class SharedMemory {
 public:
  // Of so many bytes, all zero; pages take memory when they are first written.
  // RESOURCE_EXHAUSTED with the reason.
  static absl::StatusOr<SharedMemory> Create(int64_t num_bytes);
  // Maps what another process has created; `fd`, which this takes over, came
  // from it. INVALID_ARGUMENT if it is not such a file.
  static absl::StatusOr<SharedMemory> Map(int fd);

  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  char* data() const { return data_; }
  int64_t num_bytes() const { return num_bytes_; }
  // For a child process; closed on exec unless passed on.
  int fd() const { return fd_; }

 private:
  SharedMemory(int fd, char* data, int64_t num_bytes)
      : fd_(fd), data_(data), num_bytes_(num_bytes) {}

  int fd_ = -1;
  char* data_ = nullptr;
  int64_t num_bytes_ = 0;
};

// A counter that one thread advances and any thread of any process waits for
// (futex(2)). Zero bytes are a valid one, so that nobody has to construct what
// lies in shared memory. Wraps around: values are compared by difference.
// Thread-safe. On a line of its own: who spins on it disturbs nobody else.
struct alignas(64) SharedCounter {
  std::atomic<uint32_t> value;
  std::atomic<uint32_t> num_waiters;

  uint32_t Load() const { return value.load(std::memory_order_acquire); }
  // True from the moment on at which the counter reaches `target`.
  bool HasReached(uint32_t target) const {
    return static_cast<int32_t>(Load() - target) >= 0;
  }
  // What was written before is visible to who sees the new value.
  void Store(uint32_t new_value);
  // Sleeps while the counter is `seen`, at most for `timeout`; may return
  // early.
  void WaitWhile(uint32_t seen, absl::Duration timeout);
  // Lets all who wait look around.
  void WakeAll();
};
static_assert(std::atomic<uint32_t>::is_always_lock_free);

// What who spins does between looks: keeps its CPU, or gives it to others that
// may want it.
enum class SpinBetween : uint8_t { kPause, kYield };

void PauseSpinning();  // Tells the core that this thread spins.
void YieldSpinning();

// Looks at `is_reached` again and again before somebody sleeps for it, which
// costs more; false if it was not within `time`.
template <typename IsReached>
bool SpinUntil(const IsReached& is_reached, absl::Duration time,
               SpinBetween between) {
  constexpr int kPausesPerLook = 32;  // At the clock.
  const auto end =
      std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(time);
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (is_reached()) return true;
      PauseSpinning();
    }
    if (between == SpinBetween::kYield) YieldSpinning();
  } while (std::chrono::steady_clock::now() < end);
  return is_reached();
}

// Says whether a process has ended, also while it is a zombie. Movable.
class ProcessWatch {
 public:
  ProcessWatch() = default;
  // Requires: `pid` has not been given to another process yet.
  explicit ProcessWatch(int pid);
  ProcessWatch(ProcessWatch&& other) noexcept;
  ProcessWatch& operator=(ProcessWatch&& other) noexcept;
  ~ProcessWatch();

  bool has_process() const { return pid_ != 0; }
  bool IsGone() const;
  // Readable when the process has ended; -1 where the kernel has no such thing.
  int fd() const { return fd_; }

 private:
  int pid_ = 0;
  int fd_ = -1;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_SHARED_MEMORY_H_
