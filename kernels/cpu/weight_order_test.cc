#include "kernels/cpu/weight_order.h"

#include <set>

#include "gtest/gtest.h"

namespace quire {
namespace {

class WeightOrderTest : public testing::Test {
 protected:
  // The first start of what Begin returns for `weight`, null for nothing.
  const char* Next(const char& weight) {
    const WeightOrder::Fetch& fetch = order_.Begin(&weight, [&] {
      EXPECT_TRUE(known_.insert(&weight).second);  // Once.
      return WeightOrder::Fetch{{&weight, nullptr}, 1 << 30};
    });
    if (fetch.starts.empty()) return nullptr;
    EXPECT_EQ(fetch.starts.size(), 2u);
    EXPECT_GT(fetch.num_bytes, 0);
    EXPECT_LT(fetch.num_bytes, 1 << 20);  // Fits into L2.
    return fetch.starts[0];
  }

  WeightOrder order_;
  std::set<const char*> known_;
  const char weights_[4] = {};
};

TEST_F(WeightOrderTest, RepeatsTheLastOrder) {
  const char &a = weights_[0], &b = weights_[1], &c = weights_[2];
  for (const char* w : {&a, &b, &c}) EXPECT_EQ(Next(*w), nullptr);
  for (int step = 0; step < 2; ++step) {
    EXPECT_EQ(Next(a), &b);
    EXPECT_EQ(Next(b), &c);
    EXPECT_EQ(Next(c), &a);  // The next step begins again.
  }
  // Another order replaces it.
  EXPECT_EQ(Next(a), &b);
  EXPECT_EQ(Next(c), &a);
  EXPECT_EQ(Next(a), &c);
}

TEST_F(WeightOrderTest, InterruptedSequencesAreNotJoined) {
  const char &a = weights_[0], &b = weights_[1];
  EXPECT_EQ(Next(a), nullptr);
  order_.Interrupt();
  EXPECT_EQ(Next(b), nullptr);
  order_.Interrupt();
  EXPECT_EQ(Next(a), nullptr);
  EXPECT_EQ(Next(b), nullptr);
  order_.Interrupt();
  EXPECT_EQ(Next(a), &b);
}

}  // namespace
}  // namespace quire
