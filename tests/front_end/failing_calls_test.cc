#include "tests/front_end/failing_calls.h"

#include "gtest/gtest.h"
#include "tests/front_end/expect_figures.h"

namespace quire {
namespace {

constexpr char kHashServer[] = "tests/front_end/hash_server";

// Some of them; tools/soak.sh has all.
TEST(FailingCallsTest, Allocations) {
  ExpectFigures(RunFailingCalls(FaultKind::kAllocations, 23, 7, kHashServer));
}

TEST(FailingCallsTest, SystemCalls) {
  ExpectFigures(RunFailingCalls(FaultKind::kSystemCalls, 1, 0, kHashServer));
}

}  // namespace
}  // namespace quire
