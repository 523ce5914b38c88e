#include "engine/base/thread_pool.h"

#include <sched.h>
#include <sys/resource.h>
#include <time.h>

#include <atomic>
#include <vector>

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(AvailableCpusTest, WithinAffinity) {
  cpu_set_t set;
  ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  EXPECT_GE(AvailableCpus(), 1);
  EXPECT_LE(AvailableCpus(), CPU_COUNT(&set));
}

TEST(AvailableCpusTest, HonoursAffinity) {
  cpu_set_t saved;
  ASSERT_EQ(sched_getaffinity(0, sizeof(saved), &saved), 0);
  int cpu = 0;
  while (!CPU_ISSET(cpu, &saved)) ++cpu;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(AvailableCpus(), 1);
  EXPECT_EQ(ThreadPool(0).num_threads(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof(saved), &saved), 0);
}

TEST(ThreadPoolTest, NumThreads) {
  const int num_cores = PlaceThreads({})->num_threads;
  EXPECT_LE(num_cores, AvailableCpus());
  EXPECT_EQ(ThreadPool(0).num_threads(), num_cores);
  EXPECT_EQ(ThreadPool(-3).num_threads(), num_cores);
  EXPECT_EQ(ThreadPool(1).num_threads(), 1);
  EXPECT_EQ(ThreadPool(9).num_threads(),
            9);  // More than the CPUs: still right.
}

// Every item once, chunks bounded and aligned, thread indexes in range.
void CheckCoverage(ThreadPool& pool, int64_t num_items, int64_t chunk) {
  std::vector<int> counts(num_items, 0);  // Distinct elements: no race.
  std::atomic<int> num_bad{0};
  pool.ParallelFor(num_items, chunk,
                   [&](int64_t begin, int64_t end, int thread_idx) {
                     if (begin < 0 || end > num_items || begin >= end ||
                         end - begin > chunk || begin % chunk != 0 ||
                         thread_idx < 0 || thread_idx >= pool.num_threads()) {
                       ++num_bad;
                       return;
                     }
                     for (int64_t i = begin; i < end; ++i) ++counts[i];
                   });
  EXPECT_EQ(num_bad, 0);
  for (int64_t i = 0; i < num_items; ++i) ASSERT_EQ(counts[i], 1) << i;
}

TEST(ThreadPoolTest, CoversEveryItemOnce) {
  for (int num_threads : {1, 2, 3, 4, 16}) {
    ThreadPool pool(num_threads);
    for (int64_t num_items : {0, 1, 2, 7, 64, 1009}) {
      for (int64_t chunk : {1, 2, 5, 64, 5000}) {
        CheckCoverage(pool, num_items, chunk);
      }
    }
  }
}

TEST(ThreadPoolTest, OneChunkRunsOnTheCaller) {
  ThreadPool pool(4);
  int num_calls = 0;
  pool.ParallelFor(10, 10, [&](int64_t begin, int64_t end, int thread_idx) {
    EXPECT_EQ(begin, 0);
    EXPECT_EQ(end, 10);
    EXPECT_EQ(thread_idx, 0);
    ++num_calls;
  });
  EXPECT_EQ(num_calls, 1);
}

TEST(ThreadPoolTest, WritesOfWorkersAreVisibleToTheCaller) {
  ThreadPool pool(8);  // Oversubscribed on small machines.
  std::vector<int64_t> values(257, 0);
  for (int64_t round = 1; round <= 2000; ++round) {
    pool.ParallelFor(257, 3, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) values[i] += i;
    });
  }
  for (int64_t i = 0; i < 257; ++i) ASSERT_EQ(values[i], 2000 * i);
}

TEST(ThreadPoolTest, TwoThreadsMeetInOneLoop) {
  ThreadPool pool(2);
  // Both chunks must run at once, or neither returns.
  std::atomic<int> num_arrived{0};
  pool.ParallelFor(2, 1, [&](int64_t, int64_t, int) {
    ++num_arrived;
    while (num_arrived.load() < 2) sched_yield();
  });
  EXPECT_EQ(num_arrived, 2);
}

// Two nodes of which the machine knows nothing: threads are not pinned.
ThreadPlacement TwoNodes(int num_threads) {
  ThreadPlacement placement;
  placement.num_threads = num_threads;
  placement.node_ids = {0, 1};
  for (int i = 0; i < num_threads; ++i) placement.nodes.push_back(i % 2);
  return placement;
}

TEST(ThreadPoolTest, ByNodeCoversEveryItemOnce) {
  for (int num_threads : {1, 2, 3, 5}) {
    ThreadPlacement placement = TwoNodes(num_threads);
    if (num_threads == 1) placement.node_ids = {0};
    ThreadPool pool(placement);
    for (int64_t num_items : {0, 1, 2, 3, 64, 1009}) {
      for (int64_t chunk : {1, 2, 5, 64, 5000}) {
        std::vector<int> counts(num_items, 0);
        pool.ParallelForByNode(num_items, chunk,
                               [&](int64_t begin, int64_t end, int) {
                                 ASSERT_EQ(begin % chunk, 0);
                                 ASSERT_LE(end - begin, chunk);
                                 for (int64_t i = begin; i < end; ++i) {
                                   ++counts[i];
                                 }
                               });
        for (int64_t i = 0; i < num_items; ++i) ASSERT_EQ(counts[i], 1) << i;
        CheckCoverage(pool, num_items, chunk);
      }
    }
  }
}

TEST(ThreadPoolTest, StreamsCoverEveryItemOnce) {
  for (int num_threads : {1, 2, 3, 7}) {
    ThreadPool pool(num_threads);
    for (int64_t num_items : {0, 1, 2, 5, 64, 1000}) {
      for (int round = 0; round < 20; ++round) {
        const int64_t max_run = round % 2 == 0 ? 1 : 4;
        std::vector<std::atomic<int>> counts(num_items);
        pool.ParallelForStreams(
            num_items, max_run,
            [&](int64_t begin, int64_t end, int thread_idx) {
              EXPECT_LT(thread_idx, num_threads);
              EXPECT_LE(end - begin, max_run);
              for (int64_t i = begin; i < end; ++i) ++counts[i];
            });
        for (const std::atomic<int>& count : counts) EXPECT_EQ(count, 1);
      }
    }
  }
}

// While all threads wait for each other, each has taken one item: the first of
// its own.
TEST(ThreadPoolTest, StreamsBeginWithItemsOfTheirOwn) {
  ThreadPlacement placement;
  placement.num_threads = 4;
  placement.node_ids = {0, 1};
  placement.nodes = {0, 1, 0, 1};
  ThreadPool pool(placement);
  std::atomic<int> num_started{0};
  std::vector<int64_t> first(4, -1);
  pool.ParallelForStreams(8, 1, [&](int64_t begin, int64_t, int thread_idx) {
    if (first[thread_idx] >= 0) return;
    first[thread_idx] = begin;
    ++num_started;
    while (num_started < 4) sched_yield();
  });
  EXPECT_EQ(first, (std::vector<int64_t>{0, 4, 2, 6}));
}

// One thread stands still with its first item: the others do all the rest.
TEST(ThreadPoolTest, StreamsOfASlowThreadAreTakenOver) {
  ThreadPool pool(3);
  constexpr int64_t kItems = 90;
  std::atomic<int64_t> num_done{0};
  std::atomic<bool> is_held{false};
  pool.ParallelForStreams(kItems, 1, [&](int64_t, int64_t, int thread_idx) {
    if (thread_idx == 0 && !is_held.exchange(true)) {
      while (num_done < kItems - 1) sched_yield();
    }
    ++num_done;
  });
  EXPECT_EQ(num_done, kItems);
}

// The other thread stands still with its first run until this one has done all
// of its own.
TEST(ThreadPoolTest, RunsOfStreamsBecomeShorterTowardsTheEnd) {
  ThreadPool pool(2);
  constexpr int64_t kItems = 64;
  std::atomic<bool> is_held{false};
  std::atomic<int64_t> num_own{0};
  std::vector<int64_t> runs;
  pool.ParallelForStreams(kItems, 4,
                          [&](int64_t begin, int64_t end, int thread_idx) {
                            if (thread_idx == 1) {
                              if (is_held.exchange(true)) return;
                              while (num_own < kItems / 2) sched_yield();
                              return;
                            }
                            while (!is_held) sched_yield();
                            if (num_own == kItems / 2)
                              return;  // Taken from the other.
                            runs.push_back(end - begin);
                            num_own += end - begin;
                          });
  EXPECT_EQ(runs, (std::vector<int64_t>{4, 4, 4, 4, 4, 3, 3, 2, 1, 1, 1, 1}));
}

TEST(ThreadPoolTest, ByNodeEachNodeBeginsWithItsPart) {
  ThreadPool pool(TwoNodes(2));
  // Both threads meet in their first chunks, so neither has helped the other.
  std::atomic<int> num_arrived{0};
  std::vector<int> thread_of(8, -1);
  pool.ParallelForByNode(8, 1, [&](int64_t begin, int64_t, int thread_idx) {
    if (begin % 4 == 0) {
      ++num_arrived;
      while (num_arrived.load() < 2) sched_yield();
    }
    thread_of[begin] = thread_idx;
  });
  EXPECT_EQ(thread_of[0], 0);
  EXPECT_EQ(thread_of[4], 1);
}

TEST(ThreadPoolTest, PinsThreads) {
  const std::vector<int> allowed = AllowedCpus();
  ThreadPlacement placement;
  placement.num_threads = 2;
  placement.node_ids = {0};
  placement.nodes = {0, 0};
  placement.cpus = {allowed.front(), allowed.back()};
  cpu_set_t saved;
  ASSERT_EQ(sched_getaffinity(0, sizeof(saved), &saved), 0);
  {
    ThreadPool pool(placement);
    pool.PinCaller();
    std::atomic<int> num_arrived{0};
    std::vector<std::vector<int>> cpus(2);
    pool.ParallelFor(2, 1, [&](int64_t, int64_t, int thread_idx) {
      ++num_arrived;
      while (num_arrived.load() < 2) sched_yield();
      cpus[thread_idx] = AllowedCpus();
    });
    EXPECT_EQ(cpus[0], std::vector<int>{allowed.front()});
    EXPECT_EQ(cpus[1], std::vector<int>{allowed.back()});
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(saved), &saved), 0);
}

double ProcessCpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return now.tv_sec + now.tv_nsec * 1e-9;
}

TEST(ThreadPoolTest, IdleWorkersUseNoCpu) {
  ThreadPool pool(AvailableCpus());
  CheckCoverage(pool, 64, 1);
  // Once asleep, workers never run: over 200 ms they may use what the spin
  // phase costs (50 us each) and noise, not a tenth of a CPU.
  const double before = ProcessCpuSeconds();
  const timespec pause = {0, 200'000'000};
  nanosleep(&pause, nullptr);
  EXPECT_LT(ProcessCpuSeconds() - before, 0.02);
  CheckCoverage(pool, 64, 1);  // And they wake again.
}

TEST(ThreadPoolTest, SleepersWakeForEveryJob) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    // Longer than the spin phase, so that this meets sleeping workers.
    const timespec pause = {0, 300'000};
    nanosleep(&pause, nullptr);
    std::atomic<int> num_arrived{0};
    pool.ParallelFor(3, 1, [&](int64_t, int64_t, int) {
      ++num_arrived;
      while (num_arrived.load() < 3) sched_yield();
    });
    ASSERT_EQ(num_arrived, 3);
  }
}

}  // namespace
}  // namespace quire
