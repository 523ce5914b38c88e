#include "engine/base/thread_pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/cpu_quota.h"
#include "engine/base/status.h"

namespace quire {
namespace {

std::optional<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

int AffinityCpus() {
  // Machines with more than CPU_SETSIZE CPUs need a larger mask: EINVAL.
  for (int num_cpus = CPU_SETSIZE; num_cpus <= CPU_SETSIZE << 6;
       num_cpus *= 2) {
    cpu_set_t* const set = CPU_ALLOC(num_cpus);
    QUIRE_CHECK(set != nullptr);
    const size_t num_bytes = CPU_ALLOC_SIZE(num_cpus);
    const int error = sched_getaffinity(0, num_bytes, set);
    const int count = error == 0 ? CPU_COUNT_S(num_bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Idle workers poll this long before they sleep: longer than the serial gaps
// between the loops of one decode step, short enough that an idle server costs
// nothing. A futex wake-up costs 5 to 50 us on a virtual machine.
constexpr auto kIdleSpin = std::chrono::microseconds(50);
// The caller polls this long for workers that still run their last chunk; after
// that they have probably lost their CPU, so it offers its own.
constexpr auto kJoinSpin = std::chrono::microseconds(20);

// Polls `done` until it returns true or `duration` has passed.
template <typename Predicate>
bool SpinUntil(std::chrono::nanoseconds duration, Predicate done) {
  if (done()) return true;
  const auto deadline = std::chrono::steady_clock::now() + duration;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      CpuRelax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return done();
}

}  // namespace

int AvailableCpus() {
  return std::max(1, std::min(AffinityCpus(), CgroupCpuLimit(ReadFile)));
}

// A job is open to workers from the store of an odd epoch to its increment by
// the caller. Workers enter by compare-and-swap while it is open, so the caller
// waits only for those inside: a worker that wakes late, or never gets a CPU,
// delays nobody.
//
//   gate: [ epoch : 32, odd = open ][ number of workers inside : 32 ]
struct ThreadPool::State {
  using Body = absl::FunctionRef<void(int64_t, int64_t, int)>;

  // Written by the caller while the gate is closed and nobody is inside.
  const Body* body = nullptr;
  int64_t num_items = 0;
  int64_t chunk = 1;

  // Own cache lines: `next_item` is contended while a job runs, `gate` is
  // polled by idle workers, `num_sleepers` is read at each dispatch.
  alignas(64) std::atomic<int64_t> next_item{0};
  alignas(64) std::atomic<uint64_t> gate{0};
  alignas(64) std::atomic<uint32_t> num_sleepers{0};
  std::atomic<uint32_t> wake_signal{0};  // Futex word.
  std::atomic<bool> is_stopping{false};
  bool is_oversubscribed = false;  // More threads than CPUs: never spin.
  std::vector<std::thread> workers;

  static constexpr uint64_t kEpochUnit = uint64_t{1} << 32;
  static uint32_t Epoch(uint64_t gate_value) { return gate_value >> 32; }
  static bool IsOpen(uint64_t gate_value) { return Epoch(gate_value) & 1; }

  void RunChunks(int thread_idx) {
    // Relaxed: the gate orders the job's fields and the results.
    for (;;) {
      const int64_t begin =
          next_item.fetch_add(chunk, std::memory_order_relaxed);
      if (begin >= num_items) return;
      (*body)(begin, std::min(begin + chunk, num_items), thread_idx);
    }
  }

  // A job this worker has not seen, or the end of the pool.
  bool HasNews(uint32_t seen_epoch) const {
    const uint64_t value = gate.load();
    return (IsOpen(value) && Epoch(value) != seen_epoch) || is_stopping.load();
  }

  void Sleep(uint32_t seen_epoch) {
    const uint32_t signal = wake_signal.load();
    // Sequentially consistent with Wake: either the check below sees the job,
    // or the caller sees this sleeper and changes the signal.
    num_sleepers.fetch_add(1);
    if (!HasNews(seen_epoch)) {
      syscall(SYS_futex, &wake_signal, FUTEX_WAIT_PRIVATE, signal, nullptr,
              nullptr, 0);
    }
    num_sleepers.fetch_sub(1);
  }

  void Wake(int max_workers) {
    if (num_sleepers.load() == 0) return;
    wake_signal.fetch_add(1);
    syscall(SYS_futex, &wake_signal, FUTEX_WAKE_PRIVATE, max_workers, nullptr,
            nullptr, 0);
  }

  void WorkerLoop(int thread_idx) {
    uint32_t seen_epoch = 0;
    while (!is_stopping.load()) {
      uint64_t value = gate.load();
      if (IsOpen(value) && Epoch(value) != seen_epoch) {
        // On failure somebody else entered or left, or the job was closed.
        if (!gate.compare_exchange_weak(value, value + 1)) continue;
        seen_epoch = Epoch(value);
        RunChunks(thread_idx);
        gate.fetch_sub(1, std::memory_order_release);
        continue;
      }
      const auto has_news = [this, seen_epoch] { return HasNews(seen_epoch); };
      if (is_oversubscribed || !SpinUntil(kIdleSpin, has_news)) {
        Sleep(seen_epoch);
      }
    }
  }

  // Waits until no worker is inside the closed job.
  void Join() {
    const auto is_empty = [this] {
      return static_cast<uint32_t>(gate.load(std::memory_order_acquire)) == 0;
    };
    if (!is_oversubscribed && SpinUntil(kJoinSpin, is_empty)) return;
    while (!is_empty()) sched_yield();
  }
};

ThreadPool::ThreadPool(int num_threads) : state_(std::make_unique<State>()) {
  const int num_cpus = AvailableCpus();
  if (num_threads <= 0) num_threads = num_cpus;
  state_->is_oversubscribed = num_threads > num_cpus;
  state_->workers.reserve(num_threads - 1);
  for (int thread_idx = 1; thread_idx < num_threads; ++thread_idx) {
    state_->workers.emplace_back(
        [state = state_.get(), thread_idx] { state->WorkerLoop(thread_idx); });
  }
}

ThreadPool::~ThreadPool() {
  state_->is_stopping.store(true);
  state_->Wake(INT_MAX);
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::num_threads() const {
  return static_cast<int>(state_->workers.size()) + 1;
}

void ThreadPool::ParallelFor(
    int64_t num_items, int64_t chunk,
    absl::FunctionRef<void(int64_t begin, int64_t end, int thread_idx)> body) {
  QUIRE_CHECK(chunk > 0);
  if (num_items <= 0) return;
  if (num_items <= chunk) {
    body(0, num_items, 0);
    return;
  }
  State& state = *state_;
  if (state.workers.empty()) {
    for (int64_t begin = 0; begin < num_items; begin += chunk) {
      body(begin, std::min(begin + chunk, num_items), 0);
    }
    return;
  }
  state.body = &body;
  state.num_items = num_items;
  state.chunk = chunk;
  state.next_item.store(0, std::memory_order_relaxed);
  state.gate.fetch_add(State::kEpochUnit);  // Opens.
  const int64_t num_chunks = (num_items - 1) / chunk + 1;
  state.Wake(static_cast<int>(std::min<int64_t>(num_chunks - 1, INT_MAX)));
  state.RunChunks(0);
  state.gate.fetch_add(State::kEpochUnit);  // Closes.
  state.Join();
}

}  // namespace quire
