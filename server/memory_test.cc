// Of memory_budget.h and heap_returner.h.
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <memory>
#include <thread>
#include <utility>
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

constexpr bool HasAllocatorOfItsOwn() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  return true;
#endif
#endif
  return false;
}

// Those of a request that another thread handled: its heap's end is not
// malloc_trim's to give back.
TEST(HeapReturnerTest, SmallPiecesOfAThreadGoBack) {
  if (HasAllocatorOfItsOwn()) GTEST_SKIP() << "another allocator";
  LimitFreeMemory();
  // Nothing but the pieces may be allocated there: what waits for is an atomic.
  enum Stage { kBegun, kFull, kFree, kFreed, kEnd };
  std::atomic<Stage> stage{kBegun};
  const auto go_to = [&stage](Stage next) {
    stage = next;
    stage.notify_all();
  };
  const int64_t before = ResidentBytes();
  std::thread worker([&] {
    // As the nodes of a tree; the last one is freed at the end of the heap.
    struct Piece {
      std::unique_ptr<Piece> next;
      char data[56] = {};
    };
    std::unique_ptr<Piece> pieces;
    std::unique_ptr<Piece>* end = &pieces;
    for (int i = 0; i < 200'000; ++i) {
      *end = std::make_unique<Piece>();
      end = &(*end)->next;
    }
    go_to(kFull);
    stage.wait(kFull);
    while (pieces != nullptr) pieces = std::exchange(pieces->next, nullptr);
    go_to(kFreed);
    stage.wait(kFreed);
  });
  stage.wait(kBegun);
  const int64_t peak = ResidentBytes();
  go_to(kFree);
  stage.wait(kFree);
  malloc_trim(0);
  const int64_t after = ResidentBytes();
  go_to(kEnd);
  worker.join();
  EXPECT_GT(peak - before, 12 << 20);
  EXPECT_LT(after - before, 1 << 20);
}

TEST(HeapReturnerTest, MallocTrimReturnsWhatABurstTook) {
  if (HasAllocatorOfItsOwn()) GTEST_SKIP() << "another allocator";
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
