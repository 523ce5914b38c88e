// Of memory_budget.h and heap_returner.h.
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "server/heap_returner.h"
#include "server/memory_budget.h"

namespace quire {
namespace {

TEST(MemoryBudgetTest, GivesWhatIsThere) {
  MemoryBudget budget(100);
  {
    const auto first = budget.TryReserve(60);
    EXPECT_TRUE(first);
    EXPECT_FALSE(budget.TryReserve(50));
    const auto second = budget.TryReserve(40);
    EXPECT_TRUE(second);
    EXPECT_EQ(budget.use(), 1);
    EXPECT_FALSE(budget.TryReserve(1));
  }
  EXPECT_EQ(budget.use(), 0);
  // Alone, anything.
  auto large = budget.TryReserve(1000);
  EXPECT_TRUE(large);
  EXPECT_FALSE(budget.TryReserve(1));
  large = MemoryBudget::Reservation();
  EXPECT_TRUE(budget.TryReserve(1));
}

TEST(MemoryBudgetTest, ThreadsTogetherNeverHaveMore) {
  MemoryBudget budget(10);
  std::atomic<int> num_held{0}, max_held{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10000; ++i) {
        const auto reservation = budget.TryReserve(4);
        if (!reservation) continue;
        const int held = ++num_held;
        int seen = max_held;
        while (held > seen && !max_held.compare_exchange_weak(seen, held)) {
        }
        --num_held;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(max_held, 2);
  EXPECT_EQ(budget.use(), 0);
}

TEST(HeapReturnerTest, TrimsOnceAfterABurst) {
  int num_trims = 0;
  HeapReturner returner([&] { ++num_trims; });
  absl::Time now = absl::UnixEpoch();
  const auto poll = [&](int64_t num_requests, int seconds) {
    for (int i = 0; i < 4 * seconds; ++i) {
      now += absl::Milliseconds(250);
      returner.Poll(now, num_requests, /*num_answers=*/0);
    }
  };
  poll(3, 100);
  EXPECT_EQ(num_trims, 0);  // No burst.
  poll(100, 10);
  EXPECT_EQ(num_trims, 0);  // It lasts.
  poll(20, 1);
  EXPECT_EQ(num_trims, 0);  // Perhaps a pause.
  poll(90, 1);
  poll(20, 10);
  EXPECT_EQ(num_trims, 1);
  poll(20, 100);
  EXPECT_EQ(num_trims, 1);
  poll(0, 100);
  EXPECT_EQ(num_trims, 2);
  poll(0, 100);
  EXPECT_EQ(num_trims, 2);
}

TEST(HeapReturnerTest, TrimsOnceWhenNothingComesAnyMore) {
  int num_trims = 0;
  HeapReturner returner([&] { ++num_trims; });
  absl::Time now = absl::UnixEpoch();
  const auto poll = [&](int64_t num_answers) {
    now += absl::Milliseconds(250);
    returner.Poll(now, /*num_requests=*/0, num_answers);
  };
  for (int i = 0; i < 100; ++i) poll(0);
  EXPECT_EQ(num_trims, 0);  // Nothing has come yet.
  for (int i = 1; i <= 100; ++i) poll(i);
  EXPECT_EQ(num_trims, 0);
  for (int i = 0; i < 7; ++i) poll(100);
  EXPECT_EQ(num_trims, 0);  // Perhaps a pause.
  for (int i = 0; i < 100; ++i) poll(100);
  EXPECT_EQ(num_trims, 1);
  poll(101);
  for (int i = 0; i < 100; ++i) poll(101);
  EXPECT_EQ(num_trims, 2);
}

int64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t num_virtual = 0, num_resident = 0;
  statm >> num_virtual >> num_resident;
  return num_resident * sysconf(_SC_PAGESIZE);
}

TEST(HeapReturnerTest, MallocTrimReturnsWhatABurstTook) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "another allocator";
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  GTEST_SKIP() << "another allocator";
#endif
#endif
  const int64_t before = ResidentBytes();
  // 64 MiB in pieces; the last one stays and holds the top of the heap.
  std::vector<std::unique_ptr<char[]>> pieces;
  for (int i = 0; i < 1024; ++i) {
    pieces.push_back(std::make_unique<char[]>(64 << 10));
    std::memset(pieces.back().get(), 1, 64 << 10);
  }
  const int64_t peak = ResidentBytes();
  EXPECT_GT(peak - before, 50 << 20);
  pieces.erase(pieces.begin(), pieces.end() - 1);
  HeapReturner returner([] { malloc_trim(0); });
  returner.Poll(absl::UnixEpoch(), 100, 0);
  returner.Poll(absl::UnixEpoch(), 0, 0);
  returner.Poll(absl::UnixEpoch() + HeapReturner::kCalm, 0, 0);
  EXPECT_LT(ResidentBytes() - before, 16 << 20);
}

}  // namespace
}  // namespace quire
