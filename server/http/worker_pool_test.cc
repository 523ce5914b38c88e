#include "server/http/worker_pool.h"

#include <atomic>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "server/http/test_client.h"

namespace quire {
namespace {

PendingRequest Request(const std::string& body) {
  PendingRequest request;
  request.body = body;
  return request;
}

TEST(WorkerPoolTest, RefusesWhatTheQueueCannotHold) {
  std::atomic<bool> goes_on{false};
  std::atomic<int> num_begun{0};
  WorkerPool pool(2, [&](PendingRequest) {
    ++num_begun;
    EXPECT_TRUE(WaitUntil([&] { return goes_on.load(); }));
  });
  ASSERT_TRUE(pool.Start(1).ok());
  EXPECT_TRUE(pool.Submit(Request("a")));
  ASSERT_TRUE(WaitUntil([&] { return num_begun == 1; }));
  EXPECT_TRUE(pool.Submit(Request("b")));
  EXPECT_TRUE(pool.Submit(Request("c")));
  EXPECT_FALSE(pool.Submit(Request("d")));
  goes_on = true;
  EXPECT_TRUE(WaitUntil([&] { return num_begun == 3; }));
  EXPECT_TRUE(pool.Submit(Request("e")));
}

TEST(WorkerPoolTest, StopDropsTheQueueAndWaitsForTheRest) {
  std::atomic<bool> goes_on{false};
  std::atomic<int> num_begun{0};
  std::atomic<int> num_ended{0};
  WorkerPool pool(1 << 20, [&](PendingRequest) {
    ++num_begun;
    EXPECT_TRUE(WaitUntil([&] { return goes_on.load(); }));
    ++num_ended;
  });
  ASSERT_TRUE(pool.Start(1).ok());
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(pool.Submit(Request("x")));
  ASSERT_TRUE(WaitUntil([&] { return num_begun == 1; }));
  std::thread stopper([&] { pool.Stop(); });
  // With room for any number, a refusal means that Stop has begun.
  EXPECT_TRUE(WaitUntil([&] { return !pool.Submit(Request("late")); }));
  goes_on = true;
  stopper.join();
  EXPECT_EQ(num_begun, 1);
  EXPECT_EQ(num_ended, 1);
  EXPECT_FALSE(pool.Submit(Request("later")));
}

}  // namespace
}  // namespace quire
