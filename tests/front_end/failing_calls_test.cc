#include "tests/front_end/failing_calls.h"

#include "gtest/gtest.h"
#include "tests/front_end/expect_figures.h"
#include "tests/front_end/sanitized.h"

namespace quire {
namespace {

constexpr char kHashServer[] = "tests/front_end/hash_server";

class FailingCallsTest : public testing::Test {
 protected:
  void SetUp() override {
    // What is preloaded stands before the sanitizer's own calls.
    if (kIsSanitized) GTEST_SKIP() << "a sanitizer takes the calls itself";
  }
};

// Some of them; tools/soak.sh has all.
TEST_F(FailingCallsTest, Allocations) {
  ExpectFigures(RunFailingCalls(FaultKind::kAllocations, 23, 7, kHashServer));
}

TEST_F(FailingCallsTest, SystemCalls) {
  ExpectFigures(RunFailingCalls(FaultKind::kSystemCalls, 1, 0, kHashServer));
}

}  // namespace
}  // namespace quire
