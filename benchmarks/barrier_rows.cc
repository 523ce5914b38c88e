#include "benchmarks/barrier_rows.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/statistics.h"
#include "engine/base/thread_pool.h"

namespace quire {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr int kExecutions = 2000;
// Fewer, because of the pauses between them.
constexpr int kExecutionsFromSleep = 100;
// Of a repetition: where others compute, a barrier waits for their time slices.
constexpr double kMaxSeconds = 0.5;
// Several times what idle workers poll before they sleep.
constexpr auto kPause = std::chrono::microseconds(300);

std::vector<int> ThreadCounts(int most) {
  std::vector<int> counts;
  for (int count = 1; count < most; count += count < 8 ? 1 : count) {
    counts.push_back(count);
  }
  counts.push_back(most);
  return counts;
}

// The first `num_threads` of the placement's.
ThreadPlacement FirstThreads(ThreadPlacement placement, int num_threads) {
  placement.num_threads = num_threads;
  placement.nodes.resize(num_threads);
  if (!placement.cpus.empty()) placement.cpus.resize(num_threads);
  return placement;
}

void EmptyLoop(ThreadPool& pool) {
  pool.ParallelFor(pool.num_threads(), 1, [](int64_t, int64_t, int) {});
}

void LoopInWhichAllMeet(ThreadPool& pool) {
  const int num_threads = pool.num_threads();
  std::atomic<int> num_arrived{0};
  pool.ParallelFor(num_threads, 1, [&](int64_t, int64_t, int) {
    num_arrived.fetch_add(1);
    while (num_arrived.load(std::memory_order_relaxed) < num_threads) {
    }
  });
}

// Without giving up the CPU, which would make the caller sleep as well.
void Pause() {
  const SteadyClock::time_point end = SteadyClock::now() + kPause;
  while (SteadyClock::now() < end) {
  }
}

}  // namespace

void MeasureBarriers(
    const ThreadPlacement& placement, int repetitions,
    const std::string& filter,
    const std::function<void(const std::string&, const std::vector<double>&)>&
        on_row) {
  const auto measure = [&](const std::string& name, int num_executions,
                           bool pauses, absl::FunctionRef<void()> execute) {
    const std::string tail_name = absl::StrCat(name, ", p99");
    if (!absl::StrContains(tail_name, filter)) return;  // Nor has `name` it.
    std::vector<double> medians, tails;
    for (int i = 0; i < repetitions; ++i) {
      std::vector<double> seconds;
      double sum = 0;
      for (int j = 0; j < num_executions && sum < kMaxSeconds; ++j) {
        if (pauses) Pause();
        const SteadyClock::time_point start = SteadyClock::now();
        execute();
        seconds.push_back(
            std::chrono::duration<double>(SteadyClock::now() - start).count());
        sum += seconds.back();
      }
      medians.push_back(Median(seconds));
      tails.push_back(Percentile(std::move(seconds), 99));
    }
    if (absl::StrContains(name, filter)) on_row(name, medians);
    on_row(tail_name, tails);
  };
  const int most = std::min(placement.num_threads, AvailableCpus());
  for (const int num_threads : ThreadCounts(most)) {
    ThreadPool pool(FirstThreads(placement, num_threads));
    const std::string threads = absl::StrCat(
        " barrier, ", num_threads, num_threads == 1 ? " thread" : " threads");
    measure(absl::StrCat("loop", threads), kExecutions, false,
            [&] { EmptyLoop(pool); });
    if (num_threads == 1) continue;  // Nobody to meet.
    measure(absl::StrCat("full", threads), kExecutions, false,
            [&] { LoopInWhichAllMeet(pool); });
    measure(absl::StrCat("full", threads, ", asleep"), kExecutionsFromSleep,
            true, [&] { LoopInWhichAllMeet(pool); });
  }
}

}  // namespace quire
