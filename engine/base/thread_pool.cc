#include "engine/base/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <thread>
#include <utility>
#include <vector>

#include "engine/base/cpu_quota.h"
#include "engine/base/status.h"

namespace quire {
namespace {

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
  return std::max(1, std::min(static_cast<int>(AllowedCpus().size()),
                              CgroupCpuLimit(ReadSystemFile)));
}

// A job is open to workers from the store of an odd epoch to its increment by
// the caller. Workers enter by compare-and-swap while it is open, so the caller
// waits only for those inside: a worker that wakes late, or never gets a CPU,
// delays nobody.
//
//   gate: [ epoch : 32, odd = open ][ number of workers inside : 32 ]
struct ThreadPool::State {
  using Body = absl::FunctionRef<void(int64_t, int64_t, int)>;

  // Items [next, end) of a job, taken by the threads of a node first; one range
  // for all where nodes do not matter.
  struct Range {
    alignas(64) std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  // The items of one thread: those from the low half to the high half. The
  // owner takes the first, others the last half.
  struct Stream {
    alignas(64) std::atomic<uint64_t> span{0};
  };

  // Written by the caller while the gate is closed and nobody is inside.
  const Body* body = nullptr;
  int64_t max_run = 0;  // Of streams; 0 if the job has none.
  int64_t num_items = 0;
  int64_t chunk = 1;
  int num_ranges = 1;
  std::vector<Range> ranges;     // One for each node.
  std::vector<Stream> streams;   // One for each thread, by node.
  std::vector<int> stream_idxs;  // Of the threads.
  ThreadPlacement placement;
  pthread_t pinned_caller = 0;

  // Own cache lines: a range is contended while a job runs, `gate` is polled by
  // idle workers, `num_sleepers` is read at each dispatch.
  alignas(64) std::atomic<uint64_t> gate{0};
  alignas(64) std::atomic<uint32_t> num_sleepers{0};
  std::atomic<uint32_t> wake_signal{0};  // Futex word.
  std::atomic<bool> is_stopping{false};
  bool is_oversubscribed = false;  // More threads than CPUs: never spin.
  std::vector<std::thread> workers;

  static constexpr uint64_t kEpochUnit = uint64_t{1} << 32;
  static uint32_t Epoch(uint64_t gate_value) { return gate_value >> 32; }
  static bool IsOpen(uint64_t gate_value) { return Epoch(gate_value) & 1; }

  static uint64_t Span(uint64_t begin, uint64_t end) {
    return end << 32 | begin;
  }

  // Takes the first items of a stream, a quarter but at most max_run, or, for
  // another thread, the last half of them. Returns the span of what was taken,
  // empty if nothing is left.
  uint64_t Take(Stream& stream, bool is_own) const {
    // Relaxed, as above.
    uint64_t span = stream.span.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t begin = static_cast<uint32_t>(span);
      const uint64_t end = span >> 32;
      if (begin >= end) return 0;
      const uint64_t run = std::min<uint64_t>(max_run, (end - begin + 3) / 4);
      const uint64_t middle = begin + (is_own ? run : (end - begin) / 2);
      const uint64_t rest = is_own ? Span(middle, end) : Span(begin, middle);
      if (stream.span.compare_exchange_weak(span, rest,
                                            std::memory_order_relaxed)) {
        return is_own ? Span(begin, middle) : Span(middle, end);
      }
    }
  }

  void RunStreams(int thread_idx) {
    const size_t own = stream_idxs[thread_idx];
    for (size_t i = 0; i < streams.size();) {
      while (const uint64_t taken = Take(streams[own], true)) {
        (*body)(static_cast<uint32_t>(taken), taken >> 32, thread_idx);
      }
      // Half of what another has left becomes this thread's stream, of which
      // others may take halves in turn.
      const uint64_t taken = Take(streams[(own + i) % streams.size()], false);
      if (taken == 0) {
        ++i;
      } else {
        streams[own].span.store(taken, std::memory_order_relaxed);
      }
    }
  }

  void RunChunks(int thread_idx) {
    if (max_run > 0) {
      RunStreams(thread_idx);
      return;
    }
    const int own = num_ranges == 1 ? 0 : placement.nodes[thread_idx];
    for (int i = 0; i < num_ranges; ++i) {
      Range& range = ranges[(own + i) % num_ranges];
      // Relaxed: the gate orders the job's fields and the results.
      for (;;) {
        const int64_t begin =
            range.next.fetch_add(chunk, std::memory_order_relaxed);
        if (begin >= range.end) break;
        (*body)(begin, std::min(begin + chunk, range.end), thread_idx);
      }
    }
  }

  // Cuts [0, num_items) into `num_ranges`, at multiples of chunk and in
  // proportion to the threads of each node.
  void SetRanges() {
    const int64_t num_chunks = (num_items - 1) / chunk + 1;
    int64_t num_threads = 0;  // Of this node and those before it.
    int64_t begin = 0;
    for (int i = 0; i < num_ranges; ++i) {
      num_threads += num_ranges == 1 ? placement.num_threads
                                     : std::count(placement.nodes.begin(),
                                                  placement.nodes.end(), i);
      const int64_t end = std::min(
          num_items, num_chunks * num_threads / placement.num_threads * chunk);
      ranges[i].next.store(begin, std::memory_order_relaxed);
      ranges[i].end = end;
      begin = end;
    }
  }

  // Gives each thread its part of [0, num_items).
  void SetStreams() {
    const uint64_t count = streams.size();
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t begin = num_items * i / count;
      const uint64_t end = num_items * (i + 1) / count;
      streams[i].span.store(Span(begin, end), std::memory_order_relaxed);
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
    if (!placement.cpus.empty()) PinThisThread(placement.cpus[thread_idx]);
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

ThreadPool::ThreadPool(int num_threads) {
  absl::StatusOr<ThreadPlacement> placement =
      PlaceThreads({num_threads, {}, NumaPolicy::kOff});
  QUIRE_CHECK(placement.ok());  // Only a list of CPUs can be wrong.
  Start(*std::move(placement));
}

ThreadPool::ThreadPool(ThreadPlacement placement) {
  Start(std::move(placement));
}

void ThreadPool::Start(ThreadPlacement placement) {
  state_ = std::make_unique<State>();
  QUIRE_CHECK(placement.num_threads >= 1 &&
              placement.nodes.size() == placement.num_threads);
  state_->is_oversubscribed = placement.num_threads > AvailableCpus();
  state_->ranges = std::vector<State::Range>(placement.node_ids.size());
  state_->placement = std::move(placement);
  const int num_threads = state_->placement.num_threads;
  state_->streams = std::vector<State::Stream>(num_threads);
  state_->stream_idxs.resize(num_threads);
  int stream_idx = 0;
  for (size_t node = 0; node < state_->ranges.size(); ++node) {
    for (int i = 0; i < num_threads; ++i) {
      if (state_->placement.nodes[i] != static_cast<int>(node)) continue;
      state_->stream_idxs[i] = stream_idx++;
    }
  }
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

absl::Span<const int> ThreadPool::node_ids() const {
  return state_->placement.node_ids;
}

void ThreadPool::PinCaller() {
  State& state = *state_;
  if (state.placement.cpus.empty()) return;
  const pthread_t self = pthread_self();
  if (state.pinned_caller == self) return;
  state.pinned_caller = self;
  PinThisThread(state.placement.cpus[0]);
}

void ThreadPool::ParallelFor(int64_t num_items, int64_t chunk, Body body) {
  Run(num_items, chunk, 1, body);
}

void ThreadPool::ParallelForByNode(int64_t num_items, int64_t chunk,
                                   Body body) {
  Run(num_items, chunk, static_cast<int>(state_->ranges.size()), body);
}

void ThreadPool::ParallelForStreams(int64_t num_items, int64_t max_run,
                                    Body body) {
  QUIRE_CHECK(num_items <= INT_MAX && max_run > 0);
  if (state_->workers.empty()) {
    Run(num_items, max_run, 1, body);
    return;
  }
  state_->max_run = max_run;
  Run(num_items, 1, 1, body);
  state_->max_run = 0;
}

void ThreadPool::Run(int64_t num_items, int64_t chunk, int num_ranges,
                     Body body) {
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
  state.num_ranges = num_ranges;
  if (state.max_run > 0) {
    state.SetStreams();
  } else {
    state.SetRanges();
  }
  state.gate.fetch_add(State::kEpochUnit);  // Opens.
  const int64_t num_chunks = (num_items - 1) / chunk + 1;
  state.Wake(static_cast<int>(std::min<int64_t>(num_chunks - 1, INT_MAX)));
  state.RunChunks(0);
  state.gate.fetch_add(State::kEpochUnit);  // Closes.
  state.Join();
}

}  // namespace quire
